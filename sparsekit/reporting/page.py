"""A report as one HTML page that needs nothing else: no script, no network, no font."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.resources import files

import sparsekit
from sparsekit.planning import LayerDecision
from sparsekit.reporting.facts import Estimate, GroupFacts, LayerFacts, Report
from sparsekit.reporting.markup import Markup, element, joined
from sparsekit.reporting.numerals import count, quantity, ratio, short
from sparsekit.reporting.page_calibration import calibration, sensitivity
from sparsekit.reporting.page_layers import layer_list
from sparsekit.reporting.page_parts import (
    anchor,
    change,
    histogram,
    judged,
    layers_in_words,
    multiply_adds,
    name,
    number,
    percent,
    standing,
    table,
    table_head,
    table_row,
    weights,
)
from sparsekit.target import TargetProfile


def page(report: Report) -> str:
    """The report as an HTML document, well-formed XML too. The same report gives the same text.

    Numbers stand in ``<data>`` elements whose ``value`` is not rounded.
    """
    style = (files("sparsekit.reporting") / "page.css").read_text(encoding="utf-8")
    document = element("html", _head(report.source, style), _body(report), lang="en", dir="ltr")
    return f"<!DOCTYPE html>\n{document}\n"


def _head(source: str, style: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Whatever a hostile name might smuggle in, the browser loads nothing and runs nothing.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{source} - sparsekit report"),
        element("style", Markup(style)),
    )


def _body(report: Report) -> Markup:
    contents = {
        "Target": _target(report.plan.target, report.plan.pruned),
        "Estimates": _estimates(report.estimates),
        "Sensitivity": sensitivity(report),
        "Calibration": calibration(report),
        "Non-zeros per group": _groups(report.layers),
        "Left dense, and why": _left_dense(report.layers),
        "Layer by layer": layer_list(report.layers, report.accounts) if report.layers else joined(),
    }
    sections = [(f"section-{i}", title, content) for i, (title, content) in enumerate(contents.items()) if content]
    links = (element("li", element("a", title, href=f"#{id_}")) for id_, title, _ in sections)
    return element(
        "body",
        element("header", element("p", "sparsekit report", class_="eyebrow"), element("h1", name(report.source))),
        element(
            "main",
            element("p", report.plan.summary(), class_="lead"),
            _tiles(report),
            element("p", report.plan.hint(), class_="hint") if report.plan.worth_leaving_dense else "",
            element("nav", element("ul", *links), aria_label="Sections"),
            *(element("section", element("h2", title), content, id=id_) for id_, title, content in sections),
        ),
        element("footer", element("p", f"Made by sparsekit {sparsekit.__version__}.")),
    )


# The summary


def _tiles(report: Report) -> Markup:
    totals, plan = report.totals, report.plan
    unknown = totals.multiply_adds_unknown
    return element(
        "dl",
        _tile("Layers pruned", _of(len(plan.pruned), len(plan.decisions))),
        _covered("Weights covered", totals.weights_pruned, totals.weights),
        _tile(
            "Density",
            change(totals.density, totals.density_planned),
            "of all weights found, as stored and after pruning",
        ),
        _covered(
            "Multiply-adds covered",
            totals.multiply_adds_pruned,
            totals.multiply_adds,
            f", for one example{f'; {layers_in_words(unknown)} not known' if unknown else ''}",
        ),
        _eligible(plan.pruned) if plan.target else "",
        class_="tiles",
    )


def _tile(title: str, figure: str, remark: str = "") -> Markup:
    return element(
        "div",
        element("dt", title),
        element("dd", figure, class_="figure"),
        element("dd", remark, class_="remark") if remark else "",
    )


def _of(part: int, whole: int) -> Markup:
    return joined(number(part), " of ", number(whole))


def _covered(title: str, part: int, whole: int, remark: str = "") -> Markup:
    covered = percent(part / whole if whole else None)
    return _tile(title, covered, joined(number(part, short), " of ", number(whole, short), remark))


def _eligible(pruned: Sequence[LayerDecision]) -> Markup:
    verdicts = [decision.verdict for decision in pruned if decision.verdict and decision.verdict.eligible]
    conditional = sum(bool(verdict.conditions) for verdict in verdicts)
    remark = f", {count(conditional)} of them on conditions" if conditional else ""
    return _tile("Eligible on the target", _of(len(verdicts), len(pruned)), f"of the pruned layers{remark}")


# The target and the estimates


def _target(target: TargetProfile | None, pruned: Sequence[LayerDecision]) -> Markup:
    if target is None:
        return element("p", "No target was named, so there is no verdict on any layer.", class_="muted")
    gain = f"Gains from {' and '.join(target.patterns)}." if target.gains else f"No gain from {_patterns(pruned)}."
    return joined(
        element("h3", target.title, " ", element("span", f"{target.vendor}, {target.name}", class_="muted")),
        element("p", element("strong", gain), " ", target.reason),
        _rules(pruned),
        element("h3", "Sources"),
        element("ul", *(element("li", source) for source in target.sources), class_="sources"),
    )


def _patterns(pruned: Sequence[LayerDecision]) -> str:
    return " and ".join(dict.fromkeys(str(decision.pattern) for decision in pruned)) or "n:m sparsity"


def _rules(pruned: Sequence[LayerDecision]) -> Markup:
    """How the pruned layers stand, and every rule that one of them breaks or has yet to meet, with its source."""
    verdicts = [decision.verdict for decision in pruned if decision.verdict]
    if not verdicts:
        return joined()
    standings = Counter(map(standing, verdicts))
    found = Counter((outcome, rule.message, rule.source) for verdict in verdicts for outcome, rule in judged(verdict))
    rows = [
        (joined(element("span", outcome, class_="chip"), " ", message), source, number(layers))
        for (outcome, message, source), layers in found.items()
    ]
    return joined(
        element(
            "p",
            f"Of {layers_in_words(len(verdicts), 'pruned ')}: "
            + ", ".join(f"{count(standings[key])} {key}" for key in sorted(standings))
            + ".",
        ),
        table("What layers do not meet, or meet only at conversion", ("rule", "source", "layers"), rows)
        if rows
        else "",
    )


def _estimates(estimates: Sequence[Estimate]) -> Markup:
    if not estimates:
        return joined()
    rows = [
        (
            estimate.source,
            estimate.quantity,
            number(estimate.dense, quantity),
            number(estimate.pruned, quantity),
            number(estimate.pruned / estimate.dense if estimate.dense else None, ratio),
        )
        for estimate in estimates
    ]
    return table(
        "The dense and the pruned model, by the sources named; none of the figures is sparsekit's own",
        ("source", "quantity", "dense", "pruned", "pruned / dense"),
        rows,
    )


# The groups


def _groups(layers: Sequence[LayerFacts]) -> Markup:
    """The histograms of all layers, added up for every length of groups."""
    if not layers:
        return joined()
    stored, planned = _added(layer.stored for layer in layers), _added(layer.planned for layer in layers)
    read = sum(bool(layer.stored or layer.planned) for layer in layers)
    over = f"all {count(read)} layers" if read == len(layers) else f"the {count(read)} of {len(layers):,} layers read"
    return joined(
        element(
            "p",
            f"How many weights of a group are not zero, over {over}, those left dense included."
            if read
            else "Not known: no weight could be read.",
            class_="muted",
        ),
        *(
            histogram(f"Groups of {m}", stored.get(m, ()), planned.get(m, ()))
            for m in sorted(stored.keys() | planned.keys())
        ),
    )


def _added(facts: Iterable[GroupFacts | None]) -> dict[int, tuple[int, ...]]:
    """m -> the sum of all histograms of groups of m."""
    sums: dict[int, tuple[int, ...]] = {}
    for groups in facts:
        if groups is not None:
            m = len(groups.histogram) - 1
            sums[m] = tuple(map(sum, zip(sums.get(m, (0,) * (m + 1)), groups.histogram, strict=True)))
    return sums


# The layers left dense


def _left_dense(layers: Sequence[LayerFacts]) -> Markup:
    """A table with a group of rows for every reason code, in the order in which they first occur."""
    reasons: dict[str, list[tuple[int, LayerFacts]]] = defaultdict(list)
    for place, layer in enumerate(layers):
        if not layer.decision.pruned:
            reasons[layer.decision.reason].append((place, layer))
    if not reasons:
        return element("p", "No layer: all are pruned.", class_="muted") if layers else joined()
    columns = ("layer", "weights", "multiply-adds", "why")
    return element(
        "table",
        element("caption", "Layers that stay as they are, by reason"),
        table_head(columns),
        *(
            element(
                "tbody",
                _reason_row(reason, len(members), len(columns)),
                *(table_row(columns, _dense_cells(place, layer)) for place, layer in members),
            )
            for reason, members in reasons.items()
        ),
        class_="dense",
    )


def _reason_row(reason: str, layers: int, columns: int) -> Markup:
    title = joined(element("code", reason), " ", element("span", layers_in_words(layers), class_="muted"))
    return element("tr", element("th", title, scope="rowgroup", colspan=columns), class_="reason")


def _dense_cells(place: int, layer: LayerFacts) -> tuple[Markup, Markup, Markup, str]:
    link = element("a", name(layer.decision.name), href=f"#{anchor(place)}", class_="clamped")
    return link, weights(layer, short), multiply_adds(layer, short), layer.decision.message
