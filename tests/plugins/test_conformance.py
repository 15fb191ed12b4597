"""Every built-in plugin through the kit that other plugins use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorflow as tf

import sparsekit
import sparsekit_criteria
import sparsekit_ops
import sparsekit_targets
from sparsekit.criterion import Criterion
from sparsekit.plugins import Plugin, build_registry
from sparsekit.target import TargetProfile
from sparsekit.testing import Layer, check_criterion, check_handler, check_plugin, check_target
from sparsekit_ops.batch_matmul import BatchMatMul
from sparsekit_ops.conv2d import Conv2D
from sparsekit_ops.conv2d_backprop_input import Conv2DBackpropInput
from sparsekit_ops.conv3d import Conv3D
from sparsekit_ops.conv3d_backprop_input import Conv3DBackpropInput
from sparsekit_ops.depthwise_conv2d import DepthwiseConv2D
from sparsekit_ops.einsum import Einsum
from sparsekit_ops.gather import Gather
from sparsekit_ops.matmul import MatMul

v1 = tf.compat.v1


def _variable(name: str, shape: list[int], dtype: tf.DType = tf.float32, *, by_reference: bool = False) -> tf.Variable:
    with v1.variable_scope("", use_resource=not by_reference):
        return v1.get_variable(name, shape, dtype, v1.random_normal_initializer(seed=7))


def _matmul(
    dtype: tf.DType = tf.float32, *, transpose_a: bool = False, transpose_b: bool = False, by_reference: bool = False
) -> Layer:
    data = v1.placeholder(dtype, [None, 10], name="data")
    shape = [6, 10] if transpose_b else [3 if transpose_a else 10, 6]
    weight = _variable("weight", shape, dtype, by_reference=by_reference)
    output = tf.matmul(data, weight, transpose_a=transpose_a, transpose_b=transpose_b, name="fc")
    return Layer(data, output)


def _matmul_constant() -> Layer:
    data = v1.placeholder(tf.float32, [None, 8], name="data")
    weight = tf.constant([[float(8 * column - 5 * row + 0.5) for column in range(5)] for row in range(8)])
    return Layer(data, tf.matmul(data, weight, name="fc"))


def _matmul_behind_cast_and_transpose() -> Layer:
    """The weight is stored as [out, in] in another dtype; bias and activation come after."""
    data = v1.placeholder(tf.float64, [None, 9], name="data")
    weight = tf.transpose(tf.cast(_variable("weight", [5, 9]), tf.float64))
    return Layer(data, tf.nn.relu(tf.matmul(data, weight, name="fc") + 1.0))


def _conv2d(stride: int = 1, padding: str = "SAME", *, groups: int = 1, dilation: int = 1) -> Layer:
    data = v1.placeholder(tf.float32, [None, 7, 7, 8 * groups], name="data")
    kernel = _variable("kernel", [3, 3, 8, 4 * groups])
    return Layer(data, tf.nn.conv2d(data, kernel, stride, padding, dilations=dilation, name="conv"))


def _conv2d_odd_channels() -> Layer:
    data = v1.placeholder(tf.float32, [2, 5, 5, 7], name="data")
    return Layer(data, tf.nn.conv2d(data, _variable("kernel", [1, 1, 7, 3]), 1, "VALID", name="conv"))


def _conv2d_transpose(batch: int | None = None) -> Layer:
    data = v1.placeholder(tf.float32, [batch, 4, 4, 8], name="data")
    kernel = _variable("kernel", [3, 3, 5, 8])
    shape = [batch or tf.shape(data)[0], 8, 8, 5]
    return Layer(data, tf.nn.conv2d_transpose(data, kernel, shape, 2, "SAME", name="deconv"))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(_matmul, id="plain"),
        pytest.param(lambda: _matmul(by_reference=True), id="by reference"),
        pytest.param(lambda: _matmul(transpose_b=True), id="transpose_b"),
        pytest.param(lambda: _matmul(tf.float64), id="float64"),
        pytest.param(_matmul_constant, id="constant"),
        pytest.param(_matmul_behind_cast_and_transpose, id="behind cast and transpose"),
    ],
)
def test_matmul(build: Callable[[], Layer]) -> None:
    check_handler(MatMul(), build, violating={"transpose-a": lambda: _matmul(transpose_a=True)})


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(_conv2d, id="plain"),
        pytest.param(lambda: _conv2d(stride=2), id="stride"),
        pytest.param(lambda: _conv2d(padding="VALID"), id="valid"),
        pytest.param(lambda: _conv2d(groups=2), id="grouped"),
        pytest.param(lambda: _conv2d(dilation=2), id="dilated"),
        pytest.param(_conv2d_odd_channels, id="odd channels"),
    ],
)
def test_conv2d(build: Callable[[], Layer]) -> None:
    check_handler(Conv2D(), build)


@pytest.mark.parametrize("batch", [None, 2], ids=["dynamic batch", "static batch"])
def test_conv2d_backprop_input(batch: int | None) -> None:
    check_handler(Conv2DBackpropInput(), lambda: _conv2d_transpose(batch))


def _batch_matmul(*, adj_x: bool = False, adj_y: bool = False) -> Layer:
    data = v1.placeholder(tf.float32, [2, 3, 8], name="data")
    weight = _variable("weight", [5, 8] if adj_y else [3 if adj_x else 8, 5])
    return Layer(data, tf.raw_ops.BatchMatMulV2(x=data, y=weight, adj_x=adj_x, adj_y=adj_y, name="fc"))


@pytest.mark.parametrize("adj_y", [False, True])
def test_batch_matmul(adj_y: bool) -> None:
    check_handler(
        BatchMatMul(), lambda: _batch_matmul(adj_y=adj_y), violating={"transpose-a": lambda: _batch_matmul(adj_x=True)}
    )


def _einsum(equation: str, shape: list[int], *, weight_first: bool = False) -> Layer:
    data = v1.placeholder(tf.float32, [2, 3, 8], name="data")
    inputs = [data, tf.identity(_variable("weight", shape))]
    output = tf.raw_ops.Einsum(inputs=inputs[::-1] if weight_first else inputs, equation=equation, name="fc")
    return Layer(data, output)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: _einsum("abc,cd->abd", [8, 5]), id="second"),
        pytest.param(lambda: _einsum("abc,dec->abde", [2, 3, 8]), id="last axis"),
        pytest.param(lambda: _einsum("dc,abc->abd", [5, 8], weight_first=True), id="first"),
        pytest.param(lambda: _einsum("abc,bcd->ad", [3, 8, 5]), id="several axes"),
        pytest.param(lambda: _einsum("abc,dbec->ade", [4, 3, 5, 8]), id="several axes apart"),
    ],
)
def test_einsum(build: Callable[[], Layer]) -> None:
    violating = {
        "einsum-contraction": lambda: _einsum("abc,de->abcde", [8, 5]),
        "layout-splits-groups": lambda: _einsum("abc,cbd->ad", [8, 3, 5]),
    }
    check_handler(Einsum(), build, violating=violating)


def test_conv3d() -> None:
    def build() -> Layer:
        data = v1.placeholder(tf.float32, [2, 3, 4, 4, 8], name="data")
        return Layer(data, tf.nn.conv3d(data, _variable("kernel", [2, 2, 2, 8, 3]), [1] * 5, "SAME", name="conv"))

    check_handler(Conv3D(), build)


def test_conv3d_backprop_input() -> None:
    def build() -> Layer:
        data = v1.placeholder(tf.float32, [2, 3, 4, 4, 8], name="data")
        kernel = _variable("kernel", [2, 2, 2, 5, 8])
        return Layer(data, tf.nn.conv3d_transpose(data, kernel, [2, 3, 4, 4, 5], [1] * 5, "SAME", name="deconv"))

    check_handler(Conv3DBackpropInput(), build)


def test_lookups_are_explained_where_they_are_of_embeddings() -> None:
    with tf.Graph().as_default() as graph:
        tokens = v1.placeholder(tf.int32, [None, 3])
        tf.gather(tf.identity(_variable("embedding", [10, 8])), tokens, name="lookup")
        tf.gather(tf.random.uniform([5, 5]), tokens, name="of_data")
        tf.gather(tf.identity(_variable("vector", [10])), tokens, name="of_a_vector")
        tf.gather(tf.ones([4, 2]), tokens, name="of_a_constant")
    (decision,) = sparsekit.plan(graph).decisions
    assert (decision.name, decision.status, decision.reason) == ("lookup", "skip", "embedding")


def test_depthwise_conv2d_is_never_pruned() -> None:
    data = tf.Graph()
    with data.as_default():
        x = v1.placeholder(tf.float32, [2, 4, 4, 8])
        tf.nn.depthwise_conv2d(x, _variable("kernel", [3, 3, 8, 4]), [1] * 4, "SAME", name="conv")
    (decision,) = sparsekit.plan(data).decisions
    assert (decision.status, decision.reason) == ("skip", "no-input-channels")


PLUGINS = (sparsekit_ops, sparsekit_targets, sparsekit_criteria)
REGISTRY = build_registry(Plugin("sparsekit", "", plugin.__name__, plugin) for plugin in PLUGINS)


@pytest.mark.parametrize("criterion", [entry.value for entry in REGISTRY.criteria.values()], ids=lambda c: c.name)
def test_criterion(criterion: Criterion) -> None:
    check_criterion(criterion)


@pytest.mark.parametrize("profile", REGISTRY.profiles, ids=lambda profile: profile.name)
def test_target(profile: TargetProfile) -> None:
    check_target(profile)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.__name__)
def test_plugin(plugin: object) -> None:
    check_plugin(plugin)


def test_every_handler_is_checked_here() -> None:
    """A new handler needs a test above: this fails until its class is named here."""
    convolutions = {Conv2D, Conv3D, DepthwiseConv2D, Conv2DBackpropInput, Conv3DBackpropInput}
    checked = {MatMul, BatchMatMul, Einsum, Gather} | convolutions
    assert {type(entry.value) for entry in REGISTRY.handlers.values()} == checked
