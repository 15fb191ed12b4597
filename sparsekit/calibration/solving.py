"""One layer: from the sums over its inputs to its pruned weight; pure numpy, wherever the sums come from."""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.calibration.collecting import Collected
from sparsekit.calibration.holding_out import HeldBack, halves, refitted_anew, solved_anew
from sparsekit.calibration.repairs import fits, repaired
from sparsekit.config import PruneConfig
from sparsekit.criterion import Criterion
from sparsekit.pattern import Pattern
from sparsekit.reconstruction import LayerProblem, Solution, Statistics, assess, mean_shift, output_moments, scale_shift
from sparsekit.reconstruction.damping import Scorer, goal_of, with_ridge
from sparsekit.result import LayerAccount

Array: TypeAlias = npt.NDArray[Any]

FEWEST_ROWS = 4
"""From fewer rows of inputs a fit can be worse than none."""
_LITTLE = 1e-4
"""The damping where the best fit on the rows themselves is wanted."""
FEW_SAMPLES = 16
"""With fewer, what a criterion or a repair finds is compared with magnitude on samples that it has not seen."""


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
    blocks = [
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
    solutions = [block.solution for block in blocks]
    # A mean shift after a mask alone does harm.
    shifted = centered and all(solution.damping for solution in solutions)
    sizes = [solution.weight.size for solution in solutions]
    before, mask, after = np.average([block.errors for block in blocks], axis=0, weights=sizes).tolist()
    return SolvedLayer(
        weight=collected.layout.weight([solution.weight for solution in solutions]),
        shift=np.stack([block.shift for block in blocks]) if shifted else None,
        account=attrs.evolve(
            account,
            error_before=before,
            error_mask=mask,
            error_after=after,
            held_back=all(block.held_back for block in blocks),
            damping=max(solution.damping for solution in solutions),
            iterations=max(solution.iterations for solution in solutions),
            shifted=shifted,
            note="; ".join(dict.fromkeys(solution.fallback for solution in solutions if solution.fallback)),
        ),
    )


def scaled_by_sums(seen: Array, solved: SolvedLayer, collected: Collected, *, guard: bool) -> SolvedLayer:
    """Mean and deviation of a solved layer's outputs restored, by the sums over its inputs.

    Args:
        seen: the dense weight as the op sees it.
        solved: the layer.
        collected: its layout and statistics.
        guard: leave it alone where that is worse on either half of the samples by the other's moments; few samples are
            always guarded.
    """
    if any(halves(s) is None or min(s.rows[s.rows > 0]) < FEWEST_ROWS for s in collected.statistics):
        return attrs.evolve(
            solved, account=solved.account.noted("mean and deviation are not restored from so few rows")
        )
    dense, pruned = (collected.layout.matrices(weight) for weight in (seen, solved.weight))
    few = min(int(s.samples.sum()) for s in collected.statistics) < FEW_SAMPLES
    weights, shifts, lost, energy, unseen = [], [], 0.0, 0.0, np.zeros(2)
    for block, (before, after, statistics) in enumerate(zip(dense, pruned, collected.statistics, strict=True)):
        scale, shift = scale_shift(output_moments(before, statistics), output_moments(after, statistics))
        weights.append((after * scale).astype(after.dtype))
        shifts.append(shift)
        lost += _lost(before, weights[-1], shift, statistics)
        energy += _lost(before, np.zeros_like(before), np.zeros(before.shape[1]), statistics)
        if guard or few:
            as_found = np.zeros(before.shape[1]) if solved.shift is None else solved.shift[block]
            unseen += _lost_unseen(before, after, as_found, statistics)
    if unseen[1] > unseen[0]:
        shares = unseen / energy if energy > 0 else unseen
        note = f"with mean and deviation restored held-back samples lose {shares[1]:.3g}, without {shares[0]:.3g}"
        return attrs.evolve(solved, account=solved.account.noted(note))
    account = attrs.evolve(
        solved.account,
        error_after=max(lost, 0.0) / energy if energy > 0 else 0.0,
        held_back=False,
        scaled=True,
        shifted=True,
    )
    return SolvedLayer(collected.layout.weight(weights), np.stack(shifts), account)


def _lost_unseen(dense: Array, pruned: Array, as_found: Array, statistics: Statistics) -> Array:
    """What the halves of the samples lose: as the layer was found, and restored by the moments of the other half."""
    both = halves(statistics)
    assert both is not None
    lost = np.zeros(2)
    for fitted, scored in (both, both[::-1]):
        scale, shift = scale_shift(output_moments(dense, fitted), output_moments(pruned, fitted))
        lost += _lost(dense, pruned, as_found, scored), _lost(dense, pruned * scale, shift, scored)
    return lost


def _lost(dense: Array, pruned: Array, shift: Array, statistics: Statistics) -> float:
    """``|X (dense - pruned) - shift|^2``."""
    difference = dense - pruned.astype(np.float64)
    lost = float(np.vdot(difference, statistics.total_gram() @ difference))
    return lost + statistics.total_rows * float(shift @ (shift - 2 * statistics.mean() @ difference))


@attrs.frozen(eq=False)
class _Block:
    """One matrix product of a layer.

    Attributes:
        solution: mask and weights.
        shift: what to add to the mean output of every column, [N].
        errors: of the magnitude mask, of the chosen mask alone, and of the solution.
        held_back: the errors are of rows that were not fitted.
    """

    solution: Solution
    shift: Array
    errors: tuple[float, float, float]
    held_back: bool


def _solve_block(problem: LayerProblem, criterion: Criterion, config: PruneConfig) -> _Block:
    def solve(problem: LayerProblem) -> Solution:
        return repaired(problem, criterion.solve(problem), config.repair)

    calibrated = criterion.needs == "statistics" or fits(config.repair)
    obstacle = _too_little(problem) if calibrated else ""
    solution = _magnitude(problem, obstacle) if obstacle else solve(problem)
    held = refitted_anew(problem, solution)
    few = calibrated and int(problem.statistics.samples.sum()) < FEW_SAMPLES
    judged = held
    if not solution.fallback and (few or (config.guard and solution.damping)):
        judged = solved_anew(problem, solution, solve)
    if held is not None and judged is not None and not solution.fallback:
        if config.guard and solution.damping and judged.fitted > judged.mask:
            found = f"on held-back samples the fit loses {judged.fitted:.3g}, the mask alone {judged.mask:.3g}"
            better = held.mask <= held.magnitude
            mask = solution.mask if better else problem.magnitude_mask()
            solution = attrs.evolve(
                assess(problem, mask, problem.weight, guard=False), fallback=f"left alone by the guard: {found}"
            )
            held = attrs.evolve(held, fitted=held.mask) if better else HeldBack(*[held.magnitude] * 3)
        elif (solution.damping or few) and judged.fitted > judged.magnitude:
            solution = _magnitude(problem, "a fit is worse on held-back samples")
            held = HeldBack(*[held.magnitude] * 3)
    shift = mean_shift(problem.weight, solution.weight, problem.statistics, problem.target)
    # Without the energy of the dense path, shares are known up to a constant alone.
    if held is not None and problem.target == "own":
        return _Block(solution, shift, (held.magnitude, held.mask, held.fitted), True)
    return _Block(solution, shift, _errors_beside_the_best(problem, solution), not solution.damping)


def _errors_beside_the_best(problem: LayerProblem, solution: Solution) -> tuple[float, float, float]:
    """Errors on the rows that were fitted, less that of the weights that fit the target best while all stay."""
    error, best = Scorer.of(problem, problem.statistics), 0.0
    if problem.target == "dense":
        gram = problem.gram()
        best = error(goal_of(problem.weight, gram, with_ridge(gram, _LITTLE), problem.cross_gram()))
    plain, alone = (np.where(mask, problem.weight, 0) for mask in (problem.magnitude_mask(), solution.mask))
    after = error(solution.weight, shifted=solution.damping > 0)
    before, by_mask = (error(weight, shifted=False) for weight in (plain, alone))
    return max(before - best, 0.0), max(by_mask - best, 0.0), max(after - best, 0.0)


def _magnitude(problem: LayerProblem, why: str) -> Solution:
    return assess(problem, problem.magnitude_mask(), problem.weight, fallback=why)


def _too_little(problem: LayerProblem) -> str:
    """Why the rows are too few for anything to be learned from them, "" if they are not."""
    rows = problem.statistics.total_rows
    if rows < FEWEST_ROWS:
        return f"fewer than {FEWEST_ROWS} rows of calibration inputs"
    if halves(problem.statistics) is None and rows < problem.statistics.size:
        return "one calibration sample, with fewer rows than the layer has inputs"
    return ""
