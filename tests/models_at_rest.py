"""Small models at rest, of every kind, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def frozen(seed: int = 0) -> Any:
    """conv [3, 3, 4, 8] -> transposed conv [2, 2, 6, 8] -> batch matmul [6, 5] -> matmul [5, 9], constants."""
    random = np.random.RandomState(seed)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 4, 4, 4], name="x")
        y = tf.nn.relu(tf.nn.conv2d(x, random.randn(3, 3, 4, 8).astype("f"), 1, "SAME", name="conv"))
        y = tf.nn.conv2d_transpose(y, random.randn(2, 2, 6, 8).astype("f"), [2, 8, 8, 6], 2, name="deconv")
        y = tf.raw_ops.BatchMatMulV2(x=tf.reshape(y, [2, 64, 6]), y=random.randn(6, 5).astype("f"), name="dense")
        y = tf.matmul(tf.reduce_mean(y, 1), random.randn(5, 9).astype("f"), name="head")
        tf.identity(y, "out")
    return graph.as_graph_def()


def run(graph_def: Any, x: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default(), v1.Session() as session:
        (out,) = tf.import_graph_def(graph_def, return_elements=["out:0"])
        return session.run(out, {"import/x:0": x})


def in_functions() -> Any:
    """One function called with two weights, one with a constant inside called twice, a While with a weight."""

    @tf.function(input_signature=[tf.TensorSpec([None, 8]), tf.TensorSpec([8, 8])])
    def product(x: Any, w: Any) -> Any:
        return tf.matmul(x, w, name="given")

    @tf.function(input_signature=[tf.TensorSpec([None, 8])])
    def inside(x: Any) -> Any:
        return tf.matmul(x, tf.constant(np.random.RandomState(9).randn(8, 8).astype("f")), name="own")

    random = np.random.RandomState(3)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 8], name="x")
        y = product(product(x, random.randn(8, 8).astype("f")), random.randn(8, 8).astype("f"))
        y = inside(inside(y))
        looped = tf.constant(random.randn(8, 8).astype("f"))
        v1.enable_control_flow_v2()
        y = tf.while_loop(lambda i, s: i < 2, lambda i, s: (i + 1, tf.tanh(tf.matmul(s, looped, name="turn"))), [0, y])[
            1
        ]
        tf.identity(y, "out")
    return graph.as_graph_def()


def keras_export(folder: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.Conv2DTranspose(6, 2, strides=2),
            layers.Reshape((256, 6)),
            layers.Conv1D(4, 3),
            layers.Dense(12, activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(5),
        ]
    )
    model.export(str(folder), verbose=False)


def module_export(folder: Path) -> None:
    class Net(tf.Module):
        def __init__(self) -> None:
            random = np.random.RandomState(0)
            self.a = tf.Variable(random.randn(192, 16).astype("f"))
            self.b = tf.Variable(random.randn(16, 5).astype("f"))

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3])])
        def serve(self, x: Any) -> Any:
            return tf.nn.relu(tf.reshape(x, [-1, 192]) @ self.a) @ self.b

    net = Net()
    tf.saved_model.save(net, str(folder), signatures={"serving_default": net.serve})


def tf1_export(folder: Path) -> None:
    with tf.Graph().as_default(), v1.variable_scope("", use_resource=False), v1.Session() as session:
        v1.set_random_seed(0)
        x = v1.placeholder(tf.float32, [None, 8, 8, 3])
        y = tf.nn.conv2d(x, v1.get_variable("k", [3, 3, 3, 8]), 1, "SAME")
        y = tf.matmul(tf.reduce_mean(y, [1, 2]), v1.get_variable("w", [8, 5]))
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": y})


EXPORTS = {"keras": (keras_export, 5), "module": (module_export, 2), "tf1": (tf1_export, 2)}


def served_by_objects(folder: Path, x: np.ndarray) -> np.ndarray:
    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures["serving_default"]
    (name,) = [*function.structured_input_signature[1]] or ["x"]
    (result,) = function(**{name: tf.constant(x)}).values()
    return result.numpy()


def served_by_a_session(folder: Path, x: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default(), v1.Session() as session:
        meta_graph = v1.saved_model.load(session, ["serve"], str(folder))
        signature = meta_graph.signature_def["serving_default"]
        (result,), (data,) = signature.outputs.values(), signature.inputs.values()
        return session.run(result.name, {data.name: x})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
