"""Progress on long work: shown on a terminal while a command runs, silent in programs."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Task

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


@contextlib.contextmanager
def estimated(what: str, work: float) -> Iterator[Callable[[float], None]]:
    """A bar with the time that is left, on standard error, where progress is shown: for parts of very unequal work.

    Args:
        what: the work, for people: "Calibrating".
        work: how much it is in all, in any unit.

    Yields:
        To be called with the work of every part that is done.
    """
    if not _shown.get():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    estimate = Estimate(work)

    class TimeLeft(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(time_left(estimate.seconds_left()))

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=work)

        def advance(done: float) -> None:
            estimate.advance(done)
            bar.advance(task, done)

        yield advance


class Estimate:
    """How long work will take, from how long what is done of it has taken.

    Args:
        work: how much it is in all, in any unit.
        clock: gives seconds.
    """

    def __init__(self, work: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._work = work
        self._clock = clock
        self._begun = self._last = clock()
        self._done = 0.0

    def advance(self, done: float) -> None:
        """A part is done, with so much work in it."""
        self._done += done
        self._last = self._clock()

    def seconds_left(self) -> float | None:
        """None where nothing is done yet. It counts down while a part is worked on."""
        if not self._done:
            return None
        left = (self._last - self._begun) * (self._work - self._done) / self._done
        return max(0.0, left - (self._clock() - self._last))


def time_left(seconds: float | None) -> str:
    """For people: "about 2 h 05 min left"; "" where it is not known."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"about {minutes // 60} h {minutes % 60:02d} min left"
    return f"about {minutes} min left" if seconds >= 90 else f"about {round(seconds)} s left"
