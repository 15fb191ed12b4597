"""Is a frozen graph sparse? Read from its weights, never from a stored mask."""

from __future__ import annotations

from typing import Any

import attrs

from sparsekit.config import PruneConfig
from sparsekit.errors import RecordError, near_matches
from sparsekit.graph.node import ProtoGraph
from sparsekit.pattern import Pattern, check
from sparsekit.planning import LayerDecision, Planning, make_plan
from sparsekit.plugins import Registry
from sparsekit.record import Record
from sparsekit.table import text_table


@attrs.frozen
class LayerVerification:
    """What the weights of one layer say.

    Attributes:
        name, op_type, shape, axis, pattern: as in the plan.
        ok: every group follows the pattern and every value is finite.
        groups: groups along the axis, a shorter one at its end included.
        violations: groups with too many non-zeros.
        density: non-zeros / size; NaN where no weights could be read.
        finite: neither NaN nor infinity.
        message: what is wrong, "" if nothing is.
    """

    name: str
    op_type: str
    shape: tuple[int, ...] | None
    axis: int | None
    pattern: Pattern
    ok: bool
    groups: int = 0
    violations: int = 0
    density: float = float("nan")
    finite: bool = False
    message: str = ""


@attrs.frozen
class Verification:
    """The layers that should be sparse, each with what its weights say. Prints as a table.

    Attributes:
        layers: those looked at.
        skipped: layers that no pattern was expected of, with the reason.
    """

    layers: tuple[LayerVerification, ...]
    skipped: tuple[LayerDecision, ...] = ()

    @property
    def ok(self) -> bool:
        """All layers are sparse. With no layer to look at, nothing was shown: False."""
        return bool(self.layers) and all(layer.ok for layer in self.layers)

    def summary(self) -> str:
        """One sentence."""
        if not self.layers:
            return "Could not tell: no layer was found that should be sparse."
        bad = [layer.name for layer in self.layers if not layer.ok]
        if bad:
            return f"NOT sparse: {len(bad)} of {len(self.layers)} layers fail ({', '.join(bad[:5])})."
        return f"Sparse: all {len(self.layers)} layers follow their pattern."

    def __str__(self) -> str:
        rows = [
            (
                layer.name,
                layer.op_type,
                "-" if layer.shape is None else "x".join(map(str, layer.shape)),
                "-" if layer.axis is None else layer.axis,
                layer.pattern,
                layer.groups,
                layer.violations,
                f"{layer.density:.4f}",
                "ok" if layer.ok else layer.message,
            )
            for layer in self.layers
        ]
        header = ("layer", "op", "shape", "axis", "pattern", "groups", "violating", "density", "verdict")
        table = text_table(header, [[str(cell) for cell in row] for row in rows]) if rows else ""
        dense = "".join(f"\n  {d.name}: {d.reason}" for d in self.skipped)
        return f"{table}{self.summary()}{' Not looked at:' + dense if dense else ''}"


def verify_graph(
    graph_def: Any,
    registry: Registry,
    *,
    record: Record | None = None,
    config: PruneConfig | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Verification:
    """Check the weights of a frozen graph.

    Args:
        graph_def: the frozen GraphDef.
        registry: the plugins.
        record: the layers that should be sparse. Without one: those that ``config`` would prune.
        config: None for 2:4 everywhere.
        outputs: look only at what lies behind these operations.

    Raises:
        RecordError: the record names a layer that the graph does not have, or another shape.
    """
    planning = make_plan(ProtoGraph(graph_def), config or PruneConfig(), outputs, registry)
    expected = _recorded(planning, record) if record else _planned(planning)
    names = {decision.name for decision, _ in expected}
    return Verification(
        layers=tuple(_look_at(decision, pattern, planning) for decision, pattern in expected),
        skipped=tuple(d for d in planning.plan.skipped if d.name not in names),
    )


def _planned(planning: Planning) -> list[tuple[LayerDecision, Pattern]]:
    # A layer that still has its mask ops is not deployable yet, so it must not go unseen.
    return [
        (decision, decision.pattern or Pattern(2, 4))
        for decision in planning.plan.decisions
        if decision.pruned or decision.reason == "already-masked"
    ]


def _recorded(planning: Planning, record: Record) -> list[tuple[LayerDecision, Pattern]]:
    decisions = {name: decision for decision in planning.plan.decisions for name in decision.uses}
    found = []
    for entry in record.layers:
        decision = decisions.get(entry.name)
        if decision is None:
            raise RecordError(
                f"names the layer '{entry.name}', which is not in the model",
                where=record.source,
                expected="the record that was written when this very model was pruned",
                hint=near_matches(entry.name, decisions),
            )
        if decision.shape is not None and decision.shape != entry.shape:
            raise RecordError(
                f"gives '{entry.name}' the shape {list(entry.shape)}, in the model it is {list(decision.shape)}",
                where=record.source,
                expected="the record that was written when this very model was pruned",
            )
        found.append((decision, entry.pattern))
    return found


def _look_at(decision: LayerDecision, pattern: Pattern, planning: Planning) -> LayerVerification:
    fields = {name: getattr(decision, name) for name in ("name", "op_type", "shape", "axis")}
    site = planning.sites.get(decision.name)
    if site is None:
        return LayerVerification(**fields, pattern=pattern, ok=False, message=decision.message)
    weight = site.source.read.value()
    if weight is None:
        return LayerVerification(
            **fields,
            pattern=pattern,
            ok=False,
            message=f"{decision.name}: its weight '{site.source.name}' is a variable; freeze the graph first.",
        )
    found = check(weight, site.source.axis, pattern)
    message = ""
    if found.violations:
        message = f"{found.violations} of {found.groups} groups hold more than {pattern.n} non-zeros"
    if not found.finite:
        message += f"{', ' if message else ''}NaN or infinity in '{site.source.name}'"
    return LayerVerification(
        **fields,
        pattern=pattern,
        ok=not message,
        groups=found.groups,
        violations=found.violations,
        density=found.density,
        finite=found.finite,
        message=message,
    )
