"""Where a live graph keeps its zeros: whatever the masking, the weights that stay are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_nets
import numpy as np
import pytest
import tensorflow as tf
from small_graphs import (
    LAYERS,
    Array,
    Model,
    bits,
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
from sparsekit.errors import ConfigError, GraphError
from sparsekit.pattern import keep_mask

v1 = tf.compat.v1
MASKINGS = ("forward", "in-place", "project")
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: v1.train.GradientDescentOptimizer(0.1),
    "momentum": lambda: v1.train.MomentumOptimizer(0.1, 0.9),
    "nesterov": lambda: v1.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True),
    "rmsprop": lambda: v1.train.RMSPropOptimizer(0.01, momentum=0.5, centered=True),
    "adam": lambda: v1.train.AdamOptimizer(0.01),
}


class Trained:
    """The network, pruned, with a train op; ``train`` looks at every weight after every step."""

    def __init__(self, masking: str, update: Callable[[Any], Any] = sgd, after: Callable[[Any], Any] | None = None):
        """``update`` makes a train op of the loss. ``after`` may make another one of it, by default the masking's."""
        self.graph = tf.Graph()
        self.masking = masking
        with self.graph.as_default():
            self.model = conv_net()
            self.result = sparsekit.prune(self.graph, {"masking": masking}, outputs=["y"])
            self.step = update(self.model.loss())
            self.step = (after or (self.result.project if masking == "project" else lambda step: step))(self.step)
        self.session = session(self.graph, fusions=False)

    def train(self, steps: range) -> None:
        for step in steps:
            self.session.run(self.step, {self.model.x: images(step)})
            if self.masking != "forward":
                weights, stored = self.session.run([self.model.weights, list(self.result.variables[:8:2])])
                for (layer, weight), mask in zip(weights.items(), stored, strict=True):
                    assert not weight[mask == 0].any(), (layer, step)
            if step % 5 == 0:  # an evaluation between
                self.session.run(self.model.y, {self.model.x: images(1000 + step)})

    def kept(self) -> dict[str, Array]:
        """All variables of the model, dropped weights as 0; and the masks."""
        weights, stored = self.session.run(self.model.weights), masks(self.session, LAYERS)
        with self.graph.as_default():
            others = {v.op.name: v for v in v1.trainable_variables() if v.op.name.startswith("net/b")}
        kept = {layer: np.where(stored[layer] != 0, weights[layer], np.float32(0)) for layer in LAYERS}
        masks_too = {f"{layer}'s mask": mask for layer, mask in stored.items()}
        return {**kept, **masks_too, **self.session.run(others)}


def assert_equal(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        assert np.array_equal(found[name], expected[name]), name


# --- training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fifty_steps_leave_the_very_weights(kind: str, optimizer: str) -> None:
    expected = None
    for masking in MASKINGS:
        trained = Trained(masking, lambda loss: OPTIMIZERS[optimizer]().minimize(loss))
        start = trained.session.run(trained.model.weights)
        trained.train(range(50))
        assert counts(trained.session, LAYERS) == [50] * 4
        expected = expected or trained.kept()
        assert_equal(trained.kept(), expected)
        for layer, mask in masks(trained.session, LAYERS).items():
            assert np.array_equal(mask, keep_mask(start[layer], trained.model.axes[layer]))


def clipped(loss: Any) -> Any:
    optimizer = v1.train.AdamOptimizer(0.01)
    gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
    return optimizer.apply_gradients(zip(tf.clip_by_global_norm(gradients, 0.05)[0], variables, strict=True))


def gradients_by_hand(loss: Any) -> Any:
    variables = v1.trainable_variables()
    gradients = v1.gradients(loss, variables, gate_gradients=True)
    return v1.train.MomentumOptimizer(0.1, 0.9).apply_gradients(zip(gradients, variables, strict=True))


def two_gradients(loss: Any) -> Any:
    """Of the same weights, by two calls."""
    optimizer = v1.train.MomentumOptimizer(0.1, 0.9)
    pairs = optimizer.compute_gradients(loss), optimizer.compute_gradients(loss * 2.0)
    return optimizer.apply_gradients([(one + two, weight) for (one, weight), (two, _) in zip(*pairs, strict=True)])


def weight_decay(loss: Any) -> Any:
    decay = 0.01 * tf.add_n([tf.nn.l2_loss(weight) for weight in v1.trainable_variables()])
    return v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss + decay)


@pytest.mark.parametrize("update", [clipped, gradients_by_hand, two_gradients, weight_decay], ids=lambda f: f.__name__)
def test_in_place_is_forward_whatever_train_op_is_built(kind: str, update: Callable[[Any], Any]) -> None:
    forward, in_place = Trained("forward", update), Trained("in-place", update)
    for trained in (forward, in_place):
        trained.train(range(10))
    assert_equal(in_place.kept(), forward.kept())


@pytest.mark.parametrize("masking", ["in-place", "project"])
def test_a_regularizer_that_couples_weights_moves_no_dropped_one(kind: str, masking: str) -> None:
    """Its gradient is not 0 where a weight is; some read the variable before prune, some after it."""

    def update(loss: Any) -> Any:
        weight = next(v for v in v1.trainable_variables() if v.op.name == "net/w_fc")
        for read in (weight, weight.read_value(), tf.identity(weight)):
            loss += 0.1 * tf.reduce_sum((tf.matmul(read, read, transpose_a=True) - tf.eye(5)) ** 2)
        return v1.train.MomentumOptimizer(0.01, 0.9).minimize(loss)

    Trained(masking, update).train(range(5))


@pytest.mark.parametrize("variables", ["ref", "resource"])
@pytest.mark.parametrize("where", ["cond", "loop", "loop in cond"])
def test_a_regularizer_in_control_flow_moves_no_dropped_weight(variables: str, where: str) -> None:
    """What reads there stands behind the ops by which control flow v1 lets a variable in."""

    def regularizer() -> Any:
        return tf.reduce_sum((tf.matmul(w, w.read_value(), transpose_a=True) - 1.0) ** 2)

    def loop() -> Any:
        return v1.while_loop(lambda turn, _: turn < 2, lambda turn, total: (turn + 1, total + regularizer()), (0, 0.0))[
            1
        ]

    with settings_of(variables, "v1"), tf.Graph().as_default() as graph:
        taken = v1.placeholder_with_default(True, [])
        w = variable("w", [8, 4])
        loss = tf.reduce_mean(tf.matmul(tf.ones([2, 8]), w, name="fc") ** 2)
        result = sparsekit.prune(graph, {"masking": "in-place"})
        inside = loop if "loop" in where else regularizer
        loss += v1.cond(taken, inside, lambda: 0.0) if "cond" in where else inside()
        step = v1.train.GradientDescentOptimizer(1e-3).minimize(loss)
        with session(graph) as sess:
            for _ in range(2):
                sess.run(step)
            weight, mask = sess.run([w, result.variables[0]])
    assert (mask == 0).sum() == 16
    assert not weight[mask == 0].any()


def test_rows_that_are_looked_up_later_move_no_dropped_weight(kind: str) -> None:
    """Tied to a layer that was pruned: the gradient of the lookup is masked, too."""
    with tf.Graph().as_default() as graph:
        w = variable("w", [8, 4])
        y = tf.matmul(tf.ones([2, 8]), w, name="fc")
        result = sparsekit.prune(graph, {"masking": "in-place"})
        rows = [tf.nn.embedding_lookup(w, [1, 2, 2]), tf.gather_nd(w, [[3], [5]])]
        step = sgd(tf.reduce_sum(y**2) + sum(tf.reduce_sum(row**3) for row in rows))
        with session(graph) as running:
            running.run(step)
            weight, mask = running.run([w, result.variables[0]])
        assert (mask == 0).sum() == 16
        assert not weight[mask == 0].any()


def test_two_optimizers_of_one_batch_both_count_in_the_first_batch(kind: str) -> None:
    """Zeros are written once, before any of them updates."""

    def update(loss: Any) -> Any:
        first = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        return tf.group(first, v1.train.GradientDescentOptimizer(0.1).minimize(loss))

    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [8, 4])
        y = tf.matmul(x, w, name="fc")
        sparsekit.prune(graph, {"masking": "in-place"})
        # Gradients that do not depend on the weight: the order of the updates does not matter.
        step = update(tf.reduce_sum(y))
        data = values([3, 8])
        for _ in range(5):
            with session(graph) as sess:
                start = sess.run(w)
                sess.run(step, {x: data})
                mask = keep_mask(start, 0)
                expected = np.where(mask, start - 2 * np.float32(0.1) * data.sum(0)[:, None], 0)
                np.testing.assert_allclose(sess.run(w), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("variables", "control_flow"), [("ref", "v1"), ("resource", "v1"), ("resource", "v2")])
def test_a_gradient_inside_a_cond_writes_zeros_when_it_is_taken(variables: str, control_flow: str) -> None:
    with settings_of(variables, control_flow), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        taken = v1.placeholder(tf.bool, [])
        w = variable("w", [8, 4])
        loss = tf.reduce_mean(tf.matmul(x, w, name="fc") ** 2)
        sparsekit.prune(graph, {"masking": "in-place"})
        gradient = v1.cond(taken, lambda: v1.gradients(loss, [w])[0], lambda: tf.zeros([8, 4]))
        step = v1.train.GradientDescentOptimizer(0.1).apply_gradients([(gradient, w)])
        with session(graph) as sess:
            start = sess.run(w)
            sess.run(step, {x: values([2, 8]), taken: False})
            assert bits(sess.run(w)) == bits(start)
            for _ in range(2):
                sess.run(step, {x: values([2, 8]), taken: True})
                assert np.array_equal(sess.run(w) != 0, keep_mask(start, 0))


@pytest.mark.parametrize("masking", ["in-place", "project"])
def test_evaluation_changes_nothing(kind: str, masking: str) -> None:
    trained = Trained(masking)
    with trained.graph.as_default():
        variables = v1.global_variables()
    for step in range(3):
        before = [bits(value) for value in trained.session.run(variables)]
        trained.session.run([trained.model.y], {trained.model.x: images(step)})
        assert [bits(value) for value in trained.session.run(variables)] == before
        trained.session.run(trained.step, {trained.model.x: images(step)})


def test_without_its_train_op_projection_masks_in_the_forward_pass(kind: str) -> None:
    forgotten = Trained("project", after=lambda step: step)
    forward = Trained("forward")
    for step in range(5):
        for trained in (forgotten, forward):
            trained.session.run(trained.step, {trained.model.x: images(step)})
        outputs = [t.session.run(t.model.y, {t.model.x: images(99)}) for t in (forgotten, forward)]
        assert np.array_equal(*outputs)
    assert_equal(forgotten.kept(), forward.kept())
    assert sparsekit.verify(sparsekit.strip(freeze(forgotten.session, ["y"]))).ok
    projected = Trained("project")
    projected.train(range(3))
    # The batch after which the variable held zeros: until the next one nothing is multiplied.
    assert projected.session.run(list(projected.result.variables[8:])) == counts(projected.session, LAYERS) == [3] * 4
    assert forgotten.session.run(list(forgotten.result.variables[8:])) == [-1] * 4


def test_in_place_nothing_is_masked_any_more_once_an_update_has_left_the_zeros(kind: str) -> None:
    trained = Trained("in-place")
    for step, kept in enumerate([False, True, True]):
        trained.train(range(step, step + 1))
        found = trained.session.run(list(trained.result.variables[8:]))
        assert [count == 0 for count in found] == [kept] * 4
        assert kept or max(found) < -1


@pytest.mark.parametrize(("variables", "control_flow"), [("ref", "v1"), ("resource", "v1"), ("resource", "v2")])
def test_gradients_of_two_losses_in_a_cond_come_to_leave_the_zeros(variables: str, control_flow: str) -> None:
    """The books are kept twice in a batch then."""
    with settings_of(variables, control_flow), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [8, 4])
        loss = tf.reduce_mean(tf.matmul(x, w, name="fc") ** 2)
        zeros = sparsekit.prune(graph, {"masking": "in-place"}).variables[2]

        def both() -> Any:
            with tf.control_dependencies(v1.gradients(loss, [w])):
                return v1.gradients(2.0 * loss, [w])[0]

        gradient = v1.cond(v1.placeholder_with_default(True, []), both, lambda: tf.zeros([8, 4]))
        step = v1.train.GradientDescentOptimizer(0.1).apply_gradients([(gradient, w)])
        with session(graph) as sess:
            for batch in range(3):
                sess.run(step, {x: values([2, 8])})
                assert (sess.run(zeros) == 0) == (batch > 0)


def test_batches_without_an_update_do_not_tell_that_updates_leave_the_zeros(kind: str) -> None:
    """Gradients are summed, and momentum of dense training moves dropped weights when the sum is applied."""
    kept, dense = [], values([8, 4])
    for masking in ("forward", "in-place"):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 8])
            w = variable("w", [8, 4])
            y = tf.matmul(x, w, name="fc")
            mask = sparsekit.prune(graph, {"masking": masking}).variables[0]
            optimizer = v1.train.MomentumOptimizer(0.01, 0.9)
            total = v1.get_variable("total", [8, 4], initializer=v1.zeros_initializer(), trainable=False)
            ((gradient, _),) = optimizer.compute_gradients(tf.reduce_mean((y - 1.0) ** 2), [w])
            add = v1.assign_add(total, gradient)
            apply = optimizer.apply_gradients([(total.read_value(), w)])
            with session(graph) as sess:
                optimizer.get_slot(w, "momentum").load(dense, sess)
                for step in range(8):
                    sess.run(add, {x: images(step).reshape(-1, 8)})
                    if step % 4 == 3:
                        sess.run(apply)
                        total.load(np.zeros([8, 4], np.float32), sess)
                stored = sess.run(mask)
                kept.append(np.where(stored != 0, sess.run(w), np.float32(0)))
                shown = sess.run(y, {x: np.eye(8, dtype=np.float32)})
                assert np.array_equal(shown, kept[-1]), masking
    assert np.array_equal(*kept)


def test_a_layer_without_gradients_is_masked_all_the_same(kind: str) -> None:
    for masking in ("in-place", "project"):
        only_back = Trained(masking, lambda loss: sgd(loss, var_list=[v1.trainable_variables()[-1]]))
        for step in range(2):
            only_back.session.run(only_back.step, {only_back.model.x: images(step)})
        assert counts(only_back.session, LAYERS) == [0, 0, 0, 2]
        frozen = freeze(only_back.session, ["y"])
        stripped = sparsekit.strip(frozen)
        feeds = {"x:0": images(9)}
        assert sparsekit.verify(stripped).ok
        assert np.array_equal(run_graph(frozen, "y:0", feeds), run_graph(stripped, "y:0", feeds))


def test_layers_without_masks_are_not_said_to_have_moved_past_them(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is projected updates them, but no gradient comes through their masks."""
    trained = Trained("project", lambda _: sgd(tf.add_n([tf.nn.l2_loss(w) for w in v1.trainable_variables()])))
    trained.session.run(trained.step)
    assert counts(trained.session, LAYERS) == [0] * 4
    assert sparsekit.verify(sparsekit.strip(freeze(trained.session, ["y"]))).ok
    assert not _warnings(caplog)


@pytest.mark.parametrize(("masking", "update_freq"), [*((masking, 3) for masking in MASKINGS), ("in-place", 0)])
def test_keras_and_the_live_graph_end_with_the_same_masks_and_weights(
    resource_kind: None, masking: str, update_freq: int
) -> None:
    config = {"masking": masking, "update_freq": update_freq}
    start = [weight.numpy() for weight in keras_nets.net().trainable_variables]
    model, result = keras_nets.pruned_net(keras.optimizers.SGD(0.5), config)
    with tf.Graph().as_default() as graph:
        layer = tf.constant(keras_nets.X)
        weights = [v1.get_variable(f"w{i}", initializer=value) for i, value in enumerate(start)]
        for i in range(3):
            layer = tf.matmul(layer, weights[2 * i], name=f"fc{i}") + weights[2 * i + 1]
            layer = tf.nn.relu(layer) if i < 2 else layer
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(keras_nets.Y, layer))
        live = sparsekit.prune(graph, config)
        step = v1.train.GradientDescentOptimizer(0.5).minimize(loss)
        step = live.project(step) if masking == "project" or (masking == "in-place" and update_freq) else step
        with v1.Session() as sess:
            sess.run(v1.global_variables_initializer())
            for _ in range(20):
                sess.run(step)
            trained, stored = sess.run((weights, live.variables[:6:2]))
    model.fit(keras_nets.X, keras_nets.Y, batch_size=80, epochs=20, verbose=0, callbacks=[result.callback])
    for found, expected in zip(keras_nets.masks_of(result), stored, strict=True):
        np.testing.assert_array_equal(found, expected)
    for layer, weight, mask in zip(result.finalize().layers, trained[::2], stored, strict=True):
        np.testing.assert_allclose(layer.kernel.numpy(), weight * mask, rtol=2e-4, atol=2e-6)


# --- checkpoints and exports -----------------------------------------------------------------------------


@pytest.mark.parametrize("masking", ["in-place", "project"])
def test_masks_go_on_after_a_dense_checkpoint_was_restored(kind: str, masking: str, tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        saver = v1.train.Saver()
        with session(graph) as sess:
            sess.run([weight.assign(weight * 3.0 + 1.0) for weight in model.weights.values()])
            restored = sess.run(model.weights)
            saver.save(sess, str(tmp_path / "dense"))
        result = sparsekit.prune(graph, {"masking": masking}, outputs=["y"])
        step = sgd(model.loss())
        step = result.project(step) if masking == "project" else step
        with session(graph) as sess:
            saver.restore(sess, str(tmp_path / "dense"))
            sess.run(step, {model.x: images()})
            weights, stored = sess.run(model.weights), masks(sess, LAYERS)
    for layer in LAYERS:
        assert np.array_equal(stored[layer], keep_mask(restored[layer], model.axes[layer]))
        assert not weights[layer][stored[layer] == 0].any()


@pytest.mark.parametrize("masking", ["in-place", "project"])
def test_a_checkpoint_trains_on_with_the_default_masking(kind: str, masking: str, tmp_path: Path) -> None:
    """The other way round, the count of batches after which zeros were written is not in the checkpoint."""
    trained = Trained(masking)
    trained.train(range(3))
    with trained.graph.as_default():
        v1.train.Saver().save(trained.session, str(tmp_path / "trained"))
    trained.train(range(3, 6))
    forward = Trained("forward")
    with forward.graph.as_default():
        v1.train.Saver().restore(forward.session, str(tmp_path / "trained"))
    forward.train(range(3, 6))
    assert_equal(forward.kept(), trained.kept())
    with trained.graph.as_default(), forward.graph.as_default():
        v1.train.Saver().save(forward.session, str(tmp_path / "forward"))
    with trained.graph.as_default(), pytest.raises(tf.errors.NotFoundError, match="sparsekit/zeros"):
        v1.train.Saver().restore(trained.session, str(tmp_path / "forward"))


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sparsekit"]


@pytest.mark.parametrize("before", ["project", "dense"])
def test_momentum_that_comes_with_a_checkpoint_does_not_count_in_place(
    kind: str, before: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It moves dropped weights, for it is no gradient."""

    def momentum(loss: Any) -> Any:
        return v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)

    projected, in_place = Trained("project", momentum), Trained("in-place", momentum)
    projected.train(range(3))
    with projected.graph.as_default():
        everything = v1.global_variables()
        dense = [variable for variable in everything if "/sparsekit/" not in variable.op.name]
        v1.train.Saver(dense if before == "dense" else everything).save(projected.session, str(tmp_path / "before"))
    for trained in (projected, in_place):
        with trained.graph.as_default():
            trained.session.run(v1.global_variables_initializer())
            names = dict(v1.train.list_variables(str(tmp_path / "before")))
            restored = [variable for variable in v1.global_variables() if variable.op.name in names]
            v1.train.Saver(restored).restore(trained.session, str(tmp_path / "before"))
    projected.train(range(3, 7))
    for step in range(3, 7):
        in_place.session.run(in_place.step, {in_place.model.x: images(step)})
    assert_equal(in_place.kept(), projected.kept())
    masked, feeds = freeze(in_place.session, ["y"]), {"x:0": images(9)}
    stripped = sparsekit.strip(masked)
    assert not _warnings(caplog) and sparsekit.verify(stripped).ok
    assert np.array_equal(run_graph(masked, "y:0", feeds), run_graph(stripped, "y:0", feeds))


@pytest.mark.parametrize("masking", ["in-place", "project"])
def test_a_frozen_graph_is_stripped_to_the_dense_one(kind: str, masking: str, caplog: pytest.LogCaptureFixture) -> None:
    trained = Trained(masking)
    with tf.Graph().as_default() as graph:
        conv_net()
        with session(graph) as sess:
            dense = freeze(sess, ["y"])
    weights = {weight.op.name: layer for layer, weight in trained.model.weights.items()}
    for before, steps in ((0, 0), (0, 1), (1, 4)):
        trained.train(range(before, steps))
        masked = freeze(trained.session, ["y"])
        stripped = sparsekit.strip(masked)
        assert not _warnings(caplog), steps
        assert sparsekit.verify(stripped).ok, steps
        assert b"sparsekit" not in stripped.SerializeToString().lower(), steps
        feeds = {"x:0": images(99, batch=5)}
        assert np.array_equal(run_graph(masked, "y:0", feeds), run_graph(stripped, "y:0", feeds)), steps
        for node in stripped.node:
            if node.name in weights:
                found = tf.make_ndarray(node.attr["value"].tensor)
                assert not np.signbit(found[found == 0]).any(), (weights[node.name], steps)
        for graph_def in (stripped, dense):
            for node in graph_def.node:
                if node.name in weights or node.name == "net/b_fc":
                    node.attr["value"].tensor.ClearField("tensor_content")
        assert {node.name: str(node) for node in stripped.node} == {node.name: str(node) for node in dense.node}, steps


@pytest.mark.parametrize("masking", ["in-place", "project"])
def test_a_saved_model_is_stripped(kind: str, masking: str, tmp_path: Path) -> None:
    trained = Trained(masking)
    trained.train(range(2))
    with trained.graph.as_default():
        v1.train.Saver().save(trained.session, str(tmp_path / "trained"))
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, {"masking": masking}, outputs=["y"])
        with v1.Session() as sess:
            v1.train.Saver().restore(sess, str(tmp_path / "trained"))
            expected = sess.run(model.y, {model.x: images(9)})
            v1.saved_model.simple_save(sess, str(tmp_path / "masked"), {"x": model.x}, {"y": model.y})
    sparsekit.save(sparsekit.strip(tmp_path / "masked"), tmp_path / "pruned")
    assert sparsekit.verify(tmp_path / "pruned").ok
    with tf.Graph().as_default(), v1.Session() as sess:
        meta = v1.saved_model.load(sess, ["serve"], str(tmp_path / "pruned"))
        assert b"sparsekit" not in meta.SerializeToString().lower()
        assert np.array_equal(sess.run("y:0", {"x:0": images(9)}), expected)


@pytest.mark.parametrize("masking", MASKINGS)
def test_averages_of_weights_that_were_restored_as_weights_are_said_to_be_dense(
    kind: str, masking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Averages remember dropped weights, and masks in the checkpoint tell of zeros that are not there."""

    def model(masking: str) -> tuple[Any, Any, Any]:
        model = conv_net()
        result = sparsekit.prune(v1.get_default_graph(), {"masking": masking}, outputs=["y"])
        return model, result, v1.train.ExponentialMovingAverage(0.9)

    with tf.Graph().as_default() as graph:
        trained, result, average = model(masking)
        with tf.control_dependencies([sgd(trained.loss())]):
            step = average.apply(list(trained.weights.values()))
        step = result.project(step) if masking == "project" else step
        with session(graph) as sess:
            for batch in range(2):
                sess.run(step, {trained.x: images(batch)})
            v1.train.Saver().save(sess, str(tmp_path / "trained"))
    for inference in {masking, "forward"}:
        caplog.clear()
        with tf.Graph().as_default() as graph:
            used, _, average = model(inference)
            saver = v1.train.Saver(average.variables_to_restore(list(used.weights.values())))
            with session(graph, fusions=False) as sess:
                saver.restore(sess, str(tmp_path / "trained"))
                frozen = freeze(sess, ["y"])
        stripped = sparsekit.strip(frozen)
        outputs = [run_graph(graph_def, "y:0", {"x:0": images(9)}) for graph_def in (frozen, stripped)]
        if inference == "forward":
            assert not _warnings(caplog)
            assert np.array_equal(*outputs)
        else:
            assert not np.array_equal(*outputs)
            assert "dropped weights of 'net/conv', 'net/up', 'net/fc', 'net/back' were not zero" in caplog.text


@pytest.mark.parametrize("scope", [None, "far/away"])
def test_an_imported_graph_trains_like_the_one_it_came_from(kind: str, scope: str | None, tmp_path: Path) -> None:
    trained = Trained("in-place")
    trained.train(range(3))
    with tf.Graph().as_default() as graph:
        conv_net()
        sparsekit.prune(graph, {"masking": "in-place"}, outputs=["y"])
        v1.train.export_meta_graph(str(tmp_path / "pruned.meta"))
    prefix = f"{scope}/" if scope else ""
    with tf.Graph().as_default() as graph:
        v1.train.import_meta_graph(str(tmp_path / "pruned.meta"), import_scope=scope)
        x, y = (graph.get_tensor_by_name(f"{prefix}{name}:0") for name in ("x", "y"))
        step = sgd(Model(x, y, {}, {}).loss())
        names = [weight.op.name for weight in trained.model.weights.values()]
        weights = [v for name in names for v in v1.trainable_variables() if v.op.name == prefix + name]
        with session(graph, fusions=False) as sess:
            for batch in range(3):
                sess.run(step, {x: images(batch)})
            found = dict(zip(LAYERS, sess.run(weights), strict=True))
    kept = trained.kept()
    assert_equal(found, {layer: kept[layer] for layer in LAYERS})


def test_a_calibrated_start_is_kept_in_place(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        with session(graph) as before:
            config = {"masking": "in-place"}
            samples = images(1, batch=16)
            result = sparsekit.prune(graph, config, outputs=["y"], calibration=samples, session=before)
        step = sgd(model.loss())
        with session(graph) as sess:
            result.start(sess)
            chosen = masks(sess, LAYERS)
            for batch in range(3):
                sess.run(step, {model.x: images(batch)})
            weights, stored = sess.run(model.weights), masks(sess, LAYERS)
    for layer in LAYERS:
        assert np.array_equal(stored[layer], chosen[layer])
        assert not weights[layer][stored[layer] == 0].any()


# --- what is said, and what is refused ---------------------------------------------------------------------


def test_the_plan_says_how_zeros_are_kept(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        said = {
            "auto": "forward (safe with every optimizer",
            "forward": "forward (as configured)",
            "in-place": "in-place (as configured; for optimizers that",
            "project": "project (as configured; in the forward pass until a train op is built with result.project",
        }
        for masking, sentence in said.items():
            plan = sparsekit.plan(graph, {"masking": masking}, outputs=["y"])
            assert f"Masking: {sentence}" in plan.masking
            assert plan.masking in str(plan)


def partitioned(x: Any) -> Any:
    partitioner = v1.fixed_size_partitioner(2)
    return tf.matmul(x, v1.get_variable("w", [8, 4], partitioner=partitioner), name="fc")


def constant(x: Any) -> Any:
    return tf.matmul(x, tf.constant(values([8, 4])), name="fc")


def in_no_collection(x: Any) -> Any:
    return tf.matmul(x, v1.Variable(values([8, 4]), trainable=False, collections=[]), name="fc")


def with_a_gradient_of_its_own(x: Any) -> Any:
    graph = v1.get_default_graph()
    with graph.gradient_override_map({"Identity": "Reciprocal", "ReadVariableOp": "Reciprocal"}):
        w = v1.Variable(values([8, 4]), name="w")
        return tf.matmul(x, w, name="fc")


def with_a_function_that_regularizes(x: Any) -> Any:
    w = v1.get_variable("w", [8, 4], use_resource=True)
    v1.losses.add_loss(tf.function(lambda: tf.reduce_sum(w**2))())
    return tf.matmul(x, w, name="fc")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (partitioned, "the weight lies in several variables"),
        (constant, "the weight is a constant"),
        (in_no_collection, "the variable is in no collection"),
        (with_a_gradient_of_its_own, "a read of the variable has a gradient of its own"),
        (with_a_function_that_regularizes, "'StatefulPartitionedCall' (StatefulPartitionedCall) uses the"),
    ],
)
def test_layers_that_cannot_are_masked_in_the_forward_pass_and_named(
    kind: str, layer: Callable[[Any], Any], reason: str
) -> None:
    with tf.Graph().as_default() as graph:
        hidden = tf.matmul(v1.placeholder(tf.float32, [None, 8]), variable("other", [8, 8]), name="other_fc")
        layer(hidden)
        result = sparsekit.prune(graph, {"masking": "in-place"})
        assert f"; forward for fc: {reason}" in result.plan.masking
        assert [graph.get_operation_by_name(f"{name}/sparsekit/masked").type for name in ("fc", "other_fc")] == [
            "Mul",
            "IdentityN",
        ]
        assert [v.op.name for v in result.variables[4:]] == ["other_fc/sparsekit/zeros"]


def test_projection_is_refused_where_it_would_do_nothing(kind: str) -> None:
    for masking in ("auto", "in-place"):
        trained = Trained(masking)
        with pytest.raises(GraphError, match=r"(?s)not kept by projection.*masking = \"project\".*Masking: "):
            trained.result.project(trained.step)
    projecting = Trained("project")
    with tf.Graph().as_default():
        elsewhere = tf.no_op()
    for wrong in (elsewhere, None, "step"):
        with pytest.raises(GraphError, match="train_op"):
            projecting.result.project(wrong)
    projecting.graph.finalize()
    with pytest.raises(GraphError, match="finalized"):
        projecting.result.project(projecting.step)


def test_a_train_op_that_is_a_tensor_stays_one(kind: str) -> None:
    def update(loss: Any) -> Any:
        with tf.control_dependencies([sgd(loss)]):
            return tf.identity(loss, name="total_loss")

    trained = Trained("project", update)
    trained.train(range(2))
    assert trained.session.run(trained.step, {trained.model.x: images()}).shape == ()


@pytest.mark.parametrize("setting", [{"gradient": "ste"}, {"start_step": 3}, {"freeze_step": 9}])
def test_what_only_eager_models_can_do_is_refused(kind: str, setting: dict[str, Any]) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        with pytest.raises(ConfigError, match=next(iter(setting))):
            sparsekit.prune(graph, setting, outputs=["y"])
