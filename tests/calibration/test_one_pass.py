"""Calibration with order = "one-pass": every layer on what flows into it in the dense network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from calibrated_networks import LAYERS, network, normal, samples, written
from click.testing import CliRunner

import sparsekit
from sparsekit.artefact.model import open_model
from sparsekit.calibration import one_pass
from sparsekit.calibration.files import npz_paths, read_npz
from sparsekit.calibration.network import opened
from sparsekit.calibration.samples import Samples, file_batches, read_batch
from sparsekit.calibration.treatment import Treatment
from sparsekit.cli import main

v1 = tf.compat.v1
# What is compared is every layer, tiny ones too.
ALL = {"keep_dense": 0}
ONE_PASS = {"order": "one-pass", **ALL}


def bits(result: sparsekit.PruneResult) -> bytes:
    return result.graph_def.SerializeToString(deterministic=True)


def fetched(graph_def: Any, names: list[str], x: np.ndarray) -> list[np.ndarray]:
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run([f"{name}:0" for name in names], {"x:0": x})


def error(dense: Any, pruned: Any) -> float:
    x = samples(200, seed=20)
    (before,), (after,) = fetched(dense, ["out"], x), fetched(pruned, ["out"], x)
    return float(np.square(after - before).sum() / np.square(before).sum())


def test_it_keeps_far_more_of_the_results_than_magnitude_and_moves_biases() -> None:
    dense = network()
    result = sparsekit.prune(dense, ONE_PASS, calibration=samples(300))
    assert sparsekit.verify(result.graph_def).ok
    assert error(dense, result.graph_def) < 0.5 * error(dense, sparsekit.prune(dense).graph_def)
    assert [account.name for account in result.accounts] == list(LAYERS)
    assert [account.shifted for account in result.accounts] == [True, True, False, True, False]


def test_a_layer_is_fitted_to_its_inputs_in_the_dense_network() -> None:
    """Whatever is done to the layers before it: the others alone are left dense, and it stays the same."""
    together = sparsekit.prune(network(), ONE_PASS, calibration=samples(300)).graph_def
    cfg = {**ONE_PASS, "prune": False, "override": [{"layers": ["out"], "prune": True}]}
    alone = sparsekit.prune(network(), cfg, calibration=samples(300)).graph_def
    weights = [[n.attr["value"].tensor.tensor_content for n in g.node if n.name == "out/b"] for g in (together, alone)]
    assert weights[0] == weights[1] and weights[0]
    in_turn = sparsekit.prune(network(), ALL, calibration=samples(300)).graph_def
    assert weights[0] != [n.attr["value"].tensor.tensor_content for n in in_turn.node if n.name == "out/b"]


def test_the_first_layer_of_few_samples_is_solved_as_one_by_one() -> None:
    """Its inputs are the model's. As few batches as make one shard are summed in the same order."""
    few = samples(60)
    graphs = [sparsekit.prune(network(), cfg, calibration=few).graph_def for cfg in (ONE_PASS, ALL)]
    first = [[n.attr["value"].tensor.tensor_content for n in g.node if n.name == "conv/filter"] for g in graphs]
    assert first[0] == first[1]


def test_the_sums_are_over_all_samples_and_the_mean_outputs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 samples: two shards."""
    x, seen = samples(400), {}
    solve = Treatment.solve

    def spied(self: Any, layer: Any, use: Any, collected: Any, centered: bool) -> Any:
        seen[layer.decision.name] = collected.statistics
        return solve(self, layer, use, collected, centered)

    monkeypatch.setattr(Treatment, "solve", spied)
    pruned = sparsekit.prune(network(), ONE_PASS, calibration=x).graph_def
    (data,) = fetched(network(), ["Relu_2"], x)
    inputs = data.reshape(-1, 8).astype("d")
    (statistics,) = seen["fc"]
    np.testing.assert_allclose(statistics.total_gram(), inputs.T @ inputs, rtol=1e-4)
    assert statistics.samples.tolist() == [208, 192] and len(seen["grouped"]) == 2
    (before,), (after,) = fetched(network(), ["BiasAdd"], x), fetched(pruned, ["BiasAdd"], x)
    assert np.abs(after.mean((0, 1, 2)) - before.mean((0, 1, 2))).max() < 1e-4 * np.abs(before).mean()
    assert np.abs(after - before).mean() > 1e-2 * np.abs(before).mean()


def test_both_target_paths_mean_the_same() -> None:
    results = [
        sparsekit.prune(network(), {**ONE_PASS, "target_path": path}, calibration=samples(100))
        for path in ("pruned", "dense")
    ]
    assert bits(results[0]) == bits(results[1])


def test_however_many_layers_fit_into_a_pass_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 batches: the sums of 4 shards."""
    given = samples(1000)
    whole = sparsekit.prune(network(), ONE_PASS, calibration=given)
    passes = []
    collect = one_pass.sums_of_shard
    monkeypatch.setattr(one_pass, "sums_of_shard", lambda n, c, b: passes.append(len(c)) or collect(n, c, b))
    monkeypatch.setattr(one_pass, "MEMORY_LIMIT", 1)
    assert bits(sparsekit.prune(network(), ONE_PASS, calibration=given)) == bits(whole)
    assert passes == [1] * len(LAYERS) * 4
    passes.clear()
    # What flows into the first three layers for a batch takes 110 kB, the sums of four shards 300 kB.
    monkeypatch.setattr(one_pass, "MEMORY_LIMIT", 1 << 19)
    assert bits(sparsekit.prune(network(), ONE_PASS, calibration=given)) == bits(whole)
    assert 1 < len(passes) / 4 < len(LAYERS)


def test_layers_in_loops_go_by_magnitude() -> None:
    kernel = normal(8, 8)

    @tf.function
    def call(x: Any) -> Any:
        x = tf.matmul(x, normal(8, 8, seed=3), name="before")
        turn = lambda i, h: (i + 1, tf.tanh(tf.matmul(h, kernel, name="inside")))  # noqa: E731
        return tf.matmul(tf.while_loop(lambda i, h: i < 3, turn, [0, x])[1], normal(8, 4), name="after")

    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = call.get_concrete_function(tf.TensorSpec([None, 8], name="x"))
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False).graph.as_graph_def()
    result = sparsekit.prune(frozen, ONE_PASS, calibration=samples(60)[:, 0, 0])
    assert [account.criterion for account in result.accounts] == ["admm", "magnitude", "admm"]
    assert sparsekit.verify(result.graph_def).ok


# --- samples in several files ----------------------------------------------------------------------------


def test_several_files_are_a_pattern_or_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = ["samples-0.npz", "samples-1.npz"]
    forms: list[Any] = ["samples-*.npz", files, [Path("samples-0.npz"), "samples-[1-9].npz"]]
    results = [sparsekit.prune("dense.pb", ONE_PASS, calibration=form) for form in forms]
    assert len({bits(result) for result in results}) == 1
    assert bits(sparsekit.prune("dense.pb", ONE_PASS, calibration=files[0])) != bits(results[0])
    with pytest.raises(sparsekit.MissingFileError, match="no file fits this pattern"):
        sparsekit.prune("dense.pb", calibration="nothing-*.npz")


@pytest.mark.parametrize("counts", [[300, 333], [1], [50], [64, 1, 3], [31]])
def test_batches_that_workers_read_alone_are_those_that_one_process_reads(tmp_path: Path, counts: list[int]) -> None:
    for number, count in enumerate(counts):
        np.savez(tmp_path / f"{number}.npz", x=samples(count, seed=number))
    paths = npz_paths(tmp_path / "*.npz")
    assert paths is not None and len(paths) == len(counts)
    with opened(open_model(network())) as running:
        whole = list(Samples(paths, running.inputs))
        alone = [
            read_batch(batch, read_npz(batch.path), running.inputs) for batch in file_batches(paths, running.inputs)
        ]
    assert [(batch.fold, batch.samples) for batch in whole] == [(batch.fold, batch.samples) for batch in alone]
    for one, other in zip(whole, alone, strict=True):
        assert np.array_equal(one.feeds["x"], other.feeds["x"])
    assert sum(batch.samples for batch in whole) == sum(counts)


# --- what is refused -------------------------------------------------------------------------------------


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sparsekit.ConfigError, match="expected sequential or one-pass"):
        sparsekit.prune("dense.pb", {"order": "fast"}, calibration="samples-0.npz")
    with pytest.raises(sparsekit.ConfigError, match='order: "sequential", but a pipeline'):
        sparsekit.prune(
            "dense.pb", {"order": "sequential"}, calibration="samples-0.npz", beam=["--runner=DirectRunner"]
        )
    for more in ({"beam": ["--runner=DirectRunner"]}, {"resume": "folder"}):
        with pytest.raises(sparsekit.ConfigError, match="no calibration samples"):
            sparsekit.prune("dense.pb", **more)  # type: ignore[arg-type]


def test_without_beam_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "sparsekit.calibration.pipeline", raising=False)
    command = ["prune", "dense.pb", "-o", "out.pb", "--calibration", "samples-0.npz", "--runner", "DirectRunner"]
    ended = CliRunner().invoke(main, command)
    assert ended.exit_code == 2 and "pip install 'sparsekit[beam]'" in ended.stderr
    ended = CliRunner().invoke(main, [*command[:-2], "samples-1.npz"])
    assert ended.exit_code == 2 and "unexpected extra arguments: samples-1.npz (quote a pattern" in ended.stderr
