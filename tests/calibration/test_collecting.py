"""Sums over the inputs of a layer: what an op makes of them with any weight, for all uses of the weight together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sparsekit
from sparsekit.artefact.model import FrozenGraph
from sparsekit.calibration.collecting import Collected, Use, collect
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.samples import Samples
from sparsekit.config import PruneConfig
from sparsekit.pattern import PATTERN_2_4
from sparsekit.planning import make_plan
from sparsekit.plugins import default_registry

v1 = tf.compat.v1
EXAMPLES = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@attrs.frozen
class Case:
    """An op that is there twice, on inputs of different shapes, with one weight.

    Attributes:
        weight: the shape of its weight.
        inputs: the shapes of a sample.
        op: makes it from data, weight and name.
        run: how many input channels a block has, where these end in a shorter group.
        varies: the lengths of a sample are not fixed but for the last: every other batch has one position more.
    """

    weight: tuple[int, ...]
    inputs: tuple[tuple[int, ...], tuple[int, ...]]
    op: Callable[..., Any]
    run: int = 0
    varies: bool = False

    def shape(self, index: int) -> tuple[int | None, ...]:
        shape = self.inputs[index]
        return (None, *(None for _ in shape[:-1]), shape[-1]) if self.varies else (None, *shape)


def _up(x: Any, w: Any, name: str) -> Any:
    shape = tf.shape(x) * [1, 2, 2, 0] + [0, 0, 0, w.shape[2]]
    return tf.nn.conv2d_transpose(x, w, shape, 2, "SAME", name=name)


CASES = {
    "dense": Case((7, 5), ((7,), (7,)), lambda x, w, name: tf.matmul(x, w, name=name)),
    "over positions": Case((8, 3), ((4, 8), (2, 8)), lambda x, w, name: tf.einsum("btk,kn->btn", x, w, name=name)),
    "convolution": Case(
        (3, 2, 8, 5), ((5, 6, 8), (3, 4, 8)), lambda x, w, name: tf.nn.conv2d(x, w, 2, "SAME", name=name)
    ),
    "convolution with shorter groups": Case(
        (2, 3, 6, 5), ((4, 5, 6), (3, 3, 6)), lambda x, w, name: tf.nn.conv2d(x, w, 1, "VALID", name=name), 6
    ),
    "convolution of images of any size": Case(
        (3, 2, 8, 5),
        ((5, 6, 8), (3, 4, 8)),
        lambda x, w, name: tf.nn.conv2d(x, w, 2, "SAME", name=name),
        varies=True,
    ),
    "transposed convolution": Case((2, 3, 5, 8), ((3, 4, 8), (2, 2, 8)), _up),
    "transposed convolution of images of any size": Case((2, 3, 5, 8), ((3, 4, 8), (2, 2, 8)), _up, varies=True),
    "transposed convolution with shorter groups": Case((2, 3, 5, 7), ((3, 4, 7), (2, 2, 7)), _up, 7),
    "grouped convolution": Case(
        (3, 3, 4, 6), ((5, 4, 8), (3, 3, 8)), lambda x, w, name: tf.nn.conv2d(x, w, 1, "SAME", name=name)
    ),
    "grouped convolution with shorter groups": Case(
        (2, 3, 6, 4), ((4, 3, 12), (3, 2, 12)), lambda x, w, name: tf.nn.conv2d(x, w, 1, "SAME", name=name), 6
    ),
}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@contextlib.contextmanager
def network_of(case: Case) -> Iterator[tuple[Network, list[Use]]]:
    with tf.Graph().as_default() as graph:
        weight = tf.constant(normal(0, *case.weight).astype("f"), name="w")
        for index, name in enumerate("ab"):
            case.op(v1.placeholder(tf.float32, case.shape(index), name=name), weight, f"use_{name}")
    model = FrozenGraph(graph.as_graph_def())
    registry = default_registry()
    (layer,) = make_plan(model.view, PruneConfig(), None, registry).layers
    assert len(layer.sites) == 2
    with opened(model) as network:
        yield network, [Use(site, handler) for site, handler in zip(layer.sites, layer.handlers, strict=True)]


def batches_of(case: Case, lengths: Sequence[int], seed: int) -> list[dict[str, np.ndarray]]:
    batches = []
    for number, length in enumerate(lengths):
        more = number % 2 if case.varies else 0
        shapes = ((length, *(size + more for size in shape[:-1]), shape[-1]) for shape in case.inputs)
        batches.append(
            {name: normal(seed + number, *shape).astype("f") for name, shape in zip("ab", shapes, strict=True)}
        )
    return batches


def collected(network: Network, uses: list[Use], batches: list[dict[str, np.ndarray]]) -> Collected:
    with Samples(batches, network.inputs) as samples:
        return collect(network, uses, samples, "layer", PATTERN_2_4, dense_path=False)


def results(case: Case, weight: np.ndarray, batches: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    """What TensorFlow's own op gives in float64 with any weight, rows by columns, for both uses and every batch."""
    with tf.Graph().as_default(), v1.Session() as session:
        placeholders = {name: v1.placeholder(tf.float64, case.shape(index)) for index, name in enumerate("ab")}
        outputs = [case.op(x, tf.constant(weight), f"use_{name}") for name, x in placeholders.items()]
        found = [session.run(outputs, {x: batch[name] for name, x in placeholders.items()}) for batch in batches]
    return [output.reshape(-1, output.shape[-1]) for of_batch in found for output in of_batch]


LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=4)
SEEDS = st.integers(0, 10_000)


@pytest.mark.parametrize("name", CASES)
def test_the_sums_tell_what_any_weight_makes_of_the_samples(name: str) -> None:
    """Squares and sums of the outputs, column by column, without asking how inputs are laid out."""
    case = CASES[name]
    with network_of(case) as (network, uses):

        @EXAMPLES
        @given(LENGTHS, SEEDS)
        def check(lengths: list[int], seed: int) -> None:
            batches = batches_of(case, lengths, seed)
            found = collected(network, uses, batches)
            weight = normal(seed + 1, *case.weight)
            outputs = np.concatenate(results(case, weight, batches))
            matrices = found.layout.matrices(weight)
            assert len(matrices) == len(found.statistics)
            pairs = list(zip(matrices, found.statistics, strict=True))
            grams = [np.einsum("kn,kl,ln->n", w, s.gram.sum(0), w) for w, s in pairs]
            squares = np.square(outputs).sum(0)
            # Where one output is next to nothing, what cancelled in it was as large as in the others.
            np.testing.assert_allclose(np.concatenate(grams), squares, rtol=1e-4, atol=1e-6 * squares.max())
            sums = np.concatenate([s.column_sum.sum(0) @ w for w, s in pairs])
            np.testing.assert_allclose(sums, outputs.sum(0), rtol=1e-4, atol=1e-4 * np.abs(outputs).sum(0).max())
            for statistics in found.statistics:
                assert statistics.rows.sum() == len(outputs)
                assert statistics.samples.sum() == 2 * sum(lengths)

        check()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.run])
def test_what_fills_shorter_groups_up_is_zero(name: str) -> None:
    case = CASES[name]
    with network_of(case) as (network, uses):
        found = collected(network, uses, batches_of(case, [3, 2], 0))
    filled = found.layout.padding
    assert filled is not None
    # A run for every position of the kernel, each filled up at its end.
    assert filled.reshape(2, 3, 8).tolist() == [[[channel >= case.run for channel in range(8)]] * 3] * 2
    for statistics in found.statistics:
        assert not statistics.gram[:, filled].any() and not statistics.gram[:, :, filled].any()
        assert not statistics.column_sum[:, filled].any()
        assert (np.diagonal(statistics.gram.sum(0))[~filled] > 0).all()
    weight = normal(1, *case.weight)
    assert np.array_equal(found.layout.weight(found.layout.matrices(weight)), weight)


def test_uses_of_one_weight_are_pooled_as_if_their_rows_were_one_matrix() -> None:
    """In each half of the samples apart."""
    case = CASES["dense"]
    with network_of(case) as (network, uses):

        @EXAMPLES
        @given(LENGTHS, SEEDS)
        def check(lengths: list[int], seed: int) -> None:
            batches = batches_of(case, lengths, seed)
            (statistics,) = collected(network, uses, batches).statistics
            with Samples(batches, network.inputs) as samples:
                parts = [(batch.fold, np.concatenate([batch.feeds[n] for n in "ab"])) for batch in samples]
            for fold in (0, 1):
                rows = np.concatenate([np.zeros((0, 7)), *(part for number, part in parts if number == fold)])
                np.testing.assert_allclose(statistics.gram[fold], rows.T @ rows, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(statistics.column_sum[fold], rows.sum(0), rtol=1e-4, atol=1e-4)
                assert statistics.rows[fold] == statistics.samples[fold] == len(rows)

        check()


@pytest.mark.parametrize("name", ["over positions", "convolution of images of any size", "grouped convolution"])
def test_the_order_of_batches_does_not_matter(name: str) -> None:
    case = CASES[name]
    with network_of(case) as (network, uses):

        @EXAMPLES
        @given(st.lists(st.integers(1, 5), min_size=2, max_size=5), SEEDS, st.randoms(use_true_random=False))
        def check(lengths: list[int], seed: int, random: Any) -> None:
            batches = batches_of(case, lengths, seed)
            shuffled = random.sample(batches, len(batches))
            for one, other in zip(
                collected(network, uses, batches).statistics, collected(network, uses, shuffled).statistics, strict=True
            ):
                np.testing.assert_allclose(one.gram.sum(0), other.gram.sum(0), rtol=1e-5, atol=1e-4)
                np.testing.assert_allclose(one.column_sum.sum(0), other.column_sum.sum(0), rtol=1e-5, atol=1e-4)
                assert one.rows.sum() == other.rows.sum()

        check()


def test_results_of_layers_are_not_fetched_batch_after_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be much larger than what flows into the layers; a few are needed, for their shapes."""
    with tf.Graph().as_default() as graph:
        h = v1.placeholder(tf.float32, [None, 8], name="x")
        for number in range(3):
            h = tf.matmul(h, tf.constant(normal(number, 8, 8).astype("f")), name=f"layer{number}")
            h = tf.nn.relu(h + tf.constant(normal(9, 8).astype("f")))
    fetched: list[str] = []
    run = v1.Session.run

    def recording(self: Any, fetches: Any, *more: Any, **others: Any) -> Any:
        fetched.extend(str(fetch) for fetch in (fetches if isinstance(fetches, list) else [fetches]))
        return run(self, fetches, *more, **others)

    monkeypatch.setattr(v1.Session, "run", recording)
    batches = 12
    samples = [normal(50 + number, 6, 8).astype("f") for number in range(batches)]
    sparsekit.prune(graph.as_graph_def(), calibration=samples)
    for number in range(3):
        # Where a bias can be added, what is fetched is the sum behind the layer.
        names = (f"layer{number}:0", f"layer{number}/sparsekit/bias:0")
        assert 0 < sum(fetched.count(name) for name in names) <= 4
    assert sum(name.startswith(("x", "Relu")) for name in fetched) >= batches
