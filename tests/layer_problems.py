"""Layers for the tests of calibrated pruning, and what is obviously right about them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from sparsekit.pattern import Pattern
from sparsekit.reconstruction import LayerProblem, Statistics

Array = npt.NDArray[Any]


def statistics_of(inputs: Array, folds: int = 2) -> Statistics:
    found = Statistics.empty(inputs.shape[1], folds)
    for fold in range(folds):
        found.add(inputs[fold::folds], fold)
    return found


def problem_of(inputs: Array, weight: Array, **settings: Any) -> LayerProblem:
    return LayerProblem(weight, statistics_of(inputs), **settings)


def gaussian_inputs(rows: int, size: int, seed: int = 0) -> Array:
    """Every input correlates with every other one."""
    random = np.random.default_rng(seed)
    mixing = np.eye(size) + random.standard_normal((size, size)) / (2 * np.sqrt(size))
    return random.standard_normal((rows, size)) @ mixing


def pixels(size: int, seed: int = 0) -> Array:
    """As many pixels of scikit-learn's digits, of those that change; [1797, size]."""
    data = load_digits().data / 16
    live = np.flatnonzero(data.std(axis=0) > 1 / 16)
    return data[:, np.sort(np.random.default_rng(seed).choice(live, size, replace=False))]


def output_error(inputs: Array, dense: Array, pruned: Array) -> float:
    return float(np.square(inputs @ (dense - pruned)).sum())


def best_of_all_masks(gram: Array, weight: Array, pattern: Pattern) -> Array:
    """The least error that any mask allows, each with exact least squares; [columns]."""
    size = len(weight)
    right = gram @ weight
    energy = (weight * right).sum(axis=0)
    best = np.full(weight.shape[1], np.inf)
    one_group = list(itertools.combinations(range(pattern.m), pattern.n))
    for kept in itertools.product(one_group, repeat=size // pattern.m):
        rows = [group * pattern.m + member for group, members in enumerate(kept) for member in members]
        values = np.linalg.solve(gram[np.ix_(rows, rows)], right[rows])
        best = np.minimum(best, energy - (values * right[rows]).sum(axis=0))
    return best
