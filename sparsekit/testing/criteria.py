"""Does a criterion keep its promises? See :class:`sparsekit.criterion.Criterion`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from sparsekit.criterion import Criterion, Needs
from sparsekit.errors import SparsekitError
from sparsekit.live.mask import keep_tensor
from sparsekit.pattern import Pattern, check, keep_mask
from sparsekit.reconstruction import LayerProblem, Solution, Statistics

_PATTERNS = (Pattern(2, 4), Pattern(1, 2), Pattern(3, 8))
# First, middle and last group axes, whole groups and tails of every length that 2:4 knows.
_LAYERS: tuple[tuple[tuple[int, ...], int, str], ...] = (
    ((8, 6), 0, "float32"),
    ((5, 16), 1, "float64"),
    ((3, 3, 9, 4), 2, "float32"),
    ((2, 2, 3, 7), 3, "float64"),
    ((2, 6, 1, 5), -3, "float32"),
)


def check_criterion(criterion: Criterion) -> None:
    """Check a criterion on weights of several shapes, dtypes and group axes, ties and zeros among them.

    Its ``solve`` gets calibration inputs too: plenty, a single row, none, all zero, constant, and padding.

    Args:
        criterion: an instance.

    Raises:
        AssertionError: its declaration or its scores break the contract; the message says how.
    """
    if not isinstance(criterion, Criterion):
        raise AssertionError(f"A criterion is an instance of sparsekit.Criterion, not {criterion!r}.")
    who = type(criterion).__qualname__
    if not isinstance(criterion.name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", criterion.name):
        raise AssertionError(f"{who}.name must be lower-case words joined by hyphens, not {criterion.name!r}.")
    if not isinstance(criterion.live, bool):
        raise AssertionError(f"{who}.live must be True or False, not {criterion.live!r}.")
    if criterion.needs not in get_args(Needs):
        raise AssertionError(f"{who}.needs must be one of {get_args(Needs)}, not {criterion.needs!r}.")
    if criterion.needs == "statistics" and criterion.live:
        raise AssertionError(f"{who}.live must be False: a training graph collects no statistics.")
    random = np.random.default_rng(0)
    for shape, axis, dtype in _LAYERS if criterion.needs == "weights" else ():
        # One decimal: many ties, and zeros of both signs.
        weight = random.standard_normal(shape).round(1).astype(dtype)
        _check_score(criterion, weight, axis)
        if criterion.live:
            _check_live(criterion, weight, axis % len(shape))
    for problem in _problems():
        _check_solve(criterion, problem)


def _problems() -> Iterator[LayerProblem]:
    random = np.random.default_rng(0)
    for pattern in _PATTERNS:
        for dtype, size, outputs in (("float32", 16, 6), ("float64", 24, 3), ("float32", 13, 1)):
            weight = random.standard_normal((size, outputs)).astype(dtype)
            inputs = random.standard_normal((40, size)) @ random.standard_normal((size, size))
            constant = np.ones((6, size))
            for rows in (inputs, inputs[:1], np.zeros((6, size)), constant, inputs[:0]):
                yield _problem(weight, rows, pattern)
            # Whole groups, the last rows of each only fill it up.
            padding = np.arange(size) % pattern.m >= pattern.m - 1
            live = (~padding).astype(dtype)
            yield _problem(weight * live[:, None], inputs * live, pattern, padding)


def _problem(weight: Any, inputs: Any, pattern: Pattern, padding: Any = None) -> LayerProblem:
    statistics = Statistics.empty(len(weight), layer="layer")
    statistics.add(inputs[::2], 0)
    statistics.add(inputs[1::2], 1)
    return LayerProblem(weight, statistics, pattern, padding=padding)


def _check_solve(criterion: Criterion, problem: LayerProblem) -> None:
    rows = problem.statistics.total_rows
    called = (
        f"{type(criterion).__qualname__}.solve on a {problem.weight.dtype} weight {list(problem.weight.shape)}, "
        f"{problem.pattern}, {rows} rows,"
    )
    given = problem.weight.tobytes(), problem.statistics.gram.tobytes()
    first, again = criterion.solve(problem), criterion.solve(problem)
    if (problem.weight.tobytes(), problem.statistics.gram.tobytes()) != given:
        raise AssertionError(f"{called} changed the problem; it may only read it.")
    if not isinstance(first, Solution):
        raise AssertionError(f"{called} returned {type(first).__name__}; it must be a Solution.")
    weight, mask = first.weight, first.mask
    if (weight.shape, weight.dtype) != (problem.weight.shape, problem.weight.dtype):
        raise AssertionError(
            f"{called} returned {weight.dtype} {list(weight.shape)}; it must be as the given weight is."
        )
    if mask.shape != weight.shape or mask.dtype != np.bool_:
        raise AssertionError(
            f"{called} returned a mask {mask.dtype} {list(mask.shape)}; it must be bool, as the weight is."
        )
    if not np.isfinite(weight).all():
        raise AssertionError(f"{called} returned NaN or infinity.")
    if weight[~mask].any():
        raise AssertionError(f"{called} returned weights other than zero where its mask is False.")
    if check(mask, 0, problem.pattern).violations:
        raise AssertionError(f"{called} kept more than {problem.pattern.n} weights of a group.")
    if problem.padding is not None and mask[problem.padding].any():
        raise AssertionError(f"{called} kept padding; use LayerProblem.keep.")
    if weight.tobytes() != again.weight.tobytes():
        raise AssertionError(f"{called} is not deterministic: asked again, it gave other weights.")


def _check_score(criterion: Criterion, weight: Any, axis: int) -> None:
    called = f"{type(criterion).__qualname__}.score on a {weight.dtype} weight {list(weight.shape)}, axis {axis},"
    given = weight.copy()
    score = criterion.score(given, axis)
    if given.tobytes() != weight.tobytes():
        raise AssertionError(f"{called} changed the weight; it may only read it.")
    if not isinstance(score, np.ndarray) or score.shape != weight.shape:
        found = f"shape {list(score.shape)}" if isinstance(score, np.ndarray) else type(score).__name__
        raise AssertionError(f"{called} returned {found}; it must be a numpy array with one score for each weight.")
    for pattern in _PATTERNS:
        try:
            mask = keep_mask(score, axis, pattern)
        except SparsekitError as error:
            raise AssertionError(f"{called} returned scores that cannot be ranked: {error}.") from error
        assert check(mask, axis, pattern).violations == 0
    if np.isnan(score).any():
        raise AssertionError(f"{called} returned NaN for finite weights; NaN would rank above everything.")
    # The same numbers in another memory order: a score goes by values and positions, never by memory.
    for other in (weight.copy(), np.asfortranarray(weight)):
        differing = int((criterion.score(other, axis) != score).sum())
        if differing:
            raise AssertionError(
                f"{called} is not deterministic: {differing} of {score.size} scores differ when it is asked again. "
                "The same weights must get the same scores, since masks are chosen again at any time."
            )


def _check_live(criterion: Criterion, weight: Any, axis: int) -> None:
    called = (
        f"{type(criterion).__qualname__}.score on a {weight.dtype} tf.Tensor {list(weight.shape)}, axis {axis}, "
        "(live = True)"
    )
    with tf.Graph().as_default():
        tensor = tf.compat.v1.placeholder(weight.dtype, weight.shape)
        score = criterion.score(tensor, axis)
        if not tf.is_tensor(score) or score.shape != tensor.shape:
            found = score.shape if tf.is_tensor(score) else type(score).__name__
            raise AssertionError(f"{called} returned {found}; it must be a tf.Tensor with one score for each weight.")
        masks = [keep_tensor(score, axis, pattern) for pattern in _PATTERNS]
        with tf.compat.v1.Session() as session:
            # The second weight shows scores that were worked out once, while the graph was built.
            for values in (weight, weight, np.flip(weight).copy()):
                for pattern, found in zip(_PATTERNS, session.run(masks, {tensor: values}), strict=True):
                    expected = keep_mask(criterion.score(values, axis), axis, pattern)
                    differing = int((found != expected).sum())
                    if differing:
                        raise AssertionError(
                            f"{called} leads to another {pattern} mask than on the same numpy array: {differing} of "
                            f"{weight.size} places differ. Use operators and sparsekit.pattern.ordering_key only, "
                            "which are exact in both; or say live = False."
                        )
