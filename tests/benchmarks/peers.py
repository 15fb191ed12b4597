"""Peers of the criterion admm, written anew from their papers; 2:4 alone, numpy, float64.

They take weights W [K, N] and the Gram matrix H = X'X of the inputs, damped as the caller likes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparsekit.pattern import keep_mask

Array = npt.NDArray[Any]


def damped_by_mean(gram: Array) -> Array:
    """What the published code of all peers does: 1 % of the mean of the diagonal on top of it."""
    return gram + 0.01 * np.diagonal(gram).mean() * np.eye(len(gram))


def alps(weight: Array, gram: Array) -> Array:
    """ALPS (Meng et al. 2024, arXiv 2406.07831): ADMM under a diagonal scaling, then 10 conjugate gradients.

    The penalty starts at 0.1 and grows every 3 iterations by 1.3, 1.2 or 1.1, by how much of the support changed:
    above 10 %, above 0.5 %, or less; it starts over at a fifth while nothing much changed yet. At most 300 iterations.
    """
    norm = np.sqrt(np.diagonal(gram))
    metric = gram / np.outer(norm, norm)
    dense = weight * norm[:, None]
    pull = metric @ dense
    values, vectors = np.linalg.eigh(metric)
    rho, started = 0.1, False
    mask = before = keep_mask(dense, 0)
    sparse, dual = dense * mask, np.zeros_like(dense)
    inverse = (vectors / (values + rho)) @ vectors.T
    free = dense
    for done in range(300):
        free = inverse @ (pull - dual + rho * sparse)
        mask = keep_mask(free + dual / rho, 0)
        sparse = (free + dual / rho) * mask
        dual = dual + rho * (free - sparse)
        if (done + 1) % 3:
            continue
        changed = np.count_nonzero(mask != before) / mask.sum()
        if changed == 0 and started:
            break
        if changed > 0.005:
            started, rho = True, rho * (1.3 if changed > 0.1 else 1.2)
        elif changed > 0 and started:
            rho *= 1.1
        else:
            rho /= 5
            if changed > 0:
                sparse, dual = dense * keep_mask(dense, 0), np.zeros_like(dense)
        before = mask
        inverse = (vectors / (values + rho)) @ vectors.T
        if done >= 30 and changed < 0.0003:
            break
    mask = keep_mask(free, 0)
    return conjugate_gradients(metric, pull, free * mask, mask, iterations=10) / norm[:, None]


def sparsegpt(weight: Array, gram: Array) -> Array:
    """SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): one pass, each weight made up for by later ones."""
    inverse = np.linalg.inv(gram)
    weight = weight.copy()
    mask = np.zeros(weight.shape, np.bool_)
    for row in range(len(weight)):
        if row % 4 == 0:
            # The diagonals that the inverse will have when the pass reaches the rows of this group.
            rest = np.linalg.inv(np.linalg.cholesky(inverse[row : row + 4, row : row + 4]))
            saliency = weight[row : row + 4] ** 2 * np.square(np.diagonal(rest))[:, None]
            mask[row : row + 4] = keep_mask(saliency, 0)
        lost = np.where(mask[row], 0, weight[row])
        weight[row:] -= np.outer(inverse[row:, row] / inverse[row, row], lost)
        inverse = inverse - np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
    return weight * mask


def wanda_mask(weight: Array, gram: Array) -> Array:
    """Wanda (Sun et al. 2023, arXiv 2306.11695)."""
    return keep_mask(np.abs(weight) * np.sqrt(np.diagonal(gram))[:, None], 0)


def least_squares(weight: Array, gram: Array, mask: Array) -> Array:
    """The best values on a mask, column by column."""
    right = gram @ weight
    result = np.zeros_like(weight)
    for column in range(weight.shape[1]):
        kept = np.flatnonzero(mask[:, column])
        result[kept, column] = np.linalg.solve(gram[np.ix_(kept, kept)], right[kept, column])
    return result


def conjugate_gradients(gram: Array, right: Array, weight: Array, mask: Array, iterations: int) -> Array:
    """Without a preconditioner, on a fixed support."""
    weight = weight.copy()
    residual = (right - gram @ weight) * mask
    direction = residual
    slope = (residual**2).sum(axis=0)
    for _ in range(iterations):
        image = (gram @ direction) * mask
        step = slope / np.maximum((direction * image).sum(axis=0), 1e-300)
        weight += step * direction
        residual = residual - step * image
        steeper = (residual**2).sum(axis=0)
        direction = residual + steeper / np.maximum(slope, 1e-300) * direction
        slope = steeper
    return weight
