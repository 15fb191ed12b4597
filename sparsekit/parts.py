"""Large weights a part at a time, so that what is made of them on the way stays small."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsekit.pattern import Index

_LARGEST = 1 << 20
"""Elements in a part, about; no weight that is smaller is cut."""


def parts(shape: Sequence[int], axis: int = 0, m: int = 1) -> list[Index]:
    """Indices of the parts of an array, cut along its longest axis; of a small one the whole.

    Args:
        shape: of the array.
        axis: an axis along which groups run.
        m: members of a group: no group is cut.
    """
    size = math.prod(shape)
    if size <= _LARGEST:
        return [...]
    longest = max(range(len(shape)), key=lambda i: shape[i])
    step = max(1, shape[longest] * _LARGEST // size)
    if longest == axis:
        step += -step % m
    before = (slice(None),) * longest
    return [(*before, slice(start, start + step)) for start in range(0, shape[longest], step)]
