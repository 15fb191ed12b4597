"""One layer: from the sums over its inputs to its pruned weight; pure numpy, wherever the sums come from."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.calibration.collecting import Collected
from sparsekit.calibration.repairs import repaired
from sparsekit.config import PruneConfig
from sparsekit.criterion import Criterion
from sparsekit.pattern import Pattern
from sparsekit.reconstruction import LayerProblem, Solution, mean_shift
from sparsekit.result import LayerAccount

Array: TypeAlias = npt.NDArray[Any]


@attrs.frozen(eq=False)
class SolvedLayer:
    """What becomes of a layer.

    Attributes:
        weight: as the op sees it.
        shift: what to add to the mean outputs of every column, [blocks, N]; None where nothing is to be added.
        account: how it went.
    """

    weight: Array
    shift: Array | None
    account: LayerAccount


def solve_layer(
    seen: Array,
    collected: Collected,
    criterion: Criterion,
    pattern: Pattern,
    config: PruneConfig,
    account: LayerAccount,
    *,
    centered: bool,
) -> SolvedLayer:
    """Choose mask and weights of one layer.

    Args:
        seen: the weight as the op sees it.
        collected: the layer's layout and statistics.
        criterion: chooses the mask.
        pattern: n and m.
        config: effort, repairs, whose outputs are matched.
        account: of the layer, to be filled in.
        centered: a shift of the mean outputs can be stored.
    """
    solved = [
        _solve_block(
            LayerProblem(
                weight=matrix,
                statistics=statistics,
                pattern=pattern,
                effort=config.effort,
                target="own" if collected.statistics[0].cross_gram is None else "dense",
                centered=centered,
                padding=collected.layout.padding,
            ),
            criterion,
            config,
        )
        for matrix, statistics in zip(collected.layout.matrices(seen), collected.statistics, strict=True)
    ]
    solutions = [solution for solution, _ in solved]
    # A mean shift after a mask alone does harm.
    shifted = centered and all(solution.damping for solution in solutions)
    sizes = [solution.weight.size for solution in solutions]
    return SolvedLayer(
        weight=collected.layout.weight([solution.weight for solution in solutions]),
        shift=np.stack([shift for _, shift in solved]) if shifted else None,
        account=attrs.evolve(
            account,
            error_before=float(np.average([solution.error_before for solution in solutions], weights=sizes)),
            error_after=float(np.average([solution.error_after for solution in solutions], weights=sizes)),
            damping=max(solution.damping for solution in solutions),
            iterations=max(solution.iterations for solution in solutions),
            shifted=shifted,
            note="; ".join(dict.fromkeys(solution.fallback for solution in solutions if solution.fallback)),
        ),
    )


def _solve_block(problem: LayerProblem, criterion: Criterion, config: PruneConfig) -> tuple[Solution, Array]:
    """Weights, and what to add to the mean output of every column, [N]."""
    solution = repaired(problem, criterion.solve(problem), config.repair)
    return solution, mean_shift(problem.weight, solution.weight, problem.statistics, problem.target)
