"""The search behind the criterion admm: alternating directions in the metric of optimal brain surgery.

Alternating direction method of multipliers for layer-wise pruning: Boža 2024 (arXiv 2401.02938), and ALPS, Meng et
al. 2024 (arXiv 2406.07831), from which the refit by conjugate gradients comes too. Here weights are first scaled so
that dropping one of size 1 alone costs 1 (after the others made up for it): what a projection keeps by magnitude is
then what optimal brain surgery keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.reconstruction.damping import Damped

Array = npt.NDArray[Any]


@attrs.frozen
class Schedule:
    """How long to search.

    Attributes:
        iterations: at most.
        least: before the search may stop early.
        first, last: the penalty rho at the first and the last iteration, growing geometrically.
        hold: iterations with the same penalty.
        settled: the share of mask bits below whose change, twice running at a change of penalty, the search stops.
    """

    iterations: int
    least: int
    first: float = 0.3
    last: float = 10.0
    hold: int = 3
    settled: float = 1e-4


@attrs.frozen(eq=False)
class Found:
    """The weights before a refit, their mask, and how many iterations it took."""

    weight: Array
    mask: Array
    iterations: int


def search(
    goal: Array, system: Damped, keep: Callable[[Array], Array], schedule: Schedule, kind: type[np.floating[Any]]
) -> Found:
    """A mask for which ``tr((goal - V)' H (goal - V))`` can be made small.

    Args:
        goal: T, float [K, N].
        system: H.
        keep: makes a legal mask, bool [K, N], of scores [K, N].
        schedule: how long.
        kind: the dtype of the iterations.
    """
    scale = 1 / np.sqrt(system.inverse_diagonal)
    metric = system.gram / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(metric)
    vectors = vectors.astype(kind, copy=False)
    scaled = (goal * scale[:, None]).astype(kind)
    pull = metric.astype(kind, copy=False) @ scaled
    del metric

    def resolvent(rho: float) -> Array:
        """(metric + rho)^-1; of a matrix and its own transpose BLAS computes one half alone."""
        root = vectors / np.sqrt(values + rho).astype(kind)
        return root @ root.T

    growth = (schedule.last / schedule.first) ** (1 / max(schedule.iterations - 1, 1))
    rho = schedule.first
    inverse = resolvent(rho)
    mask = keep(scaled)
    sparse = scaled * mask
    dual = np.zeros_like(scaled)
    before, calm, done = mask, 0, 0
    for done in range(1, schedule.iterations + 1):
        dual += inverse @ (pull + kind(rho) * (sparse - dual))
        mask = keep(dual)
        np.multiply(dual, mask, out=sparse)
        dual -= sparse
        if done % schedule.hold or done == schedule.iterations:
            continue
        calm = calm + 1 if np.count_nonzero(mask != before) < schedule.settled * mask.size else 0
        if done >= schedule.least and calm >= 2:
            break
        before = mask
        grown = rho * growth**schedule.hold
        dual *= kind(rho / grown)
        rho = grown
        inverse = resolvent(rho)
    return Found(sparse / scale[:, None].astype(kind), mask, done)
