"""Inputs that are the same for all samples, such as a mean: the result is what a constant in their place gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import sparsekit
from sparsekit.artefact.model import open_model
from sparsekit.calibration.files import read_npz
from sparsekit.calibration.network import opened
from sparsekit.calibration.samples import ModelInput, Samples, file_batches, read_batch
from sparsekit.errors import CalibrationError

v1 = tf.compat.v1
ALL = {"keep_dense": 0}  # tiny layers too
X = ModelInput("x", "float32", (None, 16))
MEAN = ModelInput("mean", "float32", (16,))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f")


def samples(count: int, seed: int = 1) -> np.ndarray:
    return normal(count, 16, seed=seed) @ normal(16, 16, seed=2)


M = samples(64).mean(0)


def network(mean: np.ndarray | None = None) -> Any:
    """With the mean as an input, or as a constant."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 16], name="x")
        centre = v1.placeholder(tf.float32, [16], name="mean") if mean is None else tf.constant(mean, name="mean")
        hidden = tf.nn.relu(tf.matmul(x - centre, normal(16, 16), name="hidden"))
        tf.matmul(hidden, normal(16, 8), name="out")
    return graph.as_graph_def()


def weights(result: sparsekit.PruneResult) -> list[bytes]:
    nodes = [node for node in result.graph_def.node if node.op == "Const" and node.name != "mean"]
    return [node.attr["value"].tensor.SerializeToString(deterministic=True) for node in nodes]


@pytest.mark.parametrize("order", ["sequential", "one-pass"])
@pytest.mark.parametrize("count", [40, 64, 5])
def test_whole_arrays_and_one_mean(order: str, count: int, tmp_path: Path) -> None:
    cfg = {"order": order, "keep_dense": 0.4}
    np.savez(tmp_path / "x.npz", x=samples(count), mean=M)
    wanted = weights(sparsekit.prune(network(M), cfg, calibration=samples(count)))
    for source in ({"x": samples(count), "mean": M}, tmp_path / "x.npz"):
        assert weights(sparsekit.prune(network(), cfg, calibration=source)) == wanted


def test_batches_have_their_means_with_them() -> None:
    """Batches of as many samples as the mean is long are no others."""
    lengths, means = [16, 40, 7], [M, M + 1, M - 1]
    batches = [{"x": samples(n, seed=n), "mean": mean} for n, mean in zip(lengths, means, strict=True)]
    moved = [batch["x"] - batch["mean"] for batch in batches]
    wanted = weights(sparsekit.prune(network(np.zeros(16, "f")), ALL, calibration=moved))
    forms = [batches, (batch for batch in batches), [(batch["x"], batch["mean"]) for batch in batches]]
    for form in forms:
        assert weights(sparsekit.prune(network(), ALL, calibration=form)) == wanted


def test_past_the_limit_of_memory_too() -> None:
    batches = [{"x": samples(n), "mean": M + n} for n in (20, 30)]
    found = [batch.feeds for batch in Samples(iter(batches), [X, MEAN], memory_limit=0)]
    for feeds, batch in zip(found, batches, strict=True):
        assert all(np.array_equal(feeds[name], batch[name]) for name in batch)


def test_a_single_batch_is_cut_in_two_and_the_mean_is_not() -> None:
    kept = Samples([{"x": samples(5), "mean": M}], [X, MEAN])
    assert [(batch.samples, batch.fold, batch.feeds["mean"].shape) for batch in kept] == [(3, 0, (16,)), (2, 1, (16,))]


@pytest.mark.parametrize("counts", [[100], [16], [48, 16], [5]])
def test_workers_read_the_same_batches_of_files(counts: list[int], tmp_path: Path) -> None:
    paths = []
    for number, count in enumerate(counts):
        paths.append(str(tmp_path / f"{number}.npz"))
        np.savez(paths[-1], **{"x:0": samples(count, seed=number), "mean": M + number})
    with opened(open_model(network())) as running:
        whole = list(Samples(paths, running.inputs))
        parts = file_batches(paths, running.inputs)
        alone = [read_batch(part, read_npz(part.path), running.inputs) for part in parts]
    assert [(batch.fold, batch.samples) for batch in whole] == [(batch.fold, batch.samples) for batch in alone]
    assert sum(batch.samples for batch in whole) == sum(counts)
    for one, other in zip(whole, alone, strict=True):
        assert all(np.array_equal(one.feeds[name], other.feeds[name]) for name in ("x", "mean"))


@pytest.mark.parametrize("form", ["whole", "batches"])
def test_sensitivity_is_that_with_a_constant(form: str) -> None:
    """Of more samples than it uses: batches are cut."""
    x = samples(160)
    source: Any = {"x": x, "mean": M} if form == "whole" else [{"x": part, "mean": M} for part in np.split(x, 2)]
    plain: Any = x if form == "whole" else np.split(x, 2)
    found = sparsekit.sensitivity(network(), ALL, calibration=source)
    wanted = sparsekit.sensitivity(network(M), ALL, calibration=plain)
    assert (found.layers, found.together, found.samples) == (wanted.layers, wanted.together, wanted.samples)
    assert found.samples < 40


def test_another_mean_is_another_run_to_resume(tmp_path: Path) -> None:
    x = samples(40)
    first = sparsekit.prune(network(), ALL, calibration={"x": x, "mean": M}, resume=tmp_path / "run")
    again = sparsekit.prune(network(), ALL, calibration={"x": x, "mean": M}, resume=tmp_path / "run")
    assert weights(first) == weights(again)
    with pytest.raises(CalibrationError, match="is of a run that differs: the samples differ"):
        sparsekit.prune(network(), ALL, calibration={"x": x, "mean": M + 1}, resume=tmp_path / "run")


def test_an_input_of_fixed_length_that_is_cut_with_the_others_still_is() -> None:
    state = ModelInput("state", "float32", (4, 2))
    for source in ({"x": samples(8), "state": normal(8, 2)}, [(samples(4), normal(4, 2))]):
        assert {(len(b.feeds["x"]), len(b.feeds["state"])) for b in Samples(source, [X, state])} == {(4, 4)}


def test_what_fits_neither_way_is_told() -> None:
    for source in ({"x": samples(40), "mean": M[:15]}, [{"x": samples(40), "mean": M[:15]}]):
        with pytest.raises(CalibrationError, match=r"different numbers of samples: 'x' 40, 'mean' 15|shape \[15\]"):
            Samples(source, [X, MEAN])
    with pytest.raises(CalibrationError, match=r"'x' 40, 'ids' 3; .* has the whole shape that its input has"):
        Samples([{"x": samples(40), "ids": np.arange(3)}], [X, ModelInput("ids", "int64", (None,))])
