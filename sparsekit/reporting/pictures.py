"""Bars and mask corners as inline SVG: it follows the page's colours, scales, and prints where backgrounds do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsekit.reporting.markup import Markup, element

# Of a mask's picture, in its own units: a cell, its distance to the next, and what is added between groups.
_CELL, _PITCH, _GROUP_GAP = 10, 12, 7


def bar(label: str, *parts: tuple[str, float | None]) -> Markup:
    """A bar from 0 to 1.

    Args:
        label: its accessible name.
        parts: CSS class and length of each part; later ones lie over earlier ones. None or NaN draws nothing.
    """
    drawn = [
        element("rect", class_=kind, width=f"{100 * min(max(length, 0.0), 1.0):.4g}%", height="100%")
        for kind, length in parts
        if length is not None and math.isfinite(length)
    ]
    return element("svg", *drawn, class_="bar", role="img", aria_label=label)


def mask_picture(label: str, rows: Sequence[str], m: int) -> Markup:
    """A mask as squares, groups of ``m`` apart.

    Args:
        label: its accessible name.
        rows: "#" for what stays and "." for a zero.
        m: the length of a group along a row.
    """
    columns = max(map(len, rows))
    cells = [(row, column, sign) for row, signs in enumerate(rows) for column, sign in enumerate(signs)]
    width = _left(columns - 1, m) + _CELL
    height = _PITCH * (len(rows) - 1) + _CELL
    return element(
        "svg",
        *(
            # One path for all cells of a kind: a page of hundreds of layers stays quick.
            element("path", class_=kind, stroke_width=_CELL, d=_squares(cells, sign, m))
            for kind, sign in (("cut", "."), ("kept", "#"))
        ),
        class_="mask",
        role="img",
        aria_label=label,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
    )


def _squares(cells: Sequence[tuple[int, int, str]], sign: str, m: int) -> str:
    """Strokes as wide as they are long."""
    return "".join(
        f"M{_left(column, m)} {row * _PITCH + _CELL // 2}h{_CELL}" for row, column, found in cells if found == sign
    )


def _left(column: int, m: int) -> int:
    return column * _PITCH + column // m * _GROUP_GAP
