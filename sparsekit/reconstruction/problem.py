"""One layer to prune, and what came of it."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.errors import SparsekitError
from sparsekit.pattern import PATTERN_2_4, Pattern, keep_mask, ordering_key
from sparsekit.reconstruction.statistics import Statistics

Array = npt.NDArray[Any]
Effort = Literal["fast", "normal", "high"]
Target = Literal["own", "dense"]

# Up to here float64 costs little and makes results reproducible to the last place; above, GEMMs are float32.
_FLOAT64_SIZE = 512


@attrs.frozen(eq=False)
class LayerProblem:
    """Find n:m weights V that bring X V close to a target, given sums over X.

    Attributes:
        weight: W, float [K, N]. Groups of ``pattern.m`` run along K; K may end in a shorter group.
        statistics: of the inputs X [rows, K].
        pattern: n and m.
        effort: how long a solver may search.
        damping: the ridge's share of the diagonal, see `damping.ridge`; None: chosen from the statistics.
        target: "own": X W, what the layer makes of the inputs that it gets. "dense": D W, what it made of them before
            layers upstream were pruned; needs ``statistics.cross_gram``.
        centered: `mean_shift` goes into a bias after a fit: of what is fitted, count errors about their mean alone.
        padding: bool [K], True for rows that only fill up groups: zero in W and X, and never kept. None: no such rows.

    Raises:
        SparsekitError: shapes that do not fit together, weights that are not finite, padding that is not zero.
    """

    weight: Array = attrs.field(repr=False)
    statistics: Statistics
    pattern: Pattern = PATTERN_2_4
    effort: Effort = attrs.field(default="normal", validator=attrs.validators.in_(("fast", "normal", "high")))
    damping: float | None = attrs.field(default=None)
    target: Target = attrs.field(default="own", validator=attrs.validators.in_(("own", "dense")))
    centered: bool = False
    padding: Array | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        where, size = self.statistics.layer or "weight", self.statistics.size
        if self.weight.ndim != 2 or self.weight.shape[0] != size:
            raise SparsekitError(f"shape {list(self.weight.shape)}", where=where, expected=f"[{size}, outputs]")
        if not np.isfinite(self.weight).all():
            raise SparsekitError("NaN or infinity among the weights", where=where, expected="finite weights")
        if self.damping is not None and not (np.isfinite(self.damping) and self.damping > 0):
            raise SparsekitError(f"damping {self.damping}", where=where, expected="a number above 0")
        if self.target == "dense" and self.statistics.cross_gram is None:
            raise SparsekitError(
                "no sums over the dense path's inputs",
                where=where,
                expected="Statistics.empty(..., dense_path=True) for target='dense'",
            )
        if self.padding is not None:
            if self.padding.shape != (size,) or self.padding.dtype != np.bool_:
                raise SparsekitError(
                    f"padding {self.padding.dtype} {list(self.padding.shape)}", where=where, expected=f"bool [{size}]"
                )
            if self.weight[self.padding].any() or self.statistics.mean_square()[self.padding].any():
                raise SparsekitError("weights or inputs other than zero in padding rows", where=where, expected="zeros")

    @property
    def layer(self) -> str:
        """What errors call it."""
        return self.statistics.layer

    @property
    def float_type(self) -> type[np.floating[Any]]:
        """What iterations compute in: float64 for small layers, where it costs little, else float32."""
        return np.float64 if self.statistics.size <= _FLOAT64_SIZE else np.float32

    def gram(self) -> Array:
        """X'X of the rows, about their mean if `centered`; float64 [K, K], a new array."""
        return self.statistics.total_gram(self.statistics.mean() if self.centered else None)

    def cross_gram(self) -> Array | None:
        """X'D alike; None for the layer's own target, where D is X."""
        if self.target == "own":
            return None
        centers = (self.statistics.mean(), self.statistics.dense_mean()) if self.centered else (None, None)
        return self.statistics.total_cross_gram(*centers)

    def mean_energy(self, weight: Array | None = None) -> float:
        """Of a `centered` problem, what errors about the mean leave out where no bias takes the shift.

        Args:
            weight: V [K, N]; None: the energy of the target's mean itself.

        Returns:
            rows * |mean(X) (W - V)|^2, for target="dense" rows * |mean(D) W - mean(X) V|^2; 0.0 if not `centered`.
        """
        if not self.centered:
            return 0.0
        statistics = self.statistics
        mean, dense_mean = statistics.mean(), statistics.dense_mean() if self.target == "dense" else None
        lost = (mean if dense_mean is None else dense_mean) @ self.weight.astype(np.float64)
        if weight is not None:
            lost = lost - mean @ weight.astype(np.float64)
        return statistics.total_rows * float(lost @ lost)

    def keep(self, score: Array, rows: slice = slice(None)) -> Array:
        """The mask of the n largest ``|score|`` of every group; padding is never in it.

        Args:
            score: [K, N], or of whole groups alone.
            rows: which those are.

        Returns:
            bool, of ``score``'s shape.
        """
        padding = None if self.padding is None else self.padding[rows]
        if padding is None or not padding.any():
            return keep_mask(score, 0, self.pattern)
        # Integers are ranked with their sign, so padding can be put behind everything.
        key = np.asarray(ordering_key(score), np.int64)
        mask = keep_mask(np.where(padding[:, None], np.iinfo(np.int64).min, key), 0, self.pattern)
        mask[padding] = False
        return mask

    def magnitude_mask(self) -> Array:
        """What is kept without calibration, bool [K, N]."""
        return self.keep(self.weight)


@attrs.frozen(eq=False)
class Solution:
    """A pruned layer.

    Attributes:
        weight: V [K, N], of W's dtype: exact zeros wherever the mask is False.
        mask: bool [K, N].
        damping: the ridge that was used; 0.0 where a criterion uses none, and nothing was fitted.
        iterations: of the criterion's search and of the refit, together; 0 where there are none.
        error_before: ``|X (W - M)|^2 / |X W|^2`` of M, the weights masked by magnitude alone, on the calibration
            rows; 0.0 where X W is zero.
        error_after: the same of V. About its mean, if the problem is ``centered`` and V was fitted, since a bias takes
            the mean. (target="dense": W in both is the least-squares weight for that target.)
        fallback: why the magnitude mask was returned, untouched, in place of what the criterion found; "" otherwise.
    """

    weight: Array = attrs.field(repr=False)
    mask: Array = attrs.field(repr=False)
    damping: float = 0.0
    iterations: int = 0
    error_before: float = 0.0
    error_after: float = 0.0
    fallback: str = ""


def assess(
    problem: LayerProblem,
    mask: Array,
    weight: Array,
    *,
    goal: Array | None = None,
    damping: float = 0.0,
    iterations: int = 0,
    guard: bool = True,
    fallback: str = "",
) -> Solution:
    """The Solution that ``weight`` and ``mask`` are, with its errors.

    Args:
        problem: the layer.
        mask: bool [K, N], legal.
        weight: [K, N], any float dtype; zeros are written where the mask is False.
        goal: [K, N], the weights whose outputs are the target; None: the layer's own.
        damping, iterations: go into the Solution.
        guard: return the magnitude mask where its error is lower.
        fallback: a reason that is known already: the magnitude mask is returned.
    """
    goal = problem.weight if goal is None else goal
    gram = problem.gram().astype(problem.float_type, copy=False)
    plain_mask = problem.magnitude_mask()
    plain = np.where(plain_mask, problem.weight, 0)
    pruned = np.where(mask, weight, 0).astype(problem.weight.dtype)
    dense_output = _output_energy(gram, goal) + problem.mean_energy()
    scale = 1 / dense_output if dense_output > 0 else 0.0
    before = (_output_energy(gram, goal - plain) + problem.mean_energy(plain)) * scale
    after = (_output_energy(gram, goal - pruned) + (0.0 if damping else problem.mean_energy(pruned))) * scale
    if guard and not fallback and not after <= before:
        fallback = f"the error on the calibration samples is {after:.3g}, of the magnitude mask {before:.3g}"
    if fallback:
        return Solution(plain, plain_mask, 0.0, iterations, before, before, fallback)
    return Solution(pruned, mask, damping, iterations, before, after)


def _output_energy(gram: Array, weight: Array) -> float:
    """``|X weight|^2``."""
    weight = weight.astype(gram.dtype, copy=False)
    return float(np.einsum("kn,kn->", weight, gram @ weight, dtype=np.float64))
