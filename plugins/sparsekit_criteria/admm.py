"""admm: mask and weights together, by a search over the calibration statistics."""

from __future__ import annotations

from sparsekit.criterion import Criterion
from sparsekit.reconstruction import LayerProblem, Solution, assess, choose_damping, refit
from sparsekit.reconstruction.damping import damp, goal_of
from sparsekit_criteria.admm_polish import polish
from sparsekit_criteria.admm_solver import Schedule, search

SCHEDULES = {
    "fast": Schedule(iterations=20, least=10, hold=4, settled=1e-3),
    "normal": Schedule(iterations=60, least=30),
    "high": Schedule(iterations=300, least=200, last=20.0, hold=5, settled=1e-5),
}

POLISHED = {"fast": 0, "normal": 32, "high": 64}
"""Up to how many inputs the mask is polished group by group."""


class Admm(Criterion):
    """The most accurate without retraining. See `admm_solver` for the method and where it comes from.

    Effort: at most 20, 60 or 300 iterations ("fast", "normal", "high"), fewer when 0.1 %, 0.01 % or 0.001 % of the
    mask bits change between two penalties, twice running, and 10, 30 or 200 are done. Layers of up to 32 inputs
    ("high": 64, "fast": none) are then polished group by group. A refit follows: exact up to 512 inputs, else at most
    15 conjugate gradients.

    Falls back to the magnitude mask, and says so in the Solution, where a fit does worse than that on held-back
    samples, where a single row leaves nothing to hold back, and where the inputs are all zero.
    """

    name = "admm"
    needs = "statistics"

    def solve(self, problem: LayerProblem) -> Solution:
        statistics = problem.statistics
        mask = problem.magnitude_mask()
        if int(statistics.rows.sum()) < 2:
            return assess(problem, mask, problem.weight, fallback="fewer than two rows of calibration inputs")
        gram = statistics.gram.sum(axis=0)
        if not gram.any():
            return assess(problem, mask, problem.weight, fallback="all calibration inputs are zero")
        damping = choose_damping(problem)
        if damping.held_out > damping.held_out_magnitude:
            return assess(problem, mask, problem.weight, fallback="a fit is worse on held-back samples")
        damped = damp(gram, damping.value)
        cross = statistics.cross_gram
        cross = None if problem.target == "own" or cross is None else cross.sum(axis=0)
        goal = goal_of(problem.weight, gram, damped, cross)
        del gram, cross
        found = search(goal, damped, problem.keep, SCHEDULES[problem.effort], problem.float_type)
        mask = found.mask
        if statistics.size <= POLISHED[problem.effort]:
            mask = polish(goal, damped, mask, problem.pattern, problem.padding)
        fitted = refit(goal, mask, damped.astype(problem.float_type, copy=False), start=found.weight)
        return assess(
            problem,
            mask,
            fitted.weight,
            goal=goal,
            damping=damping.value,
            iterations=found.iterations + fitted.iterations,
        )
