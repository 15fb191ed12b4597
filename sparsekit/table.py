"""Results for people and for programs: plain tables, the first of many, and JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import attrs

from sparsekit.pattern import Pattern


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lay rows out under a header; ends with a newline.

    Args:
        header: one name a column.
        rows: as many cells each.
        width: fold long cells to fit so many columns; None: as wide as it needs to be.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, no_wrap=width is None, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=width or 100_000, color_system=None, markup=False, emoji=False).print(table)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def first_of(texts: Sequence[str], most: int, separator: str = ", ", last: str = " and ") -> str:
    """The first so many, and how many there are beside them: ``"fc1, fc2 and 3 more"``.

    Args:
        texts: all of them.
        most: how many are shown.
        separator: between two of them.
        last: before the number of the others.
    """
    more = len(texts) - most
    return separator.join(texts[:most]) + (f"{last}{more:,} more" if more > 0 else "")


def to_json(result: Any, **more: Any) -> str:
    """A result, or a dict, as one JSON document: its fields by name, and ``more``."""
    return json.dumps({**more, **plain(result)}, indent=2, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A result as what JSON can hold: attrs classes become dicts, callables are left out, the rest becomes text."""
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if attrs.has(type(value)) and not isinstance(value, Pattern):
        fields = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
        return {name: plain(content) for name, content in fields.items() if not callable(content)}
    return str(value)
