"""The facts of a report against counts made in another way, and against TensorFlow's own profiler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from tensorflow.python.framework import ops
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import sparsekit
from sparsekit.cli import main

v1 = tf.compat.v1


def weight(*shape: int) -> np.ndarray:
    return np.random.RandomState(sum(shape)).randn(*shape).astype("f")


def brute_force(value: np.ndarray, axis: int, n: int = 2, m: int = 4) -> tuple[np.ndarray, list[int], list[int]]:
    """The pruned weight, and the histograms of its groups before and after, group by group."""
    rows = np.moveaxis(value.copy(), axis, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    before, after = [0] * (m + 1), [0] * (m + 1)
    for row in rows:
        for start in range(0, len(row), m):
            group = row[start : start + m]
            before[np.count_nonzero(group)] += 1
            group[np.argsort(-np.abs(group), kind="stable")[n:]] = 0
            after[np.count_nonzero(group)] += 1
    moved = np.moveaxis(value, axis, -1).shape
    return np.moveaxis(rows.reshape(moved), -1, axis), before, after


def network() -> tuple[Any, dict[str, tuple[np.ndarray, int]]]:
    """A frozen graph with every kind of layer, and its weights with their axes."""
    weights = {"conv": (weight(3, 3, 8, 6), 2), "up": (weight(2, 2, 5, 6), 3), "fc": (weight(7, 5), 1)}
    weights["conv"][0][:, :, 1, :] = 0
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.nn.conv2d(x, weights["conv"][0], 2, "SAME", name="conv")
        h = tf.nn.depthwise_conv2d(h, weight(3, 3, 6, 1), [1, 1, 1, 1], "SAME", name="depthwise")
        h = tf.nn.conv2d_transpose(h, weights["up"][0], [1, 6, 6, 5], 2, name="up")
        h = tf.reduce_mean(h, [1, 2])
        tf.matmul(h, weights["fc"][0], transpose_b=True, name="fc")
    return graph.as_graph_def(), weights


def test_groups_density_and_retained_weights_are_counted() -> None:
    graph_def, weights = network()
    layers = {layer.decision.name: layer for layer in sparsekit.report(graph_def).layers}
    assert set(layers) == {*weights, "depthwise"}
    for name, (value, axis) in weights.items():
        pruned, before, after = brute_force(value, axis)
        facts = layers[name]
        assert facts.stored is not None and facts.planned is not None
        assert facts.weights == value.size
        assert (list(facts.stored.histogram), list(facts.planned.histogram)) == (before, after)
        assert facts.stored.density == np.count_nonzero(value) / value.size
        assert facts.planned.density == np.count_nonzero(pruned) / value.size
        assert (facts.stored.violations, facts.planned.violations) == (sum(before[3:]), 0)
        assert facts.stored.groups == sum(before)
        whole = np.abs(value).sum(dtype=np.float64)
        assert facts.retained == pytest.approx(np.abs(pruned).sum(dtype=np.float64) / whole, rel=1e-12)


def test_totals_are_the_sums() -> None:
    graph_def, weights = network()
    report = sparsekit.report(graph_def)
    depthwise = weight(3, 3, 6, 1)
    size = sum(value.size for value, _ in weights.values())
    totals = report.totals
    assert (totals.layers, totals.pruned) == (4, 3)
    assert (totals.weights, totals.weights_pruned) == (size + depthwise.size, size)
    nonzeros = sum(np.count_nonzero(value) for value, _ in weights.values()) + depthwise.size
    left = sum(np.count_nonzero(brute_force(value, axis)[0]) for value, axis in weights.values()) + depthwise.size
    assert totals.density == pytest.approx(nonzeros / totals.weights, rel=1e-12)
    assert totals.density_planned == pytest.approx(left / totals.weights, rel=1e-12)


def test_the_corner_shows_groups_along_a_row_and_outputs_down() -> None:
    graph_def, weights = network()
    layers = {layer.decision.name: layer for layer in sparsekit.report(graph_def).layers}
    value, axis = weights["conv"]
    pruned = brute_force(value, axis)[0][0, 0]
    assert layers["conv"].mask == tuple("".join("#" if v else "." for v in column) for column in pruned.T)
    assert layers["fc"].mask[0] == "".join("#" if v else "." for v in brute_force(weights["fc"][0], 1)[0][0])


def test_a_pruned_model_is_shown_as_it_is_stored() -> None:
    pruned = sparsekit.prune(network()[0]).graph_def
    for layer in sparsekit.report(pruned).layers:
        assert layer.stored == layer.planned
        assert layer.retained == 1.0


# --- multiply-adds ---------------------------------------------------------------------------------------


def profiled(graph_def: Any) -> dict[str, int]:
    """Multiply-adds of every op, by the formulas of TensorFlow's own profiler (two operations each)."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    flops = {op.name: ops.get_stats_for_node_def(graph, op.node_def, "flops").value for op in graph.get_operations()}
    return {name: (count or 0) // 2 for name, count in flops.items()}


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_multiply_adds_are_those_of_the_profiler(data_format: str) -> None:
    with tf.Graph().as_default() as graph:
        shape = [1, 12, 10, 8] if data_format == "NHWC" else [1, 8, 12, 10]
        x = v1.placeholder(tf.float32, shape)
        for name, strides, padding, kernel in (
            ("same", 1, "SAME", [3, 3, 8, 6]),
            ("valid", 2, "VALID", [3, 2, 8, 6]),
            ("grouped", 1, "SAME", [3, 3, 2, 12]),
            ("pointwise", 1, "SAME", [1, 1, 8, 5]),
        ):
            tf.nn.conv2d(x, weight(*kernel), strides, padding, data_format=data_format, name=name)
        if data_format == "NHWC":
            tf.nn.depthwise_conv2d(x, weight(3, 3, 8, 2), [1, 1, 1, 1], "VALID", name="depthwise")
        flat = tf.reshape(x, [1, -1])
        tf.matmul(flat, weight(960, 7), name="fc")
        tf.matmul(flat, weight(7, 960), transpose_b=True, name="transposed")
    graph_def = graph.as_graph_def()
    expected = profiled(graph_def)
    layers = sparsekit.report(graph_def).layers
    assert len(layers) == (7 if data_format == "NHWC" else 6)
    for layer in layers:
        assert layer.multiply_adds == expected[layer.decision.name] > 0, layer.decision.name


def test_multiply_adds_that_the_profiler_does_not_count() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 5, 8])
        tf.einsum("btk,kn->btn", x, weight(8, 6), name="einsum")
        tf.matmul(x, weight(1, 8, 6), name="batched")
        tf.nn.conv2d_transpose(x[:, None], weight(2, 2, 3, 8), [1, 2, 10, 3], 2, name="up")
        tf.nn.conv3d(x[:, None, None], weight(1, 1, 2, 8, 3), [1] * 5, "VALID", name="deep")
    found = {
        layer.decision.name.partition("/")[0]: layer.multiply_adds
        for layer in sparsekit.report(graph.as_graph_def()).layers
    }
    assert found == {"einsum": 5 * 8 * 6, "batched": 5 * 8 * 6, "up": 5 * 8 * 2 * 2 * 3, "deep": 4 * 3 * 2 * 8}


def test_open_shapes_are_said_not_guessed() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, None, None, 8])
        tf.nn.conv2d(x, weight(3, 3, 8, 6), 1, "SAME", name="conv")
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), weight(8, 6), name="fc")
    report = sparsekit.report(graph.as_graph_def())
    assert {layer.decision.name: layer.multiply_adds for layer in report.layers} == {"conv": None, "fc": 48}
    assert (report.totals.multiply_adds, report.totals.multiply_adds_unknown) == (48, 1)
    assert "of 1 layers they are not known" in str(report)


def test_ops_that_tensorflow_does_not_know_leave_shapes_unknown_and_the_rest_whole() -> None:
    graph_def, weights = network()
    graph_def.node.add(name="strange", op="NoSuchOp", input=["fc"])
    report = sparsekit.report(graph_def)
    assert {layer.multiply_adds for layer in report.layers} == {None}
    assert report.totals.weights_pruned == sum(value.size for value, _ in weights.values())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, int]:
    """A Keras export, whose layers lie in functions and in two signatures; frozen; its multiply-adds."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((12, 12, 4)),
        keras.layers.Conv2D(8, 3),
        keras.layers.Conv2D(8, 3, groups=2),
        keras.layers.Flatten(),
        keras.layers.Dense(16),
    ]
    model = keras.Sequential(layers)
    folder = tmp_path_factory.mktemp("exported") / "model"
    model.export(folder, verbose=False)
    call = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec([None, 12, 12, 4]))
    frozen = convert_variables_to_constants_v2(call).graph.as_graph_def()
    return folder, frozen, 100 * 9 * 4 * 8 + 64 * 9 * 4 * 8 + 512 * 16


def test_layers_in_functions_are_counted_once_whatever_the_signatures(exported: Any) -> None:
    folder, frozen, work = exported
    assert sparsekit.report(folder).totals.multiply_adds == work
    assert sparsekit.report(frozen).totals.multiply_adds == work


@pytest.mark.parametrize("layer", [keras.layers.Dense(32), keras.layers.EinsumDense("abc,cd->abd", (12, 32))])
def test_a_sequence_is_not_taken_for_a_batch(layer: Any, tmp_path: Path) -> None:
    """Dense layers flatten batch and sequence into one axis."""
    inputs = keras.Input((12, 16))
    keras.Model(inputs, layer(inputs)).export(tmp_path / "model", verbose=False)
    assert sparsekit.report(tmp_path / "model").totals.multiply_adds == 12 * 16 * 32


def test_a_live_graph_tells_its_shapes_alone() -> None:
    with tf.Graph().as_default() as graph:
        w = v1.get_variable("w", [8, 6])
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), w, name="fc")
    (layer,) = sparsekit.report(graph, outputs=["fc"]).layers
    assert (layer.weights, layer.multiply_adds, layer.stored, layer.retained) == (48, 48, None, None)
    assert "live graph" in layer.note


# --- what is worth leaving dense -------------------------------------------------------------------------


def test_tiny_layers_and_output_layers_are_named() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 64])
        h = tf.matmul(tf.matmul(x, weight(64, 64), name="body"), weight(64, 8), name="narrow")
        tf.matmul(tf.matmul(h, weight(8, 256), name="wide"), weight(256, 50), name="head")
    graph_def = graph.as_graph_def()
    plan = sparsekit.plan(graph_def)
    assert plan.worth_leaving_dense == ("narrow", "head")
    assert "narrow, head" in str(plan) and "min_weights" in str(plan)
    follow = {"min_weights": 1024, "skip_outputs": True}
    assert sparsekit.plan(graph_def, follow).worth_leaving_dense == ()
    assert [d.name for d in sparsekit.plan(graph_def, follow).pruned] == ["body", "wide"]


# --- the command line ------------------------------------------------------------------------------------


def test_the_plan_command_prints_totals_and_as_json_every_fact(tmp_path: Path) -> None:
    graph_def, _ = network()
    path = tmp_path / "frozen.pb"
    sparsekit.save(graph_def, path)
    report = sparsekit.report(path)
    shown = CliRunner().invoke(main, ["plan", str(path)])
    assert shown.exit_code == 0
    for part in (
        "3 of 4 layers are pruned",
        "covered",
        "0.916 as stored",
        "Multiply-adds: 5,003 of 5,489",
        "40 (last of 2)",
    ):
        assert part in shown.output, part
    printed = json.loads(CliRunner().invoke(main, ["plan", str(path), "--json"]).stdout)
    assert printed["totals"]["multiply_adds"] == report.totals.multiply_adds
    for layer, decision in zip(report.layers, printed["decisions"], strict=True):
        assert decision["name"] == layer.decision.name
        assert decision["multiply_adds"] == layer.multiply_adds
        assert decision["stored"]["histogram"] == list(layer.stored.histogram)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is not JSON"),
        ("{}", "holds dict"),
        ('[{"source": "Arm"}]', "entry 0"),
        ('[{"source": "", "quantity": "cycles", "dense": 1, "pruned": 1}]', "whose figure it is"),
        ('[{"source": "Arm", "quantity": "cycles", "dense": "1", "pruned": 1}]', "numbers from 0 on"),
        ('[{"source": "Arm", "quantity": "cycles", "dense": 1, "pruned": NaN}]', "numbers from 0 on"),
    ],
)
def test_estimates_that_cannot_be_used_are_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "estimates.json").write_text(text)
    sparsekit.save(network()[0], tmp_path / "frozen.pb")
    arguments = ["report", str(tmp_path / "frozen.pb"), "-o", str(tmp_path / "r.html")]
    ended = CliRunner().invoke(main, [*arguments, "--estimates", str(tmp_path / "estimates.json")])
    assert ended.exit_code == 2
    assert part in ended.output and "estimates.json" in ended.output
    assert not (tmp_path / "r.html").exists()
