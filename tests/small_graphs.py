"""Small real graphs for the tests on live graphs, and ways to look into them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.protobuf import rewriter_config_pb2

Array = npt.NDArray[Any]
v1 = tf.compat.v1

VARIABLE_KINDS = ("ref", "resource")
VARIABLE_OPS = {"ref": "VariableV2", "resource": "VarHandleOp"}


@contextlib.contextmanager
def settings_of(variables: str, control_flow: str) -> Iterator[None]:
    """TensorFlow's switches for the kind of variables and of control flow; restored afterwards."""
    before = (v1.resource_variables_enabled(), v1.control_flow_v2_enabled())
    try:
        _switch(variables == "resource", control_flow == "v2")
        yield
    finally:
        _switch(*before)


def _switch(resource: bool, control_flow_v2: bool) -> None:
    (v1.enable_resource_variables if resource else v1.disable_resource_variables)()
    (v1.enable_control_flow_v2 if control_flow_v2 else v1.disable_control_flow_v2)()


def values(shape: Sequence[int], seed: int = 0, dtype: Any = np.float32) -> Array:
    """Reproducible weights or data."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def variable(name: str, shape: Sequence[int], seed: int = 0, dtype: Any = tf.float32, **more: Any) -> Any:
    """A variable that starts at ``values(shape, seed)``."""
    initial = values(shape, seed, tf.as_dtype(dtype).as_numpy_dtype)
    return v1.get_variable(name, list(shape), dtype, initializer=v1.constant_initializer(initial), **more)


@attrs.frozen(eq=False)
class Model:
    """A network with its input, its output and the variables behind its prunable layers, by layer."""

    x: Any
    y: Any
    weights: dict[str, Any]
    axes: dict[str, int]

    def loss(self) -> Any:
        return tf.reduce_mean(tf.square(self.y - 1.0))


Through = Callable[[str, Any], Any]


# Of `conv_net`, by their ops.
LAYERS = ["net/conv", "net/up", "net/fc", "net/back"]


def conv_net(through: Through = lambda layer, weight: weight) -> Model:
    """Every built-in layout once: Conv2D, a transposed one with a dynamic batch, MatMul, a transposed MatMul.

    The axes have 8, 6, 7 and 5 input channels: all tails.

    Args:
        through: what to put between a layer's weight and its op.
    """
    x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
    with v1.variable_scope("net"):
        conv = variable("w_conv", [3, 3, 8, 6], 1)
        h = tf.nn.relu(tf.nn.conv2d(x, through("net/conv", conv), 1, "SAME", name="conv"))
        up = variable("w_up", [2, 2, 7, 6], 2)
        shape = [tf.shape(x)[0], 12, 12, 7]
        h = tf.nn.tanh(tf.nn.conv2d_transpose(h, through("net/up", up), shape, 2, name="up"))
        h = tf.reduce_mean(h, [1, 2])
        fc = variable("w_fc", [7, 5], 3)
        bias = variable("b_fc", [5], 4)
        h = tf.nn.tanh(tf.matmul(h, through("net/fc", fc), name="fc") + bias)
        back = variable("w_back", [9, 5], 5)
        h = tf.matmul(h, through("net/back", back), transpose_b=True, name="back")
    y = tf.identity(h, name="y")
    weights = {"net/conv": conv, "net/up": up, "net/fc": fc, "net/back": back}
    return Model(x, y, weights, {"net/conv": 2, "net/up": 3, "net/fc": 0, "net/back": 1})


def images(seed: int = 0, batch: int = 3) -> Array:
    """Input for :func:`conv_net`."""
    return values([batch, 6, 6, 8], 100 + seed)


def sgd(loss: Any, **more: Any) -> Any:
    return v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, **more)


def rmsprop(loss: Any, **more: Any) -> Any:
    return v1.train.RMSPropOptimizer(0.1, momentum=0.9).minimize(loss, **more)


def session(graph: Any, fusions: bool = True) -> Any:
    """A session whose variables are initialized.

    Args:
        graph: the graph.
        fusions: whether ops may be fused. Fused ops round otherwise, and what is fused depends on the ops around.
    """
    config = v1.ConfigProto()
    if not fusions:
        config.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    made = v1.Session(graph=graph, config=config)
    with graph.as_default():
        made.run(v1.global_variables_initializer())
    return made


def masks(sess: Any, layers: Sequence[str]) -> dict[str, Array]:
    """The stored masks."""
    return dict(zip(layers, sess.run([_read(sess, f"{layer}/sparsekit/mask") for layer in layers]), strict=True))


def counts(sess: Any, layers: Sequence[str]) -> list[int]:
    """The stored batch counts."""
    return [int(count) for count in sess.run([_read(sess, f"{layer}/sparsekit/batch") for layer in layers])]


def _read(sess: Any, name: str) -> Any:
    with sess.graph.as_default():
        found = [v for v in v1.global_variables() if v.op.name == name]
    assert len(found) == 1, name
    return found[0]


def freeze(sess: Any, outputs: Sequence[str]) -> Any:
    return v1.graph_util.convert_variables_to_constants(sess, sess.graph.as_graph_def(), list(outputs))


def run_graph(graph_def: Any, fetches: Any, feeds: dict[str, Any]) -> Any:
    """Run a frozen graph in a graph and session of its own."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with v1.Session(graph=graph) as sess:
            return sess.run(fetches, feeds)


def constants(graph_def: Any) -> dict[str, Array]:
    """The constants of a graph, by name."""
    return {node.name: tf.make_ndarray(node.attr["value"].tensor) for node in graph_def.node if node.op == "Const"}


def bits(array: Array) -> bytes:
    """For comparisons that tell -0.0 from 0.0."""
    return np.ascontiguousarray(array).tobytes()


def run_script(script: str, *arguments: object, path: Path | None = None) -> str:
    """Run a script in a new interpreter; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=path or Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
