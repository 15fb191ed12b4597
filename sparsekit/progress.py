"""Progress on long work: shown on a terminal while a command runs, silent in programs."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_shown: contextvars.ContextVar[bool] = contextvars.ContextVar("sparsekit_progress", default=False)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Within it progress is shown, if standard error is a terminal. Commands want that; a library call does not."""
    token = _shown.set(_stderr_is_a_terminal())
    try:
        yield
    finally:
        _shown.reset(token)


def _stderr_is_a_terminal() -> bool:
    return sys.stderr.isatty()


def track(items: Sequence[_T], what: str) -> Iterable[_T]:
    """The items, with a bar on standard error while they are worked through, where progress is shown.

    Args:
        items: what is worked through.
        what: the work, for people: "Reading weights".
    """
    if not _shown.get():
        return items
    from rich.console import Console
    from rich.progress import track as tracked

    return tracked(items, what, console=Console(stderr=True), transient=True)
