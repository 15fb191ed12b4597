"""When masks are chosen."""

from __future__ import annotations

from typing import Any

import attrs
import tensorflow as tf


@attrs.frozen
class Schedule:
    """Masks are chosen after ``start`` steps, then every ``period`` steps, the last time after ``freeze`` steps.

    Attributes:
        start: 0: at once.
        period: 0: once only.
        freeze: None: to the end.
    """

    start: int
    period: int
    freeze: int | None

    @property
    def needs_steps(self) -> bool:
        """Whether anything is to be done while the model trains."""
        return self.start > 0 or self.period > 0

    def due(self, step: Any) -> Any:
        """Whether masks are to be chosen after so many steps: an int64 tensor in, a bool tensor out."""
        since = step - self.start
        due = since % self.period == 0 if self.period else tf.equal(since, 0)
        due = tf.logical_and(due, since >= 0)
        return due if self.freeze is None else tf.logical_and(due, step <= self.freeze)
