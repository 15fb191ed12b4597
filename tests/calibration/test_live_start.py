"""Calibrated pruning of a live graph: the start that it gives retraining, and what it leaves alone."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import (
    VARIABLE_KINDS,
    Array,
    bits,
    constants,
    conv_net,
    counts,
    freeze,
    images,
    masks,
    run_graph,
    session,
    settings_of,
    sgd,
    values,
    variable,
)

import sparsekit
from sparsekit.calibration import variables as session_variables
from sparsekit.pattern import keep_mask

v1 = tf.compat.v1
ALL = {"keep_dense": 0}  # as in a live graph, which is retrained
SETTINGS = [("ref", "v1"), ("resource", "v1"), ("resource", "v2")]


def correlated(count: int, width: int, seed: int = 0) -> Array:
    """Inputs that depend on each other and have a mean: there magnitude does badly."""
    mixed = values([count, 3], seed) @ values([3, width], seed + 1)
    return (np.maximum(mixed, 0) + 0.1 * values([count, width], seed + 2)).astype("f")


def by_name(graph: Any) -> dict[str, Any]:
    with graph.as_default():
        return {v.op.name: v for v in v1.global_variables()}


def serialized(graph: Any) -> bytes:
    return graph.as_graph_def().SerializeToString(deterministic=True)


def started(graph: Any, result: Any) -> Any:
    """A new session, initialized and started."""
    opened = session(graph)
    result.start(opened)
    return opened


def check_masks(sess: Any, plan: Any) -> None:
    """Every pruned layer: its mask is legal and changes nothing of its weight, and one batch is counted."""
    found = by_name(sess.graph)
    for decision in plan.pruned:
        (mask,) = masks(sess, [decision.name]).values()
        parts = re.sub(r"part_\d+$", r"part_\\d+", decision.weight)
        leaves = [v for name, v in found.items() if re.fullmatch(parts, name)]
        weight = np.concatenate(sess.run(leaves), 0)
        assert set(np.unique(mask)) <= {0.0, 1.0}
        assert np.array_equal(keep_mask(mask, decision.axis, decision.pattern), mask == 1)
        assert bits(weight) == bits(np.where(mask == 1, weight, np.float32(0)))
    assert set(counts(sess, [d.name for d in plan.pruned])) <= {1}


# --- the start is what prune makes of the frozen graph, bit for bit ---------------------------------------


def through_loop(x: Any, w: Any) -> Any:
    x = tf.matmul(x, variable("first", [8, 8], 5), name="before")
    x = v1.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, tf.tanh(tf.matmul(s, w, name="cell"))), (0, x))[1]
    return tf.matmul(x, variable("last", [8, 8], 6), name="after")


def through_cond(x: Any, w: Any) -> Any:
    x = tf.matmul(x, variable("first", [8, 8], 5), name="before")
    x = v1.cond(tf.reduce_sum(x) > -1e9, lambda: tf.tanh(tf.matmul(x, w, name="cell")), lambda: x)
    return tf.matmul(x, variable("last", [8, 8], 6), name="after")


def through_function(x: Any, w: Any) -> Any:
    layer = tf.function(lambda x, w: tf.tanh(tf.matmul(x, w, name="cell")), autograph=False)
    return tf.matmul(layer(x, w), variable("last", [8, 8], 6), name="after")


def shared(x: Any, w: Any) -> Any:
    return tf.matmul(tf.tanh(tf.matmul(x, w, name="one")), w, name="two")


def half(x: Any, w: Any) -> Any:
    product = tf.matmul(tf.cast(x, tf.float16), tf.cast(w, tf.float16), name="fc")
    return tf.cast(product, tf.float32) + variable("b", [8], 7)


def fake_quantized(x: Any, w: Any) -> Any:
    return tf.matmul(x, tf.quantization.fake_quant_with_min_max_args(w, -3, 3), name="fc") + variable("b", [8], 7)


def transposed(x: Any, w: Any) -> Any:
    return tf.nn.bias_add(tf.matmul(x, tf.transpose(w), name="fc"), variable("b", [8], 7))


def normalized(x: Any, w: Any) -> Any:
    x = tf.reshape(tf.matmul(x, w, name="fc"), [-1, 1, 1, 8])
    parts = [variable(name, [8], seed) for seed, name in enumerate(("scale", "offset", "mean"), 10)]
    x = v1.nn.fused_batch_norm(x, *parts, tf.abs(variable("variance", [8], 13)), is_training=False)[0]
    return tf.reshape(x, [-1, 8])


def read_directly(x: Any, w: Any) -> Any:
    """A ref variable without the identity that reads it."""
    u = variable("u", [8, 8], 9)
    u = u._ref() if hasattr(u, "_ref") else u
    return tf.matmul(tf.matmul(x, w, name="fc"), u, name="last") + variable("b", [8], 7)


def partitioned(x: Any, w: Any) -> Any:
    parts = v1.get_variable(
        "parts", [8, 8], initializer=v1.random_normal_initializer(seed=3), partitioner=v1.fixed_size_partitioner(2)
    )
    return tf.matmul(tf.matmul(x, w, name="fc"), parts, name="in_parts") + variable("b", [8], 7)


STRUCTURES = [
    through_loop,
    through_cond,
    through_function,
    shared,
    half,
    fake_quantized,
    transposed,
    normalized,
    read_directly,
    partitioned,
]


@pytest.mark.parametrize(("kind_of_variables", "control_flow"), SETTINGS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_start_is_what_the_frozen_graph_gets(
    kind_of_variables: str, control_flow: str, structure: Callable[[Any, Any], Any]
) -> None:
    data = correlated(80, 8)
    with settings_of(kind_of_variables, control_flow), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        y = tf.identity(structure(x, tf.identity(variable("w", [8, 8]))), name="y")
        v1.losses.absolute_difference(y, v1.placeholder(tf.float32, [None, 8], name="labels"))
        # None of these reads what the outputs depend on in a way that counts.
        v1.summary.histogram("weights", by_name(graph)["w"])
        v1.train.ExponentialMovingAverage(0.5).apply(v1.trainable_variables())
        with session(graph) as sess:
            at_rest = sparsekit.prune(freeze(sess, ["y"]), ALL, outputs=["y"], calibration=data)
            result = sparsekit.prune(graph, outputs=["y"], calibration=data, session=sess)
        found = by_name(graph)
        with started(graph, result) as sess:
            stored = {name: sess.run(v) for name, v in found.items()}
            check_masks(sess, result.plan)
            outputs = sess.run(y, {x: data})
            masked = freeze(sess, ["y"])
            stripped = sparsekit.strip(masked, outputs=["y"])
    expected = {name: value for name, value in constants(at_rest.graph_def).items() if name in stored}
    assert {name: bits(stored[name]) for name in expected} == {name: bits(v) for name, v in expected.items()}
    assert [attempt.criterion for attempt in result.accounts] == [a.criterion for a in at_rest.accounts]
    assert [attempt.shifted for attempt in result.accounts] == [a.shifted for a in at_rest.accounts]
    assert any(account.criterion == "admm" for account in result.accounts)
    np.testing.assert_allclose(run_graph(at_rest.graph_def, "y:0", {"x:0": data}), outputs, rtol=1e-4, atol=1e-4)
    assert np.array_equal(*(run_graph(graph_def, "y:0", {"x:0": data}) for graph_def in (masked, stripped)))
    assert sparsekit.verify(stripped, outputs=["y"]).ok


@pytest.mark.parametrize("outputs", [["y"], None])
def test_a_network_of_every_layout_starts_as_its_frozen_graph(kind: str, outputs: Any) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        model.loss()
        with session(graph) as sess:
            at_rest = sparsekit.prune(freeze(sess, ["y"]), ALL, calibration=images(0, 64))
            result = sparsekit.prune(graph, outputs=outputs, calibration=images(0, 64), session=sess)
        with started(graph, result) as sess:
            expected = constants(at_rest.graph_def)
            for name, v in by_name(graph).items():
                if name in expected:
                    assert bits(sess.run(v)) == bits(expected[name]), name
            check_masks(sess, result.plan)
    assert [a.shifted for a in result.accounts] == [a.shifted for a in at_rest.accounts] == [False, False, True, False]


# --- training from the start ------------------------------------------------------------------------------


def mlp(through_training: bool = False) -> tuple[Any, Any, Any]:
    """x, y and a placeholder "is_training" that switches dropout and batch statistics on."""
    x = v1.placeholder(tf.float32, [None, 16], name="x")
    training = v1.placeholder_with_default(False, [], name="is_training")
    h = tf.nn.relu(tf.matmul(x, variable("w1", [16, 24], 1), name="fc1") + variable("b1", [24], 2))
    h = tf.nn.dropout(h, rate=tf.where(training, 0.5, 0.0))
    y = tf.identity(tf.matmul(h, variable("w2", [24, 8], 3), name="fc2") + variable("b2", [8], 4), name="y")
    return x, y, training


def trained_from(frequency: int, steps: int) -> tuple[list[dict[str, Array]], list[list[int]]]:
    data = correlated(64, 16)
    with tf.Graph().as_default() as graph:
        x, y, _ = mlp()
        config = {"update_freq": frequency}
        with session(graph) as sess:
            result = sparsekit.prune(graph, config, outputs=[y], calibration={"x": data}, session=sess)
        step = sgd(tf.reduce_mean(tf.square(y - 1.0)))
        with started(graph, result) as sess:
            states, counted = [masks(sess, ["fc1", "fc2"])], [counts(sess, ["fc1", "fc2"])]
            for number in range(steps):
                sess.run(step, {x: correlated(16, 16, 50 + number)})
                states.append(masks(sess, ["fc1", "fc2"]))
                counted.append(counts(sess, ["fc1", "fc2"]))
    return states, counted


@pytest.mark.parametrize("frequency", [0, 1, 2, 3])
def test_masks_stay_those_that_were_calibrated(kind: str, frequency: int) -> None:
    """Weights that were dropped are zero and get no gradient: a refresh by magnitude finds the same ones largest."""
    states, counted = trained_from(frequency, 4)
    for state in states[1:]:
        assert all(np.array_equal(state[layer], states[0][layer]) for layer in state)
    assert counted == [[n, n] for n in range(1, 6)]


def test_the_masks_are_not_those_of_magnitude(kind: str) -> None:
    (states,), _ = trained_from(0, 0)
    for seed, shape, layer in ((1, [16, 24], "fc1"), (3, [24, 8], "fc2")):
        assert not np.array_equal(states[layer], keep_mask(values(shape, seed), 0))


def test_a_layer_that_is_chosen_again_in_the_graph_says_by_what(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        mlp()
        with session(graph) as sess:
            sparsekit.prune(graph, {"criterion": "wanda"}, outputs=["y"], calibration=correlated(64, 16), session=sess)
        (text,) = {op.get_attr("_sparsekit").decode() for op in graph.get_operations() if op.name.endswith("/masked")}
    assert '"criterion": "magnitude"' in text


# --- what runs, and what may be fed -----------------------------------------------------------------------


def test_what_the_layers_do_not_need_need_not_be_fed(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        _, y, _ = mlp()
        labels = v1.placeholder(tf.float32, [None, 8], name="labels")
        tf.reduce_mean(tf.square(y - labels), name="loss")
        with session(graph) as sess:
            result = sparsekit.prune(graph, calibration=correlated(64, 16), session=sess)
    assert [account.criterion for account in result.accounts] == ["admm", "admm"]


def test_samples_may_switch_training_off_or_on(kind: str) -> None:
    def errors(**switch: Any) -> list[float]:
        with tf.Graph().as_default() as graph:
            mlp()
            with session(graph) as sess:
                batches = [{"x": correlated(32, 16, seed), **switch} for seed in range(2)]
                result = sparsekit.prune(graph, outputs=["y"], calibration=batches, session=sess)
        return [account.error_after for account in result.accounts]

    assert errors() == errors(is_training=np.bool_(False))
    assert errors()[1] != errors(is_training=np.bool_(True))[1]


def test_a_step_of_an_input_pipeline_is_fed(kind: str) -> None:
    data = correlated(64, 16)
    with tf.Graph().as_default() as graph:
        dataset = tf.data.Dataset.from_tensor_slices((data, np.zeros(64, np.float32))).batch(8)
        images_of, labels = v1.data.make_one_shot_iterator(dataset).get_next()
        y = tf.matmul(images_of, variable("w", [16, 8]), name="fc") + variable("b", [8], 2)
        tf.reduce_mean(y - labels[:, None])
        with session(graph) as sess:
            frozen = {images_of: data}
            result = sparsekit.prune(graph, outputs=[y], calibration=frozen, session=sess)
    assert result.accounts[0].criterion == "admm" and result.accounts[0].shifted


def test_the_session_and_the_graph_are_only_read(kind: str) -> None:
    """A forward pass in training mode counts, and moves averages."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 16], name="x")
        steps = v1.get_variable("steps", [], tf.int64, v1.zeros_initializer(), trainable=False)
        with tf.control_dependencies([v1.assign_add(steps, 1)]):
            h = tf.identity(x)
        tf.matmul(h, variable("w", [16, 8]), name="y")
        with session(graph) as sess:
            before = {name: bits(sess.run(v)) for name, v in by_name(graph).items()}
            sparsekit.prune(graph, outputs=["y"], calibration=correlated(64, 16), session=sess)
            after = {name: bits(sess.run(by_name(graph)[name])) for name in before}
    assert before == after


def test_devices_of_the_training_do_not_matter(kind: str) -> None:
    with tf.Graph().as_default() as graph, graph.device("/device:CPU:0"):
        x = v1.placeholder(tf.float32, [None, 16], name="x")
        tf.matmul(x, variable("w", [16, 8]), name="y")
        with session(graph) as sess:
            for op in graph.get_operations():
                op._set_device("/job:worker/task:3/device:NPU:0")
            result = sparsekit.prune(graph, outputs=["y"], calibration=correlated(64, 16), session=sess)
    assert result.accounts[0].criterion == "admm"


def test_tables_are_there(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        words = v1.placeholder(tf.string, [None], name="words")
        keys = tf.constant([f"word{i}" for i in range(20)])
        filled = tf.lookup.KeyValueTensorInitializer(keys, tf.range(20))
        numbers = tf.lookup.StaticHashTable(filled, -1).lookup(words)
        tf.matmul(tf.gather(variable("embedding", [20, 8]), numbers), variable("w", [8, 8]), name="y")
        with session(graph) as sess:
            given = {"words": np.array([f"word{i % 20}" for i in range(60)], object)}
            result = sparsekit.prune(graph, outputs=["y"], calibration=given, session=sess)
    assert result.accounts[0].criterion == "admm"


def test_a_constant_gets_a_mask_and_keeps_its_value(kind: str) -> None:
    weight = values([16, 8])
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 16], name="x")
        h = tf.matmul(x, tf.constant(weight, name="fixed"), name="fc")
        tf.matmul(h, variable("w", [8, 8]), name="y")
        with session(graph) as sess:
            result = sparsekit.prune(graph, outputs=["y"], calibration=correlated(64, 16), session=sess)
        with started(graph, result) as sess:
            assert np.array_equal(masks(sess, ["fc"])["fc"], keep_mask(weight, 0))
    account, other = result.accounts
    assert account.criterion == "magnitude" and "a constant of the graph" in account.note
    assert other.criterion == "admm"


# --- sessions ---------------------------------------------------------------------------------------------


def pruned_mlp() -> tuple[Any, Any, Any]:
    """Graph, result, and the session that was calibrated, still open."""
    with tf.Graph().as_default() as graph:
        _, y, _ = mlp()
        opened = session(graph)
        result = sparsekit.prune(graph, outputs=[y], calibration=correlated(64, 16), session=opened)
        sgd(tf.reduce_mean(tf.square(y - 1.0)), name="step", global_step=v1.train.get_or_create_global_step())
    return graph, result, opened


def test_a_dense_checkpoint_restored_first_a_masked_one_saved_later(kind: str, tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        mlp()
        saver = v1.train.Saver()
        with session(graph) as sess:
            saver.save(sess, str(tmp_path / "dense"))
            result = sparsekit.prune(graph, outputs=["y"], calibration=correlated(64, 16), session=sess)
        with v1.Session() as sess:  # nothing initializes the masks but the start
            saver.restore(sess, str(tmp_path / "dense"))
            result.start(sess)
            v1.train.Saver().save(sess, str(tmp_path / "started"))
            expected = {name: bits(sess.run(v)) for name, v in by_name(graph).items()}
    with tf.Graph().as_default() as graph, v1.Session() as sess:
        mlp()
        sparsekit.prune(graph, outputs=["y"])
        v1.train.Saver().restore(sess, str(tmp_path / "started"))
        assert {name: bits(sess.run(v)) for name, v in by_name(graph).items()} == expected
        assert counts(sess, ["fc1", "fc2"]) == [1, 1]


def first_count(sess: Any, kind: str) -> int:
    """Without adding an op to the graph."""
    return int(sess.run(f"fc1/sparsekit/batch/{'read' if kind == 'ref' else 'Read/ReadVariableOp'}:0"))


@pytest.mark.parametrize("restored", [True, False])
def test_what_was_not_restored_is_missed(
    kind: str, restored: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else calibrated layers would stand between ones of chance."""
    with tf.Graph().as_default() as graph:
        x, y, _ = mlp()
        saver = v1.train.Saver()
        config = {"skip_layers": ["fc1"]}
        with session(graph) as sess:
            for name, v in by_name(graph).items():
                v.load(values(v.shape, len(name) + 70), sess)
            sess.run(y, {x: correlated(4, 16)})
            saver.save(sess, str(tmp_path / "dense"))
            result = sparsekit.prune(graph, config, outputs=[y], calibration=correlated(64, 16), session=sess)
        with session(graph) as sess, caplog.at_level(logging.WARNING, logger="sparsekit"):
            if restored:
                saver.restore(sess, str(tmp_path / "dense"))
            result.start(sess)
    warned = [record.getMessage() for record in caplog.records if record.name == "sparsekit"]
    assert [text.partition(", have")[0] for text in warned] == ([] if restored else ["2 variables, such as 'w1'"])


def test_a_finalized_graph_can_start(kind: str, tmp_path: Path) -> None:
    graph, result, opened = pruned_mlp()
    opened.close()
    with graph.as_default():
        scaffold = v1.train.Scaffold(init_fn=lambda scaffold, raw: result.start(raw))
        with v1.train.MonitoredTrainingSession(scaffold=scaffold, checkpoint_dir=str(tmp_path)) as sess:
            assert graph.finalized
            assert first_count(sess, kind) == 1
            for _ in range(2):
                sess.run("step", {"x:0": correlated(8, 16)})
        # It goes on from its own checkpoint, and nothing is started again.
        scaffold = v1.train.Scaffold(init_fn=lambda scaffold, raw: result.start(raw))
        with v1.train.MonitoredTrainingSession(scaffold=scaffold, checkpoint_dir=str(tmp_path)) as sess:
            assert first_count(sess, kind) == 3


@pytest.mark.parametrize("wrong", ["the same", "closed", "another graph", "trained", "none"])
def test_sessions_that_cannot_start_are_refused(kind: str, wrong: str) -> None:
    graph, result, opened = pruned_mlp()
    other = session(graph)
    if wrong == "the same":
        other, match = opened, "does not see the masks"
    elif wrong == "closed":
        other.close()
        match = "is closed"
    elif wrong == "another graph":
        other, match = v1.Session(graph=tf.Graph()), "of another graph"
    elif wrong == "trained":
        result.start(other)
        result.start(other)  # twice does no harm
        other.run("step", {"x:0": correlated(8, 16)})
        match = "trained already, for 2 batches"
    else:
        other, match = None, "got NoneType"
    before = None if wrong in ("closed", "none", "another graph") else bits(other.run(by_name(graph)["w1"]))
    with pytest.raises(sparsekit.GraphError, match=match):
        result.start(other)
    assert before is None or bits(other.run(by_name(graph)["w1"])) == before


def test_the_start_that_nobody_loads_is_missed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    _, result, opened = pruned_mlp()
    assert "result.start(session)" in str(result)
    with caplog.at_level(logging.WARNING, logger="sparsekit"):
        del result
        gc.collect()
    assert "loaded into no session" in caplog.text
    caplog.clear()
    graph, result, opened = pruned_mlp()
    with caplog.at_level(logging.WARNING, logger="sparsekit"):
        started(graph, result)
        del result
        gc.collect()
    assert not caplog.text
    opened.close()


def test_only_a_calibrated_live_graph_has_a_start(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        mlp()
        result = sparsekit.prune(graph, outputs=["y"])
        with session(graph) as sess, pytest.raises(sparsekit.GraphError, match="no calibrated start"):
            result.start(sess)


# --- what is refused, with the graph as it was ------------------------------------------------------------


@pytest.fixture
def refused(kind: str) -> Iterator[Callable[..., None]]:
    """Asserts that pruning the mlp fails, and that its graph and its session are as they were."""
    with tf.Graph().as_default() as graph:
        mlp()
        with session(graph) as sess:

            def refuse(error: type[Exception], match: str, prepare: Any = lambda sess: sess, **more: Any) -> None:
                opened = prepare(sess)
                before = serialized(graph)
                given = {"outputs": ["y"], "calibration": correlated(64, 16), "session": opened, **more}
                with pytest.raises(error, match=match):
                    sparsekit.prune(graph, **given)
                assert serialized(graph) == before
                assert len(v1.global_variables()) == 4

            yield refuse


def test_sessions_that_cannot_be_calibrated(refused: Callable[..., None]) -> None:
    refused(sparsekit.GraphError, "without a session", lambda sess: None)
    refused(sparsekit.GraphError, "session without calibration samples", calibration=None)
    refused(sparsekit.GraphError, "of another graph", lambda sess: v1.Session(graph=tf.Graph()))
    refused(sparsekit.GraphError, "got str", lambda sess: "session")
    refused(sparsekit.GraphError, "'w1', 'b1', 'w2', 'b2' have no value yet", lambda sess: v1.Session())

    def half_restored(_: Any) -> Any:
        opened = v1.Session()
        found = by_name(opened.graph)
        opened.run([found[name].initializer for name in ("w1", "w2", "b2")])
        return opened

    refused(sparsekit.GraphError, "'b1' has no value yet", half_restored)

    def closed(_: Any) -> Any:
        opened = v1.Session()
        opened.close()
        return opened

    refused(sparsekit.GraphError, "is closed", closed)


def test_weights_and_samples_that_cannot_be_used(refused: Callable[..., None], tmp_path: Path) -> None:
    refused(sparsekit.CalibrationError, "no input of the model", calibration={"z": correlated(8, 16)})
    refused(sparsekit.CalibrationError, "has no array for 'x'", calibration={"is_training": np.zeros(8, bool)})
    refused(sparsekit.CalibrationError, "shape", calibration=correlated(8, 15))
    refused(sparsekit.SaveError, "", record=tmp_path / "x" / ("y" * 300))

    def diverged(sess: Any) -> Any:
        by_name(sess.graph)["w2"].load(np.full([24, 8], np.nan, np.float32), sess)
        return sess

    refused(sparsekit.ModelError, "fc2.*NaN", diverged)


def test_a_model_at_rest_takes_no_session(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        mlp()
        with session(graph) as sess:
            frozen = freeze(sess, ["y"])
            with pytest.raises(sparsekit.GraphError, match="for a model at rest"):
                sparsekit.prune(frozen, calibration=correlated(64, 16), session=sess)


def test_gradients_that_are_there_already_are_said_before_anything_runs(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        _, y, _ = mlp()
        sgd(tf.reduce_mean(y))
        with session(graph) as sess, pytest.raises(sparsekit.GraphError, match="gradients were already built"):
            sparsekit.prune(graph, outputs=["y"], calibration=iter([]), session=sess)


def test_a_plan_that_prunes_nothing_has_an_empty_start(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        mlp()
        with session(graph) as sess:
            config = {"skip_types": ["MatMul"]}
            result = sparsekit.prune(graph, config, outputs=["y"], calibration=correlated(64, 16), session=sess)
        with started(graph, result):
            assert result.plan.pruned == result.accounts == ()


# --- reading and writing variables ------------------------------------------------------------------------


@pytest.mark.parametrize("kind_of_variables", VARIABLE_KINDS)
def test_variables_that_start_from_one_tensor_are_written_apart(kind_of_variables: str) -> None:
    """And in portions: as few as one at a time."""
    with settings_of(kind_of_variables, "v1"), tf.Graph().as_default() as graph:
        same = tf.zeros([4])
        found = [v1.Variable(same, name=f"v{i}") for i in range(3)]
        with v1.Session() as sess:
            given = {v.op.name: values([4], seed) for seed, v in enumerate(found)}
            assert [value for _, value in session_variables.read(sess, [v.op for v in found])] == [None] * 3
            session_variables.write(sess, given.items())
            before = serialized(graph)
            read = dict(session_variables.read(sess, [v.op for v in found]))
            assert serialized(graph) == before
    assert {name: bits(value) for name, value in read.items()} == {name: bits(v) for name, v in given.items()}


def test_ops_that_wait_for_others_are_not_taken_to_read_and_write() -> None:
    raw = tf.raw_ops
    with tf.Graph().as_default(), v1.Session() as sess:
        handle = raw.VarHandleOp(dtype=tf.float32, shape=[2], shared_name="v", name="v")
        ones = tf.ones([2])
        fails = raw.Assert(condition=False, data=["ran what was not asked for"])
        with tf.control_dependencies([fails]):
            raw.AssignVariableOp(resource=handle, value=ones)
            raw.ReadVariableOp(resource=handle, dtype=tf.float32)
        assert session_variables.value_of(handle.op) is None
        with pytest.raises(sparsekit.GraphError, match="v: no op assigns"):
            session_variables.write(sess, [("v", values([2]))])
        raw.AssignVariableOp(resource=handle, value=ones)
        raw.ReadVariableOp(resource=handle, dtype=tf.float32)
        session_variables.write(sess, [("v", values([2]))])
        ((_, found),) = session_variables.read(sess, [handle.op])
    assert bits(found) == bits(values([2]))
