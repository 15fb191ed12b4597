"""Small sound models of every format that the readers know, to be damaged."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from small_graphs import settings_of

v1 = tf.compat.v1


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@functools.cache
def graph_def() -> bytes:
    """Layers of all kinds; weights behind casts, layouts, concatenations, calls, conds and loops; one with a mask."""
    import sparsekit

    with settings_of("resource", "v2"), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4, 4, 4], name="x")
        y = tf.nn.relu(tf.nn.conv2d(x, normal(1, 1, 4, 8), 1, "SAME", name="conv"))
        y = tf.nn.depthwise_conv2d(y, normal(1, 1, 8, 1), [1, 1, 1, 1], "SAME", name="depthwise")
        y = tf.reshape(y, [tf.shape(y)[0], -1, 8])
        y = tf.einsum("abc,cd->abd", y, tf.reshape(tf.constant(normal(4, 2, 8)), [8, 8]), name="einsum")
        y = tf.reduce_mean(y, 1)
        y = tf.matmul(y, tf.transpose(tf.cast(tf.constant(normal(8, 8).astype(np.float16)), tf.float32)), name="cast")
        y = tf.matmul(y, tf.concat([tf.constant(normal(4, 8)), tf.constant(normal(4, 8) + 1)], 0), name="parts")
        w = tf.constant(normal(8, 8))
        y = tf.cond(tf.reduce_sum(y) > 0, lambda: tf.matmul(y, w, name="yes"), lambda: tf.matmul(y, w, name="no"))
        y, _ = tf.while_loop(lambda y, i: i < 3, lambda y, i: (tf.matmul(y, w, name="turn"), i + 1), [y, 0])
        y = tf.matmul(y, v1.get_variable("kernel", initializer=normal(8, 4)), name="masked")
        tf.identity(y, name="out")
        sparsekit.prune(graph, {"skip_layers": ["[!m]*"]}, outputs=["out"])
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            return bytes(
                v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["out"]).SerializeToString()
            )


class _Module(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.other = tf.Variable(normal(8, 8)), tf.Variable(normal(8, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 8])])
    def serve(self, x: Any) -> Any:
        return tf.matmul(tf.nn.relu(tf.matmul(x, self.kernel)), self.other)


@functools.cache
def saved_model() -> dict[str, bytes]:
    """The files of a SavedModel by their paths in it."""
    module = _Module()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": module.serve})
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@functools.cache
def tflite() -> bytes:
    function = tf.function(lambda x: tf.matmul(tf.nn.relu(tf.matmul(x, normal(8, 8))), normal(8, 4)))
    concrete = function.get_concrete_function(tf.TensorSpec([2, 8], tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], function)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


@functools.cache
def onnx() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    stored = {
        "w": normal(8, 8),
        "q": np.arange(64, dtype=np.int8).reshape(8, 8),
        "zero": np.int8(3),
        "scale": np.float32(0.1),
        "order": np.array([8, 8]),
        "k": normal(4, 8, 1),
    }
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["a"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Reshape", ["d", "order"], ["r"]),
        helper.make_node("Gemm", ["a", "r"], ["b"], transB=1),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(normal(8, 8))),
        helper.make_node("Einsum", ["b", "c"], ["e"], equation="ij,jk->ik"),
        helper.make_node("Unsqueeze", ["e", "two"], ["u"]),
        helper.make_node("Conv", ["u", "k"], ["y"]),
    ]
    stored["two"] = np.array([2])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return bytes(helper.make_model(graph).SerializeToString())
