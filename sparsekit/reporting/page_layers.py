"""The list of layers on the page: a row each, its details folded below."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekit.planning import LayerDecision
from sparsekit.reporting.facts import LayerFacts
from sparsekit.reporting.markup import Markup, element, joined
from sparsekit.reporting.numerals import UNKNOWN, count, known, share, short
from sparsekit.reporting.page_calibration import account_facts
from sparsekit.reporting.page_parts import (
    anchor,
    change,
    density,
    histogram,
    judged,
    multiply_adds,
    name,
    number,
    percent,
    standing,
    violations,
    weights,
)
from sparsekit.reporting.pictures import bar, mask_picture
from sparsekit.result import LayerAccount

_COLUMNS = ("layer", "density", "retained |w|", "multiply-adds", "decision")


def layer_list(layers: Sequence[LayerFacts], accounts: Sequence[LayerAccount] = ()) -> Markup:
    """All layers in their order, under the heads of the columns and a legend; calibration is in the details."""
    by_name = {account.name: account for account in accounts}
    return joined(
        element(
            "p",
            *(
                element("span", element("span", class_=f"swatch {kind}"), f" {meaning}")
                for kind, meaning in (
                    ("kept", "non-zero after pruning"),
                    ("removed", "removed"),
                    ("neutral", "left dense"),
                )
            ),
            element("span", "Open a layer for its groups and a corner of its mask."),
            class_="legend muted",
        ),
        element(
            "div",
            *(element("span", column, class_="figures" if column == "multiply-adds" else None) for column in _COLUMNS),
            class_="columns",
            aria_hidden="true",
        ),
        element(
            "ol",
            *(_layer(place, layer, by_name.get(layer.decision.name)) for place, layer in enumerate(layers)),
            class_="layers",
        ),
    )


def _layer(place: int, layer: LayerFacts, account: LayerAccount | None) -> Markup:
    decision = layer.decision
    return element(
        "li",
        element(
            "details",
            element(
                "summary",
                element(
                    "span",
                    element("span", name(decision.name), class_="clamped"),
                    element("span", f"{decision.op_type} {_shape(decision)}", class_="muted"),
                    class_="what",
                ),
                _cell("density", _density_bar(layer)),
                _cell("retained |w|", _retained_bar(layer)),
                _cell("multiply-adds", multiply_adds(layer, short), "figures"),
                _cell("decision", _decision(decision)),
            ),
            element("div", _details(layer, account), class_="details"),
        ),
        id=anchor(place),
        class_="pruned" if decision.pruned else "skipped",
    )


def _cell(label: str, content: Markup, kind: str = "") -> Markup:
    """Named by the head of its column on a wide screen, by its own label on a narrow one."""
    return element("span", element("span", label, class_="label"), " ", content, class_=f"cell {kind}".rstrip())


def _density_bar(layer: LayerFacts) -> Markup:
    stored, planned = density(layer.stored), density(layer.planned)
    if stored is None and planned is None:
        return _unknown()
    if not layer.decision.pruned:
        return _bar_and_figure(f"density {share(stored)}", share(stored), ("neutral", stored))
    return _bar_and_figure(
        f"density {share(stored)} as stored, {share(planned)} after pruning",
        f"{share(stored)} → {share(planned)}",
        ("removed", stored),
        ("kept", planned),
    )


def _retained_bar(layer: LayerFacts) -> Markup:
    if not known(layer.retained):
        return _unknown()
    figure = share(layer.retained)
    kind = "kept" if layer.decision.pruned else "neutral"
    return _bar_and_figure(f"{figure} of the sum of |w| retained", figure, (kind, layer.retained))


def _bar_and_figure(label: str, figure: str, *parts: tuple[str, float | None]) -> Markup:
    return joined(bar(label, *parts), element("span", figure, class_="beside"))


def _unknown() -> Markup:
    return element("span", UNKNOWN, class_="muted")


def _decision(decision: LayerDecision) -> Markup:
    if not decision.pruned:
        return joined(element("span", "dense", class_="chip"), " ", element("span", decision.reason, class_="muted"))
    chip = element("span", str(decision.pattern), class_="chip accented")
    if decision.verdict is None:
        return chip
    muted = None if decision.verdict.eligible else "muted"
    return joined(chip, " ", element("span", standing(decision.verdict), class_=muted))


def _details(layer: LayerFacts, account: LayerAccount | None) -> Markup:
    return joined(
        element("p", layer.decision.message),
        element("p", f"Not all is known: {layer.note}", class_="note") if layer.note else "",
        _verdict(layer.decision),
        _facts(layer),
        account_facts(account) if account else "",
        _uses(layer.decision.uses),
        element("div", _groups(layer), _mask(layer), class_="pictures"),
    )


def _verdict(decision: LayerDecision) -> Markup:
    verdict = decision.verdict
    if verdict is None:
        return joined()
    rules = [
        element("li", f"{outcome}: {rule.message} ", element("span", f"Source: {rule.source}", class_="muted"))
        for outcome, rule in judged(verdict)
    ]
    return joined(
        element("p", "On the target: ", element("strong", standing(verdict)), "."),
        element("ul", *rules, class_="rules") if rules else "",
    )


def _facts(layer: LayerFacts) -> Markup:
    decision = layer.decision
    facts = {
        "name": name(decision.name),
        "operation": decision.op_type,
        "weight": name(decision.weight) if decision.weight else UNKNOWN,
        "shape": _shape(decision),
        "dtype": decision.dtype or UNKNOWN,
        "group axis": number(decision.axis),
        "pattern": str(decision.pattern) if decision.pattern else UNKNOWN,
        "criterion": decision.criterion or UNKNOWN,
        "weights": weights(layer),
        "density": change(density(layer.stored), density(layer.planned)),
        "retained |w|": percent(layer.retained),
        "multiply-adds": multiply_adds(layer),
        "groups over the pattern": change(violations(layer.stored), violations(layer.planned), count),
    }
    return element(
        "dl",
        *(element("div", element("dt", title), element("dd", fact)) for title, fact in facts.items()),
        class_="facts",
    )


def _shape(decision: LayerDecision) -> str:
    if decision.shape is None:
        return f"shape {UNKNOWN}"
    return " × ".join(map(str, decision.shape)) or "scalar"


def _uses(uses: Sequence[str]) -> Markup:
    if len(uses) < 2:
        return joined()
    return joined(
        element("h3", f"The {count(len(uses))} operations that use the weight"),
        element("ul", *(element("li", name(use)) for use in uses), class_="uses"),
    )


def _groups(layer: LayerFacts) -> Markup:
    stored, planned = (side.histogram if side else () for side in (layer.stored, layer.planned))
    return histogram("Non-zeros per group", stored, planned) if stored or planned else joined()


def _mask(layer: LayerFacts) -> Markup:
    if not any(layer.mask):
        return joined()
    rows, columns = len(layer.mask), max(map(len, layer.mask))
    size, stay = sum(map(len, layer.mask)), sum(row.count("#") for row in layer.mask)
    m = layer.decision.pattern.m if layer.decision.pattern else columns
    label = f"A corner of {rows} output by {columns} input channels: {stay} of {size} weights are not zero"
    return element(
        "figure",
        element("figcaption", "A corner of what stays"),
        mask_picture(label, layer.mask, m),
        element("p", f"{rows} output channels down, {columns} input channels across in groups of {m}", class_="muted"),
    )
