"""Calibrated pruning through the public API: what it promises of a model's layers, weights and biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from small_graphs import settings_of
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import sparsekit
from sparsekit.artefact.model import open_model
from sparsekit.calibration.inlining import inlined
from sparsekit.cli import main

v1 = tf.compat.v1
RANDOM = np.random.default_rng(0)
ALL = {"keep_dense": 0}
"""No layer stays dense."""


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f")


def samples(count: int = 200) -> np.ndarray:
    """Inputs whose columns depend on each other and have a mean, as a network's do."""
    mixed = normal(count, 6, 6, 4, seed=1) @ normal(4, 8, seed=2)
    return (np.maximum(mixed, 0) + 0.1 * normal(count, 6, 6, 8, seed=3)).astype("f")


def conv_net() -> Any:
    """Frozen: a convolution with a bias, one with a batch normalization, a transposed one, a dense layer without."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, normal(3, 3, 8, 6), 1, "SAME", name="conv"), normal(6)))
        h = tf.nn.conv2d(h, normal(1, 1, 6, 8), 2, "SAME", name="normed")
        h, _, _ = v1.nn.fused_batch_norm(
            h, np.ones(8, "f"), normal(8), normal(8, seed=5), np.ones(8, "f"), is_training=False
        )
        shape = tf.stack([tf.shape(h)[0], 6, 6, 5])
        h = tf.nn.conv2d_transpose(tf.nn.relu(h), normal(3, 3, 5, 8), shape, 2, name="up") + normal(5)
        tf.matmul(tf.nn.relu(tf.reduce_mean(h, [1, 2])), normal(5, 7), name="fc")
    return graph.as_graph_def()


def fetched(graph_def: Any, names: list[str], x: np.ndarray) -> list[np.ndarray]:
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run([f"{name}:0" for name in names], {"x:0": x})


def errors(dense: Any, pruned: Any) -> float:
    """Of the model's results, relative."""
    x = samples(400)[200:]
    (before,), (after,) = fetched(dense, ["fc"], x), fetched(pruned, ["fc"], x)
    return float(np.square(after - before).sum() / np.square(before).sum())


def test_it_keeps_far_more_of_the_results_than_magnitude() -> None:
    dense = conv_net()
    result = sparsekit.prune(dense, ALL, calibration=samples())
    assert sparsekit.verify(result.graph_def).ok
    assert errors(dense, result.graph_def) < 0.5 * errors(dense, sparsekit.prune(dense).graph_def)
    for account in result.accounts:
        assert account.criterion == "admm"
        assert account.note == ("no bias is added: its output is asked for by its name" if account.name == "fc" else "")
        assert account.error_after < account.error_before  # type: ignore[operator]
    assert [account.name for account in result.accounts] == ["conv", "normed", "up", "fc"]


def test_only_weights_and_the_biases_behind_them_change() -> None:
    dense = conv_net()
    result = sparsekit.prune(dense, ALL, calibration=samples())
    difference = sparsekit.diff(dense, result.graph_def)
    assert difference.only_weights
    shifted = {account.name: account.shifted for account in result.accounts}
    assert shifted == {"conv": True, "normed": True, "up": True, "fc": False}
    assert sorted(change.shape for change in difference.values if len(change.shape) == 1) == [(5,), (6,), (8,)]


def test_the_mean_output_of_every_layer_with_a_bias_stays() -> None:
    """On the inputs that the pruned layers before leave it, by the pruned network itself."""
    dense = conv_net()
    pruned = sparsekit.prune(dense, {"skip_layers": ["normed", "up", "fc"]}, calibration=samples()).graph_def
    x = samples()
    (before,), (after,) = fetched(dense, ["BiasAdd"], x), fetched(pruned, ["BiasAdd"], x)
    scale = np.abs(before).mean()
    assert np.abs(after.mean((0, 1, 2)) - before.mean((0, 1, 2))).max() < 1e-4 * scale
    assert np.abs(after - before).mean() > 1e-2 * scale


@pytest.mark.parametrize("target_path", ["pruned", "dense"])
def test_the_last_layer_is_the_least_squares_fit_to_its_target(target_path: str) -> None:
    """Its weights are compared with numpy's on the inputs that the layers before, already pruned, give it."""
    dense = conv_net()
    cfg = {**ALL, "target_path": target_path, "override": [{"layers": ["fc"], "criterion": "magnitude"}]}
    pruned = sparsekit.prune(dense, {**cfg, "repair": ["least-squares"]}, calibration=samples()).graph_def
    x = samples()
    (data,), (dense_data,) = fetched(pruned, ["Relu_2"], x), fetched(dense, ["Relu_2"], x)
    weight = normal(5, 7)
    (found,) = [tf.make_ndarray(n.attr["value"].tensor) for n in pruned.node if n.name == "fc/b"]
    target = (data if target_path == "pruned" else dense_data) @ weight
    for column in range(7):
        kept = found[:, column] != 0
        best = np.linalg.lstsq(data[:, kept].astype("d"), target[:, column].astype("d"), rcond=None)[0]
        error = np.square(data[:, kept] @ found[kept, column] - target[:, column]).sum()
        least = np.square(data[:, kept] @ best - target[:, column]).sum()
        assert error <= 1.1 * least + 1e-4 * np.square(target[:, column]).sum()


def test_a_layer_in_a_loop_goes_by_magnitude_and_says_so() -> None:
    kernel = normal(8, 8)

    @tf.function
    def call(x: Any) -> Any:
        x = tf.matmul(x, normal(8, 8, seed=3), name="before")
        turn = lambda i, h: (i + 1, tf.tanh(tf.matmul(h, kernel, name="inside")))  # noqa: E731
        return tf.while_loop(lambda i, h: i < 3, turn, [0, x])[1]

    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = call.get_concrete_function(tf.TensorSpec([None, 8], name="x"))
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False).graph.as_graph_def()
    result = sparsekit.prune(frozen, calibration=samples()[:, 0, 0])
    before, inside = result.accounts
    assert "before" in before.name and (before.criterion, before.note) == ("admm", "")
    assert "inside" in inside.name and inside.criterion == "magnitude" and "in a loop or cond" in inside.note
    assert sparsekit.verify(result.graph_def).ok


def test_inputs_that_a_freezer_left_behind_are_none() -> None:
    weight = tf.Variable(normal(8, 8) / 3)

    @tf.function
    def looped(x: Any) -> Any:
        for _ in tf.range(3):
            x = tf.tanh(x @ weight)
        return x @ weight

    concrete = looped.get_concrete_function(tf.TensorSpec([None, 8], name="x"))
    frozen = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    assert sum(node.op == "Placeholder" for node in frozen.node) > 1
    result = sparsekit.prune(frozen, {"keep_dense": 0}, calibration=normal(40, 8))
    assert result.accounts and sparsekit.verify(result.graph_def).ok


def test_layers_in_loops_and_branches_of_tensorflow_1_too_and_those_behind_come_after_them() -> None:
    """There the bodies lie in the main graph: what is in them cannot be fetched or fed any more than in a function."""
    kernel, constant = normal(8, 8), tf.constant

    def branch(h: Any, name: str) -> Any:
        return lambda: tf.matmul(h, constant(normal(8, 8, seed=len(name))), name=name)

    with settings_of("resource", "v1"), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        start = tf.matmul(x, constant(normal(8, 8, seed=3)), name="before")
        turn = lambda i, h, g: (i + 1, g, tf.tanh(tf.matmul(h, kernel, name="inside")))  # noqa: E731
        _, h, _ = v1.while_loop(lambda i, h, g: i < 3, turn, [constant(0), start, start])
        h = tf.matmul(h, constant(normal(8, 8, seed=4)), name="between")
        h = v1.cond(tf.reduce_sum(h) > 0, branch(h, "one"), branch(h, "other"))
        tf.matmul(h, constant(normal(8, 4)), name="after")
    assert {"Enter", "Switch"} <= {node.op for node in graph.as_graph_def().node}

    x = samples()[:, 0, 0]
    result = sparsekit.prune(graph.as_graph_def(), outputs=["after"], calibration=x)
    order = [account.name.rpartition("/")[2] for account in result.accounts]
    assert [name for name in order if name not in ("one", "other")] == ["before", "inside", "between", "after"]
    assert order[3] in ("one", "other") and order[4] in ("one", "other")
    calibrated = {name: account.criterion for name, account in zip(order, result.accounts, strict=True)}
    assert calibrated == dict.fromkeys(("before", "between", "after"), "admm") | dict.fromkeys(
        ("inside", "one", "other"), "magnitude"
    )
    assert sparsekit.verify(result.graph_def, outputs=["after"]).ok


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras export: layers in functions, two signatures, every weight stored twice; grouped convolutions."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 8)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(8, 3, groups=2),
            layers.Flatten(),
            layers.Dense(6),
        ]
    )
    folder = tmp_path_factory.mktemp("exported") / "model"
    model.export(folder, verbose=False)
    return folder


def test_a_saved_model_is_pruned_in_all_its_copies(exported: Path, tmp_path: Path) -> None:
    result = sparsekit.prune(exported, calibration=samples())
    result.save(tmp_path / "out")
    assert sparsekit.verify(tmp_path / "out").ok
    assert sparsekit.diff(exported, tmp_path / "out").only_weights
    assert all(account.shifted for account in result.accounts)

    def serve(folder: Path) -> np.ndarray:
        given = tf.constant(samples(400)[200:])
        (found,) = tf.saved_model.load(folder).signatures["serving_default"](given).values()
        return np.asarray(found)

    def through_a_session(folder: Path) -> np.ndarray:
        with v1.Session(graph=tf.Graph()) as session:
            signature = v1.saved_model.load(session, ["serve"], str(folder)).signature_def["serving_default"]
            (given,), (found,) = signature.inputs.values(), signature.outputs.values()
            return session.run(found.name, {given.name: samples(400)[200:]})

    sparsekit.prune(exported).save(tmp_path / "magnitude")
    dense = serve(exported)
    lost = {name: np.square(serve(tmp_path / name) - dense).sum() for name in ("out", "magnitude")}
    assert lost["out"] < 0.5 * lost["magnitude"]
    np.testing.assert_allclose(through_a_session(tmp_path / "out"), serve(tmp_path / "out"), rtol=1e-4, atol=1e-5)


def test_the_same_samples_give_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    first, second = (sparsekit.prune(conv_net(), ALL, calibration=samples()).graph_def for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt", "admm", "random"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_every_criterion_and_pattern_is_legal(criterion: str, pattern: str) -> None:
    cfg = {"criterion": criterion, "pattern": pattern, **ALL}
    result = sparsekit.prune(conv_net(), cfg, calibration=samples(60))
    assert sparsekit.verify(result.graph_def, cfg=cfg).ok


def test_inlined_calls_compute_the_same(exported: Path) -> None:
    model = open_model(exported)
    flat = inlined(model.view)
    assert not [node for node in flat.node if node.op.endswith("PartitionedCall") and "serving" in node.name]
    names = [node.name for node in flat.node]
    assert len(names) == len(set(names))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sparsekit.SparsekitError, match="no_such_input"):
        sparsekit.prune(conv_net(), calibration={"no_such_input": samples()})
    with pytest.raises(sparsekit.SparsekitError, match="NaN"):
        sparsekit.prune(conv_net(), calibration=samples() * np.float32("nan"))
    with tf.Graph().as_default() as graph:
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), v1.get_variable("w", [8, 4]), name="fc")
    with pytest.raises(sparsekit.GraphError, match="without a session"):
        sparsekit.prune(graph, calibration=normal(4, 8))


def test_a_model_without_inputs_is_told_what_gives_it_its_data() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.data.make_one_shot_iterator(tf.data.Dataset.from_tensors(normal(4, 8))).get_next()
        tf.matmul(tf.reshape(x, [-1, 8]), normal(8, 8), name="fc")
    frozen, step = graph.as_graph_def(), r"gets its data from 'IteratorGetNext' \(IteratorGetNext\)"
    for given in (normal(4, 8), [normal(4, 8)], {"x": normal(4, 8)}):
        with pytest.raises(sparsekit.CalibrationError, match=f"{step}; .* Export it with a placeholder instead"):
            sparsekit.prune(frozen, calibration=given)
    with pytest.raises(sparsekit.CalibrationError, match=step):
        sparsekit.sensitivity(frozen, calibration=normal(4, 8))
    with tf.Graph().as_default() as graph:
        tf.matmul(normal(4, 8), normal(8, 8), name="fc")
    with pytest.raises(sparsekit.CalibrationError, match=r"has no inputs; .* Export it with placeholders"):
        sparsekit.sensitivity(graph.as_graph_def(), calibration=normal(4, 8))


def test_the_command_takes_an_npz(tmp_path: Path) -> None:
    sparsekit.save(conv_net(), tmp_path / "dense.pb")
    np.savez(tmp_path / "samples.npz", x=samples())
    (tmp_path / "all.toml").write_text("keep_dense = 0\n")
    files = [str(tmp_path / name) for name in ("dense.pb", "out.pb", "all.toml")]
    arguments = ["prune", files[0], "-o", files[1], "--config", files[2]]
    ended = CliRunner().invoke(main, [*arguments, "--calibration", str(tmp_path / "samples.npz"), "--json"])
    assert ended.exit_code == 0
    accounts = json.loads(ended.stdout)["accounts"]
    assert [account["name"] for account in accounts] == ["conv", "normed", "up", "fc"]
    assert sparsekit.verify(tmp_path / "out.pb").ok
    shown = CliRunner().invoke(main, [*arguments, "--calibration", str(tmp_path / "samples.npz")])
    assert "error by magnitude" in shown.output


# --- biases, found by reviewers --------------------------------------------------------------------------


def constant(*shape: int, seed: int = 0) -> Any:
    return tf.constant(normal(*shape, seed=seed))


# Whether a bias must be added, where there is none that is one number for every channel.
FOLLOWED_BY = {
    "a bias": (False, lambda y: y + constant(8)),
    "one that is subtracted": (False, lambda y: y - constant(8)),
    "one laid out for broadcasting": (False, lambda y: y + tf.reshape(constant(8), [1, 1, 8])),
    "a scale and a bias": (False, lambda y: y * constant(8, seed=1) + constant(8)),
    "a scale for every position, and a bias": (True, lambda y: y * constant(8, 1) + constant(8)),
    "a position, as many as channels": (True, lambda y: y + constant(8, 1)),
    "noise and a bias": (True, lambda y: y * tf.random.uniform([8]) + constant(8)),
    "a result that is larger": (True, lambda y: y[..., None] + constant(3)),
    "nothing": (True, lambda y: tf.nn.relu(y)),
    "a bias in another layout": (False, lambda y: tf.reshape(y, [-1, 8]) + constant(8)),
    "a scale, and a bias in another layout": (False, lambda y: tf.reshape(y * constant(8), [-1, 8]) + constant(8)),
    "a bias for every group of channels": (True, lambda y: tf.reshape(y, [-1, 4]) + constant(4)),
    "a bias after channels and positions change places": (True, lambda y: tf.transpose(y, [0, 2, 1]) + constant(8)),
}


@pytest.mark.parametrize("name", FOLLOWED_BY)
def test_a_bias_is_one_number_for_every_output_channel(name: str) -> None:
    added, follow = FOLLOWED_BY[name]
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8, 8], name="x")
        follow(tf.einsum("btk,kc->btc", x, constant(8, 8, seed=7), name="layer"))
    result = sparsekit.prune(graph.as_graph_def(), calibration=samples()[:, :, 0].repeat(2, 1)[:, :8])
    assert [(account.shifted, account.bias_added) for account in result.accounts] == [(True, added)]
    assert sparsekit.verify(result.graph_def).ok


@pytest.mark.parametrize("data_format", ["NWC", "NCW"])
def test_the_mean_output_stays_where_a_layer_of_fewer_dimensions_is_computed_as_one_of_more(data_format: str) -> None:
    """A Conv1D is a Conv2D between an ExpandDims and a Squeeze; only then comes the bias."""
    if data_format == "NCW":
        try:
            tf.nn.conv2d(tf.ones([1, 4, 3, 3]), tf.ones([1, 1, 4, 4]), 1, "SAME", "NCHW")
        except tf.errors.UnimplementedError:
            pytest.skip("this processor's TensorFlow has no NCHW")
    x = samples(200)[:, 0]
    with tf.Graph().as_default() as graph:
        fed = v1.placeholder(tf.float32, [None, 6, 8], name="x")
        h = tf.expand_dims(fed, 1)
        if data_format == "NCW":
            h = tf.transpose(h, [0, 3, 1, 2])
        kernel = normal(1, 3, 8, 5)
        h = tf.nn.conv2d(h, kernel, 1, "SAME", "NHWC" if data_format == "NWC" else "NCHW", name="conv")
        h = tf.squeeze(h, [1 if data_format == "NWC" else 2])
        tf.nn.bias_add(h, normal(5), data_format=data_format, name="biased")
    dense = graph.as_graph_def()
    result = sparsekit.prune(dense, calibration=x)
    assert [account.shifted for account in result.accounts] == [True]
    axes = (0, 1) if data_format == "NWC" else (0, 2)
    before, after = (fetched(model, ["biased"], x)[0].mean(axes) for model in (dense, result.graph_def))
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize(
    "through", [lambda b: b, lambda b: tf.reshape(b, [1, 8]), lambda b: tf.subtract(b, constant(8))]
)
def test_a_bias_that_others_read_stays(through: Any) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        bias = through(constant(8, seed=4))
        tf.add(tf.matmul(x, constant(8, 8, seed=7)), bias, name="layer")
        tf.add(tf.tanh(x), bias, name="other")
    dense = graph.as_graph_def()
    pruned = sparsekit.prune(dense, calibration=samples()[:, 0, 0]).graph_def
    (before,), (after,) = (fetched(g, ["other"], samples()[:, 0, 0]) for g in (dense, pruned))
    assert np.array_equal(before, after)


def test_samples_may_come_from_tensorflow_itself() -> None:
    dense, given = conv_net(), samples(60)
    dataset = tf.data.Dataset.from_tensor_slices(given).batch(20)
    for calibration in (dataset, (batch.numpy() for batch in dataset), (tf.nn.relu(b).numpy() for b in dataset)):
        assert sparsekit.verify(sparsekit.prune(dense, ALL, calibration=calibration).graph_def).ok


def test_a_recurrent_layer_is_not_fitted_to_the_dead_copy_that_its_export_holds(tmp_path: Path) -> None:
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.LSTM(8)(inputs)))
    model.export(tmp_path / "model", verbose=False)
    result = sparsekit.prune(tmp_path / "model", calibration=samples()[:, :5, 0])
    *recurrent, dense = sorted(result.accounts, key=lambda account: account.criterion == "admm")
    assert len(recurrent) == 2 and all("in a loop" in account.note for account in recurrent)
    assert "dense" in dense.name and dense.shifted
