"""From a masked frozen graph to the pruned one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import sparsekit
from sparsekit.errors import ModelError

v1 = tf.compat.v1

BOTH_KINDS = pytest.mark.parametrize("resource", [False, True], ids=["ref", "resource"])
WEIGHTS = {"conv": ("w1", 2), "deconv": ("w2", 3), "fc": ("w3", 0), "fc_t": ("w4", 1)}


def network(resource: bool = True) -> None:
    """One layer of each kind; x -> logits."""
    with v1.variable_scope("", use_resource=resource):
        x = v1.placeholder(tf.float32, [None, 6, 6, 3], name="x")
        h = tf.nn.relu(tf.nn.conv2d(x, v1.get_variable("w1", [3, 3, 3, 8]), 2, "SAME", name="conv"))
        shape = [tf.shape(h)[0], 6, 6, 12]
        h = tf.nn.conv2d_transpose(h, v1.get_variable("w2", [2, 2, 12, 8]), shape, 2, name="deconv")
        h = tf.reduce_mean(tf.nn.relu(h), [1, 2])
        h = tf.matmul(h, v1.get_variable("w3", [12, 10]), name="fc")
        h = tf.matmul(h, v1.get_variable("w4", [5, 10]), transpose_b=True, name="fc_t")
    tf.identity(h, name="logits")


class Frozen:
    """The same graph, frozen with its masks and without them, from the same values.

    Args:
        build: makes the graph; its placeholder is called x.
        outputs: to freeze for.
        cfg: to prune with.
        batches: to train for.
        data: what to feed.
    """

    def __init__(
        self,
        build: Callable[[], None],
        outputs: tuple[str, ...] = ("logits",),
        cfg: Any = None,
        batches: int = 2,
        data: np.ndarray | None = None,
        record: Path | None = None,
        after: Callable[[v1.Session], None] | None = None,
    ) -> None:
        self.outputs = outputs
        self.data = np.random.RandomState(0).randn(4, 6, 6, 3).astype(np.float32) if data is None else data
        v1.set_random_seed(1)
        with tf.Graph().as_default() as graph:
            build()
            dense_graph = graph.as_graph_def()
            names = [v.op.name for v in v1.global_variables()]
            self.result = sparsekit.prune(graph, cfg, outputs=outputs, record=record)
            inference = graph.as_graph_def()
            loss = tf.reduce_mean(tf.square(tf.cast(graph.get_tensor_by_name(f"{outputs[0]}:0"), tf.float32) - 1.0))
            train = v1.train.RMSPropOptimizer(1e-2).minimize(loss)
            with v1.Session() as session:
                session.run(v1.global_variables_initializer())
                for _ in range(batches):
                    session.run(train, {"x:0": self.data})
                if after:
                    after(session)
                self.values = {
                    v.op.name: value
                    for v, value in zip(v1.global_variables(), session.run(v1.global_variables()), strict=True)
                }
                self.masked = v1.graph_util.convert_variables_to_constants(session, inference, list(outputs))
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(dense_graph, name="")
            with v1.Session(graph=graph) as session:
                for name in names:
                    self._set(graph, session, name)
                self.dense = v1.graph_util.convert_variables_to_constants(session, dense_graph, list(outputs))

    def _set(self, graph: tf.Graph, session: v1.Session, name: str) -> None:
        variable = graph.get_tensor_by_name(f"{name}:0")
        value = tf.constant(self.values[name])
        if variable.dtype == tf.resource:
            session.run(tf.raw_ops.AssignVariableOp(resource=variable, value=value))
        else:
            session.run(tf.raw_ops.Assign(ref=variable, value=value).op)

    def run(self, graph_def: v1.GraphDef) -> list[np.ndarray]:
        with tf.Graph().as_default():
            tf.import_graph_def(graph_def, name="")
            with v1.Session() as session:
                return session.run([f"{name}:0" for name in self.outputs], {"x:0": self.data})

    def check_same_results(self, pruned: v1.GraphDef) -> None:
        for masked, stripped in zip(self.run(self.masked), self.run(pruned), strict=True):
            assert masked.dtype == stripped.dtype
            assert np.isfinite(masked.astype(np.float64)).all()
            np.testing.assert_array_equal(masked, stripped)


def constants(graph_def: v1.GraphDef) -> dict[str, np.ndarray]:
    return {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in graph_def.node if n.op == "Const"}


def mask_ops(graph_def: v1.GraphDef) -> list[str]:
    return [node.name for node in graph_def.node if "sparsekit" in node.name or "_sparsekit" in node.attr]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory) -> Frozen:
    """The network, trained for two batches; its record beside it."""
    record = tmp_path_factory.mktemp("frozen") / "record.txt"
    made = Frozen(network, record=record)
    made.record = record
    return made


@BOTH_KINDS
def test_the_pruned_graph_is_the_dense_one_node_for_node_with_zeros_in_its_weights(resource):
    frozen = Frozen(lambda: network(resource))
    pruned = sparsekit.strip(frozen.masked)
    assert mask_ops(frozen.masked)
    assert not mask_ops(pruned)
    assert [node.name for node in pruned.node] == [node.name for node in frozen.dense.node]
    dense_values, pruned_values = constants(frozen.dense), constants(pruned)
    for dense, node in zip(frozen.dense.node, pruned.node, strict=True):
        assert node.op == dense.op
        assert list(node.input) == list(dense.input)
        assert set(node.attr) == set(dense.attr)
        for key in dense.attr:
            if key != "value":
                assert node.attr[key] == dense.attr[key], (node.name, key)
    weights = {name for name, _ in WEIGHTS.values()}
    for name, value in pruned_values.items():
        if name not in weights:
            np.testing.assert_array_equal(value, dense_values[name])
            continue
        kept = value != 0
        # Kept weights are those of the checkpoint bit for bit; zeros are +0.0.
        np.testing.assert_array_equal(value[kept].view(np.uint32), frozen.values[name][kept].view(np.uint32))
        assert not value[~kept].view(np.uint32).any()
    for layer, (name, _) in WEIGHTS.items():
        mask = frozen.values[f"{layer}/sparsekit/mask"]
        np.testing.assert_array_equal(pruned_values[name] != 0, mask != 0)
        assert 0.4 < mask.mean() < 0.7
    assert pruned.versions == frozen.masked.versions
    frozen.check_same_results(pruned)


def test_the_masked_graph_is_not_modified(frozen):
    before = frozen.masked.SerializeToString(deterministic=True)
    sparsekit.strip(frozen.masked, record=frozen.record, outputs=["logits"])
    assert frozen.masked.SerializeToString(deterministic=True) == before


def test_a_path_does_as_well_as_a_graph_and_the_record_changes_nothing(frozen, tmp_path):
    path = tmp_path / "masked.pb"
    path.write_bytes(frozen.masked.SerializeToString())
    pruned = sparsekit.strip(frozen.masked)
    assert sparsekit.strip(path) == pruned
    assert sparsekit.strip(str(path), record=frozen.record) == pruned
    assert sparsekit.strip(path, record=str(frozen.record), outputs="logits:0") == pruned
    assert path.read_bytes() == frozen.masked.SerializeToString()


@BOTH_KINDS
@pytest.mark.parametrize("criterion", ["magnitude", "random", "inverted"])
@pytest.mark.parametrize("update_freq", [0, 3])
def test_a_graph_that_was_never_trained_keeps_what_it_would_choose(resource, criterion, update_freq, caplog):
    frozen = Frozen(lambda: network(resource), cfg={"criterion": criterion, "update_freq": update_freq}, batches=0)
    assert all(frozen.values[f"{layer}/sparsekit/batch"] == 0 for layer in WEIGHTS)
    with caplog.at_level(logging.INFO, "sparsekit"):
        pruned = sparsekit.strip(frozen.masked)
    frozen.check_same_results(pruned)
    assert sparsekit.verify(pruned).ok
    assert "due" not in caplog.text


# As bits: half of them from a few values that tie, the rest any float there is.
TYING = np.array([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 1e-39, 3e38, -3e38], np.float32).view(np.uint32)


@settings(max_examples=40, deadline=None)
@given(
    npst.arrays(
        np.uint32,
        (12, 3),
        elements=st.one_of(st.sampled_from([int(bits) for bits in TYING]), st.integers(0, 2**32 - 1)),
    )
)
def test_any_weights_are_folded_as_the_masked_graph_chooses(bits):
    weight = bits.view(np.float32)
    weight = np.where(np.isfinite(weight), weight, np.float32(1))
    masked = _one_layer(weight)
    pruned = constants(sparsekit.strip(masked))["w"]
    with tf.Graph().as_default():
        tf.import_graph_def(masked, name="")
        with v1.Session() as session:
            used = session.run("fc/sparsekit/used:0")
    expected = np.where(used != 0, weight, np.float32(0))
    np.testing.assert_array_equal(pruned.view(np.uint32), expected.view(np.uint32))


def _one_layer(weight: np.ndarray) -> v1.GraphDef:
    """One dense layer with a mask, never trained, frozen by hand: one template, other weights."""
    if not _TEMPLATE:
        with tf.Graph().as_default() as graph, v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 12], name="x")
            tf.identity(tf.matmul(x, v1.get_variable("w", [12, 3]), name="fc"), name="logits")
            sparsekit.prune(graph, outputs=["logits"])
            session.run(v1.global_variables_initializer())
            _TEMPLATE.append(v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"]))
    masked = v1.GraphDef.FromString(_TEMPLATE[0].SerializeToString())
    node = next(node for node in masked.node if node.name == "w")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weight))
    return masked


_TEMPLATE: list[v1.GraphDef] = []


@pytest.mark.parametrize(("batches", "due"), [(1, False), (2, True), (3, False), (4, True)])
def test_a_trained_graph_keeps_the_stored_masks_even_where_new_ones_were_due(batches, due, caplog):
    def turn_the_weights_round(session: v1.Session) -> None:
        for variable in v1.trainable_variables():
            weight = session.run(variable)
            session.run(variable.assign(1.0 / (weight + np.where(weight < 0, -1e-3, 1e-3).astype(np.float32))))

    frozen = Frozen(network, cfg={"update_freq": 2}, batches=batches, after=turn_the_weights_round)
    with caplog.at_level(logging.INFO, "sparsekit"):
        pruned = constants(sparsekit.strip(frozen.masked))
    for layer, (name, _) in WEIGHTS.items():
        assert frozen.values[f"{layer}/sparsekit/batch"] == batches
        np.testing.assert_array_equal(pruned[name] != 0, frozen.values[f"{layer}/sparsekit/mask"] != 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if due:
        assert len(warnings) == 1
        assert warnings[0].startswith(
            "4 of 4 layers were due for a new mask when the graph was frozen or exported (update_freq)"
        )
    else:
        assert not warnings


@BOTH_KINDS
def test_a_loss_that_was_frozen_with_the_graph_goes_on_reading_the_dense_weight(resource):
    def build() -> None:
        network(resource)
        with v1.variable_scope("", reuse=True):
            tf.identity(tf.add_n([tf.nn.l2_loss(v) for v in v1.trainable_variables()[:2]]), name="loss")

    frozen = Frozen(build, outputs=("logits", "loss"))
    pruned = sparsekit.strip(frozen.masked)
    frozen.check_same_results(pruned)
    values = constants(pruned)
    np.testing.assert_array_equal(values["w1"], frozen.values["w1"])
    np.testing.assert_array_equal(values["w1_pruned"] != 0, frozen.values["conv/sparsekit/mask"] != 0)
    # Layers whose weight nobody else reads need no second constant.
    assert sorted(name for name in values if name.endswith("_pruned")) == ["w1_pruned", "w2_pruned"]
    assert sparsekit.verify(pruned).ok


@BOTH_KINDS
@pytest.mark.parametrize(
    "through_identity",
    [True, False],
)
def test_a_weight_that_is_a_result_itself_stays_dense(resource, through_identity):
    result = "w_out" if through_identity else ("w3/read" if not resource else "fc/ReadVariableOp")

    def build() -> None:
        network(resource)
        if through_identity:
            tf.identity(v1.get_default_graph().get_operation_by_name("fc").inputs[1], name="w_out")

    frozen = Frozen(build, outputs=("logits", result))
    pruned = sparsekit.strip(frozen.masked, outputs=frozen.outputs)
    frozen.check_same_results(pruned)
    np.testing.assert_array_equal(frozen.run(pruned)[1], frozen.values["w3"])


def test_a_name_that_is_taken_is_not_used_for_the_second_constant():
    def build() -> None:
        network()
        taken = tf.constant(2.0, name="w1_pruned")
        tf.identity(taken * tf.nn.l2_loss(v1.trainable_variables()[0]), name="loss")

    frozen = Frozen(build, outputs=("logits", "loss"))
    pruned = sparsekit.strip(frozen.masked)
    frozen.check_same_results(pruned)
    assert constants(pruned)["w1_pruned"] == 2


@BOTH_KINDS
def test_a_weight_of_two_layers_is_folded_once(resource):
    def build() -> None:
        with v1.variable_scope("", use_resource=resource):
            x = v1.placeholder(tf.float32, [None, 8], name="x")
            w = v1.get_variable("w", [8, 8])
            h = tf.matmul(tf.nn.relu(tf.matmul(x, w, name="first")), w, name="second")
            tf.identity(h, name="logits")

    frozen = Frozen(build, data=np.random.RandomState(0).randn(4, 8).astype(np.float32))
    pruned = sparsekit.strip(frozen.masked)
    frozen.check_same_results(pruned)
    assert [node.name for node in pruned.node] == [node.name for node in frozen.dense.node]
    assert sparsekit.verify(pruned).ok


def through_cast() -> tf.Tensor:
    w = v1.get_variable("w", [8, 5])
    return tf.cast(tf.matmul(tf.cast(_x(), tf.bfloat16), tf.cast(w, tf.bfloat16), name="fc"), tf.float32)


def through_transpose() -> tf.Tensor:
    return tf.matmul(_x(), tf.transpose(v1.get_variable("w", [5, 8])), name="fc")


def through_reshape() -> tf.Tensor:
    return tf.matmul(_x(), tf.reshape(v1.get_variable("w", [8, 1, 5]), [8, 5]), name="fc")


def double() -> tf.Tensor:
    w = v1.get_variable("w", [8, 5], tf.float64)
    return tf.cast(tf.matmul(tf.cast(_x(), tf.float64), w, name="fc"), tf.float32)


def partitioned() -> tf.Tensor:
    w = v1.get_variable("w", [8, 6], partitioner=v1.fixed_size_partitioner(3, axis=1), use_resource=False)
    return tf.matmul(_x(), w, name="fc")


def splat() -> tf.Tensor:
    # Stored as one float_val; all ties: the first two of each group stay.
    return tf.matmul(_x() * v1.get_variable("scale", []), tf.constant(0.5, shape=[8, 5], name="w"), name="fc")


def _x() -> tf.Tensor:
    return v1.placeholder(tf.float32, [None, 8], name="x")


@pytest.mark.parametrize(
    "layer", [through_cast, through_transpose, through_reshape, double, partitioned, splat], ids=lambda f: f.__name__
)
def test_weights_are_folded_where_they_are_stored(layer):
    frozen = Frozen(
        lambda: tf.identity(layer(), name="logits"), data=np.random.RandomState(0).randn(4, 8).astype(np.float32)
    )
    assert [d.name for d in frozen.result.plan.pruned] == ["fc"]
    pruned = sparsekit.strip(frozen.masked)
    frozen.check_same_results(pruned)
    assert [node.name for node in pruned.node] == [node.name for node in frozen.dense.node]
    for before, after in zip(frozen.dense.node, pruned.node, strict=True):
        assert before.attr["dtype"] == after.attr["dtype"]
        assert before.attr["value"].tensor.tensor_shape == after.attr["value"].tensor.tensor_shape
    found = sparsekit.verify(pruned)
    assert found.ok
    assert found.layers[0].density == 0.5


@pytest.mark.parametrize("pattern", ["1:4", "4:8", "2:4"])
def test_other_patterns_are_folded_too(pattern):
    frozen = Frozen(network, cfg={"pattern": pattern})
    pruned = sparsekit.strip(frozen.masked)
    frozen.check_same_results(pruned)
    assert sparsekit.verify(pruned, cfg={"pattern": pattern}).ok


def test_the_function_library_is_kept():
    @tf.function
    def doubled(value: tf.Tensor) -> tf.Tensor:
        return value * 2.0

    with tf.Graph().as_default() as graph, v1.Session() as session:
        h = tf.matmul(v1.placeholder(tf.float32, [None, 8], name="x"), v1.get_variable("w", [8, 5]), name="fc")
        tf.identity(doubled(h), name="logits")
        sparsekit.prune(graph, outputs=["logits"])
        session.run(v1.global_variables_initializer())
        masked = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
        # The conversion keeps the call and its function.
        assert masked.library.function
        data = np.random.RandomState(0).randn(3, 8).astype(np.float32)
        expected = session.run("logits:0", {"x:0": data})
    pruned = sparsekit.strip(masked)
    assert pruned.library == masked.library
    with tf.Graph().as_default():
        tf.import_graph_def(pruned, name="")
        with v1.Session() as session:
            np.testing.assert_array_equal(session.run("logits:0", {"x:0": data}), expected)


def test_devices_and_debug_information_stay(frozen):
    masked = v1.GraphDef.FromString(frozen.masked.SerializeToString())
    for node in masked.node:
        node.device = "/device:CPU:0"
        node.experimental_debug_info.original_node_names.append(f"original/{node.name}")
    pruned = sparsekit.strip(masked)
    for node in pruned.node:
        assert node.device == "/device:CPU:0"
        assert list(node.experimental_debug_info.original_node_names) == [f"original/{node.name}"]


def test_an_op_outside_that_reads_a_mask_is_refused_and_named(frozen):
    masked = v1.GraphDef.FromString(frozen.masked.SerializeToString())
    for text in ("fc/sparsekit/mask", "^fc/sparsekit/masked"):
        spy = masked.node.add(name="spy", op="NoOp" if text.startswith("^") else "Identity", input=[text])
        if spy.op == "Identity":
            spy.attr["T"].type = 1
        with pytest.raises(ModelError, match=r"spy: reads '\^?fc/sparsekit/mask(ed)?', an op of the mask.* Freeze the"):
            sparsekit.strip(masked)
        del masked.node[-1]


def test_an_output_that_is_an_op_of_a_mask_is_refused(frozen):
    with pytest.raises(ModelError, match="outputs: 'fc/sparsekit/masked' is an op of a mask"):
        sparsekit.strip(frozen.masked, outputs=["fc/sparsekit/masked"])


def test_a_pruned_graph_that_is_pruned_again_gives_the_same_weights(frozen):
    """Masks chosen from a 2:4 weight are the mask it already has."""
    pruned = sparsekit.strip(frozen.masked)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        tf.import_graph_def(pruned, name="")
        sparsekit.prune(graph, outputs=["logits"])
        session.run(v1.global_variables_initializer())
        again = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
    assert sparsekit.strip(again) == pruned
