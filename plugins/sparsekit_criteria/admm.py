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
FEWEST_ROWS = 4
"""From fewer rows of inputs a fit can be worse than none (digits layers: up to 1.2x magnitude's error at 2 and 3)."""


class Admm(Criterion):
    """The most accurate without retraining. See `admm_solver` for the method and where it comes from.

    Effort: at most 20, 60 or 300 iterations ("fast", "normal", "high"), fewer when 0.1 %, 0.01 % or 0.001 % of the
    mask bits change between two penalties, twice running, and 10, 30 or 200 are done. Layers of up to 32 inputs
    ("high": 64, "fast": none) are then polished group by group. A refit follows: exact up to 128 inputs, else by
    conjugate gradients (float64 up to 512 inputs, then float32).

    Falls back to the magnitude mask, and says so in the Solution, where a fit does worse than that on held-back
    samples, for fewer than 4 rows, and where all inputs are the same.
    """

    name = "admm"
    needs = "statistics"

    def solve(self, problem: LayerProblem) -> Solution:
        mask = problem.magnitude_mask()
        if problem.statistics.total_rows < FEWEST_ROWS:
            fallback = f"fewer than {FEWEST_ROWS} rows of calibration inputs"
            return assess(problem, mask, problem.weight, fallback=fallback)
        gram = problem.gram()
        if not gram.any():
            return assess(problem, mask, problem.weight, fallback="the calibration inputs are all the same")
        damping = choose_damping(problem)
        if damping.held_out > damping.held_out_magnitude:
            return assess(problem, mask, problem.weight, fallback="a fit is worse on held-back samples")
        system = damp(gram, damping.value)
        goal = goal_of(problem.weight, gram, system.gram, problem.cross_gram())
        del gram
        found = search(goal, system, problem.keep, SCHEDULES[problem.effort], problem.float_type)
        mask = found.mask
        if len(goal) <= POLISHED[problem.effort]:
            mask = polish(goal, system.gram, mask, problem.pattern, problem.padding)
        fitted = refit(goal, mask, system.gram.astype(problem.float_type, copy=False), start=found.weight)
        return assess(
            problem,
            mask,
            fitted.weight,
            goal=goal,
            damping=system.damping,
            iterations=found.iterations + fitted.iterations,
        )
