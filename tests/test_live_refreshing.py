"""Masks of a live graph that are chosen again while zeros lie in the variables."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import (
    LAYERS,
    Array,
    bits,
    conv_net,
    counts,
    freeze,
    images,
    run_graph,
    session,
    values,
    variable,
)

import sparsekit
from sparsekit.pattern import keep_mask

v1 = tf.compat.v1
IN_VARIABLE = ("in-place", "project")
STEPS = 12
Optimizer = Callable[[], Any]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda: v1.train.GradientDescentOptimizer(0.1),
    "momentum": lambda: v1.train.MomentumOptimizer(0.1, 0.9),
    "nesterov": lambda: v1.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True),
    "adam": lambda: v1.train.AdamOptimizer(0.1),
    "rmsprop": lambda: v1.train.RMSPropOptimizer(0.05, momentum=0.5),
    "centered rmsprop": lambda: v1.train.RMSPropOptimizer(0.05, momentum=0.5, centered=True),
    "adagrad": lambda: v1.train.AdagradOptimizer(0.1),
    "adadelta": lambda: v1.train.AdadeltaOptimizer(1.0),
    "ftrl": lambda: v1.train.FtrlOptimizer(0.1, l1_regularization_strength=0.001),
    "proximal": lambda: v1.train.ProximalAdagradOptimizer(0.1, l1_regularization_strength=0.001),
}
MOMENTA = {
    "momentum": ["Momentum"],
    "nesterov": ["Momentum"],
    "adam": ["Adam"],
    "rmsprop": ["RMSProp_1"],
    "centered rmsprop": ["RMSProp_2"],
    "ftrl": ["Ftrl_1"],
}
# One for every layer, in turn.
OF_LAYERS = [
    ("adam", "momentum", "nesterov", "rmsprop"),
    ("centered rmsprop", "ftrl"),
    ("adagrad", "sgd", "adadelta", "proximal"),
]


@pytest.fixture(autouse=True)
def no_warnings(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is understood is not warned of."""
    with caplog.at_level(logging.WARNING, "sparsekit"):
        yield
        if "doubt" not in request.node.name:
            assert [record.getMessage() for record in caplog.get_records("call") if record.name == "sparsekit"] == []


class Trained:
    """The network, pruned, with a train op that was handed over."""

    def __init__(
        self,
        masking: str,
        update_freq: int,
        update: Callable[[Any], Any],
        after: Callable[[Any, Any], Any] = lambda result, step: result.project(step),
        **config: Any,
    ) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.model = conv_net()
            config |= {"masking": masking, "update_freq": update_freq}
            self.result = sparsekit.prune(self.graph, config, outputs=["y"])
            self.step = update(self.model.loss())
            self.step = self.step if masking == "forward" else after(self.result, self.step)
            self.variables = v1.global_variables()
            self.by_name = {v.op.name: v for v in self.variables}
        self.session = session(self.graph, fusions=False)

    def train(self, batch: int) -> None:
        self.session.run(self.step, {self.model.x: images(batch)})

    def all(self) -> dict[str, Array]:
        return dict(zip(self.by_name, self.session.run(list(self.by_name.values())), strict=True))

    def parts(self) -> Iterator[tuple[str, Array, Array, Array]]:
        """Of every layer: weight, mask and dropped values."""
        found = self.all()
        for layer, weight in self.model.weights.items():
            state = [found[f"{layer}/sparsekit/{name}"] for name in ("mask", "shadow")]
            yield layer, found[weight.op.name], *state

    def dense(self) -> dict[str, Array]:
        """The weights with nothing dropped."""
        return {layer: np.where(mask != 0, weight, shadow) for layer, weight, mask, shadow in self.parts()}

    def check(self) -> None:
        """Zeros lie where the mask drops, and nowhere else is anything kept apart."""
        for layer, weight, mask, shadow in self.parts():
            assert not weight[mask == 0].any(), layer
            assert not shadow[mask != 0].any(), layer
            assert np.array_equal(mask != 0, keep_mask(mask, self.model.axes[layer])), layer


# --- what is chosen, and when ---------------------------------------------------------------------------------


class Oracle:
    """A matrix product that is trained in numpy, float64: the loss is mean((x @ w - t) ** 2)."""

    def __init__(self, start: Array, update_freq: int, optimizer: str) -> None:
        self.weight = start.astype(np.float64)
        self.mask = keep_mask(self.weight, 0)
        self.slots = {name: np.zeros_like(self.weight) for name in ("m", "v")}
        self.steps = 0
        self.update_freq = update_freq
        self.optimizer = optimizer

    def train(self, x: Array, target: Array) -> None:
        error = x @ (self.weight * self.mask) - target
        gradient = 2 * x.T @ error / error.size * self.mask
        self.steps += 1
        # What was dropped has no gradient and no momentum: it stays.
        self.weight -= getattr(self, f"_{self.optimizer}")(gradient)
        if self.steps % self.update_freq == 0:
            self.mask = keep_mask(self.weight, 0)
            self.slots["m"] *= self.mask

    def _sgd(self, gradient: Array) -> Array:
        return 0.1 * gradient

    def _momentum(self, gradient: Array) -> Array:
        self.slots["m"] = 0.9 * self.slots["m"] + gradient
        return 0.1 * self.slots["m"]

    def _adam(self, gradient: Array) -> Array:
        self.slots["m"] = 0.9 * self.slots["m"] + 0.1 * gradient
        self.slots["v"] = 0.999 * self.slots["v"] + 0.001 * gradient**2
        rate = 0.1 * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        return rate * self.slots["m"] / (np.sqrt(self.slots["v"]) + 1e-8)


@pytest.mark.parametrize("update_freq", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_masks_and_weights_are_those_of_an_oracle_after_every_step(kind: str, optimizer: str, update_freq: int) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 16])
        target = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [16, 8])
        y = tf.matmul(x, w, name="fc")
        result = sparsekit.prune(graph, {"masking": "in-place", "update_freq": update_freq})
        maker = OPTIMIZERS[optimizer]()
        step = result.project(maker.minimize(tf.reduce_mean((y - target) ** 2)))
        slots = [maker.get_slot(w, name) for name in maker.get_slot_names()]
        flips = returned = 0
        with session(graph) as sess:
            oracle = Oracle(sess.run(w), update_freq, optimizer)
            before = np.ones_like(oracle.mask)
            ever_dropped = np.zeros_like(oracle.mask)
            for batch in range(30):
                data = values([32, 16], batch), 5 * values([32, 8], batch)
                sess.run(step, {x: data[0], target: data[1]})
                oracle.train(*(part.astype(np.float64) for part in data))
                weight, (mask, count, zeros, shadow) = sess.run([w, list(result.variables)])
                np.testing.assert_array_equal(mask != 0, oracle.mask, str(batch))
                assert count == zeros == batch + 1
                assert not weight[mask == 0].any()
                np.testing.assert_allclose(weight, oracle.weight * oracle.mask, rtol=2e-4, atol=1e-5)
                np.testing.assert_allclose(shadow, oracle.weight * ~oracle.mask, rtol=2e-4, atol=1e-5)
                for found, expected in zip(sess.run(slots), oracle.slots.values(), strict=False):
                    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
                flips += (oracle.mask != before).sum() if batch else 0
                returned += (oracle.mask & ever_dropped).sum()
                ever_dropped |= ~oracle.mask
                before = oracle.mask
        assert flips > 4
        assert returned > 4


def test_every_masking_chooses_from_the_very_weights(kind: str) -> None:
    """Bit for bit those of the forward pass, where an optimizer has no momentum that is cleared."""
    often = [{"layers": ["net/up", "net/fc"], "update_freq": 1}]
    forward, *in_variable = (Trained(each, 3, sgd_step, override=often) for each in ("forward", *IN_VARIABLE))
    masks_before: dict[str, dict[str, Array]] = {masking: {} for masking in IN_VARIABLE}
    for batch in range(STEPS):
        forward.train(batch)
        expected = forward.all()
        outputs = forward.session.run(forward.model.y, {forward.model.x: images(99)})
        for masking, found in zip(IN_VARIABLE, in_variable, strict=True):
            found.train(batch)
            for layer, weight in found.dense().items():
                name = forward.model.weights[layer].op.name
                assert bits(weight + 0) == bits(expected[name] + 0), (masking, layer, batch)
                # Forward chooses when the next batch comes.
                used = masks_before[masking].get(layer)
                assert used is None or np.array_equal(used, expected[f"{layer}/sparsekit/mask"]), (masking, layer)
            masks_before[masking] = {layer: mask for layer, _, mask, _ in found.parts()}
            assert bits(found.all()["net/b_fc"]) == bits(expected["net/b_fc"]), masking
            found.check()
            assert counts(found.session, LAYERS) == [batch + 1] * 4, masking
            if batch % 4 == 0:  # an evaluation
                before = {name: bits(value) for name, value in found.all().items()}
                assert np.array_equal(found.session.run(found.model.y, {found.model.x: images(99)}), outputs), masking
                assert before == {name: bits(value) for name, value in found.all().items()}, masking


def sgd_step(loss: Any) -> Any:
    return v1.train.GradientDescentOptimizer(2.0).minimize(loss)


def each_its_own(*names: str) -> Callable[[Any], Any]:
    """Makes train ops that update every layer by another optimizer, after all gradients: in one order, then."""

    def update(loss: Any) -> Any:
        weights = sorted(v1.trainable_variables(), key=lambda weight: "/b_" in weight.op.name)
        pairs = list(zip(v1.gradients(loss, weights), weights, strict=True))
        with tf.control_dependencies([gradient for gradient, _ in pairs]):
            steps = [OPTIMIZERS[name]().apply_gradients(pairs[i :: len(names)]) for i, name in enumerate(names)]
        return tf.group(*steps)

    return update


@pytest.mark.parametrize("masking", IN_VARIABLE)
@pytest.mark.parametrize("names", OF_LAYERS, ids=" ".join)
def test_momentum_of_dropped_weights_is_cleared_whatever_the_optimizer(
    kind: str, names: tuple[str, ...], masking: str
) -> None:
    trained = Trained(masking, 2, each_its_own(*names))
    for batch in range(8):
        trained.train(batch)
        trained.check()
    found = trained.all()
    for optimizer, (layer, weight) in zip(itertools.cycle(names), trained.model.weights.items()):
        dropped = found[f"{layer}/sparsekit/mask"] == 0
        slots = {name: value for name, value in found.items() if name.startswith(f"{weight.op.name}/")}
        assert bool(slots) == (optimizer != "sgd"), optimizer
        for name, value in slots.items():
            momentum = name.rpartition("/")[2] in MOMENTA.get(optimizer, [])
            assert not value[dropped].any() if momentum else value.any(), (optimizer, name)
        # All that was ever trained keeps its second moments.
        if optimizer == "adam" and layer == "net/conv":
            assert slots[f"{weight.op.name}/Adam_1"][dropped].any()


def test_layers_go_by_their_own_update_freq(kind: str) -> None:
    override = [{"layers": ["net/fc"], "update_freq": 2}, {"layers": ["net/back"], "update_freq": 1}]
    for masking in IN_VARIABLE:
        with tf.Graph().as_default() as graph:
            model = conv_net()
            result = sparsekit.prune(graph, {"masking": masking, "override": override}, outputs=["y"])
            step = result.project(sgd_step(model.loss()))
            shadows = [v.op.name for v in result.variables if v.op.name.endswith("/shadow")]
            assert shadows == ["net/fc/sparsekit/shadow", "net/back/sparsekit/shadow"]
            changed: dict[str, set[int]] = {layer: set() for layer in LAYERS}
            with session(graph) as sess:
                before: list[Array] = []
                for batch in range(8):
                    sess.run(step, {model.x: images(batch)})
                    weights, stored = sess.run([model.weights, list(result.variables[:8:2])])
                    for weight, mask in zip(weights.values(), stored, strict=True):
                        assert not weight[mask == 0].any()
                    for layer, old, mask in zip(LAYERS, before, stored, strict=False):
                        changed[layer] |= set() if np.array_equal(old, mask) else {batch + 1}
                    before = stored
            assert not changed["net/conv"] and not changed["net/up"]
            assert changed["net/fc"] and changed["net/fc"] <= {2, 4, 6, 8}
            assert changed["net/back"] - {2, 4, 6, 8}


# --- train ops of all kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_a_train_op_that_was_not_handed_over_is_masked_forward(kind: str, masking: str) -> None:
    """Right, with weights and momenta bit for bit as there."""
    update = each_its_own("adam", "momentum", "sgd")
    forgotten = Trained(masking, 2, update, after=lambda result, step: step)
    forward = Trained("forward", 2, update)
    for batch in range(STEPS - 1):  # none is due then
        for trained in (forgotten, forward):
            trained.train(batch)
        outputs = [t.session.run(t.model.y, {t.model.x: images(99)}) for t in (forgotten, forward)]
        assert np.array_equal(*outputs)
        found = forgotten.all()
        for name, value in forward.all().items():
            assert np.array_equal(found[name], value), (name, batch)
    assert sparsekit.verify(sparsekit.strip(freeze(forgotten.session, ["y"]))).ok


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_two_optimizers_in_turn_leave_zeros(kind: str, masking: str) -> None:
    """The momentum of the one would move what was dropped after a step of the other."""
    with tf.Graph().as_default() as graph:
        model = conv_net()
        result = sparsekit.prune(graph, {"masking": masking, "update_freq": 2}, outputs=["y"])
        steps = [
            result.project(v1.train.MomentumOptimizer(0.5, 0.9, name=name).minimize(model.loss())) for name in "ab"
        ]
        with session(graph) as sess:
            for batch in range(9):
                sess.run(steps[1 - batch % 2], {model.x: images(batch)})
                weights, stored = sess.run([model.weights, list(result.variables[:8:2])])
                for weight, mask in zip(weights.values(), stored, strict=True):
                    assert not weight[mask == 0].any()


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_a_train_op_of_other_layers_chooses_nothing_for_these(kind: str, masking: str) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        result = sparsekit.prune(graph, {"masking": masking, "update_freq": 1}, outputs=["y"])
        weights = list(model.weights.values())
        loss = model.loss()
        first, last = (
            result.project(v1.train.MomentumOptimizer(0.5, 0.9, name=name).minimize(loss, var_list=trained))
            for name, trained in (("a", weights[:2]), ("b", weights[2:]))
        )
        with session(graph) as sess:
            for step, trained in ((first, [1, 1, 0, 0]), (first, [2, 2, 0, 0]), (last, [2, 2, 1, 1])):
                sess.run(step, {model.x: images()})
                assert counts(sess, LAYERS) == trained
                assert sess.run(list(result.variables[8::2])) == [count or -1 for count in trained]
                if trained == [1, 1, 0, 0]:  # asked after the next step
                    continue
                frozen = freeze(sess, ["y"])
                stripped = sparsekit.strip(frozen)
                assert sparsekit.verify(stripped).ok
                outputs = [run_graph(graph_def, "y:0", {"x:0": images(9)}) for graph_def in (frozen, stripped)]
                assert np.array_equal(*outputs)


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_train_ops_of_other_layers_may_run_at_the_same_time(kind: str, masking: str) -> None:
    """What follows the one that ends first must not meet the update of the other one."""
    together = Trained(masking, 1, lambda loss: momentum().minimize(loss))
    with tf.Graph().as_default() as graph:
        model = conv_net()
        result = sparsekit.prune(graph, {"masking": masking, "update_freq": 1}, outputs=["y"])
        pairs = momentum().compute_gradients(model.loss())
        firsts = [(gradient, weight) for gradient, weight in pairs if "conv" in weight.name or "up" in weight.name]
        names = {weight.name for _, weight in firsts}
        with tf.control_dependencies([gradient for gradient, _ in pairs]):
            seconds = [(tf.identity(gradient), weight) for gradient, weight in pairs if weight.name not in names]
        second = result.project(momentum().apply_gradients(seconds))
        with tf.control_dependencies([second]):
            firsts = [(tf.identity(gradient), weight) for gradient, weight in firsts]
        first = result.project(momentum().apply_gradients(firsts))
        with session(graph, fusions=False) as sess:
            for batch in range(4):
                sess.run([first, second], {model.x: images(batch)})
                together.train(batch)
                found, expected = sess.run(model.weights), together.all()
                for layer, weight in model.weights.items():
                    assert bits(found[layer] + 0) == bits(expected[weight.op.name] + 0), (layer, batch)


def momentum() -> Any:
    return v1.train.MomentumOptimizer(0.5, 0.9)


@pytest.mark.parametrize("update_freq", [0, 1])
def test_a_train_op_leaves_layers_alone_that_it_does_not_update(kind: str, update_freq: int) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        result = sparsekit.prune(graph, {"masking": "project", "update_freq": update_freq}, outputs=["y"])
        *others, last = model.weights.values()
        step = result.project(sgd_step(model.loss()))
        of_last = result.project(v1.train.GradientDescentOptimizer(2.0).minimize(model.loss(), var_list=[last]))
        with session(graph) as sess:
            sess.run(step, {model.x: images()})
            for weight in model.weights.values():
                weight.load(np.ones(weight.shape, np.float32), sess)
            sess.run(of_last, {model.x: images()})
            assert all(value.all() for value in sess.run(others))
            assert not sess.run(last).all()


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_sums_of_gradients_may_be_handed_over_in_doubt(kind: str, masking: str) -> None:
    """The op that adds to them updates no weight; the one that does meets no gradient."""
    with tf.Graph().as_default() as graph:
        model = conv_net()
        result = sparsekit.prune(graph, {"masking": masking, "update_freq": 3}, outputs=["y"])
        optimizer = momentum()
        pairs = optimizer.compute_gradients(model.loss())
        sums = [
            v1.get_variable(f"sum{i}", weight.shape, initializer=v1.zeros_initializer(), trainable=False)
            for i, (_, weight) in enumerate(pairs)
        ]
        add = tf.group(*(v1.assign_add(total, gradient) for total, (gradient, _) in zip(sums, pairs, strict=True)))
        update = optimizer.apply_gradients([(total, weight) for total, (_, weight) in zip(sums, pairs, strict=True)])
        add, update = result.project(add), result.project(update)
        reset = tf.group(*(total.initializer for total in sums))
        with session(graph) as sess:
            for batch in range(12):
                sess.run(add, {model.x: images(batch)})
                if batch % 2:
                    sess.run(update)
                    sess.run(reset)
                    for weight, mask in zip(
                        *sess.run([list(model.weights.values()), result.variables[:8:2]]), strict=True
                    ):
                        assert not weight[mask == 0].any(), batch


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_momentum_that_another_op_keeps_is_in_doubt(kind: str, masking: str, caplog: pytest.LogCaptureFixture) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        result = sparsekit.prune(graph, {"masking": masking, "update_freq": 2}, outputs=["y"])
        pairs = v1.train.GradientDescentOptimizer(0.1).compute_gradients(model.loss(), list(model.weights.values()))
        kept = [
            v1.get_variable(f"kept{i}", weight.shape, initializer=v1.zeros_initializer(), trainable=False)
            for i, (_, weight) in enumerate(pairs)
        ]
        keep = tf.group(*(v1.assign(m, 0.9 * m + g) for m, (g, _) in zip(kept, pairs, strict=True)))
        update = tf.group(*(v1.assign_sub(w, 0.5 * m) for m, (_, w) in zip(kept, pairs, strict=True)))
        update = result.project(update)
        assert caplog.text.count("updates the weight by what 'kept") == 4
        with session(graph) as sess:
            for batch in range(9):
                sess.run(keep, {model.x: images(batch)})
                sess.run(update)
                for weight, mask in zip(*sess.run([list(model.weights.values()), result.variables[:8:2]]), strict=True):
                    assert not weight[mask == 0].any(), batch


def test_what_follows_a_train_op_that_updates_no_layer_is_nothing_and_said_so_in_doubt(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        result = sparsekit.prune(graph, {"masking": "project"}, outputs=["y"])
        result.project(model.loss())
    assert "updates none of the masked layers" in caplog.text


def test_what_was_handed_over_may_be_handed_over_again(kind: str) -> None:
    trained = Trained("project", 2, sgd_step, after=lambda result, step: result.project(result.project(step)))
    for batch in range(4):
        trained.train(batch)
        trained.check()


def by_hand(loss: Any) -> Any:
    """Momentum as many write it: in a variable of their own, and assigned."""
    updates = []
    for weight in v1.trainable_variables():
        with v1.variable_scope("by_hand"):
            name = weight.op.name.replace("/", "_")
            momentum = v1.get_variable(name, weight.shape, initializer=v1.zeros_initializer(), trainable=False)
        (gradient,) = v1.gradients(loss, [weight], gate_gradients=True)
        following = 0.9 * momentum + gradient
        with tf.control_dependencies([following]):
            updates += [weight.assign(weight - 0.1 * following), momentum.assign(following)]
    return tf.group(*updates)


def accumulated(loss: Any) -> Any:
    """The update is by a sum that the same op adds to."""
    optimizer = v1.train.GradientDescentOptimizer(0.1)
    pairs = []
    for gradient, weight in optimizer.compute_gradients(loss):
        with v1.variable_scope("sums"):
            name = weight.op.name.replace("/", "_")
            total = v1.get_variable(name, weight.shape, initializer=v1.zeros_initializer(), trainable=False)
        pairs.append((v1.assign_add(total, gradient), weight))
    return optimizer.apply_gradients(pairs)


def in_a_cond(loss: Any) -> Any:
    optimizer = v1.train.MomentumOptimizer(0.1, 0.9)
    pairs = optimizer.compute_gradients(loss)
    return tf.group(v1.cond(loss < 1e9, lambda: optimizer.apply_gradients(pairs), tf.no_op))


@pytest.mark.parametrize(
    ("kind", "masking", "update"),
    [
        ("ref", "in-place", by_hand),
        ("resource", "project", by_hand),
        ("ref", "project", accumulated),
        ("resource", "in-place", accumulated),
        ("ref", "in-place", in_a_cond),
        ("resource", "project", in_a_cond),
    ],
    indirect=["kind"],
)
def test_zeros_stay_where_an_update_is_in_doubt(
    kind: str, masking: str, update: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    trained = Trained(masking, 2, update)
    assert caplog.text.count("update") >= 4
    for layer in LAYERS:
        assert f"{layer}: " in caplog.text
    assert "Zeros are written again after every step" in caplog.text
    start = trained.dense()
    for batch in range(6):
        trained.train(batch)
        trained.check()
    assert not np.array_equal(trained.dense()["net/fc"], start["net/fc"])


def test_what_a_layer_normalizes_with_is_no_momentum(kind: str) -> None:
    """Nor are averages of weights, a global step, or clipping by it: nothing is in doubt."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        training = v1.placeholder_with_default(True, [])
        w = variable("w", [8, 4])
        moving = v1.get_variable("moving", [4], initializer=v1.zeros_initializer(), trainable=False)
        frozen = v1.get_variable("frozen", [8, 8], initializer=v1.ones_initializer(), trainable=False)
        y = tf.matmul(tf.matmul(x, frozen), w, name="fc")
        mean = v1.cond(training, lambda: tf.reduce_mean(y, 0), moving.read_value)
        update_moving = v1.assign_sub(moving, 0.1 * (moving - tf.reduce_mean(y, 0)))
        result = sparsekit.prune(graph, {"masking": "in-place", "update_freq": 2, "skip_layers": ["MatMul"]})
        count = v1.train.get_or_create_global_step()
        rate = v1.train.exponential_decay(0.1, count, 10, 0.5)
        optimizer = v1.train.AdamOptimizer(rate)
        gradients, weights = zip(*optimizer.compute_gradients(tf.reduce_mean((y - mean) ** 2), [w]), strict=True)
        gradients, _ = tf.clip_by_global_norm(gradients, 0.1)
        with tf.control_dependencies([update_moving]):
            step = optimizer.apply_gradients(zip(gradients, weights, strict=True), global_step=count)
        average = v1.train.ExponentialMovingAverage(0.9)
        with tf.control_dependencies([step]):
            step = result.project(average.apply([w]))
        with session(graph) as sess:
            for batch in range(5):
                sess.run(step, {x: values([4, 8], batch)})
                weight, mask = sess.run([w, result.variables[0]])
                assert not weight[mask == 0].any()


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_the_weights_of_a_target_network_are_no_momentum(kind: str, masking: str) -> None:
    """It follows the network by moving averages, and the loss depends on it: nothing is in doubt."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        online, target = (variable(name, [8, 8], trainable=name == "online") for name in ("online", "target"))
        y, goal = (tf.matmul(x, weight, name=f"fc_{weight.op.name}") for weight in (online, target))
        result = sparsekit.prune(graph, {"masking": masking, "update_freq": 2})
        loss = tf.reduce_mean((y - 0.9 * tf.stop_gradient(goal) - 1.0) ** 2)
        follow = target.assign(0.9 * target + 0.1 * online)
        step = result.project(v1.train.AdamOptimizer(0.1).minimize(loss))
        with session(graph) as sess:
            for batch in range(5):
                sess.run(step, {x: values([4, 8], batch)})
                sess.run(follow)
                weight, mask = sess.run([online, result.variables[0]])
                assert (mask == 0).sum() == 32
                assert not weight[mask == 0].any()


# --- checkpoints and exports ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_what_was_stopped_and_restored_ends_with_the_very_weights(kind: str, masking: str, tmp_path: Path) -> None:
    """Before a choice, and after one."""
    whole, restored = (Trained(masking, 3, lambda loss: OPTIMIZERS["adam"]().minimize(loss)) for _ in range(2))
    with whole.graph.as_default():
        saver = v1.train.Saver()
        for batch in range(8):
            if batch in (2, 3):
                saver.save(whole.session, str(tmp_path / "stopped"), batch)
            whole.train(batch)
    expected = {name: bits(value) for name, value in whole.all().items()}
    with restored.graph.as_default():
        saver, initialize = v1.train.Saver(), v1.global_variables_initializer()
        for stopped in (2, 3):
            restored.session.run(initialize)
            saver.restore(restored.session, str(tmp_path / f"stopped-{stopped}"))
            for batch in range(stopped, 8):
                restored.train(batch)
            assert {name: bits(value) for name, value in restored.all().items()} == expected, stopped


@pytest.mark.parametrize(
    ("kind", "masking", "update_freq"),
    [("ref", "in-place", 0), ("ref", "project", 2), ("resource", "in-place", 2), ("resource", "project", 0)],
    indirect=["kind"],
)
def test_a_monitored_session_that_was_stopped_goes_on(
    kind: str, masking: str, update_freq: int, tmp_path: Path
) -> None:
    def run(last: int) -> None:
        with tf.Graph().as_default() as graph:
            model = conv_net()
            result = sparsekit.prune(graph, {"masking": masking, "update_freq": update_freq}, outputs=["y"])
            count = v1.train.get_or_create_global_step()
            step = v1.train.MomentumOptimizer(0.5, 0.9).minimize(model.loss(), global_step=count)
            step = result.project(step) if masking == "project" or update_freq else step
            variables, initialize = v1.global_variables(), v1.global_variables_initializer()
            hooks = [v1.train.StopAtStepHook(last_step=last)]
            with v1.train.MonitoredTrainingSession(checkpoint_dir=str(tmp_path), hooks=hooks) as sess:
                while not sess.should_stop():
                    batch = sess.run_step_fn(lambda step_context: step_context.session.run(count))
                    sess.run(step, {model.x: images(int(batch))})
                    found = sess.run_step_fn(lambda step_context: step_context.session.run(variables))
            with v1.Session() as sess:
                sess.run(initialize)
                for batch in range(last):
                    sess.run(step, {model.x: images(batch)})
                expected = sess.run(variables)
        for each, value, wanted in zip(variables, found, expected, strict=True):
            assert bits(value) == bits(wanted), (each.name, last)

    run(3)
    run(6)


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_a_frozen_graph_is_stripped_of_all_of_it(kind: str, masking: str) -> None:
    """After a choice nothing is due: no warning (see the fixture)."""
    trained = Trained(masking, 2, lambda loss: OPTIMIZERS["momentum"]().minimize(loss))
    with tf.Graph().as_default() as graph:
        conv_net()
        with session(graph) as sess:
            dense = freeze(sess, ["y"])
    for steps in (0, 1, 2):
        masked = freeze(trained.session, ["y"])
        stripped = sparsekit.strip(masked)
        assert sparsekit.verify(stripped).ok, steps
        assert b"sparsekit" not in stripped.SerializeToString().lower(), steps
        assert {node.name: node.op for node in stripped.node} == {node.name: node.op for node in dense.node}, steps
        feeds = {"x:0": images(99, batch=5)}
        assert np.array_equal(run_graph(masked, "y:0", feeds), run_graph(stripped, "y:0", feeds)), steps
        trained.train(steps)


@pytest.mark.parametrize(
    ("kind", "masking", "scope"),
    [
        ("ref", "in-place", None),
        ("ref", "project", "far/away"),
        ("resource", "in-place", "far/away"),
        ("resource", "project", None),
    ],
    indirect=["kind"],
)
def test_a_train_op_is_imported_with_what_follows_it(
    kind: str, masking: str, scope: str | None, tmp_path: Path
) -> None:
    trained = Trained(masking, 2, lambda loss: OPTIMIZERS["adam"]().minimize(loss))
    with trained.graph.as_default():
        v1.train.export_meta_graph(str(tmp_path / "trained.meta"))
    prefix = f"{scope}/" if scope else ""
    with tf.Graph().as_default() as graph:
        v1.train.import_meta_graph(str(tmp_path / "trained.meta"), import_scope=scope)
        with session(graph, fusions=False) as sess:
            for batch in range(5):
                trained.train(batch)
                sess.run(f"{prefix}{trained.step.name}", {f"{prefix}x:0": images(batch)})
            found = {v.op.name.removeprefix(prefix): bits(sess.run(v)) for v in v1.global_variables()}
    assert found == {name: bits(value) for name, value in trained.all().items()}


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_a_pruned_graph_is_imported_and_trains_as_forward(kind: str, masking: str, tmp_path: Path) -> None:
    """Nobody is there to hand the train op to."""
    forward = Trained("forward", 2, sgd_step)
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, {"masking": masking, "update_freq": 2}, outputs=["y"])
        v1.train.export_meta_graph(str(tmp_path / "pruned.meta"))
    with tf.Graph().as_default() as graph:
        v1.train.import_meta_graph(str(tmp_path / "pruned.meta"))
        y = graph.get_tensor_by_name("y:0")
        step = sgd_step(tf.reduce_mean(tf.square(y - 1.0)))
        names = [weight.op.name for weight in model.weights.values()]
        weights = {name: v for name in names for v in v1.trainable_variables() if v.op.name == name}
        with session(graph, fusions=False) as sess:
            for batch in range(5):
                forward.train(batch)
                sess.run(step, {"x:0": images(batch)})
            found = sess.run(weights)
    expected = forward.all()
    for name in names:
        assert np.array_equal(found[name], expected[name]), name


def test_a_calibrated_start_is_chosen_anew_when_it_is_due(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        with session(graph) as before:
            config = {"masking": "in-place", "update_freq": 3}
            result = sparsekit.prune(graph, config, outputs=["y"], calibration=images(1, batch=16), session=before)
        step = result.project(sgd_step(model.loss()))
        stored = list(result.variables[:8:2])
        with session(graph) as sess:
            result.start(sess)
            chosen = sess.run(stored)
            for batch in range(2):
                assert all(map(np.array_equal, sess.run(stored), chosen))
                sess.run(step, {model.x: images(batch)})
                for weight, mask in zip(sess.run(list(model.weights.values())), sess.run(stored), strict=True):
                    assert not weight[mask == 0].any()


# --- what is said ---------------------------------------------------------------------------------------------


def test_the_plan_says_what_masks_that_are_chosen_again_need(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        plan = sparsekit.plan(graph, {"masking": "in-place", "update_freq": 2}, outputs=["y"])
        assert "masks that are chosen again in the forward pass until a train op is built with result.project" in str(
            plan
        )
        assert "chosen again" not in str(sparsekit.plan(graph, {"masking": "in-place"}, outputs=["y"]))


@pytest.mark.parametrize("masking", IN_VARIABLE)
def test_a_weight_that_workers_share_is_masked_forward(kind: str, masking: str) -> None:
    with tf.Graph().as_default() as graph:
        with tf.device("/job:ps/task:0"):
            w = variable("w", [8, 4])
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), w, name="fc")
        plan = sparsekit.plan(graph, {"masking": masking, "update_freq": 2})
        assert "; forward for fc: masks that are chosen again move values between" in plan.masking
        assert "; forward" not in sparsekit.plan(graph, {"masking": masking}).masking
