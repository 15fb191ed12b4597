"""The best values for the weights that a mask keeps."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

EXACT_SIZE = 128
"""Up to this many inputs every column is solved exactly; above, that costs more than it is worth."""

# Memory for the systems of as many columns as are solved at once.
_BATCH_BYTES = 1 << 26


@attrs.frozen(eq=False)
class Refit:
    """Weights [K, N] with zeros outside of their mask; how many iterations it took (0: solved exactly)."""

    weight: Array
    iterations: int


def refit(
    goal: Array,
    mask: Array,
    damped_gram: Array,
    *,
    start: Array | None = None,
    exact: bool | None = None,
    iterations: int | None = None,
    tolerance: float | None = None,
) -> Refit:
    """The weights V on ``mask`` that minimise ``tr((goal - V)' H (goal - V))``.

    Args:
        goal: T, float [K, N]: the best weights if all could stay.
        mask: bool [K, N].
        damped_gram: H, symmetric positive definite, float [K, K].
        start: float [K, N], where the iterations start; None: at the masked goal.
        exact: solve each column exactly; None: up to `EXACT_SIZE` inputs. Otherwise conjugate gradients on all
            columns at once, with the diagonal as a preconditioner, in H's dtype.
        iterations: at most; None: 15 in float32, 100 in float64.
        tolerance: stop when an iteration lowers the objective by less than this share; None: 1e-5, 1e-8.
    """
    if exact if exact is not None else len(goal) <= EXACT_SIZE:
        return Refit(_least_squares(goal, mask, damped_gram), 0)
    most, least = (100, 1e-8) if damped_gram.dtype == np.float64 else (15, 1e-5)
    return _conjugate_gradients(
        goal,
        mask,
        damped_gram,
        start=goal if start is None else start,
        iterations=most if iterations is None else iterations,
        tolerance=least if tolerance is None else tolerance,
    )


def _least_squares(goal: Array, mask: Array, damped_gram: Array) -> Array:
    """H[S, S] v = (H t)[S] for the support S of every column; columns of fewer weights get rows of the identity."""
    gram = damped_gram.astype(np.float64, copy=False)
    right = gram @ goal.astype(np.float64, copy=False)
    weight = np.zeros(goal.shape)
    kept = int(mask.sum(axis=0).max(initial=0))
    if kept == 0:
        return weight
    support = np.argsort(~mask, axis=0, kind="stable")[:kept].T  # [N, kept]
    diagonal = np.arange(kept)
    step = max(1, _BATCH_BYTES // (8 * kept * kept))
    for begin in range(0, goal.shape[1], step):
        columns = np.arange(begin, min(begin + step, goal.shape[1]))[:, None]
        rows = support[begin : begin + step]
        real = mask[rows, columns]
        systems = gram[rows[:, :, None], rows[:, None, :]]
        if not real.all():
            systems *= real[:, :, None] & real[:, None, :]
            systems[:, diagonal, diagonal] += ~real
        values = np.linalg.solve(systems, (right[rows, columns] * real)[:, :, None])[:, :, 0]
        weight[rows, columns] = values * real
    return weight


def _conjugate_gradients(
    goal: Array, mask: Array, gram: Array, *, start: Array, iterations: int, tolerance: float
) -> Refit:
    kind = gram.dtype
    keep = mask.astype(kind)
    weight = start.astype(kind) * keep
    error = goal.astype(kind) - weight
    residual = gram @ error
    objective = _dot(error, residual).sum()
    del error
    residual *= keep
    inverse = (1 / np.diagonal(gram))[:, None]
    direction = inverse * residual
    slope = _dot(residual, direction)
    done = 0
    while done < iterations:
        done += 1
        image = gram @ direction
        image *= keep
        curvature = _dot(direction, image)
        step = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        weight += direction * step.astype(kind)
        image *= step.astype(kind)
        residual -= image
        gained = float(step @ slope)
        objective -= gained
        if not gained > tolerance * objective:
            break
        conditioned = inverse * residual
        steeper = _dot(residual, conditioned)
        direction *= np.divide(steeper, slope, out=np.zeros_like(slope), where=slope > 0).astype(kind)
        direction += conditioned
        slope = steeper
    return Refit(weight, done)


def _dot(a: Array, b: Array) -> Array:
    """Of every column with its peer, float64 [N]."""
    return np.einsum("kn,kn->n", a, b).astype(np.float64)
