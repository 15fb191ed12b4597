"""What calibration did, and what it would cost to prune each layer: two sections of the page, with bars."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from sparsekit.layer_sensitivity import LayerSensitivity, Sensitivity, percent
from sparsekit.reporting.facts import Report
from sparsekit.reporting.markup import Markup, element, joined
from sparsekit.reporting.numerals import UNKNOWN, known, share, short
from sparsekit.reporting.page_parts import anchor, name, number, table
from sparsekit.reporting.pictures import bar
from sparsekit.result import LayerAccount, title_of, told


def sensitivity(report: Report) -> Markup:
    """A bar per layer, the worst first; nothing where it was not measured."""
    found = report.sensitivity
    if found is None:
        return joined()
    longest = max((layer.worst for layer in found.layers if layer.worst and known(layer.worst)), default=1.0)
    places = _places(report)
    rows = [
        (
            _linked(layer.name, places),
            _error_bar(layer, found, longest),
            number(layer.error, percent) if found.outputs else "",
            number(layer.multiply_adds, short),
            layer.note,
        )
        for layer in found.layers
    ]
    where = "the model's outputs" if found.outputs else "the layer's own outputs"
    columns = ("layer", f"error at {where}", "own error", "multiply-adds", "note")
    wanted = [0, 1, *([2] if found.outputs else []), 3, *([4] if any(layer.note for layer in found.layers) else [])]
    return joined(
        element("p", found.summary()),
        table(
            "Squared change when this layer alone is pruned, by magnitude: at the model's outputs relative to what "
            "they vary, at its own relative to their square. Bars are relative to the longest.",
            [columns[i] for i in wanted],
            [[row[i] for i in wanted] for row in rows],
            class_="bars",
        )
        if rows
        else "",
    )


def _error_bar(layer: LayerSensitivity, found: Sensitivity, longest: float) -> Markup:
    if layer.worst is None:
        return joined(UNKNOWN)
    figure = percent(layer.worst)
    length = layer.worst / longest if known(layer.worst) else 1.0
    return joined(
        bar(f"{layer.name}: an error of {figure}", ("kept", length)),
        element("span", number(layer.worst, percent) if known(layer.worst) else figure, class_="beside"),
    )


def calibration(report: Report) -> Markup:
    """What calibration did to every layer; nothing where there was none."""
    if not report.accounts:
        return joined()
    places = _places(report)
    rows = [
        (
            joined(_linked(account.name, places), " ", element("span", account.note, class_="muted")),
            _error_before_and_after(account),
            _told(account, "retained"),
            _told(account, "damping"),
            _told(account, "iterations"),
            _told(account, "seconds"),
        )
        for account in report.accounts
    ]
    worse = [account.name for account in report.accounts if account.worse]
    return joined(
        element(
            "div",
            element("p", "Worse than magnitude alone; the config key skip_layers leaves these layers dense:"),
            element("ul", *(element("li", _linked(layer, places)) for layer in worse), class_="uses"),
            class_="note",
        )
        if worse
        else "",
        table(
            "What is lost of the layers' outputs on the calibration samples, by magnitude alone and as it was written; "
            "all that is known of a layer is in its details below",
            ("layer", "error", *(title_of(_FIELDS[key]) for key in ("retained", "damping", "iterations", "seconds"))),
            rows,
            class_="bars",
        ),
    )


_TOLD_ALREADY = ("name", "retained")  # among the layer's own facts
_FIELDS: Mapping[str, attrs.Attribute[object]] = {field.name: field for field in attrs.fields(LayerAccount)}


def _error_before_and_after(account: LayerAccount) -> Markup:
    before, after = account.error_before, account.error_after
    if not known(before) or not known(after):
        return joined(UNKNOWN)
    figure = f"{share(before)} by magnitude, {share(after)} as written"
    return joined(
        bar(f"{account.name}: {figure} lost", ("removed", before), ("kept", after)),
        element("span", number(before, share), " → ", number(after, share), class_="beside"),
    )


def _told(account: LayerAccount, key: str) -> Markup:
    """A number for people, which holds itself unrounded; "" for what is none."""
    value = getattr(account, key)
    if value is None:
        return joined(UNKNOWN)
    if isinstance(value, (bool, str)):
        return joined()
    return number(value, lambda _: told(_FIELDS[key], value))


def account_facts(account: LayerAccount) -> Markup:
    """All fields of an account, for the details of its layer."""
    facts = {
        title_of(field): _told(account, key) or told(field, getattr(account, key))
        for key, field in _FIELDS.items()
        if key not in _TOLD_ALREADY and getattr(account, key) != ""
    }
    return joined(
        element("h3", "Calibration"),
        element(
            "dl",
            *(element("div", element("dt", title), element("dd", text)) for title, text in facts.items()),
            class_="facts account",
        ),
    )


def _places(report: Report) -> dict[str, int]:
    return {layer.decision.name: place for place, layer in enumerate(report.layers)}


def _linked(layer: str, places: Mapping[str, int]) -> Markup:
    shown = name(layer)
    if layer not in places:
        return element("span", shown, class_="clamped")
    return element("a", shown, href=f"#{anchor(places[layer])}", class_="clamped")
