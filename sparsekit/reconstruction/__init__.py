"""Pruning without retraining, in numpy: which weights of one matrix product to keep, and what the kept ones become.

A layer is Y = X W, with X [rows, K] its inputs as a matrix and W [K, N] its weights; groups of m run along K.
`Statistics` sums up X, a `LayerProblem` adds the weights and what is asked, a criterion's `solve` makes a `Solution`
of it, and `repair` says what the caller adds to a bias. Nothing here knows a graph or an op.
"""

from __future__ import annotations

from sparsekit.reconstruction.damping import Damping, choose_damping
from sparsekit.reconstruction.problem import Effort, LayerProblem, Solution, Target, assess
from sparsekit.reconstruction.refit import Refit, refit
from sparsekit.reconstruction.repair import OutputMoments, mean_shift, output_moments, scale_shift
from sparsekit.reconstruction.statistics import Statistics

__all__ = [
    "Damping",
    "Effort",
    "LayerProblem",
    "OutputMoments",
    "Refit",
    "Solution",
    "Statistics",
    "Target",
    "assess",
    "choose_damping",
    "mean_shift",
    "output_moments",
    "refit",
    "scale_shift",
]
