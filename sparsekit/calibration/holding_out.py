"""What a fit is worth on rows that it has not seen: fitted to one half of the samples and scored on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.reconstruction import LayerProblem, Solution, Statistics, refit
from sparsekit.reconstruction.damping import Scorer, goal_of, some_columns, with_ridge

Array: TypeAlias = npt.NDArray[Any]
# A mask, the weights that were fitted to it, and whether they were: then a bias takes the shift of the mean.
_Fit: TypeAlias = tuple[Array, Array, bool]

_ITERATIONS, _TOLERANCE = 25, 1e-4


@attrs.frozen
class HeldBack:
    """Errors as shares of the dense output's energy, see `Solution`. (target="dense": up to a common constant.)

    Attributes:
        magnitude: of the magnitude mask.
        mask: of the mask that was chosen, its weights as they were.
        fitted: of what was fitted to it.
    """

    magnitude: float
    mask: float
    fitted: float


def halves(statistics: Statistics) -> tuple[Statistics, Statistics] | None:
    """The two halves of the samples, None where there is one alone."""
    filled = np.flatnonzero(statistics.rows)
    if len(filled) < 2:
        return None
    return statistics.pooled(filled[0::2].tolist()), statistics.pooled(filled[1::2].tolist())


def solved_anew(
    problem: LayerProblem, solution: Solution, solve: Callable[[LayerProblem], Solution]
) -> HeldBack | None:
    """With mask and weights chosen anew on either half, with little effort; None where there is one half alone.

    Args:
        problem: the layer.
        solution: of the whole problem: says the damping.
        solve: a criterion and repairs.
    """

    def fit(half: LayerProblem) -> _Fit:
        # A half of the samples wants twice the damping, see `choose_damping`.
        damping = 2 * solution.damping if solution.damping else None
        found = solve(attrs.evolve(half, damping=damping, effort="fast"))
        return found.mask, found.weight, found.damping > 0

    return _both_ways(problem, fit)


def refitted_anew(problem: LayerProblem, solution: Solution) -> HeldBack | None:
    """With the solution's mask, its weights fitted anew on either half, up to 32 columns: cheap at any size.

    Where nothing was fitted, the weights are the solution's too.
    """
    columns = some_columns(problem)
    mask, weight = solution.mask[:, columns], solution.weight[:, columns]

    def fit(half: LayerProblem) -> _Fit:
        if not solution.damping:
            return mask, weight, False
        gram = half.gram()
        system = with_ridge(gram, 2 * solution.damping)
        goal = goal_of(half.weight, gram, system, half.cross_gram())
        working = system.astype(problem.float_type, copy=False)
        found = refit(goal, mask, working, exact=False, iterations=_ITERATIONS, tolerance=_TOLERANCE)
        return mask, found.weight, True

    return _both_ways(attrs.evolve(problem, weight=problem.weight[:, columns]), fit)


def _both_ways(problem: LayerProblem, fit: Callable[[LayerProblem], _Fit]) -> HeldBack | None:
    both = halves(problem.statistics)
    if both is None:
        return None
    plain = np.where(problem.magnitude_mask(), problem.weight, 0)
    sums, energy = np.zeros(3), 0.0
    for seen, unseen in (both, both[::-1]):
        half = attrs.evolve(problem, statistics=seen)
        mask, fitted, shifted = fit(half)
        error = Scorer.of(half, unseen)
        alone = [error(weight, shifted=False) for weight in (plain, np.where(mask, problem.weight, 0))]
        sums += error.energy * np.array([*alone, error(fitted, shifted=shifted)])
        energy += error.energy
    return HeldBack(*(sums / energy).tolist()) if energy > 0 else HeldBack(0.0, 0.0, 0.0)
