"""Repairs after a criterion: better values for the weights that its mask keeps."""

from __future__ import annotations

from collections.abc import Collection

from sparsekit.reconstruction import LayerProblem, Solution, assess, choose_damping, refit
from sparsekit.reconstruction.damping import damp, goal_of


def fits(repair: Collection[str]) -> bool:
    """Whether weights may be fitted, for which sums over the inputs are needed, whatever the criterion."""
    return not {"auto", "least-squares"}.isdisjoint(repair)


def repaired(problem: LayerProblem, solution: Solution, repair: Collection[str]) -> Solution:
    """A criterion's solution after the repairs that the config asks for.

    Args:
        problem: the layer.
        solution: what the criterion found.
        repair: "auto": the kept weights are refitted where the criterion has not done so itself; or a list of repairs.
    """
    fit = "least-squares" in repair or ("auto" in repair and not solution.damping)
    gram = problem.gram()
    if not fit or solution.fallback or not gram.any():
        return solution
    system = damp(gram, choose_damping(problem).value)
    goal = goal_of(problem.weight, gram, system.gram, problem.cross_gram())
    fitted = refit(goal, solution.mask, system.gram.astype(problem.float_type, copy=False))
    return assess(
        problem,
        solution.mask,
        fitted.weight,
        goal=goal,
        damping=system.damping,
        iterations=solution.iterations + fitted.iterations,
        guard=False,
    )
