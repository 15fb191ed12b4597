"""What the caller adds to a bias, or multiplies into weights, after a layer was pruned."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

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
    rows = max(int(statistics.rows.sum()), 1)
    mean_square = np.einsum("kn,kn->n", weight, statistics.gram.sum(axis=0) @ weight) / rows
    variance = mean_square - np.square(mean)
    return OutputMoments(mean, np.sqrt(np.where(variance > _ROUNDING * mean_square, variance, 0.0)))


def mean_shift(dense: npt.ArrayLike, pruned: npt.ArrayLike, statistics: Statistics) -> Array:
    """What to add to the bias so that the mean output on the same inputs stays: mean(X) (W - V), float64 [N].

    It belongs to weights that were refitted to the layer's own output. After a mask alone it does harm: pruning also
    shrinks the spread of the outputs, and a mean alone then silences ReLUs; use `scale_shift`.
    """
    return statistics.mean() @ (np.asarray(dense, np.float64) - np.asarray(pruned, np.float64))


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
