"""What the sections of the page are made of: names, numbers, tables, histograms, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from sparsekit.reporting.facts import GroupFacts, LayerFacts
from sparsekit.reporting.markup import Markup, element, joined
from sparsekit.reporting.numerals import UNKNOWN, count, known, share
from sparsekit.reporting.pictures import bar
from sparsekit.result import LayerAccount, title_of
from sparsekit.target import LayerRule, TargetVerdict

_STORED, _PLANNED = "as stored", "after pruning"

# Columns of numbers, to be read by their last digits.
_FIGURES = frozenset(
    {"weights", "multiply-adds", "layers", "dense", "pruned", "pruned / dense", "own error"}
    | {title_of(field) for field in attrs.fields(LayerAccount) if field.name not in ("name", "criterion", "note")}
)

# Longer groups show only the counts that occur.
_LONGEST_WHOLE_HISTOGRAM = 16


def name(text: str) -> Markup:
    """A name out of a model or a file system, whatever is in it: its writing direction ends where it ends."""
    return element("code", text, dir="ltr")


def number(value: float | None, form: Callable[[Any], str] = count, class_: str | None = None) -> Markup:
    """A number for people, which holds itself unrounded."""
    if not known(value):
        return joined(UNKNOWN)
    return element("data", form(value), value=repr(value), class_=class_)


def percent(value: float | None) -> Markup:
    """The same of a share of 1."""
    return number(value, share)


def change(before: float | None, after: float | None, form: Callable[[Any], str] = share) -> Markup:
    """A number as stored and after pruning."""
    if not (known(before) or known(after)):
        return joined(UNKNOWN)
    return joined(number(before, form), " → ", number(after, form))


def anchor(place: int) -> str:
    """The id of the layer's row."""
    return f"layer-{place}"


def density(groups: GroupFacts | None) -> float | None:
    return groups.density if groups else None


def violations(groups: GroupFacts | None) -> int | None:
    return groups.violations if groups else None


def weights(layer: LayerFacts, form: Callable[[int], str] = count) -> Markup:
    return number(layer.weights or None, form)


def multiply_adds(layer: LayerFacts, form: Callable[[int], str] = count) -> Markup:
    return number(layer.multiply_adds, form)


def layers_in_words(value: int, kind: str = "") -> str:
    """ "1 layer", "2 pruned layers"."""
    return f"{count(value)} {kind}{'layer' if value == 1 else 'layers'}"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], class_: str | None = None) -> Markup:
    """A table; the first cell of a row names it."""
    return element(
        "table",
        element("caption", caption),
        table_head(columns),
        element("tbody", *(table_row(columns, row) for row in rows)),
        class_=class_,
    )


def table_head(columns: Sequence[str]) -> Markup:
    return element(
        "thead", element("tr", *(element("th", column, scope="col", class_=_align(column)) for column in columns))
    )


def table_row(columns: Sequence[str], cells: Sequence[str]) -> Markup:
    """On a narrow screen rows become blocks, and a cell is named by its ``data-column``."""
    first, *others = cells
    return element(
        "tr",
        element("th", first, scope="row"),
        *(
            element("td", cell, data_column=column, class_=_align(column))
            for column, cell in zip(columns[1:], others, strict=True)
        ),
    )


def _align(column: str) -> str | None:
    return "figures" if column in _FIGURES else None


def histogram(caption: str, stored: Sequence[int], planned: Sequence[int]) -> Markup:
    """How many groups have 0, 1, ... non-zeros, as a table of bars.

    Args:
        caption: of the table.
        stored, planned: the groups with 0, 1, ... m non-zeros; empty where they are not known.
    """
    counts: Sequence[int] = range(max(len(stored), len(planned)))
    if len(counts) > _LONGEST_WHOLE_HISTOGRAM + 1:
        counts = [nonzeros for nonzeros in counts if any(side and side[nonzeros] for side in (stored, planned))]
    rows = [
        (
            number(nonzeros),
            _groups_cell(f"{_STORED} have {nonzeros}", "neutral", nonzeros, stored),
            _groups_cell(f"{_PLANNED} have {nonzeros}", "kept", nonzeros, planned),
        )
        for nonzeros in counts
    ]
    return table(caption, ("non-zeros", _STORED, _PLANNED), rows, class_="histogram")


def _groups_cell(what: str, kind: str, nonzeros: int, groups: Sequence[int]) -> Markup:
    if not groups:
        return joined(UNKNOWN)
    part = groups[nonzeros] / (sum(groups) or 1)
    return joined(
        bar(f"{share(part)} of the groups {what} non-zeros", (kind, part)),
        element("span", share(part), " ", number(groups[nonzeros], class_="muted"), class_="beside"),
    )


def standing(verdict: TargetVerdict) -> str:
    """The verdict in two or three words."""
    if not verdict.eligible:
        return "not eligible"
    return "eligible on conditions" if verdict.conditions else "eligible"


def judged(verdict: TargetVerdict) -> list[tuple[str, LayerRule]]:
    """The rules that do not simply hold, each after how it stands."""
    objections = [("not met", rule) for rule in verdict.objections]
    return objections + [("decided at conversion", rule) for rule in verdict.conditions]
