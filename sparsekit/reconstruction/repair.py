"""What the caller adds to a bias, or multiplies into weights, after a layer was pruned."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.reconstruction.problem import Target
from sparsekit.reconstruction.statistics import Statistics

Array = npt.NDArray[Any]

# Rounding leaves this share of a mean square in a variance that is zero.
_ROUNDING = 1e-6


@attrs.frozen(eq=False)
class OutputMoments:
    """Mean and standard deviation of every output, float64 [N] each; without the bias."""

    mean: Array
    deviation: Array


def output_moments(weight: npt.ArrayLike, statistics: Statistics) -> OutputMoments:
    """The moments of X weight, for the rows that the statistics are of."""
    weight = np.asarray(weight, np.float64)
    mean = statistics.mean() @ weight
    mean_square = np.einsum("kn,kn->n", weight, statistics.total_gram() @ weight) / max(statistics.total_rows, 1)
    return OutputMoments(mean, deviation(mean, mean_square))


def deviation(mean: Array, mean_square: Array) -> Array:
    """The standard deviation of what has this mean and this mean square; 0 where rounding alone is left."""
    variance = mean_square - np.square(mean)
    return np.sqrt(np.where(variance > _ROUNDING * mean_square, variance, 0.0))


def mean_shift(dense: npt.ArrayLike, pruned: npt.ArrayLike, statistics: Statistics, target: Target = "own") -> Array:
    """What to add to the bias so that the mean output stays on the target's.

    It belongs to weights that were refitted to that same target: shifting a refit of the layer's own output to the
    dense path's mean does harm. So does a mean shift after a mask alone: pruning shrinks the spread of the outputs too,
    and ReLUs fall silent; use `scale_shift`.

    Args:
        dense: W [K, N].
        pruned: V [K, N].
        statistics: of the inputs.
        target: "own": mean(X) (W - V). "dense": mean(D) W - mean(X) V.

    Returns:
        float64 [N].
    """
    mean, dense_mean = statistics.mean(), statistics.dense_mean() if target == "dense" else None
    return (mean if dense_mean is None else dense_mean) @ np.asarray(dense, np.float64) - mean @ np.asarray(
        pruned, np.float64
    )


def scale_shift(dense: OutputMoments, pruned: OutputMoments) -> tuple[Array, Array]:
    """The repair for where there is no Gram matrix: restore mean and standard deviation of every output.

    Args:
        dense: moments of the dense layer's outputs; from `output_moments`, or measured.
        pruned: of the masked layer's outputs. Both without the bias.

    Returns:
        ``scale`` to multiply into the kept weights' columns, and ``shift`` to add to the bias: float64 [N] each. The
        scale is 1 where either output is constant.
    """
    usable = (pruned.deviation > 0) & (dense.deviation > 0)
    scale = np.divide(dense.deviation, pruned.deviation, out=np.ones_like(dense.deviation), where=usable)
    return scale, dense.mean - scale * pruned.mean
