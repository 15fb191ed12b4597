"""Python's garbage collector, while graphs are walked."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Within it, or in a function that it decorates, Python does not look for garbage that refers to itself.

    A view of a graph is a million small objects that all stay; at every quarter more of them the collector goes through
    all again, for nothing: half of the time that a large graph takes. What nothing refers to is freed as ever. Where
    the caller has switched the collector off, it stays off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
