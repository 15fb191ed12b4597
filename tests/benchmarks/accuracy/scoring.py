"""Measures of how far a pruned network's outputs are from the dense one's, or from the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# A float32 sigmoid or softmax says exactly 0 or 1 where it means less than this from it.
_LEAST = 1e-7


def log_softmax(logits: Array) -> Array:
    """Of [count, classes], in float64."""
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def divergence(dense: Array, pruned: Array) -> float:
    """The mean Kullback-Leibler divergence, in nats, of the classes that logits [count, classes] mean, from dense."""
    before, after = log_softmax(dense), log_softmax(pruned)
    return float((np.exp(before) * (before - after)).sum(axis=1).mean())


def bernoulli_divergence(dense: Array, pruned: Array) -> Array:
    """The same, in nats, for probabilities that each stand for themselves; element by element."""
    before, after = (p.astype(np.float64).clip(_LEAST, 1 - _LEAST) for p in (dense, pruned))
    return before * np.log(before / after) + (1 - before) * np.log((1 - before) / (1 - after))


def lost_energy(pruned: Array, dense: Array) -> float:
    """|pruned - dense|^2 / |dense|^2."""
    dense = dense.astype(np.float64)
    return float(np.square(pruned - dense).sum() / np.square(dense).sum())


def correlation(pruned: Array, dense: Array) -> float:
    """Pearson's, of all values; 0 where one is constant."""
    pruned, dense = (np.ravel(values - values.mean(dtype=np.float64)) for values in (pruned, dense))
    norm = np.linalg.norm(pruned) * np.linalg.norm(dense)
    return float(pruned @ dense / norm) if norm else 0.0


def f1(found: Array, expected: Array) -> float:
    """The harmonic mean of precision and recall of yes-no decisions."""
    both = np.count_nonzero(found & expected)
    return 2 * both / max(np.count_nonzero(found) + np.count_nonzero(expected), 1)
