"""How far to trust a Gram matrix: the ridge that is added to its diagonal.

With few samples the Gram matrix fits their noise, and the better an optimiser, the worse its weights do on fresh
inputs. The ridge pulls towards the dense weights (not towards zero), so it does no harm to what stays.
"""

from __future__ import annotations

from typing import Literal

import attrs
import numpy as np

from sparsekit.reconstruction.factor import inverse_diagonal
from sparsekit.reconstruction.problem import Array, LayerProblem
from sparsekit.reconstruction.refit import refit
from sparsekit.reconstruction.statistics import Statistics

GRID = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""What cross-validation chooses from."""

# That of the mask whose refits are compared.
_MASK_DAMPING = 0.03
_COLUMNS = 32
_ITERATIONS, _TOLERANCE = 25, 1e-4
_LEAST, _MOST = 0.002, 1.0
# What rounding leaves of an error that is none, as a share.
_ROUNDING = 1e-12


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


@attrs.frozen(eq=False)
class Damped:
    """H [K, K] and the diagonal of its inverse, float64 [K]; the damping that it has."""

    gram: Array
    inverse_diagonal: Array
    damping: float


def damp(gram: Array, damping: float) -> Damped:
    """H = G + diag(`ridge`).

    Float32 sums can leave a Gram matrix that is not quite positive; the damping is then taken tenfold until H is.

    Raises:
        numpy.linalg.LinAlgError: ``gram`` is not a Gram matrix at all.
    """
    damped = gram.copy()
    while True:
        with_ridge(gram, damping, damped)
        try:
            return Damped(damped, inverse_diagonal(damped), damping)
        except np.linalg.LinAlgError:
            if damping > 1:
                raise
            damping *= 10


def ridge(gram: Array, damping: float) -> Array:
    """damping * (diag G + mean diag G) / 2, float64 [K]; ones where all inputs are zero and any ridge will do."""
    diagonal = np.diagonal(gram)
    return damping * (diagonal + diagonal.mean()) / 2 if diagonal.any() else np.ones(len(gram))


def with_ridge(gram: Array, damping: float, into: Array | None = None) -> Array:
    """G + diag(`ridge`), [K, K].

    Args:
        gram: G.
        damping: see `ridge`.
        into: a copy of G, of any float dtype and with any ridge, whose diagonal is written; None: a new one.
    """
    damped = gram.copy() if into is None else into
    np.fill_diagonal(damped, np.diagonal(gram) + ridge(gram, damping))
    return damped


def goal_of(weight: Array, gram: Array, damped: Array, cross_gram: Array | None) -> Array:
    """T [K, N]: the weights that fit the target best while all stay. For the layer's own output, W itself."""
    if cross_gram is None:
        return weight
    return np.linalg.solve(damped, cross_gram @ weight + (damped - gram) @ weight)


def choose_damping(problem: LayerProblem) -> Damping:
    """The damping of the problem, or the one that does best across two folds of the samples.

    A mask by ``w^2 / [H^-1]_kk`` is refitted on one fold with every ridge of `GRID` and scored on the other, both
    ways, for up to 32 columns. Half of the best is taken: a fold has half of the samples, so its Gram matrix has twice
    the noise (1 to 7 % less error on fresh inputs of trained layers, 1.6 % more of synthetic ones). With one fold
    alone: Ledoit and Wolf's shrinkage towards the diagonal (J. Multivariate Analysis 88, 2004), its variances those of
    a Gaussian, clipped to [0.002, 1].
    """
    if problem.damping is not None:
        return Damping(problem.damping, "given")
    filled = np.flatnonzero(problem.statistics.rows)
    if len(filled) < 2:
        return Damping(float(np.clip(shrinkage(problem.statistics), _LEAST, _MOST)), "shrinkage")
    # More than two folds are two halves.
    some = attrs.evolve(problem, weight=problem.weight[:, some_columns(problem)])
    one, other = (attrs.evolve(some, statistics=problem.statistics.pooled(filled[half::2].tolist())) for half in (0, 1))
    errors = _held_out(one, other.statistics) + _held_out(other, one.statistics)
    best = int(errors[:-1].argmin())
    return Damping(GRID[best] / 2, "cross-validation", float(errors[best]), float(errors[-1]))


def shrinkage(statistics: Statistics) -> float:
    """The share by which the off-diagonal second moments are best shrunk towards zero, by their number of samples."""
    samples = int(statistics.samples.sum())
    if samples < 2:
        return 1.0
    moments = statistics.gram.sum(axis=0) / max(int(statistics.rows.sum()), 1)
    diagonal = np.diagonal(moments)
    squares = float(np.square(moments).sum() - np.square(diagonal).sum())
    products = float(diagonal.sum() ** 2 - np.square(diagonal).sum())
    return (products + squares) / (samples * squares) if squares > 0 else 1.0


def some_columns(problem: LayerProblem) -> Array:
    """Up to 32 columns, evenly spaced in the order of their norms, so that the order of the outputs does not matter."""
    columns = problem.weight.shape[1]
    if columns <= _COLUMNS:
        return np.arange(columns)
    order = np.argsort(np.linalg.norm(problem.weight.astype(np.float64), axis=0), kind="stable")
    chosen: Array = order[np.linspace(0, columns - 1, _COLUMNS).round().astype(int)]
    return chosen


def _held_out(problem: LayerProblem, scored: Statistics) -> Array:
    """What is fitted to the problem, scored on other rows: one for each of `GRID`, then the magnitude mask's."""
    gram, cross = problem.gram(), problem.cross_gram()
    system = damp(gram, _MASK_DAMPING)
    goal = goal_of(problem.weight, gram, system.gram, cross)
    mask = problem.keep(goal / np.sqrt(system.inverse_diagonal)[:, None])
    working = system.gram.astype(problem.float_type, copy=False)
    error = Scorer.of(problem, scored)
    errors = np.zeros(len(GRID) + 1)
    for index, damping in enumerate(GRID):
        with_ridge(gram, damping, working)
        if cross is not None:
            goal = goal_of(problem.weight, gram, working.astype(np.float64, copy=False), cross)
        found = refit(goal, mask, working, exact=False, iterations=_ITERATIONS, tolerance=_TOLERANCE)
        errors[index] = error(found.weight)
    errors[-1] = error(np.where(problem.magnitude_mask(), problem.weight, 0), shifted=False)
    return errors


@attrs.frozen(eq=False)
class Scorer:
    """What weights lose on some rows, |D W - X V - m|^2 as a share of |D W|^2; D is X for the layer's own target.

    m is what a bias takes of the mean after a fit; of a `centered` problem it comes from the rows of the fit, else it
    is zero. (target="dense": |D W|^2 is not known, and W'D'X W stands for it: shares are right up to a constant.)

    Attributes:
        gram, target: X'X and X'D W about the centers.
        constant: W'X'D W about the centers.
        energy: the same about zero.
        center: the mean of X of the rows of the fit; None where no bias takes a shift.
        mean: D W of that mean, [N].
        sums: of the scored rows: of X [K], and of D W [N].
        rows: how many they are.
    """

    gram: Array
    target: Array
    constant: float
    energy: float
    center: Array | None
    mean: Array
    sums: tuple[Array, Array]
    rows: int

    @classmethod
    def of(cls, problem: LayerProblem, scored: Statistics) -> Scorer:
        """On the rows of ``scored``, for what is fitted to those of the problem."""
        fitted, own, rows = problem.statistics, problem.target == "own", scored.total_rows
        center, dense_center = (fitted.mean(), fitted.dense_mean()) if problem.centered else (None, None)
        gram = scored.total_gram(center)
        cross = None if own else scored.total_cross_gram(center, dense_center)
        dense = problem.weight.astype(np.float64)
        target = (gram if cross is None else cross) @ dense
        energy = constant = float(np.vdot(dense, target))
        mean = np.zeros(dense.shape[1])
        total, wanted = rows * scored.mean(), rows * (scored.mean() if own else _dense_mean(scored)) @ dense
        if center is not None:
            mean = (center if own else _dense_mean(fitted)) @ dense
            energy += float(total @ dense @ mean + center @ dense @ (wanted - rows * mean))
        return cls(gram, target, constant, energy, center, mean, (total, wanted), rows)

    def __call__(self, weight: Array, *, shifted: bool = True) -> float:
        """The share that a weight loses.

        Args:
            weight: V [K, N].
            shifted: a bias takes the mean, if the problem is `centered`: it does so after a fit alone.
        """
        weight = weight.astype(np.float64, copy=False)
        error = float(np.vdot(weight, self.gram @ weight) - 2 * np.vdot(weight, self.target) + self.constant)
        if self.center is not None and not shifted:
            shift, (total, wanted) = self.mean - self.center @ weight, self.sums
            error += float(shift @ (2 * (wanted - total @ weight) - self.rows * shift))
        share = error / self.energy if self.energy > 0 else 0.0
        return share if abs(share) > _ROUNDING else 0.0


def _dense_mean(statistics: Statistics) -> Array:
    mean = statistics.dense_mean()
    assert mean is not None  # target="dense" has these sums, see `LayerProblem`
    return mean
