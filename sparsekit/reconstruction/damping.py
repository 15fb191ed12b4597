"""How far to trust a Gram matrix: the ridge that is added to its diagonal.

With few samples the Gram matrix fits their noise, and the better an optimiser, the worse its weights do on fresh
inputs. The ridge pulls towards the dense weights (not towards zero), so it does no harm to what stays.
"""

from __future__ import annotations

from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.reconstruction.factor import inverse_diagonal
from sparsekit.reconstruction.problem import Array, LayerProblem
from sparsekit.reconstruction.refit import refit
from sparsekit.reconstruction.statistics import Statistics

GRID = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""What cross-validation chooses from."""

# That of the mask whose refits are compared.
_MASK_DAMPING = 0.03
_COLUMNS = 32
_ITERATIONS = 25
_LEAST, _MOST = 0.002, 1.0


@attrs.frozen
class Damping:
    """A ridge and how it was found.

    Attributes:
        value: see `ridge`.
        source: "given", "cross-validation" or "shrinkage".
        held_out: the error on the other fold, summed over both, as a share of the dense output's energy; the same of
            the magnitude mask. (target="dense": up to a constant that both have in common.) Zeros without
            cross-validation.
        held_out_magnitude: see above.
    """

    value: float
    source: Literal["given", "cross-validation", "shrinkage"]
    held_out: float = 0.0
    held_out_magnitude: float = 0.0


def damp(gram: Array, damping: float) -> Array:
    """H = G + diag(`ridge`), positive definite; float64 [K, K]."""
    damped = gram.copy()
    np.fill_diagonal(damped, np.diagonal(gram) + ridge(gram, damping))
    return damped


def ridge(gram: Array, damping: float) -> Array:
    """damping * (diag G + mean diag G) / 2, float64 [K]; ones where all inputs are zero and any ridge will do."""
    diagonal = np.diagonal(gram)
    return damping * (diagonal + diagonal.mean()) / 2 if diagonal.any() else np.ones(len(gram))


def goal_of(weight: Array, gram: Array, damped: Array, cross_gram: Array | None) -> Array:
    """T [K, N]: the weights that fit the target best while all stay. For the layer's own output, W itself."""
    if cross_gram is None:
        return weight
    return np.linalg.solve(damped, cross_gram @ weight + (damped - gram) @ weight)


def choose_damping(problem: LayerProblem) -> Damping:
    """The damping of the problem, or the one that does best across two folds of the samples.

    A mask by ``w^2 / [H^-1]_kk`` is refitted on one fold with every ridge of `GRID` and scored on the other, both
    ways, for up to 32 columns. Half of the best is taken: a fold has half of the samples, so its Gram matrix twice the
    noise. With one fold alone: Ledoit and Wolf's shrinkage towards the diagonal (J. Multivariate Analysis 88, 2004),
    its variances those of a Gaussian, clipped to [0.002, 1].
    """
    if problem.damping is not None:
        return Damping(problem.damping, "given")
    filled = np.flatnonzero(problem.statistics.rows)
    if len(filled) < 2:
        return Damping(float(np.clip(shrinkage(problem.statistics), _LEAST, _MOST)), "shrinkage")
    # More than two folds are two halves.
    halves = [_half(problem.statistics, filled[half::2]) for half in (0, 1)]
    some = _some_columns(problem)
    errors = _held_out(some, *halves) + _held_out(some, *reversed(halves))
    masked = np.where(some.magnitude_mask(), some.weight, 0)
    best = int(errors.argmin())
    magnitude = sum(_error(some, half, masked) for half in halves)
    return Damping(GRID[best] / 2, "cross-validation", float(errors[best]), magnitude)


def shrinkage(statistics: Statistics) -> float:
    """The share by which the off-diagonal second moments are best shrunk towards zero, given their number of samples."""
    samples = int(statistics.samples.sum())
    if samples < 2:
        return 1.0
    moments = statistics.gram.sum(axis=0) / max(int(statistics.rows.sum()), 1)
    diagonal = np.diagonal(moments)
    squares = float(np.square(moments).sum() - np.square(diagonal).sum())
    products = float(diagonal.sum() ** 2 - np.square(diagonal).sum())
    return (products + squares) / (samples * squares) if squares > 0 else 1.0


@attrs.frozen(eq=False)
class _Half:
    gram: Array
    cross_gram: Array | None


def _half(statistics: Statistics, folds: npt.NDArray[np.intp]) -> _Half:
    cross = statistics.cross_gram
    return _Half(statistics.gram[folds].sum(axis=0), None if cross is None else cross[folds].sum(axis=0))


def _some_columns(problem: LayerProblem) -> LayerProblem:
    """Evenly spaced in the order of their norms, so that the order of the outputs does not matter."""
    columns = problem.weight.shape[1]
    if columns <= _COLUMNS:
        return problem
    order = np.argsort(np.linalg.norm(problem.weight.astype(np.float64), axis=0), kind="stable")
    chosen = order[np.linspace(0, columns - 1, _COLUMNS).round().astype(int)]
    return attrs.evolve(problem, weight=problem.weight[:, chosen])


def _held_out(problem: LayerProblem, fitted: _Half, scored: _Half) -> Array:
    """What is fitted on one half, scored on the other: float64, one for each of `GRID`."""
    cross = fitted.cross_gram if problem.target == "dense" else None
    damped = damp(fitted.gram, _MASK_DAMPING)
    goal = goal_of(problem.weight, fitted.gram, damped, cross)
    mask = problem.keep(goal / np.sqrt(inverse_diagonal(damped))[:, None])
    working = damped.astype(problem.float_type, copy=False)
    errors = np.zeros(len(GRID))
    for index, damping in enumerate(GRID):
        if cross is not None:
            damped = damp(fitted.gram, damping)
            goal = goal_of(problem.weight, fitted.gram, damped, cross)
        np.fill_diagonal(working, np.diagonal(fitted.gram) + ridge(fitted.gram, damping))
        found = refit(goal, mask, working, exact=False, iterations=_ITERATIONS, tolerance=0.0)
        errors[index] = _error(problem, scored, found.weight)
    return errors


def _error(problem: LayerProblem, half: _Half, weight: Array) -> float:
    """tr(V'GV) - 2 tr(V'CW) + tr(W'CW), as a share of the last; C is G itself for the layer's own target."""
    dense = problem.weight.astype(np.float64)
    cross = half.gram if problem.target == "own" or half.cross_gram is None else half.cross_gram
    target = cross @ dense
    energy = float(np.vdot(dense, target))
    if problem.target == "own":
        lost = dense - weight
        error = float(np.vdot(lost, half.gram @ lost))
    else:
        error = float(np.vdot(weight, half.gram @ weight) - 2 * np.vdot(weight, target)) + energy
    return error / energy if energy > 0 else 0.0
