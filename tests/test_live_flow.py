"""Training with masks in the graph: when they are chosen, what counts as a batch, and what comes out in the end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import (
    LAYERS,
    Array,
    bits,
    constants,
    conv_net,
    counts,
    freeze,
    images,
    masks,
    rmsprop,
    run_graph,
    session,
    settings_of,
    sgd,
    values,
    variable,
)

import sparsekit
from sparsekit.errors import GraphError
from sparsekit.pattern import keep_mask

v1 = tf.compat.v1
OPTIMIZERS = {"momentum": sgd, "rmsprop": rmsprop}
FREQUENCIES = [0, 1, 2, 3]


class Reference:
    """The same network, written by hand: every weight times a mask that is fed."""

    def __init__(self, minimize: Callable[[Any], Any]) -> None:
        self.fed: dict[str, Any] = {}

        def masked(layer: str, weight: Any) -> Any:
            self.fed[layer] = v1.placeholder(tf.float32, weight.shape)
            return weight * self.fed[layer]

        self.graph = tf.Graph()
        with self.graph.as_default():
            self.model = conv_net(masked)
            self.loss = self.model.loss()
            self.step = minimize(self.loss)
        self.session = session(self.graph, fusions=False)
        self.masks: dict[str, Array] = {}

    def weights(self) -> dict[str, Array]:
        return self.session.run(self.model.weights)

    def choose(self) -> None:
        self.masks = {
            layer: keep_mask(weight, self.model.axes[layer]).astype(np.float32)
            for layer, weight in self.weights().items()
        }

    def train(self, data: Array) -> None:
        feeds = {self.fed[layer]: mask for layer, mask in self.masks.items()}
        self.session.run(self.step, {self.model.x: data, **feeds})


class Pruned:
    """The network with sparsekit's masks, and one train op."""

    def __init__(self, config: Any = None, minimize: Callable[[Any], Any] = sgd, outputs: Any = ("y",)) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.model = conv_net()
            self.result = sparsekit.prune(self.graph, config, outputs=outputs)
            self.loss = self.model.loss()
            self.step = minimize(self.loss)
        self.session = session(self.graph, fusions=False)

    def train(self, data: Array) -> None:
        self.session.run(self.step, {self.model.x: data})

    def weights(self) -> dict[str, Array]:
        return self.session.run(self.model.weights)

    def variables(self) -> dict[str, bytes]:
        with self.graph.as_default():
            found = v1.global_variables()
        return {v.op.name: bits(value) for v, value in zip(found, self.session.run(found), strict=True)}


def same(left: dict[str, Array], right: dict[str, Array]) -> bool:
    return left.keys() == right.keys() and all(bits(left[key]) == bits(right[key]) for key in left)


# --- when masks are chosen -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "frequency", "optimizer"),
    [
        *(("ref", frequency, ("momentum", "rmsprop")[frequency % 2]) for frequency in FREQUENCIES),
        *(("resource", frequency, ("rmsprop", "momentum")[frequency % 2]) for frequency in FREQUENCIES),
    ],
    indirect=["kind"],
)
def test_training_equals_a_model_masked_by_hand_step_by_step(kind: str, frequency: int, optimizer: str) -> None:
    pruned = Pruned({"update_freq": frequency}, OPTIMIZERS[optimizer])
    reference = Reference(OPTIMIZERS[optimizer])
    chosen_at = []
    for step in range(7):
        if step == 0 if frequency == 0 else step % frequency == 0:
            before = reference.masks
            reference.choose()  # from the weights at the start of the step
            chosen_at.append(not before or not same(before, reference.masks))
        data = images(step)
        pruned.train(data)
        reference.train(data)
        stored = masks(pruned.session, LAYERS)
        assert same(stored, reference.masks), f"masks after step {step}"
        assert same(pruned.weights(), reference.weights()), f"weights after step {step}"
        assert counts(pruned.session, LAYERS) == [step + 1] * 4
    # Otherwise the schedule would not have been seen at all.
    assert any(chosen_at[1:]) or frequency == 0


def test_each_layer_keeps_its_own_frequency(kind: str) -> None:
    config = {"update_freq": 0, "override": [{"layers": ["net/fc"], "update_freq": 1}]}
    pruned = Pruned(config, lambda loss: v1.train.MomentumOptimizer(2.0, 0.9).minimize(loss))
    pruned.train(images(0))
    first = masks(pruned.session, LAYERS)
    for step in range(1, 6):
        start = pruned.weights()["net/fc"]
        pruned.train(images(step))
    last = masks(pruned.session, LAYERS)
    assert np.array_equal(last["net/fc"], keep_mask(start, 0))
    assert not np.array_equal(last["net/fc"], first["net/fc"])
    del first["net/fc"], last["net/fc"]
    assert same(first, last)


def test_dropped_weights_get_no_gradient_and_keep_their_value(kind: str) -> None:
    pruned = Pruned()
    start = pruned.weights()
    for step in range(4):
        pruned.train(images(step))
    end = pruned.weights()
    for layer, mask in masks(pruned.session, LAYERS).items():
        assert bits(end[layer][mask == 0]) == bits(start[layer][mask == 0])
        assert (end[layer][mask == 1] != start[layer][mask == 1]).any()


# --- what counts as a batch ------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_evaluation_changes_neither_variables_nor_later_training(kind: str, frequency: int) -> None:
    quiet, disturbed = Pruned({"update_freq": frequency}), Pruned({"update_freq": frequency})
    for step in range(5):
        before = disturbed.variables()
        for other in range(2):
            disturbed.session.run([disturbed.model.y, disturbed.loss], {disturbed.model.x: images(50 + other)})
        assert disturbed.variables() == before
        quiet.train(images(step))
        disturbed.train(images(step))
        assert disturbed.variables() == quiet.variables()


def test_a_forward_beside_the_train_op_sees_the_same_masks(kind: str) -> None:
    alone, beside = Pruned({"update_freq": 1}), Pruned({"update_freq": 1})
    for step in range(4):
        alone.train(images(step))
        beside.session.run([beside.step, beside.loss], {beside.model.x: images(step)})
        assert alone.variables() == beside.variables()
    assert counts(beside.session, LAYERS) == [4] * 4


def test_a_batch_with_two_losses_counts_once(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, {"update_freq": 2}, outputs=["y"])
        first = v1.train.GradientDescentOptimizer(0.1).minimize(model.loss())
        second = v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(tf.abs(model.y)))
        with session(graph) as sess:
            for step in range(3):
                due = counts(sess, LAYERS) == [step] * 4 and step % 2 == 0
                start, old = sess.run(model.weights), masks(sess, LAYERS)
                sess.run([first, second], {model.x: images(step)})
                assert counts(sess, LAYERS) == [step + 1] * 4
                for layer, mask in masks(sess, LAYERS).items():
                    expected = keep_mask(start[layer], model.axes[layer]) if due else old[layer]
                    assert np.array_equal(mask, expected)


def test_two_gradient_calls_for_the_same_loss_count_once(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, outputs=["y"])
        weights = list(model.weights.values())
        optimizer = v1.train.GradientDescentOptimizer(0.1)
        one = [gradient for gradient, _ in optimizer.compute_gradients(model.loss(), weights)]
        two = [gradient for gradient, _ in optimizer.compute_gradients(model.loss() * 2.0, weights)]
        with session(graph) as sess:
            for step in range(3):
                sess.run([one, two], {model.x: images(step)})
                assert counts(sess, LAYERS) == [step + 1] * 4


def test_two_towers_through_one_layer_count_once(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        w = variable("w", [8, 4])
        weight = tf.identity(w)
        inputs = [v1.placeholder(tf.float32, [None, 8]) for _ in range(2)]
        towers = [tf.matmul(x, weight, name=f"tower{i}") for i, x in enumerate(inputs)]
        (decision,) = sparsekit.prune(graph).plan.pruned
        assert decision.uses == ("tower0", "tower1")
        optimizer = v1.train.GradientDescentOptimizer(0.1)
        pairs = [optimizer.compute_gradients(tf.reduce_mean(y**2), [w])[0] for y in towers]
        step = optimizer.apply_gradients([((pairs[0][0] + pairs[1][0]) / 2, w)])
        with session(graph) as sess:
            start = sess.run(w)
            for number in range(3):
                sess.run(step, {x: values([2, 8], i) for i, x in enumerate(inputs)})
                assert counts(sess, ["tower0"]) == [number + 1]
            assert np.array_equal(masks(sess, ["tower0"])["tower0"], keep_mask(start, 0))


@pytest.mark.parametrize(("variables", "control_flow"), [("ref", "v1"), ("resource", "v1"), ("resource", "v2")])
def test_a_gradient_inside_a_cond_counts_when_it_is_taken(variables: str, control_flow: str) -> None:
    with settings_of(variables, control_flow), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        train = v1.placeholder(tf.bool, [])
        w = variable("w", [8, 4])
        loss = tf.reduce_mean(tf.matmul(x, w, name="fc") ** 2)
        sparsekit.prune(graph, {"update_freq": 1})

        def gradient() -> Any:
            return v1.gradients(loss, [w])[0]

        step = v1.cond(train, gradient, lambda: tf.zeros([8, 4]))
        with session(graph) as sess:
            trained = 0
            for taken in (False, True, False, False, True, True):
                w.load(values([8, 4], trained), sess)
                sess.run(step, {x: values([2, 8]), train: taken})
                trained += taken
                assert counts(sess, ["fc"]) == [trained]
                if taken:
                    expected = keep_mask(sess.run(w), 0)
                assert trained == 0 or np.array_equal(masks(sess, ["fc"])["fc"], expected)


def test_a_frozen_layer_is_not_counted(kind: str) -> None:
    """Fine-tuning with a var_list: no gradient reaches the layer."""
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, outputs=["y"])
        step = sgd(model.loss(), var_list=[model.weights["net/back"]])
        with session(graph) as sess:
            sess.run(step, {model.x: images()})
            assert counts(sess, LAYERS) == [0, 0, 0, 1]


# --- control flow ----------------------------------------------------------------------------------------


def _loop(body: Callable[[Any, Any], Any], x: Any, weight: Any = None) -> Any:
    """Three turns of ``body(state, weight)``; the weight is a loop variable if it is given."""
    if weight is None:
        return v1.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, body(s, None)), (0, x))[1]
    return v1.while_loop(lambda i, s, w: i < 3, lambda i, s, w: (i + 1, body(s, w), w), (0, x, weight))[1]


def loop_with_captured_weight(x: Any, weight: Any) -> Any:
    return _loop(lambda s, _: tf.tanh(tf.matmul(s, weight, name="cell")), x)


def loop_with_passed_weight(x: Any, weight: Any) -> Any:
    return _loop(lambda s, w: tf.tanh(tf.matmul(s, w, name="cell")), x, weight)


def cond_branch(x: Any, weight: Any) -> Any:
    positive = tf.reduce_sum(x) > -1e9
    return v1.cond(positive, lambda: tf.tanh(tf.matmul(x, weight, name="cell")), lambda: x)


def loop_in_cond(x: Any, weight: Any) -> Any:
    positive = tf.reduce_sum(x) > -1e9
    return v1.cond(positive, lambda: loop_with_captured_weight(x, weight), lambda: x)


def function_call(x: Any, weight: Any) -> Any:
    layer = tf.function(lambda x, weight: tf.tanh(tf.matmul(x, weight, name="cell")), autograph=False)
    return layer(x, weight)


def function_with_captured_weight(x: Any, weight: Any) -> Any:
    return tf.function(lambda x: tf.tanh(tf.matmul(x, weight, name="cell")), autograph=False)(x)


STRUCTURES = [
    loop_with_captured_weight,
    loop_with_passed_weight,
    cond_branch,
    loop_in_cond,
    function_call,
    function_with_captured_weight,
]
MASKED = {"forward": "Mul", "in-place": "IdentityN"}
SETTINGS = [("ref", "v1"), ("resource", "v1"), ("resource", "v2")]


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("masking", ["forward", "in-place"])
def test_a_weight_in_control_flow(
    variables: str, control_flow: str, structure: Callable[[Any, Any], Any], masking: str
) -> None:
    data = values([3, 8], 9)
    with settings_of(variables, control_flow):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 8], name="x")
            w = variable("w", [8, 8])
            y = tf.identity(structure(x, tf.identity(w)), name="y")
            (decision,) = sparsekit.prune(graph, {"masking": masking}, outputs="y").plan.decisions
            assert decision.pruned, decision.message
            assert graph.get_operation_by_name(f"{decision.name}/sparsekit/masked").type == MASKED[masking]
            loss = tf.reduce_mean((y - 1.0) ** 2)
            pairs = v1.train.GradientDescentOptimizer(0.1).compute_gradients(loss, [w, x])
            with session(graph) as sess:
                start = sess.run(w)
                masked_y = sess.run(y, {x: data})
                gradients = sess.run([gradient for gradient, _ in pairs], {x: data})
                assert counts(sess, [decision.name]) == [1]
                mask = masks(sess, [decision.name])[decision.name]
                frozen = freeze(sess, ["y"])
        assert np.array_equal(mask, keep_mask(start, 0))
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 8])
            w = variable("w", [8, 8])
            y = structure(x, w * mask)
            loss = tf.reduce_mean((y - 1.0) ** 2)
            pairs = v1.train.GradientDescentOptimizer(0.1).compute_gradients(loss, [w, x])
            with session(graph) as sess:
                assert bits(sess.run(y, {x: data})) == bits(masked_y)
                expected = sess.run([gradient for gradient, _ in pairs], {x: data})
    for found, wanted in zip(gradients, expected, strict=True):
        assert bits(found) == bits(wanted)
    pruned = sparsekit.strip(frozen, outputs="y")
    outputs = [run_graph(graph_def, "y:0", {"x:0": data}) for graph_def in (frozen, pruned)]
    assert np.array_equal(*outputs)
    assert np.array_equal(outputs[1], masked_y)
    assert b"sparsekit" not in pruned.SerializeToString()
    assert sparsekit.verify(pruned, outputs="y").ok


@pytest.mark.parametrize("masking", MASKED)
def test_gradients_of_gradients_pass_the_mask_once(kind: str, masking: str) -> None:
    """A gradient penalty, as in WGAN-GP."""
    data = values([3, 8])
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [8, 4])
        y = tf.tanh(tf.matmul(x, w, name="fc"))
        sparsekit.prune(graph, {"masking": masking})
        (slope,) = v1.gradients(tf.reduce_sum(y), [x])
        penalty = tf.reduce_mean((tf.norm(slope, axis=1) - 1.0) ** 2)
        (pair,) = v1.train.GradientDescentOptimizer(0.1).compute_gradients(penalty, [w])
        with session(graph) as sess:
            start = sess.run(w)
            found = sess.run(pair[0], {x: data})
            assert counts(sess, ["fc"]) == [1]
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [8, 4])
        y = tf.tanh(tf.matmul(x, w * keep_mask(start, 0).astype(np.float32), name="fc"))
        (slope,) = v1.gradients(tf.reduce_sum(y), [x])
        penalty = tf.reduce_mean((tf.norm(slope, axis=1) - 1.0) ** 2)
        (pair,) = v1.train.GradientDescentOptimizer(0.1).compute_gradients(penalty, [w])
        with session(graph) as sess:
            assert np.allclose(found, sess.run(pair[0], {x: data}), rtol=1e-5, atol=1e-6)
    assert np.array_equal(found != 0, keep_mask(start, 0))


# --- precision and layout between the variable and the op -------------------------------------------------


@pytest.mark.parametrize("half", [tf.float16, tf.bfloat16])
def test_under_mixed_precision_the_mask_lies_before_the_cast(kind: str, half: Any) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        w = variable("w", [8, 4])
        y = tf.matmul(tf.cast(x, half), tf.cast(w, half), name="fc")
        y = tf.cast(y, tf.float32, name="y")
        (decision,) = sparsekit.prune(graph, outputs="y").plan.pruned
        assert (decision.dtype, decision.weight) == ("float32", "w")
        step = sgd(tf.reduce_mean(y**2))
        with session(graph) as sess:
            # In half precision these four are equal: only the variable can tell them apart.
            close = np.float32([1.0, 1.0001, 1.0002, 1.0003] * 2)
            w.load(np.repeat(close[:, None], 4, 1), sess)
            sess.run(step, {x: values([2, 8])})
            stored = masks(sess, ["fc"])["fc"]
            assert stored[:, 0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
            frozen = freeze(sess, ["y"])
    pruned = sparsekit.strip(frozen)
    assert constants(pruned)["w"].dtype == np.float32
    data = values([3, 8], 5)
    assert np.array_equal(*(run_graph(g, "y:0", {"x:0": data}) for g in (frozen, pruned)))


def test_float64_end_to_end(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float64, [None, 4, 4, 8], name="x")
        w = variable("w", [3, 3, 8, 4], dtype=tf.float64)
        y = tf.identity(tf.nn.conv2d(x, w, 1, "SAME", name="conv"), name="y")
        sparsekit.prune(graph, {"update_freq": 2})
        step = sgd(tf.reduce_mean((y - 1.0) ** 2))
        data = values([2, 4, 4, 8], dtype=np.float64)
        with session(graph) as sess:
            for _ in range(3):
                start = sess.run(w)
                sess.run(step, {x: data})
            frozen = freeze(sess, ["y"])
    pruned = sparsekit.strip(frozen)
    kept = keep_mask(start, 2)
    assert np.array_equal(constants(pruned)["w"] != 0, kept)
    assert np.array_equal(*(run_graph(g, "y:0", {"x:0": data}) for g in (frozen, pruned)))


LAYOUTS: dict[str, tuple[list[int], Callable[[Any], Any], int]] = {
    "reshape to a matrix": ([8, 2, 3], lambda w: tf.reshape(w, [8, 6]), 0),
    "reshape with -1": ([8, 2, 3], lambda w: tf.reshape(w, [8, -1]), 0),
    "transpose": ([6, 8], lambda w: tf.transpose(w), 1),
    "expand and squeeze": ([8, 6], lambda w: tf.squeeze(tf.expand_dims(w, 1), [1]), 0),
    "reshape then transpose": ([3, 2, 8], lambda w: tf.transpose(tf.reshape(w, [6, 8])), 2),
    "identity and stop at nothing": ([8, 6], lambda w: tf.identity(tf.identity(w)), 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_axis_is_right_on_the_variable(kind: str, layout: str) -> None:
    shape, between, axis = LAYOUTS[layout]
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        w = variable("w", shape)
        seen = between(w)
        y = tf.identity(tf.matmul(x, seen, name="fc"), name="y")
        (decision,) = sparsekit.prune(graph).plan.decisions
        assert (decision.status, decision.axis, decision.shape) == ("prune", axis, tuple(shape))
        step = sgd(tf.reduce_mean((y - 1.0) ** 2))
        with session(graph) as sess:
            start, start_seen = sess.run([w, seen])
            sess.run(step, {x: values([2, 8])})
            stored = masks(sess, ["fc"])["fc"]
            assert np.array_equal(stored, keep_mask(start, axis))
            # Fed with the identity matrix, the layer shows its weight as the op sees it.
            w.load(start, sess)
            op_sees = sess.run(y, {x: np.eye(8, dtype=np.float32)})
            assert np.array_equal(op_sees != 0, keep_mask(start_seen, 0))
            frozen = freeze(sess, ["y"])
    pruned = sparsekit.strip(frozen)
    assert np.array_equal(run_graph(pruned, "y:0", {"x:0": np.eye(8, dtype=np.float32)}), op_sees)
    assert sparsekit.verify(pruned).ok


def test_convolutions_in_one_dimension(kind: str) -> None:
    """TensorFlow makes two-dimensional ones of them: the weight is expanded on the way."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 9, 8], name="x")
        w, up = variable("w", [3, 8, 6], 1), variable("up", [2, 4, 6], 2)
        h = tf.nn.relu(tf.nn.conv1d(x, w, 1, "SAME", name="conv"))
        y = tf.identity(tf.nn.conv1d_transpose(h, up, [2, 18, 4], 2, name="up_conv"), name="y")
        plan = sparsekit.prune(graph, outputs="y").plan
        assert [(d.weight, d.axis, d.reason) for d in plan.decisions] == [("w", 1, "eligible"), ("up", 2, "eligible")]
        step = sgd(tf.reduce_mean((y - 1.0) ** 2))
        data = values([2, 9, 8])
        with session(graph) as sess:
            start = dict(zip(("w", "up"), sess.run([w, up]), strict=True))
            sess.run(step, {x: data})
            frozen = freeze(sess, ["y"])
    pruned = sparsekit.strip(frozen)
    for name, axis in (("w", 1), ("up", 2)):
        assert np.array_equal(constants(pruned)[name] != 0, keep_mask(start[name], axis))
    assert np.array_equal(*(run_graph(g, "y:0", {"x:0": data}) for g in (frozen, pruned)))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_partitioned_variable_is_pruned_as_a_whole(kind: str, axis: int) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 9], name="x")
        partitioner = v1.fixed_size_partitioner(2, axis=axis)
        w = v1.get_variable("w", [9, 6], initializer=v1.random_normal_initializer(seed=3), partitioner=partitioner)
        y = tf.identity(tf.matmul(x, w, name="fc"), name="y")
        (decision,) = sparsekit.prune(graph, outputs="y").plan.decisions
        assert (decision.status, decision.shape, decision.axis) == ("prune", (9, 6), 0)
        parts = list(w)
        step = sgd(tf.reduce_mean((y - 1.0) ** 2))
        data = values([4, 9])
        with session(graph) as sess:
            start = np.concatenate(sess.run(parts), axis)
            for _ in range(3):
                sess.run(step, {x: data})
            trained = sess.run(parts)
            assert counts(sess, ["fc"]) == [3]
            stored = masks(sess, ["fc"])["fc"]
            frozen = freeze(sess, ["y"])
    assert np.array_equal(stored, keep_mask(start, 0))
    pruned = sparsekit.strip(frozen)
    found = [constants(pruned)[part.op.name] for part in parts]
    for part, before, mask in zip(found, trained, np.split(stored, _cuts(found, axis), axis), strict=True):
        assert bits(part) == bits(np.where(mask == 1, before, np.float32(0)))
    assert np.array_equal(*(run_graph(g, "y:0", {"x:0": data}) for g in (frozen, pruned)))
    assert sparsekit.verify(pruned).ok


def _cuts(parts: list[Array], axis: int) -> Array:
    return np.cumsum([part.shape[axis] for part in parts])[:-1]


# --- shared weights --------------------------------------------------------------------------------------


def test_one_weight_of_two_layers_has_one_mask(kind: str) -> None:
    """A resource variable is read once for each of them."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        w = variable("w", [8, 8])
        y = tf.tanh(tf.matmul(x, w, name="first"))
        y = tf.identity(tf.matmul(y, w, name="second"), name="y")
        result = sparsekit.prune(graph)
        (decision,) = result.plan.decisions
        assert (decision.status, decision.uses) == ("prune", ("first", "second"))
        assert len(result.variables) == 2
        reads = {op for op in graph.get_operations() if op.type == "ReadVariableOp" and op.inputs[0] is w.op.outputs[0]}
        assert kind == "ref" or len(reads) > 1
        step = sgd(tf.reduce_mean((y - 1.0) ** 2))
        data = values([4, 8])
        with session(graph) as sess:
            start = sess.run(w)
            masked = start * keep_mask(start, 0)
            assert np.allclose(sess.run(y, {x: data}), np.tanh(data @ masked) @ masked, atol=1e-4)
            for number in range(3):
                sess.run(step, {x: data})
                assert counts(sess, ["first"]) == [number + 1]
            stored = masks(sess, ["first"])["first"]
            assert np.array_equal(stored, keep_mask(start, 0))
            trained, expected = sess.run([w, y], {x: data})
            frozen = freeze(sess, ["y"])
    pruned = sparsekit.strip(frozen)
    assert bits(constants(pruned)["w"]) == bits(np.where(stored == 1, trained, np.float32(0)))
    assert np.array_equal(run_graph(pruned, "y:0", {"x:0": data}), expected)
    assert np.array_equal(run_graph(frozen, "y:0", {"x:0": data}), expected)


@pytest.mark.parametrize("outputs", [None, "y"])
def test_other_readers_keep_the_unmasked_weight(kind: str, outputs: str | None) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        with v1.variable_scope("", regularizer=lambda w: 0.1 * tf.nn.l2_loss(w)):
            w = variable("w", [8, 4])
        y = tf.identity(tf.matmul(x, w, name="fc"), name="y")
        summary = v1.summary.histogram("w_histogram", w)
        norm = v1.summary.scalar("w_norm", tf.norm(w))
        v1.train.Saver()
        average = v1.train.ExponentialMovingAverage(0.5)
        update = average.apply([w])
        (decision,) = sparsekit.prune(graph, outputs=outputs).plan.decisions
        assert decision.pruned, decision.message
        (penalty,) = v1.losses.get_regularization_losses()
        step = v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(y) + penalty)
        with session(graph) as sess:
            start = sess.run(w)
            mask = keep_mask(start, 0)
            assert np.isclose(sess.run(penalty), 0.05 * (start**2).sum(), rtol=1e-5)
            read = v1.Summary.FromString(sess.run(summary)).value[0].histo
            assert np.isclose(read.sum_squares, (start**2).sum(), rtol=1e-5)
            read = v1.Summary.FromString(sess.run(norm)).value[0]
            assert np.isclose(read.simple_value, np.linalg.norm(start), rtol=1e-5)
            sess.run(update)
            assert bits(sess.run(average.average(w))) == bits(start)
            sess.run(step, {x: np.zeros([1, 8], np.float32)})
            # The regularizer decays dropped weights too: it sees them, and its gradient passes the mask by.
            trained = sess.run(w)
            assert np.allclose(trained[~mask], 0.99 * start[~mask], atol=1e-6)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_moving_average_made_at_any_time_follows_the_weight(kind: str, when: str) -> None:
    """The usual place is behind the train op."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [8, 4])
        y = tf.matmul(x, w, name="fc")
        average = v1.train.ExponentialMovingAverage(0.5)
        update = average.apply() if when == "before" else None
        assert len(sparsekit.prune(graph).plan.pruned) == 1
        step = sgd(tf.reduce_mean(y**2))
        if update is None:
            with tf.control_dependencies([step]):
                update = average.apply([w])
        with session(graph) as sess:
            start = sess.run(w)
            sess.run(step, {x: values([2, 8])})
            sess.run(update, {x: values([2, 8])})
            assert not np.array_equal(sess.run(average.average(w)), start)


# --- graphs that already have gradients -------------------------------------------------------------------


def _with_gradients(minimize: Callable[[Any], Any]) -> Any:
    graph = tf.Graph()
    with graph.as_default():
        model = conv_net()
        minimize(model.loss())
    return graph


def _imported(graph: Any, scope: str = "") -> Any:
    with graph.as_default():
        meta_graph = v1.train.export_meta_graph()
    imported = tf.Graph()
    with imported.as_default():
        v1.train.import_meta_graph(meta_graph, import_scope=scope or None)
    return imported


@pytest.mark.parametrize("outputs", [None, ["net/y"]])
@pytest.mark.parametrize("imported", [False, True])
def test_gradients_are_not_taken_for_layers(kind: str, imported: bool, outputs: list[str] | None) -> None:
    graph = _with_gradients(rmsprop)
    assert sum(op.type == "Conv2DBackpropInput" for op in graph.get_operations()) >= 1
    assert sum(op.type == "Conv2D" for op in graph.get_operations()) > 1
    graph = _imported(graph) if imported else graph
    plan = sparsekit.plan(graph, outputs=outputs and ["y"])
    assert [d.name for d in plan.pruned] == LAYERS
    assert plan.skipped == ()


@pytest.mark.parametrize("where", ["here", "imported", "imported under a scope"])
@pytest.mark.parametrize("outputs", [False, True])
def test_a_graph_with_gradients_is_refused_unchanged(kind: str, where: str, outputs: bool) -> None:
    graph = _with_gradients(sgd)
    scope = "there/" if where.endswith("scope") else ""
    if where != "here":
        graph = _imported(graph, scope.rstrip("/"))
    with graph.as_default():
        collections = {key: len(graph.get_collection(key)) for key in graph.get_all_collection_keys()}
    before = graph.as_graph_def().SerializeToString(deterministic=True)
    with pytest.raises(GraphError, match="gradients were already built for") as error:
        sparsekit.prune(graph, outputs=[f"{scope}y"] if outputs else None)
    assert f"'{scope}net/conv'" in str(error.value)
    assert graph.as_graph_def().SerializeToString(deterministic=True) == before
    assert {key: len(graph.get_collection(key)) for key in graph.get_all_collection_keys()} == collections


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_of_a_layer_inside_control_flow_are_noticed(
    variables: str, control_flow: str, structure: Callable[[Any, Any], Any]
) -> None:
    with settings_of(variables, control_flow), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        w = variable("w", [8, 8])
        y = tf.identity(structure(x, tf.identity(w)), name="y")
        v1.gradients(tf.reduce_mean(y), [w])
        before = graph.as_graph_def().SerializeToString(deterministic=True)
        with pytest.raises(GraphError, match="gradients were already built"):
            sparsekit.prune(graph, outputs="y")
        assert graph.as_graph_def().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("reason", ["finalized", "pruned before", "names taken"])
def test_other_graphs_are_refused_unchanged(kind: str, reason: str) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        if reason == "finalized":
            graph.finalize()
        elif reason == "pruned before":
            sparsekit.prune(graph)
        else:
            tf.constant(1.0, name="net/fc/sparsekit/mask")
        before = graph.as_graph_def().SerializeToString(deterministic=True)
        with pytest.raises(GraphError):
            sparsekit.prune(graph)
        assert graph.as_graph_def().SerializeToString(deterministic=True) == before


# --- the end of training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency", [0, 3])
def test_what_comes_out_is_the_dense_graph_with_zeros(
    kind: str, frequency: int, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pruned = Pruned({"update_freq": frequency}, rmsprop)
    for step in range(6):  # the next batch would choose again
        pruned.train(images(step))
    trained, stored = pruned.weights(), masks(pruned.session, LAYERS)
    with pruned.graph.as_default():
        v1.train.Saver().save(pruned.session, str(tmp_path / "trained"))

    with tf.Graph().as_default() as inference:
        conv_net()
        sparsekit.prune(inference, {"update_freq": frequency}, outputs=["y"], record=tmp_path / "record")
        with v1.Session() as sess:
            v1.train.Saver(v1.global_variables()).restore(sess, str(tmp_path / "trained"))
            masked = freeze(sess, ["y"])
    with tf.Graph().as_default():
        conv_net()
        with v1.Session() as sess:
            v1.train.Saver().restore(sess, str(tmp_path / "trained"))
            dense = freeze(sess, ["y"])

    original = masked.SerializeToString(deterministic=True)
    with caplog.at_level(logging.WARNING, logger="sparsekit"):
        stripped = sparsekit.strip(masked, record=tmp_path / "record", outputs=["y"])
    assert masked.SerializeToString(deterministic=True) == original
    warnings = [record.getMessage() for record in caplog.records if record.name == "sparsekit"]
    assert [w.split(" were due")[0] for w in warnings] == (["4 of 4 layers"] if frequency else [])

    weights = {layer: w.op.name for layer, w in pruned.model.weights.items()}
    found = constants(stripped)
    for layer, name in weights.items():
        mask = stored[layer]
        assert bits(found[name]) == bits(np.where(mask == 1, trained[layer], np.float32(0))), layer
        assert not np.signbit(found[name][mask == 0]).any()
        assert keep_mask(trained[layer], pruned.model.axes[layer]).shape == mask.shape
    assert b"sparsekit" in original
    assert b"sparsekit" not in stripped.SerializeToString()

    for graph_def in (stripped, dense):
        for node in graph_def.node:
            if node.name in weights.values():
                node.attr["value"].tensor.ClearField("tensor_content")
    dense_nodes = {node.name: node for node in dense.node}
    assert {node.name: str(node) for node in stripped.node} == {n: str(node) for n, node in dense_nodes.items()}
    assert stripped.library == dense.library
    assert stripped.versions == dense.versions


@pytest.mark.parametrize("frequency", [0, 3])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_masked_and_pruned_graph_give_equal_outputs(kind: str, steps: int, frequency: int) -> None:
    pruned = Pruned({"update_freq": frequency}, rmsprop)
    for step in range(steps):
        pruned.train(images(step))
    masked = freeze(pruned.session, ["y"])
    stripped = sparsekit.strip(masked)
    if steps and frequency and steps % frequency == 0:
        return  # the masked graph chooses anew where a mask is due: see the warning
    feeds = {"x:0": images(99, batch=5)}
    assert np.array_equal(run_graph(masked, "y:0", feeds), run_graph(stripped, "y:0", feeds))


def test_at_a_count_where_a_mask_is_due_the_stored_one_wins(kind: str) -> None:
    pruned = Pruned({"update_freq": 3}, lambda loss: v1.train.MomentumOptimizer(2.0, 0.9).minimize(loss))
    for step in range(3):
        pruned.train(images(step))
    stored, weights = masks(pruned.session, LAYERS), pruned.weights()
    axes = pruned.model.axes
    assert any(not np.array_equal(stored[layer], keep_mask(weights[layer], axes[layer])) for layer in LAYERS)
    found = constants(sparsekit.strip(freeze(pruned.session, ["y"])))
    for layer, weight in pruned.model.weights.items():
        assert np.array_equal(found[weight.op.name] != 0, stored[layer] == 1)


def test_an_untrained_graph_is_stripped_with_the_masks_it_would_choose(kind: str) -> None:
    pruned = Pruned()
    weights = pruned.weights()
    found = constants(sparsekit.strip(freeze(pruned.session, ["y"])))
    for layer, weight in pruned.model.weights.items():
        assert np.array_equal(found[weight.op.name] != 0, keep_mask(weights[layer], pruned.model.axes[layer]))


def test_denormal_weights_give_equal_outputs(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        w = variable("w", [8, 4])
        tf.identity(tf.matmul(x, w, name="fc"), name="y")
        sparsekit.prune(graph)
        with session(graph) as sess:
            tiny = np.finfo(np.float32).smallest_subnormal
            weight = np.repeat(np.float32([tiny, -2 * tiny, 0.0, 3 * tiny, 1e-39, 1.0, -1e-40, -0.0])[:, None], 4, 1)
            w.load(weight, sess)
            masked = freeze(sess, ["y"])
    stripped = sparsekit.strip(masked)
    assert np.array_equal(constants(stripped)["w"] != 0, keep_mask(weight, 0) & (weight != 0))
    feeds = {"x:0": np.full([2, 8], 1e30, np.float32)}
    assert np.array_equal(run_graph(masked, "y:0", feeds), run_graph(stripped, "y:0", feeds))


# --- how prune is called ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["none", "names", "tensor name", "tensors", "operations", "name", "tensor"])
def test_outputs_may_be_given_in_any_way(kind: str, spelling: str) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        unused = tf.matmul(tf.zeros([2, 8]), variable("unused", [8, 8]), name="behind_no_output")
        outputs = {
            "none": None,
            "names": ["y"],
            "tensor name": ["y:0"],
            "tensors": [model.y],
            "operations": (model.y.op,),
            "name": "y",
            "tensor": model.y,
        }[spelling]
        result = sparsekit.prune(graph, outputs=outputs)
    expected = [*LAYERS, unused.op.name] if spelling == "none" else LAYERS
    assert [d.name for d in result.plan.pruned] == expected
    assert [v.op.name for v in result.variables[::2]] == [f"{layer}/sparsekit/mask" for layer in expected]


@pytest.mark.parametrize("outputs", [[], ["z"], "net/fcc", [3]])
def test_outputs_that_mean_nothing_are_refused_unchanged(kind: str, outputs: Any) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        before = graph.as_graph_def().SerializeToString(deterministic=True)
        with pytest.raises(GraphError, match="outputs"):
            sparsekit.prune(graph, outputs=outputs)
        assert graph.as_graph_def().SerializeToString(deterministic=True) == before


def test_nothing_to_prune_changes_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with tf.Graph().as_default() as graph:
        tf.identity(v1.placeholder(tf.float32, [2]), name="y")
        before = {node.name for node in graph.as_graph_def().node}
        result = sparsekit.prune(graph, outputs="y")
        after = {node.name for node in graph.as_graph_def().node}
        with v1.Session() as sess:
            sess.run(result.initializer)
    assert (result.variables, result.plan.decisions) == ((), ())
    assert after - before == {"sparsekit/initializer"}
    assert "No layer was changed" in caplog.text
