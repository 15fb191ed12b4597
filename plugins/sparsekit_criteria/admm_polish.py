"""Tiny layers: every way to fill a group is tried, with the other groups as they are and an exact refit."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsekit.pattern import Pattern
from sparsekit.reconstruction import refit

Array = npt.NDArray[Any]

MOST_CHOICES = 70
"""Ways to fill one group, 4:8's; patterns with more are left as they are."""

_SWEEPS = 10
# A choice must be better by more than rounding, or two equal ones would take turns.
_MARGIN = 1e-9


def polish(goal: Array, damped_gram: Array, mask: Array, pattern: Pattern, padding: Array | None) -> Array:
    """A mask with ``tr((goal - V)' H (goal - V))`` no higher than that of ``mask``, whose groups are each optimal.

    Args:
        goal: T, float64 [K, N].
        damped_gram: H, float64 [K, K].
        mask: bool [K, N], legal.
        pattern: of the mask.
        padding: bool [K], rows never to keep; None: no such rows.

    Returns:
        bool [K, N].
    """
    if math.comb(pattern.m, pattern.n) > MOST_CHOICES:
        return mask
    mask = mask.copy()
    right = damped_gram @ goal
    active = np.arange(goal.shape[1])
    for _ in range(_SWEEPS):
        changed = np.zeros(len(active), np.bool_)
        for first in range(0, len(goal), pattern.m):
            rows = np.arange(first, min(first + pattern.m, len(goal)))
            if padding is not None:
                rows = rows[~padding[rows]]
            if len(rows) <= pattern.n:
                continue
            choices = _choices(len(rows), pattern.n)
            filled = (_filled(mask, rows, choice, active) for choice in choices)
            explained = np.stack([_explained(goal, right, damped_gram, each, active) for each in filled])
            now = (choices[:, :, None] == mask[np.ix_(rows, active)]).all(axis=1).argmax(axis=0)
            best, column = explained.argmax(axis=0), np.arange(len(active))
            better = explained[best, column] > explained[now, column] * (1 + _MARGIN)
            mask[np.ix_(rows, active[better])] = choices[best[better]].T
            changed |= better
        active = active[changed]
        if not len(active):
            break
    return mask


def _choices(size: int, keep: int) -> Array:
    return np.array([[i in kept for i in range(size)] for kept in itertools.combinations(range(size), keep)])


def _filled(mask: Array, rows: Array, choice: Array, columns: Array) -> Array:
    filled = mask[:, columns]
    filled[rows] = choice[:, None]
    return filled


def _explained(goal: Array, right: Array, damped_gram: Array, mask: Array, columns: Array) -> Array:
    """``goal' H goal`` of each column less the error that is left with this mask."""
    weight = refit(goal[:, columns], mask, damped_gram, exact=True).weight
    return np.einsum("kn,kn->n", weight, right[:, columns])
