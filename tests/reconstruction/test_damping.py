"""How far a Gram matrix is trusted."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from layer_problems import gaussian_inputs, output_error, pixels, problem_of, statistics_of

from sparsekit.errors import SparsekitError
from sparsekit.reconstruction import LayerProblem, Statistics, choose_damping, mean_shift
from sparsekit.reconstruction.damping import GRID, Scorer, shrinkage
from sparsekit_criteria.admm import Admm


def low_rank_inputs(rows, size):
    random = np.random.default_rng(0)
    return (
        random.standard_normal((rows, 12)) @ random.standard_normal((12, size))
        + random.standard_normal((rows, size)) / 2
    )


def test_a_damping_that_is_given_is_taken():
    problem = problem_of(pixels(12), np.ones((12, 3)), damping=0.25)
    assert choose_damping(problem).value == Admm().solve(problem).damping == 0.25


def test_few_samples_are_damped_more_than_many():
    weight = np.random.default_rng(0).standard_normal((48, 20))
    chosen = {rows: choose_damping(problem_of(low_rank_inputs(rows, 48), weight)) for rows in (24, 5000)}
    assert {found.source for found in chosen.values()} == {"cross-validation"}
    assert chosen[24].value > 5 * chosen[5000].value


def test_the_chosen_damping_does_well_on_fresh_inputs():
    inputs = low_rank_inputs(2048, 48)
    weight = np.random.default_rng(0).standard_normal((48, 20))
    problem = problem_of(inputs[:40], weight)
    chosen = Admm().solve(problem)
    errors = {
        damping: output_error(inputs[48:], weight, Admm().solve(attrs.evolve(problem, damping=damping)).weight)
        for damping in GRID
    }
    error = output_error(inputs[48:], weight, chosen.weight)
    assert error < 1.3 * min(errors.values())
    assert error < 0.6 * min(errors[min(GRID)], errors[max(GRID)])


def test_shrinkage_is_small_for_many_samples_and_whole_for_inputs_without_correlation():
    assert shrinkage(statistics_of(pixels(20))) < 0.01
    independent = np.random.default_rng(0).standard_normal((400, 20))
    assert shrinkage(statistics_of(independent)) > 0.8
    assert shrinkage(statistics_of(pixels(20)[:1])) == 1


def test_one_fold_alone_is_shrunk():
    inputs = gaussian_inputs(60, 12)
    weight = np.random.default_rng(0).standard_normal((12, 5))
    found = choose_damping(LayerProblem(weight, statistics_of(inputs, folds=1)))
    assert found.source == "shrinkage" and 0.002 <= found.value <= 1
    assert choose_damping(LayerProblem(weight, statistics_of(inputs, folds=4))).source == "cross-validation"


def test_the_columns_that_are_looked_at_do_not_depend_on_their_order():
    weight = np.random.default_rng(0).standard_normal((12, 100))
    problem = problem_of(gaussian_inputs(60, 12), weight)
    moved = choose_damping(attrs.evolve(problem, weight=weight[:, ::-1].copy()))
    assert moved.held_out == pytest.approx(choose_damping(problem).held_out)


@pytest.mark.parametrize("target", ["own", "dense"])
@pytest.mark.parametrize("centered", [False, True])
def test_a_score_is_what_is_lost_on_the_scored_rows_with_the_shift_of_the_fitted_ones(target, centered):
    random = np.random.default_rng(0)
    weight, pruned, other = random.standard_normal((3, 12, 5))
    inputs = gaussian_inputs(90, 12) + random.uniform(0, 3, 12)
    dense = inputs + random.standard_normal((90, 12)) / 5 if target == "dense" else inputs
    statistics = Statistics.empty(12, dense_path=True)
    for fold, rows in enumerate((slice(0, 40), slice(40, 90))):
        statistics.add(inputs[rows], fold, dense=dense[rows])
    fitted, scored = (statistics.pooled([fold]) for fold in (0, 1))
    score = Scorer.of(LayerProblem(weight, fitted, target=target, centered=centered), scored)

    def lost(pruned, shifted):
        shift = mean_shift(weight, pruned, fitted, target) if centered and shifted else 0
        return np.square(dense[40:] @ weight - inputs[40:] @ pruned - shift).sum()

    for shifted in (True, False):
        difference = score(pruned, shifted=shifted) - score(other, shifted=True)
        assert difference * score.energy == pytest.approx(lost(pruned, shifted) - lost(other, True))
        if target == "own":
            share = lost(pruned, shifted) / np.square(inputs[40:] @ weight).sum()
            assert score(pruned, shifted=shifted) == pytest.approx(share)


def test_problems_that_make_no_sense_are_refused():
    statistics = statistics_of(gaussian_inputs(8, 4))
    with pytest.raises(SparsekitError, match=r"shape \[5, 2\]; expected \[4, outputs\]"):
        LayerProblem(np.ones((5, 2)), statistics)
    with pytest.raises(SparsekitError, match="NaN or infinity among the weights"):
        LayerProblem(np.full((4, 2), np.nan), statistics)
    with pytest.raises(SparsekitError, match="damping -1"):
        LayerProblem(np.ones((4, 2)), statistics, damping=-1)
    with pytest.raises(SparsekitError, match="dense_path=True"):
        LayerProblem(np.ones((4, 2)), statistics, target="dense")
    with pytest.raises(SparsekitError, match="other than zero in padding rows"):
        LayerProblem(np.ones((4, 2)), statistics, padding=np.arange(4) == 3)
    with pytest.raises(SparsekitError, match=r"expected bool \[4\]"):
        LayerProblem(np.ones((4, 2)), statistics, padding=np.ones(3, bool))
    with pytest.raises(ValueError, match="effort"):
        LayerProblem(np.ones((4, 2)), statistics, effort="none")
