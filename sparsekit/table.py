"""Plain tables for terminals and logs."""

from __future__ import annotations

import io
from collections.abc import Sequence


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
