"""wanda: weights count by how large their inputs are; nothing is refitted."""

from __future__ import annotations

import numpy as np

from sparsekit.criterion import Criterion
from sparsekit.reconstruction import LayerProblem, Solution, assess


class Wanda(Criterion):
    """The largest ``|w_kn| * ||X_k||`` stay as they are (Sun et al. 2023, arXiv 2306.11695)."""

    name = "wanda"
    needs = "statistics"

    def solve(self, problem: LayerProblem) -> Solution:
        # The norm of the mean square differs from the norm of the column by a factor that all inputs share.
        norm = np.sqrt(problem.statistics.mean_square())
        score = np.abs(problem.weight.astype(np.float64)) * norm[:, None]
        return assess(problem, problem.keep(score), problem.weight, guard=False)
