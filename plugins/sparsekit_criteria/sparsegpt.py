"""sparsegpt: one pass over the inputs; each dropped weight is made up for by those that come later."""

from __future__ import annotations

import numpy as np

from sparsekit.criterion import Criterion
from sparsekit.reconstruction import LayerProblem, Solution, assess
from sparsekit.reconstruction.damping import goal_of
from sparsekit.reconstruction.factor import inverse_factor
from sparsekit.reconstruction.problem import Array

_DAMPING = 0.01
_BLOCK = 128


class SparseGpt(Criterion):
    """As published (Frantar and Alistarh 2023, arXiv 2301.00774), n:m, with its damping of 1 % of the mean diagonal.

    ``problem.damping`` replaces the 1 %; ``problem.effort`` makes no difference. Inputs that are always zero lose
    their weights. Falls back to the magnitude mask where that one does better on the calibration samples.
    """

    name = "sparsegpt"
    needs = "statistics"

    def solve(self, problem: LayerProblem) -> Solution:
        gram, cross = problem.gram(), problem.cross_gram()
        if not gram.any():
            mask = problem.magnitude_mask()
            return assess(problem, mask, problem.weight, fallback="the calibration inputs are all the same")
        weight = problem.weight.astype(np.float64)
        goal = None
        damping = _DAMPING if problem.damping is None else problem.damping
        diagonal = np.diagonal(gram)
        dead = diagonal == 0
        damped = gram + np.diag(np.where(dead, 1.0, 0.0) + damping * diagonal.mean())
        if cross is not None:
            weight = goal = goal_of(weight, gram, damped, cross)
        weight = np.where(dead[:, None], 0.0, weight)
        mask = np.zeros(weight.shape, np.bool_)
        pruned = _one_pass(weight, mask, _upper_factor(damped), problem)
        return assess(problem, mask, pruned, goal=goal, damping=damping)


def _upper_factor(damped: Array) -> Array:
    """U, upper triangular, with U'U = damped^-1.

    Row k is row k of the inverse Hessian of the inputs from k on, over the root of its diagonal. It is the inverse of
    a Cholesky factor with rows and columns in reversed order.
    """
    return np.ascontiguousarray(inverse_factor(damped[::-1, ::-1])[::-1, ::-1])


def _one_pass(weight: Array, mask: Array, factor: Array, problem: LayerProblem) -> Array:
    """Fills in ``mask``, returns the updated weights."""
    m = problem.pattern.m
    weight = weight.copy()
    step = max(m, _BLOCK - _BLOCK % m)
    for first in range(0, len(weight), step):
        stop = min(first + step, len(weight))
        lost = np.zeros((stop - first, weight.shape[1]))
        for row in range(first, stop):
            if row % m == 0:
                group = slice(row, min(row + m, stop))
                score = np.abs(weight[group]) / np.diagonal(factor)[group, None]
                mask[group] = problem.keep(score, group)
            lost[row - first] = np.where(mask[row], 0.0, weight[row] / factor[row, row])
            weight[row:stop] -= np.outer(factor[row, row:stop], lost[row - first])
        weight[stop:] -= factor[first:stop, stop:].T @ lost
    return np.where(mask, weight, 0.0)
