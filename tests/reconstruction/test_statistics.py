"""Sums over calibration inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import gaussian_inputs, statistics_of

from sparsekit.errors import SparsekitError
from sparsekit.reconstruction import Statistics


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31), cuts=st.lists(st.integers(0, 40), max_size=5), dtype=st.sampled_from(["f2", "f4", "f8"])
)
def test_batches_may_come_in_any_order_and_from_several_accumulators(seed, cuts, dtype):
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((40, 7)).astype(dtype)
    batches = np.split(inputs, sorted(cuts))
    parts = [Statistics.empty(7, folds=1) for _ in range(3)]
    for number in random.permutation(len(batches)):
        parts[number % 3].add(batches[number])
    total = parts[2] + (parts[0] + parts[1])
    exact = inputs.astype(np.float64)
    scale = np.abs(exact.T) @ np.abs(exact)
    assert (np.abs(total.gram[0] - exact.T @ exact) <= 1e-6 * scale).all()
    np.testing.assert_allclose(total.mean(), exact.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(total.mean_square(), np.square(exact).mean(axis=0), rtol=1e-6)
    assert total.rows.tolist() == total.samples.tolist() == [40]


def test_folds_are_kept_apart_until_they_are_pooled():
    inputs = gaussian_inputs(30, 4)
    split = statistics_of(inputs, folds=3)
    assert split.rows.tolist() == [10, 10, 10]
    np.testing.assert_allclose(split.gram[1], inputs[1::3].T @ inputs[1::3])
    np.testing.assert_allclose(split.pooled([0, 2]).gram[0], split.gram[0] + split.gram[2])
    np.testing.assert_allclose(split.pooled().total_gram(), inputs.T @ inputs)


def test_float32_sums_of_many_rows_keep_six_digits():
    inputs = np.full((300_000, 2), 1.1, np.float32)
    statistics = statistics_of(inputs, folds=1)
    np.testing.assert_allclose(statistics.gram[0], 300_000 * np.float64(np.float32(1.1)) ** 2, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_that_float32_cannot_hold(scale):
    inputs = gaussian_inputs(20, 3)
    gram = statistics_of((inputs * scale).astype(np.float32), folds=1).gram[0] / scale**2
    np.testing.assert_allclose(gram, inputs.T @ inputs, rtol=1e-5)


def test_sums_about_a_center():
    inputs, dense = gaussian_inputs(50, 5) + 3, gaussian_inputs(50, 5, seed=1) - 2
    statistics = Statistics.empty(5, dense_path=True)
    for fold in (0, 1):
        statistics.add(inputs[fold::2], fold, dense=dense[fold::2])
    a, b = inputs - inputs.mean(axis=0), dense - dense.mean(axis=0)
    np.testing.assert_allclose(statistics.total_gram(statistics.mean()), a.T @ a, atol=1e-9)
    np.testing.assert_allclose(
        statistics.total_cross_gram(statistics.mean(), statistics.dense_mean()), a.T @ b, atol=1e-9
    )
    other = np.arange(5.0)
    np.testing.assert_allclose(statistics.total_gram(other), (inputs - other).T @ (inputs - other))


def test_a_constant_input_has_no_spread_about_its_mean():
    inputs = gaussian_inputs(1000, 3).astype(np.float32)
    inputs[:, 1] = 0.1
    gram = statistics_of(inputs).total_gram(statistics_of(inputs).mean())
    assert not gram[1].any() and not gram[:, 1].any()
    assert gram[0, 0] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused_by_layer(value):
    statistics = Statistics.empty(4, layer="block/fc")
    inputs = np.ones((3, 4), np.float32)
    inputs[1, 2] = value
    with pytest.raises(SparsekitError, match="block/fc: 1 of 12 calibration inputs are NaN or infinite"):
        statistics.add(inputs)
    assert not statistics.gram.any() and not statistics.rows.any()


def test_what_does_not_fit_is_refused():
    statistics = Statistics.empty(4, layer="fc")
    with pytest.raises(SparsekitError, match=r"fc: inputs of shape \[3, 5\]; expected \[rows, 4\]"):
        statistics.add(np.ones((3, 5)))
    with pytest.raises(SparsekitError, match="fold 2; expected 0 to 1"):
        statistics.add(np.ones((3, 4)), 2)
    with pytest.raises(SparsekitError, match="inputs of the dense path"):
        statistics.add(np.ones((3, 4)), dense=np.ones((3, 4)))
    with pytest.raises(SparsekitError, match="inputs of the dense path: none"):
        Statistics.empty(4, dense_path=True).add(np.ones((3, 4)))
    with pytest.raises(SparsekitError, match="expected 4 inputs in 2 folds"):
        statistics + Statistics.empty(5)
    with pytest.raises(SparsekitError, match="0 inputs"):
        Statistics.empty(0)
