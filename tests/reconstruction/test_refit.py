"""The best values on a mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import gaussian_inputs, statistics_of

from sparsekit.pattern import keep_mask
from sparsekit.reconstruction import mean_shift, output_moments, refit, scale_shift
from sparsekit.reconstruction.damping import damp
from sparsekit.reconstruction.factor import inverse_diagonal, inverse_factor


def least_squares(inputs, ridge, weight, mask):
    """Column by column, of the inputs with the ridge as further rows."""
    rows = np.vstack([inputs, np.diag(np.sqrt(ridge))])
    result = np.zeros_like(weight)
    for column in range(weight.shape[1]):
        kept = np.flatnonzero(mask[:, column])
        result[kept, column] = np.linalg.lstsq(rows[:, kept], rows @ weight[:, column], rcond=None)[0]
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 14), columns=st.integers(1, 6), exact=st.booleans())
def test_a_refit_is_the_least_squares_optimum_whatever_the_mask(seed, size, columns, exact):
    random = np.random.default_rng(seed)
    inputs, weight = gaussian_inputs(30, size, seed), random.standard_normal((size, columns))
    mask = random.random((size, columns)) < random.random(columns)
    ridge = random.random(size) + 0.1
    gram = inputs.T @ inputs + np.diag(ridge)
    found = refit(weight, mask, gram, exact=exact, iterations=200, tolerance=1e-14).weight
    np.testing.assert_allclose(found, least_squares(inputs, ridge, weight, mask), atol=1e-5)
    assert not found[~mask].any()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_conjugate_gradients_come_close_to_the_optimum_of_a_layer_too_large_to_solve_exactly(dtype):
    inputs = gaussian_inputs(1000, 200)
    weight = np.random.default_rng(1).standard_normal((200, 10))
    mask = keep_mask(weight, 0)
    gram = damp(inputs.T @ inputs, 0.01).gram
    ridge = np.diagonal(gram) - np.square(inputs).sum(axis=0)
    found = refit(weight, mask, gram.astype(dtype))
    assert found.iterations > 0 and found.weight.dtype == dtype

    def error(v):
        return np.vdot(weight - v, gram @ (weight - v))

    optimum = error(least_squares(inputs, ridge, weight, mask))
    assert error(found.weight) <= optimum * (1.001 if dtype == "f4" else 1 + 1e-6)
    assert optimum < 0.9 * error(weight * mask)


def test_nothing_kept_and_everything_kept():
    gram = damp(np.eye(4), 0.1).gram
    weight = np.arange(8.0).reshape(4, 2)
    for exact in (False, True):
        assert not refit(weight, np.zeros((4, 2), bool), gram, exact=exact).weight.any()
        np.testing.assert_allclose(refit(weight, np.ones((4, 2), bool), gram, exact=exact).weight, weight)


@pytest.mark.parametrize("size", [1, 127, 300])
def test_an_inverse_through_its_factor(size):
    matrix = damp(np.cov(gaussian_inputs(2 * size + 2, size).T).reshape(size, size), 0.1).gram
    factor = inverse_factor(matrix)
    assert not np.triu(factor, 1).any()
    np.testing.assert_allclose(factor.T @ factor @ matrix, np.eye(size), atol=1e-9)
    np.testing.assert_allclose(inverse_diagonal(matrix), np.diagonal(np.linalg.inv(matrix)))


def test_a_gram_matrix_that_rounding_left_indefinite_is_damped_more():
    gram = np.ones((4, 4))
    gram[0, 1] = gram[1, 0] = 1.01
    system = damp(gram, 1e-5)
    assert system.damping > 1e-3 and (np.linalg.eigvalsh(system.gram) > 0).all()
    assert damp(np.zeros((3, 3)), 0.01).inverse_diagonal.tolist() == [1, 1, 1]


# --- what goes into the bias -----------------------------------------------------------------------------


def test_a_mean_shift_restores_the_mean_output():
    inputs = gaussian_inputs(100, 8) + 2
    weight = np.random.default_rng(0).standard_normal((8, 3))
    pruned = weight * keep_mask(weight, 0)
    shift = mean_shift(weight, pruned, statistics_of(inputs))
    np.testing.assert_allclose((inputs @ pruned + shift).mean(axis=0), (inputs @ weight).mean(axis=0))


def test_scale_and_shift_restore_mean_and_deviation():
    inputs = gaussian_inputs(100, 8) + 2
    weight = np.random.default_rng(0).standard_normal((8, 3))
    pruned = weight * keep_mask(weight, 0)
    statistics = statistics_of(inputs)
    scale, shift = scale_shift(output_moments(weight, statistics), output_moments(pruned, statistics))
    outputs, repaired = inputs @ weight, inputs @ (pruned * scale) + shift
    np.testing.assert_allclose(repaired.mean(axis=0), outputs.mean(axis=0))
    np.testing.assert_allclose(repaired.std(axis=0), outputs.std(axis=0))
    assert (scale != 1).all()


def test_constant_outputs_are_shifted_but_not_scaled():
    inputs = np.full((10, 4), 0.3, np.float32)
    weight = np.array([[1.0], [2.0], [3.0], [4.0]])
    pruned = weight * [[0], [0], [1], [1]]
    statistics = statistics_of(inputs)
    scale, shift = scale_shift(output_moments(weight, statistics), output_moments(pruned, statistics))
    assert scale.tolist() == [1.0]
    np.testing.assert_allclose(shift, [0.9], rtol=1e-6)
