"""wanda, sparsegpt and admm, against enumeration, against references, and where there is little to go by."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import (
    best_of_all_masks,
    gaussian_inputs,
    output_error,
    pixels,
    problem_of,
    statistics_of,
)

from sparsekit.errors import ConfigError
from sparsekit.pattern import Pattern, check, keep_mask
from sparsekit.reconstruction import LayerProblem, Statistics, mean_shift, refit
from sparsekit.reconstruction.damping import damp
from sparsekit_criteria.admm import SCHEDULES, Admm
from sparsekit_criteria.admm_polish import polish
from sparsekit_criteria.admm_solver import search
from sparsekit_criteria.magnitude import Magnitude
from sparsekit_criteria.sparsegpt import SparseGpt
from sparsekit_criteria.wanda import Wanda

CRITERIA = (Admm(), SparseGpt(), Wanda())
PATTERNS = tuple(Pattern.parse(text) for text in ("2:4", "1:4", "4:8", "1:2", "3:4"))
INPUTS = {"gaussian": lambda size, seed: gaussian_inputs(400, size, seed), "pixels": pixels}


def named(criterion):
    return criterion.name


def random_weight(size, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((size, columns))


# --- admm beside the true optimum ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("size", "above"), [(8, 0.02), (12, 0.02), (20, 0.017)])
def test_admm_is_close_to_the_best_of_all_masks(size, above, kind):
    total, optimum, exact = 0.0, 0.0, []
    for seed in range(4):
        problem = problem_of(INPUTS[kind](size, seed), random_weight(size, 32, seed), damping=0.01)
        lost = problem.weight - Admm().solve(problem).weight
        gram = damp(problem.gram(), 0.01).gram
        errors = (lost * (gram @ lost)).sum(axis=0)
        best = best_of_all_masks(gram, problem.weight, problem.pattern)
        assert (errors >= best * (1 - 1e-6)).all()
        total, optimum = total + errors.sum(), optimum + best.sum()
        exact.append(errors <= best * (1 + 1e-6))
    assert total <= (1 + above) * optimum
    assert np.mean(exact) >= 0.65


@pytest.mark.parametrize("text", ["1:4", "4:8"])
def test_admm_is_close_to_the_optimum_of_other_patterns(text):
    pattern = Pattern.parse(text)
    problem = problem_of(pixels(16), random_weight(16, 32), damping=0.01, pattern=pattern)
    lost = problem.weight - Admm().solve(problem).weight
    gram = damp(problem.gram(), 0.01).gram
    optimum = best_of_all_masks(gram, problem.weight, pattern).sum()
    assert np.vdot(lost, gram @ lost) <= 1.03 * optimum


def test_the_search_alone_beats_its_own_start_and_longer_searches_beat_shorter_ones():
    weight = random_weight(128, 64)
    problem = problem_of(gaussian_inputs(1000, 128) @ np.diag(np.linspace(0.1, 2, 128)), weight)
    system = damp(problem.gram(), 0.01)

    def error(mask):
        lost = weight - refit(weight, mask, system.gram).weight
        return np.vdot(lost, system.gram @ lost)

    found = {name: search(weight, system, problem.keep, schedule, np.float64) for name, schedule in SCHEDULES.items()}
    start = error(problem.keep(weight / np.sqrt(system.inverse_diagonal)[:, None]))
    fast, normal, high = (error(found[name].mask) for name in ("fast", "normal", "high"))
    assert high < normal < fast < start
    assert found["fast"].iterations < found["normal"].iterations < found["high"].iterations


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), pattern=st.sampled_from(PATTERNS), size=st.integers(2, 20), padded=st.booleans())
def test_polishing_never_makes_a_mask_worse(seed, pattern, size, padded):
    random = np.random.default_rng(seed)
    weight = random.standard_normal((size, 4))
    padding = np.arange(size) % pattern.m >= random.integers(1, pattern.m + 1) if padded else None
    inputs = gaussian_inputs(50, size, seed)
    if padding is not None:
        weight[padding], inputs[:, padding] = 0, 0
    problem = problem_of(inputs, weight, pattern=pattern, padding=padding)
    gram = damp(problem.gram(), 0.01).gram
    before = problem.keep(random.standard_normal(weight.shape))
    after = polish(weight, gram, before, pattern, padding)
    assert check(after, 0, pattern).violations == 0
    assert padding is None or not after[padding].any()

    def errors(mask):
        lost = weight - refit(weight, mask, gram).weight
        return (lost * (gram @ lost)).sum(axis=0)

    assert (errors(after) <= errors(before) * (1 + 1e-9) + 1e-12).all()
    if size <= pattern.m and padding is None and size == pattern.m:
        np.testing.assert_allclose(errors(after), best_of_all_masks(gram, weight, pattern))


@pytest.mark.parametrize("target", ["own", "dense"])
def test_admm_keeps_the_least_squares_values_of_its_mask(target):
    inputs, weight = pixels(24), random_weight(24, 10)
    dense = inputs + np.random.default_rng(0).standard_normal(inputs.shape) / 10
    statistics = Statistics.empty(24, dense_path=True)
    for fold in (0, 1):
        statistics.add(inputs[fold::2], fold, dense=dense[fold::2])
    problem = LayerProblem(weight, statistics, target=target, damping=1e-9)
    solution = Admm().solve(problem)
    outputs = (inputs if target == "own" else dense) @ weight
    for column in range(10):
        kept = solution.mask[:, column]
        best = np.linalg.lstsq(inputs[:, kept], outputs[:, column], rcond=None)[0]
        np.testing.assert_allclose(solution.weight[kept, column], best, rtol=1e-4, atol=1e-5)


def test_the_dense_target_makes_up_for_what_was_pruned_upstream():
    dense = pixels(32)
    pruned = dense + 0.2 * dense @ random_weight(32, 32, 1) / np.sqrt(32)
    weight = random_weight(32, 16)
    statistics = Statistics.empty(32, dense_path=True)
    for fold in (0, 1):
        statistics.add(pruned[:1200][fold::2], fold, dense=dense[:1200][fold::2])
    errors = {}
    for target in ("own", "dense"):
        solution = Admm().solve(LayerProblem(weight, statistics, target=target))
        assert not solution.fallback
        errors[target] = np.square(dense[1200:] @ weight - pruned[1200:] @ solution.weight).sum()
    assert errors["dense"] < 0.7 * errors["own"]


def test_errors_about_the_mean_suit_a_layer_whose_bias_takes_the_shift():
    inputs, weight = pixels(32) + 1, random_weight(32, 16)
    statistics = statistics_of(inputs[:1000])
    errors = {}
    for centered in (False, True):
        solution = Admm().solve(LayerProblem(weight, statistics, centered=centered))
        shift = mean_shift(weight, solution.weight, statistics)
        errors[centered] = np.square(inputs[1000:] @ (weight - solution.weight) - shift).sum()
    assert errors[True] < errors[False]


def test_what_a_solution_says_about_its_errors_is_so():
    inputs, weight = pixels(40), random_weight(40, 8)
    solution = Admm().solve(problem_of(inputs, weight))
    outputs = np.square(inputs @ weight).sum()
    magnitude = weight * keep_mask(weight, 0)
    assert solution.error_before == pytest.approx(output_error(inputs, weight, magnitude) / outputs)
    assert solution.error_after == pytest.approx(output_error(inputs, weight, solution.weight) / outputs)
    assert solution.error_after < 0.3 * solution.error_before
    assert solution.iterations > 10 and not solution.fallback


# --- what holds for all of them --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    criterion=st.sampled_from(CRITERIA),
    pattern=st.sampled_from(PATTERNS),
    size=st.integers(1, 30),
    rows=st.integers(0, 60),
    target=st.sampled_from(["own", "dense"]),
    centered=st.booleans(),
)
def test_whatever_the_inputs_a_solution_is_legal_and_finite(seed, criterion, pattern, size, rows, target, centered):
    random = np.random.default_rng(seed)
    # Zero, constant, equal and huge columns among the ordinary ones.
    inputs = random.standard_normal((rows, size)) * random.choice([0, 1, 1, 1e4], size) + random.choice([0, 0, 5], size)
    inputs = inputs[:, random.integers(0, size, size)].astype(random.choice(["f4", "f8"]))
    weight = random.standard_normal((size, 5)).astype(random.choice(["f4", "f8"]))
    statistics = Statistics.empty(size, dense_path=True)
    for fold in (0, 1):
        statistics.add(inputs[fold::2], fold, dense=inputs[fold::2] * np.float32(1.5))
    given_weight = weight.copy()
    problem = LayerProblem(weight, statistics, pattern, target=target, centered=centered)
    solution = criterion.solve(problem)
    assert (weight == given_weight).all()
    assert solution.weight.dtype == weight.dtype and np.isfinite(solution.weight).all()
    assert not solution.weight[~solution.mask].any()
    assert check(solution.mask, 0, pattern).violations == 0
    if criterion.name == "admm":
        assert solution.error_after <= solution.error_before * (1 + 1e-6)


@pytest.mark.parametrize("criterion", CRITERIA, ids=named)
def test_padding_changes_nothing_and_is_never_kept(criterion):
    """3 positions of 5 channels, padded to 8 each; one of the weights that share their group with padding is zero."""
    inputs, weight = gaussian_inputs(200, 15), random_weight(15, 7)
    weight[4] = 0
    real = np.arange(24) % 8 < 5
    wide_inputs, wide_weight = np.zeros((200, 24)), np.zeros((24, 7))
    wide_inputs[:, real], wide_weight[real] = inputs, weight
    solution = criterion.solve(problem_of(wide_inputs, wide_weight, padding=~real))
    assert not solution.mask[~real].any() and not solution.weight[~real].any()
    assert solution.mask[real].reshape(3, 5, 7)[:, 4].all()
    # Zero rows that nobody called padding have no other effect.
    unnamed = criterion.solve(problem_of(wide_inputs, wide_weight))
    np.testing.assert_allclose(solution.weight, unnamed.weight, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), criterion=st.sampled_from(CRITERIA), columns=st.integers(2, 50))
def test_the_order_of_the_outputs_does_not_matter(seed, criterion, columns):
    order = np.random.default_rng(seed).permutation(columns)
    problem = problem_of(gaussian_inputs(80, 16, seed), random_weight(16, columns, seed))
    solution = criterion.solve(problem)
    moved = criterion.solve(attrs.evolve(problem, weight=problem.weight[:, order]))
    assert (moved.mask == solution.mask[:, order]).all()
    np.testing.assert_allclose(moved.weight, solution.weight[:, order], rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), criterion=st.sampled_from(CRITERIA), power=st.integers(-20, 20))
def test_the_scale_of_the_inputs_and_of_the_weights_does_not_matter(seed, criterion, power):
    inputs, weight, scale = gaussian_inputs(80, 16, seed), random_weight(16, 6, seed), 2.0**power
    solution = criterion.solve(problem_of(inputs, weight))
    of_inputs = criterion.solve(problem_of(inputs * scale, weight))
    of_weights = criterion.solve(problem_of(inputs, weight * scale))
    assert (of_inputs.mask == solution.mask).all() and (of_weights.mask == solution.mask).all()
    np.testing.assert_allclose(of_inputs.weight, solution.weight, rtol=1e-9)
    np.testing.assert_allclose(of_weights.weight, solution.weight * scale, rtol=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA, ids=named)
def test_calibrated_criteria_have_no_score_for_weights_alone(criterion):
    with pytest.raises(ConfigError, match=f"'{criterion.name}' cannot choose by weights alone; expected calibration"):
        criterion.score(np.ones((4, 4)), 0)


def test_a_criterion_that_only_ranks_solves_layers_too():
    weight = random_weight(12, 5)
    solution = Magnitude().solve(problem_of(pixels(12), weight))
    assert (solution.weight == weight * keep_mask(weight, 0)).all()
    assert solution.error_after == solution.error_before > 0 and not solution.fallback


# --- where there is little to go by ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 4, 6, 12, 40])
@pytest.mark.parametrize("folds", [1, 2])
def test_admm_on_few_samples_is_no_worse_than_magnitude_on_fresh_ones(rows, folds):
    for seed in range(4):
        inputs, weight = pixels(44, seed), random_weight(44, 16, seed)
        order = np.random.default_rng(seed).permutation(len(inputs))
        solution = Admm().solve(LayerProblem(weight, statistics_of(inputs[order[:rows]], folds)))
        fresh = inputs[order[rows:]]
        magnitude = output_error(fresh, weight, weight * keep_mask(weight, 0))
        assert output_error(fresh, weight, solution.weight) <= magnitude * (1 + 1e-6)
        assert bool(solution.fallback) == (rows < 4)


def test_admm_falls_back_where_held_back_samples_say_so():
    """Two inputs of each group follow the other two in one half of the samples, and oppose them in the other."""
    random = np.random.default_rng(0)
    statistics = Statistics.empty(16)
    for fold, sign in ((0, 1), (1, -1)):
        pairs = random.standard_normal((100, 4, 1, 2)) * np.array([[1], [sign]])
        statistics.add((pairs + random.standard_normal(pairs.shape) / 10).reshape(100, 16), fold)
    weight = np.tile([1.0, 1.0, 0.9, 0.9], 4)[:, None] * random.uniform(0.95, 1.05, (16, 6))
    solution = Admm().solve(LayerProblem(weight, statistics))
    assert solution.fallback == "a fit is worse on held-back samples"
    assert (solution.weight == weight * keep_mask(weight, 0)).all()
    assert solution.error_after == solution.error_before


@pytest.mark.parametrize("target", ["own", "dense"])
def test_magnitude_is_judged_without_the_shift_that_only_a_fit_gets(target):
    """Of inputs without structure there is little to fit, but their mean can be made up for."""
    for seed in range(3):
        random = np.random.default_rng(seed)
        inputs, weight = random.standard_normal((2000, 16)) + 2, random_weight(16, 8, seed)
        statistics = Statistics.empty(16, dense_path=True)
        for fold in (0, 1):
            statistics.add(inputs[fold:24:2], fold, dense=inputs[fold:24:2])
        solution = Admm().solve(LayerProblem(weight, statistics, target=target, centered=True))
        assert not solution.fallback
        shift = mean_shift(weight, solution.weight, statistics)
        lost = np.square(inputs[24:] @ (weight - solution.weight) - shift).sum()
        assert lost < 0.9 * output_error(inputs[24:], weight, weight * keep_mask(weight, 0))


def test_sparsegpt_falls_back_where_magnitude_does_better():
    problem = problem_of(gaussian_inputs(32, 16), random_weight(16, 3), pattern=Pattern(1, 4))
    solution = SparseGpt().solve(problem)
    assert solution.fallback.startswith("the error on the calibration samples is ")
    assert (solution.weight == problem.weight * keep_mask(problem.weight, 0, problem.pattern)).all()
    assert solution.error_after == solution.error_before


@pytest.mark.parametrize("inputs", [np.zeros((30, 8)), np.zeros((0, 8))], ids=["zeros", "no rows"])
def test_without_anything_to_learn_from_admm_says_so(inputs):
    weight = random_weight(8, 3)
    solution = Admm().solve(problem_of(inputs, weight))
    assert solution.fallback
    assert (solution.weight == weight * keep_mask(weight, 0)).all()


# --- wanda and sparsegpt beside references ---------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_wanda_is_its_formula(pattern):
    inputs, weight = gaussian_inputs(50, 16) * np.linspace(0.1, 3, 16), random_weight(16, 9)
    solution = Wanda().solve(problem_of(inputs, weight, pattern=pattern))
    mask = np.zeros(weight.shape, bool)
    for column in range(9):
        for first in range(0, 16, pattern.m):
            score = [abs(weight[k, column]) * np.linalg.norm(inputs[:, k]) for k in range(first, first + pattern.m)]
            mask[first + np.argsort(score)[-pattern.n :], column] = True
    assert (solution.mask == mask).all() and (solution.weight == weight * mask).all()
    assert (mask != keep_mask(weight, 0, pattern)).any()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("size", [16, 13, 140])
def test_sparsegpt_is_optimal_brain_surgery_one_input_after_the_other(pattern, size):
    """The reference inverts anew the Hessian of the inputs that are left, at every step."""
    columns = 3
    inputs, weight = gaussian_inputs(2 * size, size) * np.geomspace(3, 0.1, size), random_weight(size, columns)
    solution = SparseGpt().solve(problem_of(inputs, weight, pattern=pattern))
    hessian = inputs.T @ inputs
    hessian += 0.01 * np.diagonal(hessian).mean() * np.eye(size)
    expected, mask = weight.copy(), np.ones(weight.shape, bool)
    for k in range(size):
        inverse = np.linalg.inv(hessian[k:, k:])
        if k % pattern.m == 0:
            group = range(k, min(k + pattern.m, size))
            alone = [np.linalg.inv(hessian[j:, j:])[0, 0] for j in group]
            for column in range(columns):
                cost = [expected[j, column] ** 2 / alone[j - k] for j in group]
                for dropped in np.argsort(cost)[: len(cost) - pattern.n]:
                    mask[k + dropped, column] = False
        for column in np.flatnonzero(~mask[k]):
            expected[k:, column] -= inverse[:, 0] / inverse[0, 0] * expected[k, column]
    assert not solution.fallback
    assert (solution.mask == mask).all()
    np.testing.assert_allclose(solution.weight, np.where(mask, expected, 0), rtol=1e-6, atol=1e-9)
    assert solution.damping == 0.01
