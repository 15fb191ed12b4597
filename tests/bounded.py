"""Bounds on work that hold on any machine: lines of the product that ran, bytes that were taken."""

from __future__ import annotations

import contextlib
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import sparsekit

_PRODUCT = str(Path(sparsekit.__file__).parent)


@contextlib.contextmanager
def bounded(lines: int, megabytes: int | None = None) -> Iterator[None]:
    """Fail where more lines of sparsekit's own code run within it, or where more memory is taken at once.

    Args:
        lines: a loop counts anew at every turn.
        megabytes: Python's and numpy's memory.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_PRODUCT):
            return None
        count += event == "line"
        if count > lines:
            raise AssertionError(f"more than {lines:,} lines ran")
        return trace

    before = sys.gettrace()
    if megabytes is not None:
        tracemalloc.start()
    sys.settrace(trace)
    try:
        yield
        if megabytes is not None:
            taken = tracemalloc.get_traced_memory()[1] >> 20
            assert taken <= megabytes, f"{taken} MB were taken at once"
    finally:
        sys.settrace(before)
        tracemalloc.stop()
