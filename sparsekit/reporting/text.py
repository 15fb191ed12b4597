"""A report for a terminal, and as JSON."""

from __future__ import annotations

from typing import Any

import attrs

from sparsekit.planning import first_cells, why
from sparsekit.reporting.facts import GroupFacts, LayerFacts, Report
from sparsekit.result import accounts_table
from sparsekit.table import plain, text_table, to_json

_HEADER = ("layer", "op", "shape", "axis", "status", "reason", "groups", "density", "retained", "work", "why")


def text(report: Report, width: int | None = None) -> str:
    """The layers as a table, folded to ``width`` columns if one is given, then the totals in sentences."""
    whole = report.totals.multiply_adds
    rows = [_row(layer, whole) for layer in report.layers]
    table = text_table(_HEADER, rows, width) if rows else ""
    target = report.plan.target
    lines = [
        report.plan.summary(),
        *filter(None, [report.plan.hint()]),
        *_totals(report),
        *(f"{e.source}: {e.dense:,.0f} {e.quantity} dense, {e.pruned:,.0f} pruned." for e in report.estimates),
        *([f"Target: {target.title}. {target.reason}"] if target else []),
        *([accounts_table(report.accounts).rstrip()] if report.accounts else []),
        *([f"{report.sensitivity.table(width)}{report.sensitivity.summary()}"] if report.sensitivity else []),
    ]
    return table + "\n".join(lines)


def report_json(report: Report) -> str:
    """One JSON document: summary, totals, target, estimates, accounts, sensitivity, every decision with its facts."""
    decisions = []
    for layer in report.layers:
        facts = {field.name: getattr(layer, field.name) for field in attrs.fields(LayerFacts)[1:]}
        decisions.append({**plain(layer.decision), **plain(facts)})
    return to_json(
        {
            "source": report.source,
            "summary": report.plan.summary(),
            "totals": report.totals,
            "worth_leaving_dense": report.plan.worth_leaving_dense,
            "target": report.plan.target,
            "estimates": report.estimates,
            "accounts": report.accounts,
            "sensitivity": report.sensitivity,
            "decisions": decisions,
        }
    )


def _row(layer: LayerFacts, whole: int) -> tuple[str, ...]:
    decision = layer.decision
    return (
        *first_cells(decision),
        _groups(layer),
        _density(layer.stored, layer.planned),
        "-" if layer.retained is None or not decision.pruned else f"{layer.retained:.1%}",
        "-" if layer.multiply_adds is None or not whole else f"{layer.multiply_adds / whole:.1%}",
        why(decision),
    )


def _groups(layer: LayerFacts) -> str:
    """How many groups there are; "+1 of 3" per run where the axis ends in a shorter one."""
    decision = layer.decision
    if layer.stored is None:
        return "-"
    tail = decision.shape[decision.axis] % decision.pattern.m if _located(layer) else 0  # type: ignore[index,union-attr]
    return f"{layer.stored.groups:,}" + (f" (last of {tail})" if tail else "")


def _located(layer: LayerFacts) -> bool:
    decision = layer.decision
    return decision.shape is not None and decision.axis is not None and decision.pattern is not None


def _density(stored: GroupFacts | None, planned: GroupFacts | None) -> str:
    if stored is None or planned is None:
        return "-"
    return f"{stored.density:.2f}" + ("" if planned == stored else f" -> {planned.density:.2f}")


def _totals(report: Report) -> list[str]:
    totals = report.totals
    if not totals.weights:
        return []
    lines = [f"Weights: {totals.weights_pruned:,} of {totals.weights:,} are covered ({_share(totals)})."]
    if totals.density is not None and totals.density_planned is not None:
        lines.append(f"Density of all layers: {totals.density:.3f} as stored, {totals.density_planned:.3f} as planned.")
    if totals.multiply_adds:
        unknown = totals.multiply_adds_unknown
        lines.append(
            f"Multiply-adds: {totals.multiply_adds_pruned:,} of {totals.multiply_adds:,} for one example are in pruned "
            f"layers ({totals.multiply_adds_pruned / totals.multiply_adds:.1%})"
            + (f"; of {unknown} layers they are not known before the model runs." if unknown else ".")
        )
    elif totals.multiply_adds_unknown:
        lines.append("Multiply-adds: not known before the model runs.")
    return lines


def _share(totals: Any) -> str:
    return f"{totals.weights_pruned / totals.weights:.1%}"
