"""A mask in a live graph: its values, its state, and that nothing around it can touch it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import LAYERS, VARIABLE_OPS, bits, conv_net, counts, images, masks, session, sgd, values, variable
from tensorflow.python.framework import kernels

import sparsekit
from sparsekit.live.mask import MaskDescription, keep_tensor
from sparsekit.pattern import Pattern, keep_mask

v1 = tf.compat.v1
PATTERNS = [Pattern.parse(text) for text in ("2:4", "1:4", "4:8", "1:2", "3:5")]
ODD = [0.0, -0.0, 1.0, -1.0, 1e-45, -3e-45, 1e-38, -1e-38, 2.0, 0.5, float("inf")]


def in_graph(score: Any, axis: int, pattern: Pattern) -> Any:
    with tf.Graph().as_default():
        fed = v1.placeholder(score.dtype, score.shape)
        with v1.Session() as sess:
            return sess.run(keep_tensor(fed, axis, pattern), {fed: score})


def tricky(shape: tuple[int, ...], seed: int, dtype: Any = np.float32) -> Any:
    """Ties, zeros of either sign, and denormals of both sizes, among ordinary values."""
    generator = np.random.default_rng(seed)
    tiny = np.finfo(dtype).smallest_subnormal
    return np.where(
        generator.random(shape) < 0.5,
        generator.choice(np.array([0.0, -0.0, 0.5, -0.5, tiny, -2 * tiny, 3 * tiny, 1.0], dtype), shape),
        generator.standard_normal(shape).astype(dtype),
    ).astype(dtype)


# --- values ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_masks_in_a_graph_equal_those_of_numpy(
    shape: list[int], axis: int, pattern: Pattern, seed: int, dtype: Any
) -> None:
    weight = tricky(tuple(shape), seed, dtype)
    axis %= len(shape)
    assert np.array_equal(in_graph(weight, axis, pattern), keep_mask(weight, axis, pattern))


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_tail_along_every_axis(length: int, axis: int) -> None:
    shape = [3, 5, 2]
    shape[axis] = length
    weight = tricky(tuple(shape), length)
    assert np.array_equal(in_graph(weight, axis, Pattern(2, 4)), keep_mask(weight, axis))


def test_denormals_are_ranked_though_tensorflow_flushes_them() -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    weight = np.array([tiny, 3 * tiny, 0.0, 2 * tiny], np.float32)
    with tf.Graph().as_default(), v1.Session() as sess:
        fed = v1.placeholder(tf.float32, [4])
        assert not sess.run(tf.maximum(fed, 0.0) > 0.0, {fed: weight}).any()
    assert in_graph(weight, 0, Pattern(2, 4)).tolist() == [False, True, False, True]


@settings(max_examples=60, deadline=None)
@given(group=st.lists(st.sampled_from(ODD), min_size=4, max_size=4))
def test_odd_values_in_one_group(group: list[float]) -> None:
    weight = np.array(group, np.float32)
    assert np.array_equal(in_graph(weight, 0, Pattern(2, 4)), keep_mask(weight, 0))


@pytest.mark.parametrize("seed", range(3))
def test_every_layer_of_a_trained_graph_stores_the_mask_of_its_weights(kind: str, seed: int) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, outputs=["y"])
        step = sgd(model.loss())
        with session(graph) as sess:
            start = {layer: tricky(tuple(w.shape), seed) for layer, w in model.weights.items()}
            for layer, weight in model.weights.items():
                weight.load(start[layer], sess)
            sess.run(step, {model.x: images()})
            stored = masks(sess, LAYERS)
    for layer in LAYERS:
        expected = keep_mask(start[layer], model.axes[layer])
        assert np.array_equal(stored[layer], expected), layer
        assert not expected.all()


@pytest.mark.parametrize("frequency", [0, 2])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("masking", ["forward", "in-place", "project"])
def test_every_op_that_is_colocated_with_the_weight_can_be_where_it_is(
    kind: str, masking: str, dtype: Any, frequency: int
) -> None:
    """One op without a kernel for the GPU would take the whole colocation group, weight included, to the CPU."""
    if not any(kernel.device_type == "GPU" for kernel in kernels.get_registered_kernels_for_op("Mul").kernel):
        pytest.skip("this TensorFlow was built without GPU kernels")
    with tf.Graph().as_default() as graph:
        y = tf.matmul(v1.placeholder(dtype, [None, 11]), variable("w", [11, 4], dtype=dtype), name="fc")
        result = sparsekit.prune(graph, {"update_freq": frequency, "masking": masking})
        step = sgd(tf.reduce_mean(y**2))
        if masking == "project" or (masking == "in-place" and frequency):
            result.project(step)
        inserted = [
            op for op in graph.get_operations() if b"loc:@w" in op.colocation_groups() and "sparsekit" in op.name
        ]
    assert len(inserted) > 20
    assert [op.name for op in inserted if not _runs_on_gpu(op)] == []


def _runs_on_gpu(op: Any) -> bool:
    for kernel in kernels.get_registered_kernels_for_op(op.type).kernel:
        if kernel.device_type in ("GPU", "DEFAULT") and all(
            op.get_attr(constraint.name).as_datatype_enum in constraint.allowed_values.list.type
            for constraint in kernel.constraint
        ):
            return True
    return False


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_masks_have_the_dtype_of_the_weight(kind: str, dtype: Any, pattern: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(dtype, [None, 11])
        w = variable("w", [11, 3], dtype=dtype)
        y = tf.matmul(x, w, name="fc")
        result = sparsekit.prune(graph, {"pattern": pattern})
        assert result.variables[0].dtype.base_dtype == dtype
        step = sgd(tf.reduce_mean(y**2))
        with session(graph) as sess:
            start = sess.run(w)
            sess.run(step, {x: values([2, 11], dtype=dtype.as_numpy_dtype)})
            assert np.array_equal(masks(sess, ["fc"])["fc"], keep_mask(start, 0, Pattern.parse(pattern)))


@pytest.mark.parametrize(("length", "pattern"), [(1, "2:4"), (2, "2:4"), (1, "1:4"), (4, "4:8")])
def test_an_axis_without_a_group_is_skipped(kind: str, length: int, pattern: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, length])
        tf.matmul(x, variable("w", [length, 8]), name="fc")
        result = sparsekit.prune(graph, {"pattern": pattern})
    assert [(d.name, d.status, d.reason) for d in result.plan.decisions] == [("fc", "skip", "axis-too-short")]
    assert str(length) in result.plan.decisions[0].message
    assert result.variables == ()


def test_an_axis_of_three_keeps_two(kind: str) -> None:
    """The first convolution of an image network."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4, 4, 3])
        w = variable("w", [3, 3, 3, 4])
        y = tf.nn.conv2d(x, w, 1, "SAME", name="conv")
        sparsekit.prune(graph)
        step = sgd(tf.reduce_mean(y**2))
        with session(graph) as sess:
            start = sess.run(w)
            sess.run(step, {x: values([2, 4, 4, 3])})
            stored = masks(sess, ["conv"])["conv"]
    assert np.array_equal(stored, keep_mask(start, 2))
    assert (stored.sum(axis=2) == 2).all()


def test_a_grouped_convolution_is_pruned_within_its_groups(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 5, 5, 16])
        w = variable("w", [3, 3, 8, 6])
        y = tf.nn.conv2d(x, w, 1, "SAME", name="grouped")
        (decision,) = sparsekit.prune(graph).plan.pruned
        assert (decision.shape, decision.axis) == ((3, 3, 8, 6), 2)
        step = sgd(tf.reduce_mean(y**2))
        with session(graph) as sess:
            start = sess.run(w)
            sess.run(step, {x: values([1, 5, 5, 16])})
            assert np.array_equal(masks(sess, ["grouped"])["grouped"], keep_mask(start, 2))


# --- state -----------------------------------------------------------------------------------------------


def test_state_is_global_and_nothing_else(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        before = {key: list(graph.get_collection(key)) for key in graph.get_all_collection_keys()}
        result = sparsekit.prune(graph, outputs=["y"])
        names = {f"{layer}/sparsekit/{name}" for layer in LAYERS for name in ("mask", "batch")}
        assert {v.op.name for v in result.variables} == names
        assert {v.op.type for v in result.variables} == {VARIABLE_OPS[kind]}
        assert not any(v.trainable for v in result.variables)
        added = {
            key: [item for item in graph.get_collection(key) if not any(item is old for old in before.get(key, ()))]
            for key in graph.get_all_collection_keys()
        }
    assert {key: items for key, items in added.items() if items} == {
        v1.GraphKeys.GLOBAL_VARIABLES: list(result.variables)
    }


def test_a_batch_count_is_an_int64_scalar_that_starts_at_zero(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        result = sparsekit.prune(graph, outputs=["y"])
        with session(graph) as sess:
            assert counts(sess, LAYERS) == [0, 0, 0, 0]
            assert all(mask.min() == mask.max() == 1 for mask in masks(sess, LAYERS).values())
    assert {(v.dtype.base_dtype, v.shape.rank) for v in result.variables if "batch" in v.name} == {(tf.int64, 0)}


def test_the_count_has_a_single_reader(kind: str) -> None:
    """A ref variable's read is its own buffer: a second reader could see the count after it was raised."""
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, {"update_freq": 2}, outputs=["y"])
        sgd(model.loss())
        for layer in LAYERS:
            (batch,) = (v for v in v1.global_variables() if v.op.name == f"{layer}/sparsekit/batch")
            read = "Identity" if kind == "ref" else "ReadVariableOp"
            reads = [op for op in batch.op.outputs[0].consumers() if op.type == read]
            readers = {reader.name for op in reads for reader in op.outputs[0].consumers()}
            assert readers == {f"{layer}/sparsekit/next"}


def test_state_lies_beside_the_weight(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        with tf.device("/job:ps/task:1"):
            w = variable("w", [8, 4])
        with tf.device("/job:worker/task:0"):
            tf.matmul(x, w, name="fc")
            result = sparsekit.prune(graph)
    for op in (v.op for v in result.variables):
        assert op.colocation_groups() == [b"loc:@w"]
        assert op.device == w.op.device


def test_the_initializer_initializes_the_new_variables_alone(kind: str) -> None:
    weight = values([8, 4], 7)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [8, 4])
        y = tf.matmul(x, w, name="fc")
        result = sparsekit.prune(graph)
        with v1.Session() as sess:
            w.load(weight, sess)
            unset = {name.decode() for name in sess.run(v1.report_uninitialized_variables())}
            assert unset == {"fc/sparsekit/mask", "fc/sparsekit/batch"}
            sess.run(result.initializer)
            assert sess.run(v1.report_uninitialized_variables()).size == 0
            assert bits(sess.run(w)) == bits(weight)
            data = values([2, 8])
            assert np.allclose(sess.run(y, {x: data}), data @ (weight * keep_mask(weight, 0)), atol=1e-5)


# --- what is around the call ------------------------------------------------------------------------------


class _Refused(Exception):
    pass


def _refuse(*_: Any, **__: Any) -> Any:
    raise _Refused("a setting of the caller reached a mask")


SURROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "variable_scope": lambda graph: v1.variable_scope("caller"),
    "reuse": lambda graph: v1.variable_scope("caller", reuse=True),
    "regularizer": lambda graph: v1.variable_scope("caller", regularizer=_refuse),
    "partitioner": lambda graph: v1.variable_scope("caller", partitioner=v1.fixed_size_partitioner(2)),
    "custom_getter": lambda graph: v1.variable_scope("caller", custom_getter=_refuse),
    "initializer": lambda graph: v1.variable_scope("caller", initializer=_refuse),
    "creator": lambda graph: v1.variable_creator_scope(_refuse),
    "use_resource": lambda graph: v1.variable_scope("caller", use_resource=True),
    "no_resource": lambda graph: v1.variable_scope("caller", use_resource=False),
    "name_scope": lambda graph: tf.name_scope("caller"),
    "device": lambda graph: tf.device("/job:caller/device:CPU:7"),
    "control_dependencies": lambda graph: graph.control_dependencies([tf.no_op("caller")]),
    "colocate_with": lambda graph: v1.colocate_with(tf.no_op("caller")),
    "gradient_override": lambda graph: graph.gradient_override_map({"Mul": "Caller"}),
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_settings_around_the_call_do_not_reach_the_masks(kind: str, surrounding: str) -> None:
    plain = _pruned_nodes(lambda graph: contextlib.nullcontext())
    assert plain
    assert _pruned_nodes(SURROUNDINGS[surrounding]) == plain


def _pruned_nodes(around: Callable[[Any], Any]) -> dict[str, str]:
    """The nodes that pruning adds to a graph, and their definitions, by name."""
    with tf.Graph().as_default() as graph:
        conv_net()
        with around(graph):
            old = {op.name for op in graph.get_operations()}
            sparsekit.prune(graph, outputs=["y"])
        assert all(op._get_control_flow_context() is None for op in graph.get_operations())
        return {node.name: str(node) for node in graph.as_graph_def().node if node.name not in old}


@pytest.mark.parametrize("structure", ["cond", "loop"])
def test_control_flow_around_the_call_does_not_reach_the_masks(kind: str, structure: str) -> None:
    """Only possible in v1 control flow: the branch of a v2 cond is another graph."""
    plain = _pruned_nodes(lambda graph: contextlib.nullcontext())
    with tf.Graph().as_default() as graph:
        conv_net()
        v1.disable_control_flow_v2()
        seen: set[str] = set()
        inside: set[str] = set()

        def branch() -> Any:
            seen.update(op.name for op in graph.get_operations())
            sparsekit.prune(graph, outputs=["y"])
            inside.update(op.name for op in graph.get_operations() if op.name not in seen)
            return tf.constant(1.0)

        if structure == "cond":
            v1.cond(v1.placeholder(tf.bool, []), branch, lambda: tf.constant(0.0), name="caller")
        else:
            v1.while_loop(lambda i: i < 3.0, lambda i: i + branch(), [0.0], name="caller")
        assert all(graph.get_operation_by_name(name)._get_control_flow_context() is None for name in inside)
        added = {node.name: str(node) for node in graph.as_graph_def().node if node.name in inside}
    assert added == plain


@pytest.mark.parametrize("training", [True, False])
def test_training_and_inference_graphs_have_the_same_new_variables(kind: str, training: bool) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        with v1.variable_scope("a"):
            h = tf.matmul(x, variable("w", [8, 8]), name="MatMul")
        if training:
            h = tf.nn.dropout(h, rate=0.5)
        with v1.variable_scope("b"):
            tf.matmul(h, variable("w", [8, 4]), name="MatMul")
        result = sparsekit.prune(graph)
    expected = [f"{scope}/MatMul/sparsekit/{name}" for scope in "ab" for name in ("mask", "batch")]
    assert [v.op.name for v in result.variables] == expected


# --- size ------------------------------------------------------------------------------------------------


def _meta_graph(size: int, pruned: bool) -> Any:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, size])
        w = v1.get_variable("w", [size, size], initializer=v1.zeros_initializer())
        y = tf.matmul(x, w, name="fc")
        if pruned:
            sparsekit.prune(graph)
        sgd(tf.reduce_mean(y))
        return v1.train.export_meta_graph()


def test_a_meta_graph_does_not_grow_with_the_weights(kind: str) -> None:
    growth = [_meta_graph(size, True).ByteSize() - _meta_graph(size, False).ByteSize() for size in (64, 2048)]
    assert growth[0] > 0
    assert abs(growth[1] - growth[0]) < 200  # the digits of the sizes


def test_no_inserted_node_holds_a_large_attribute(kind: str) -> None:
    meta_graph = _meta_graph(2048, True)
    sizes = {
        f"{node.name} {key}": attribute.ByteSize()
        for node in meta_graph.graph_def.node
        for key, attribute in node.attr.items()
    }
    assert max(sizes.values()) < 600, max(sizes, key=lambda name: sizes[name])


def test_a_description_survives_as_text() -> None:
    description = MaskDescription(Pattern(3, 5), 2, "magnitude", 7)
    assert MaskDescription.from_text(description.to_text()) == description
