"""random and inverted: controls that show what a mask's choice is worth. Not for deployment."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsekit.criterion import Criterion
from sparsekit.pattern import ordering_key


class Random(Criterion):
    """Any weights stay: a fixed shuffle of positions, the same for the same shape."""

    name = "random"
    live = True

    def score(self, weight: Any, axis: int) -> Any:
        shape = tuple(int(size) for size in weight.shape)
        # Knuth's multiplicative hash of the flat index, folded twice so that neighbours along any axis part.
        index = _range(weight, int(np.prod(shape)))
        mixed = (index * 2654435761) % 4294967291
        mixed = ((mixed // 65536 + index) * 2246822519) % 4294967291
        return _reshape(mixed, shape)


class Inverted(Criterion):
    """The smallest |w| stay."""

    name = "inverted"
    live = True

    def score(self, weight: Any, axis: int) -> Any:
        return -ordering_key(weight)


def _range(like: Any, size: int) -> Any:
    if isinstance(like, np.ndarray):
        return np.arange(size, dtype=np.int64)
    import tensorflow as tf

    return tf.range(size, dtype=tf.int64)


def _reshape(values: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(values, np.ndarray):
        return values.reshape(shape)
    import tensorflow as tf

    return tf.reshape(values, shape)
