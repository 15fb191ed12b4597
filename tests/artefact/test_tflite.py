"""The .tflite reader: real conversions, hand-made files for what converters rarely write, and hostile ones."""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import flatbuffers
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from bounded import bounded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from sparsekit.artefact.deployed import DeployedLayer
from sparsekit.artefact.tflite import read_tflite
from sparsekit.errors import MissingFileError, ModelError, SparsekitError
from sparsekit.pattern import check, keep_mask

Array = npt.NDArray[Any]


# --- networks that test_onnx.py converts too ---------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def pruned(weight: Array, axis: int) -> Array:
    """``weight``, 2:4 along ``axis``. What stays is large enough that no quantizer rounds it to zero."""
    kept = weight * keep_mask(weight, axis)
    return np.where(kept == 0, 0, kept + 0.5 * np.sign(kept)).astype(weight.dtype)


def broken(weight: Array, axis: int) -> Array:
    """``weight``, pruned along ``axis`` but for one group, which is full."""
    result = np.moveaxis(pruned(weight, axis), axis, -1).copy()
    result[(0,) * (result.ndim - 1)][:4] = 1.0
    return np.ascontiguousarray(np.moveaxis(result, -1, axis))


@attrs.frozen(eq=False)
class Network:
    """A function of one input, its weights, and the axis of each weight that is contracted, in TensorFlow's layout."""

    build: Callable[[dict[str, Array]], Callable[[Any], Any]]
    input_shape: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    axes: dict[str, int]
    wrong: dict[str, int]

    def weights(self, kind: str) -> dict[str, Array]:
        """``kind``: "right", "wrong" (pruned along another axis), "broken" (one bad group in each layer)."""
        axes = self.wrong if kind == "wrong" else self.axes
        prune = broken if kind == "broken" else pruned
        return {name: prune(normal(*shape, seed=i), axes[name]) for i, (name, shape) in enumerate(self.shapes.items())}

    def function(self, kind: str) -> Any:
        """A concrete function whose weights are constants."""
        signature = tf.TensorSpec(self.input_shape, tf.float32, name="x")
        return tf.function(self.build(self.weights(kind))).get_concrete_function(signature)


def _conv_net(weights: dict[str, Array]) -> Callable[[Any], Any]:
    depthwise = normal(3, 3, 16, 1)

    def network(x: Any) -> Any:
        h = tf.nn.relu(tf.nn.conv2d(x, weights["conv"], 1, "SAME", name="conv"))
        h = tf.nn.tanh(tf.nn.conv2d_transpose(h, weights["up"], [1, 8, 8, 16], 2, name="up"))
        h = tf.nn.depthwise_conv2d(h, depthwise, [1, 1, 1, 1], "SAME", name="depthwise")
        return tf.matmul(tf.reshape(h, [1, 1024]), weights["fc"], name="fc")

    return network


CONV_NET = Network(
    _conv_net,
    (1, 4, 4, 16),
    {"conv": (3, 3, 16, 16), "up": (3, 3, 16, 16), "fc": (1024, 12)},
    {"conv": 2, "up": 3, "fc": 0},
    {"conv": 3, "up": 2, "fc": 1},
)


def _transformer(weights: dict[str, Array]) -> Callable[[Any], Any]:
    def heads(x: Any) -> Any:
        return tf.transpose(tf.reshape(x, [2, 6, 4, 8]), [0, 2, 1, 3])

    def network(x: Any) -> Any:
        q, k, v = (heads(tf.matmul(x, weights[name], name=name)) for name in "qkv")
        scores = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / np.float32(8**0.5))
        h = tf.reshape(tf.transpose(tf.matmul(scores, v), [0, 2, 1, 3]), [2, 6, 32])
        h = x + tf.einsum("btd,de->bte", h, weights["out"], name="out")
        up = tf.nn.relu(tf.matmul(h, weights["up"], transpose_b=True, name="up"))
        return h + tf.matmul(up, weights["down"], name="down")

    return network


TRANSFORMER = Network(
    _transformer,
    (2, 6, 32),
    {"q": (32, 32), "k": (32, 32), "v": (32, 32), "out": (32, 32), "up": (64, 32), "down": (64, 32)},
    {"q": 0, "k": 0, "v": 0, "out": 0, "up": 1, "down": 0},
    {"q": 1, "k": 1, "v": 1, "out": 1, "up": 0, "down": 1},
)

LSTM_AXES = {"right": 0, "wrong": 1, "broken": 0}


def lstm_layer(kind: str) -> Any:
    """Keras' LSTM: its two kernels are used in the body of a loop. Input [1, 5, 16]."""
    layer = tf.keras.layers.LSTM(24)
    layer.build((1, 5, 16))
    prune = broken if kind == "broken" else pruned
    kernel, recurrent, bias = layer.get_weights()
    kernel, recurrent = normal(*kernel.shape), normal(*recurrent.shape, seed=1)
    layer.set_weights([prune(kernel, LSTM_AXES[kind]), prune(recurrent, LSTM_AXES[kind]), bias])
    return layer


def lstm_function(kind: str) -> Any:
    """The layer, frozen."""
    layer = lstm_layer(kind)
    function = tf.function(lambda x: layer(x)).get_concrete_function(tf.TensorSpec([1, 5, 16], tf.float32, name="x"))
    return convert_variables_to_constants_v2(function, lower_control_flow=False)


def violations(layers: Sequence[DeployedLayer]) -> list[int]:
    """Of the layers that a pattern is expected of; every one of them is readable."""
    judged = [layer for layer in layers if not layer.exempt]
    assert not [layer for layer in judged if layer.obstacle]
    return [check(layer.values(), layer.axis or 0).violations for layer in judged]


def assert_judged(layers: Sequence[DeployedLayer], kind: str, count: int) -> None:
    """The reader saw ``count`` layers, and what was done to their weights shows."""
    found = violations(layers)
    assert len(found) == count
    if kind == "right":
        assert not any(found)
    elif kind == "broken":
        assert found == [1] * count
    else:
        assert all(n > 1 for n in found)


# --- real conversions --------------------------------------------------------------------------------------

FORMATS = ("float32", "float16", "dynamic", "int8", "int16x8")
KINDS = ("right", "wrong", "broken")
INTEGERS = {
    "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
    "int16x8": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
}


def convert(function: Any, kind: str) -> bytes:
    shape = function.inputs[0].shape
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "sparse":
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind in INTEGERS:
        converter.representative_dataset = lambda: ([normal(*shape, seed=i)] for i in range(4))
        converter.target_spec.supported_ops = [INTEGERS[kind]]
    return converter.convert()


@functools.cache
def converted(network: Network, kind: str, to: str) -> bytes:
    return convert(network.function(kind), to)


def read(data: bytes, folder: Path) -> list[DeployedLayer]:
    path = folder / "model.tflite"
    path.write_bytes(data)
    return read_tflite(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", FORMATS)
def test_conv_net(to: str, kind: str, tmp_path: Path) -> None:
    layers = read(converted(CONV_NET, kind, to), tmp_path)
    assert [(layer.op_type, layer.axis) for layer in layers] == [
        ("CONV_2D", 3),
        ("TRANSPOSE_CONV", 3),
        ("DEPTHWISE_CONV_2D", None),
        ("FULLY_CONNECTED", 1),
    ]
    assert "no input-channel axis" in layers[2].exempt
    assert_judged(layers, kind, 3)
    stored = to if to.startswith("float") else "int8"
    assert {layers[0].dtype, layers[3].dtype} == {stored}
    assert len({layer.name for layer in layers}) == 4


def test_names_are_those_of_the_network(tmp_path: Path) -> None:
    names = [layer.name for layer in read(converted(CONV_NET, "right", "float32"), tmp_path)]
    assert [name.rstrip("0123456789") for name in names[:3]] == ["conv", "up", "depthwise"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", FORMATS[:4])  # the converter refuses int16x8
def test_transformer(to: str, kind: str, tmp_path: Path) -> None:
    """The products of activations in the attention are no layers."""
    layers = read(converted(TRANSFORMER, kind, to), tmp_path)
    assert {layer.op_type for layer in layers} <= {"FULLY_CONNECTED", "BATCH_MATMUL"}
    assert_judged(layers, kind, 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", FORMATS[:3])  # the converter crashes on a full int8 LSTM
def test_lstm_in_the_body_of_a_while(to: str, kind: str, tmp_path: Path) -> None:
    layers = read(convert(lstm_function(kind), to), tmp_path)
    assert_judged(layers, kind, 2)
    assert not any(layer.location.startswith("subgraph 0") for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_in_three_dimensions(kind: str, tmp_path: Path) -> None:
    def build(weights: dict[str, Array]) -> Callable[[Any], Any]:
        def network(x: Any) -> Any:
            h = tf.nn.conv3d(x, weights["conv"], [1] * 5, "SAME")
            return tf.nn.conv3d_transpose(h, weights["up"], [1, 4, 4, 4, 8], 1, "SAME")

        return network

    network = Network(
        build,
        (1, 4, 4, 4, 8),
        {"conv": (2, 2, 2, 8, 12), "up": (2, 2, 2, 8, 12)},
        {"conv": 3, "up": 4},
        {"conv": 4, "up": 3},
    )
    layers = read(convert(network.function(kind), "float32"), tmp_path)
    assert [(layer.op_type, layer.axis) for layer in layers] == [("CONV_3D", 3), ("CONV_3D_TRANSPOSE", 4)]
    assert_judged(layers, kind, 2)


def test_grouped_convolution(tmp_path: Path) -> None:
    weight = pruned(normal(3, 3, 4, 16), 2)
    function = tf.function(lambda x: tf.nn.conv2d(x, weight, 1, "SAME"))
    data = convert(function.get_concrete_function(tf.TensorSpec([1, 4, 4, 16], tf.float32)), "float32")
    assert_judged(read(data, tmp_path), "right", 1)


def test_sparse_format_is_an_obstacle(tmp_path: Path) -> None:
    layers = read(converted(CONV_NET, "right", "sparse"), tmp_path)
    judged = [layer for layer in layers if not layer.exempt]
    assert len(judged) == 3
    assert all("sparse format" in layer.obstacle and not layer.readable for layer in judged)
    with pytest.raises(ModelError, match="sparse format"):
        judged[0].values()


def test_variables_are_an_obstacle(tmp_path: Path) -> None:
    class Module(tf.Module):
        def __init__(self) -> None:
            self.w = tf.Variable(pruned(normal(16, 16), 0))

        @tf.function(input_signature=[tf.TensorSpec([2, 16], tf.float32)])
        def __call__(self, x: Any) -> Any:
            self.w.assign(self.w * 0.5)  # one that never changes would be frozen
            return tf.matmul(x, self.w)

    module = Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.__call__.get_concrete_function()], module)
    converter.experimental_enable_resource_variables = True
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    layers = read(converter.convert(), tmp_path)
    assert [layer.obstacle.partition(",")[0] for layer in layers] == ["a variable"]


def test_no_weights_give_no_layers(tmp_path: Path) -> None:
    function = tf.function(lambda x: tf.matmul(x, x, transpose_b=True))
    data = convert(function.get_concrete_function(tf.TensorSpec([4, 8], tf.float32)), "float32")
    assert read(data, tmp_path) == []


# --- files made by hand ------------------------------------------------------------------------------------

CODES = {name: code for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
TYPES = {name.lower(): code for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
DTYPES = {np.dtype(np.float32): "float32", np.dtype(np.int8): "int8", np.dtype(np.uint8): "uint8"}
DTYPES |= {np.dtype(np.int32): "int32", np.dtype(np.float16): "float16"}


@attrs.define
class Graph:
    """A subgraph: tensors by name, with their values or only a shape."""

    tensors: dict[str, Any]
    operators: list[tuple[Any, ...]]
    inputs: list[str]
    outputs: list[str]
    quantized: dict[str, tuple[Sequence[int], int]] = attrs.field(factory=dict)
    types: dict[str, str] = attrs.field(factory=dict)


def model_of(*graphs: Graph, change: Callable[[Any], None] = lambda model: None) -> bytes:
    """A model in which an operator is (name, inputs, outputs, options)."""
    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers, model.subgraphs = 3, [], [schema.BufferT()], []
    for graph in graphs:
        model.subgraphs.append(_subgraph(graph, model))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _subgraph(graph: Graph, model: Any) -> Any:
    subgraph = schema.SubGraphT()
    index = {name: i for i, name in enumerate(graph.tensors)} | {"": -1}
    subgraph.tensors = [_tensor(name, value, graph, model) for name, value in graph.tensors.items()]
    subgraph.inputs = [index[name] for name in graph.inputs]
    subgraph.outputs = [index[name] for name in graph.outputs]
    subgraph.operators = []
    for op_type, inputs, outputs, *options in graph.operators:
        code = schema.OperatorCodeT()
        code.builtinCode = CODES.get(op_type, CODES["CUSTOM"])
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = None if op_type in CODES else op_type.encode()
        operator = schema.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs, operator.outputs = [index[n] for n in inputs], [index[n] for n in outputs]
        if options:
            operator.builtinOptions = options[0]
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options[0]).__name__[:-1])
        model.operatorCodes.append(code)
        subgraph.operators.append(operator)
    return subgraph


def _tensor(name: str, value: Any, graph: Graph, model: Any) -> Any:
    tensor = schema.TensorT()
    tensor.name = name.encode()
    tensor.buffer = 0
    tensor.type = TYPES[graph.types.get(name, "float32")]
    if isinstance(value, np.ndarray):
        tensor.type = TYPES[graph.types.get(name, DTYPES[value.dtype])]
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.tobytes(), np.uint8)
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    packed = graph.types.get(name) in ("int4", "uint4")
    shape = list(value.shape if isinstance(value, np.ndarray) else value)
    tensor.shape = [*shape[:-1], shape[-1] * 2] if packed else shape
    if name in graph.quantized:
        zero_point, dimension = graph.quantized[name]
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.zeroPoint = list(zero_point)
        tensor.quantization.scale = [1.0] * len(zero_point)
        tensor.quantization.quantizedDimension = dimension
    return tensor


def options(kind: str, **values: Any) -> Any:
    result = getattr(schema, f"{kind}T")()
    for name, value in values.items():
        setattr(result, name, value)
    return result


def dense(weight: Any, **more: Any) -> Graph:
    """x [2, K] times ``weight`` [N, K]."""
    n, k = (weight.shape if isinstance(weight, np.ndarray) else weight)[-2:]
    k *= 2 if more.get("types") else 1
    operator = ("FULLY_CONNECTED", ["x", "w", ""], ["y"], options("FullyConnectedOptions"))
    return Graph({"x": (2, k), "w": weight, "y": (2, n)}, [operator], ["x"], ["y"], **more)


def run(data: bytes, *inputs: Array) -> Array:
    interpreter = tf.lite.Interpreter(model_content=data)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_zero_points_are_subtracted(tmp_path: Path) -> None:
    weight = pruned(normal(8, 16), 1)
    stored = np.clip(np.round(weight * 20) + 128, 0, 255).astype(np.uint8)
    (layer,) = read(model_of(dense(stored, quantized={"w": ([128], 0)})), tmp_path)
    assert violations([layer]) == [0]
    assert layer.note == "zero is stored as 128"
    assert np.array_equal(layer.values(), stored.astype(int) - 128)
    (layer,) = read(model_of(dense(stored)), tmp_path)
    assert violations([layer]) == [32]


@pytest.mark.parametrize("axis", [0, 1])
def test_zero_points_along_an_axis(axis: int, tmp_path: Path) -> None:
    weight = (pruned(normal(8, 8), 1) * 20).astype(np.int8)
    zero = np.array([0, 3, -7, 1, 0, 2, 2, -1])
    stored = np.clip(weight + np.expand_dims(zero, 1 - axis), -128, 127).astype(np.int8)
    (layer,) = read(model_of(dense(stored, quantized={"w": (zero.tolist(), axis)})), tmp_path)
    assert violations([layer]) == [0]
    assert layer.note == "zero is stored as -7 to 3"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_differences_to_zero_points_do_not_overflow(dtype: Any, tmp_path: Path) -> None:
    limits = np.iinfo(dtype)
    stored = np.array([[limits.min, limits.max, 0, 1]] * 4, dtype)
    (layer,) = read(model_of(dense(stored, quantized={"w": ([limits.min + 1], 0)})), tmp_path)
    assert layer.values()[0].tolist() == [int(value) - limits.min - 1 for value in stored[0]]


@pytest.mark.parametrize(
    ("zero", "axis"), [([1, 2, 3], 0), ([1] * 15 + [2], 0), ([1, 2], 5), ([1, 2], -9), ([1 << 40], 0), ([-129], 0)]
)
def test_zero_points_that_do_not_fit(zero: list[int], axis: int, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.tflite: subgraph 0, tensor 1 \('w'\): has (a )?zero point"):
        read(model_of(dense(normal(4, 16).astype(np.int8), quantized={"w": (zero, axis)})), tmp_path)


def test_a_float_has_no_zero_point(tmp_path: Path) -> None:
    (layer,) = read(model_of(dense(pruned(normal(4, 16), 1), quantized={"w": ([9], 0)})), tmp_path)
    assert violations([layer]) == [0]


def _packed(values: Array) -> Array:
    """int4, the first of two in the low bits."""
    low, high = values[..., ::2] & 15, values[..., 1::2] & 15
    return (low | high << 4).astype(np.uint8).view(np.int8)


def test_int4_is_unpacked_as_the_interpreter_does(tmp_path: Path) -> None:
    values = np.arange(-8, 8).repeat(2).reshape(4, 8).astype(np.int8)
    graph = dense(_packed(values), types={"w": "int4"}, quantized={"w": ([0], 0)})
    (layer,) = read(model_of(graph), tmp_path)
    assert layer.dtype == "int4"
    assert np.array_equal(layer.values(), values)
    if tf.__version__ < "2.17":
        return  # its interpreter has no kernel for int4
    graph.tensors |= {"x": (8, 8), "y": (8, 4), "f": (4, 8)}
    graph.operators[:] = [("DEQUANTIZE", ["w"], ["f"]), ("FULLY_CONNECTED", ["x", "f", ""], ["y"])]
    graph.operators[1] += (options("FullyConnectedOptions"),)
    data = model_of(graph)
    assert np.array_equal(run(data, np.eye(8, dtype=np.float32)), values.T)
    assert np.array_equal(read(data, tmp_path)[0].values(), values)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("static", ["left", "right"])
def test_batch_matmul(static: str, adjoint: bool, tmp_path: Path) -> None:
    shape = {"left": (2, 12, 8), "right": (2, 8, 12)}[static]
    axis = {"left": 2, "right": 1}[static]
    weight = pruned(normal(*shape), axis)
    if adjoint:
        weight, axis = np.ascontiguousarray(weight.swapaxes(1, 2)), 3 - axis
    flags = {"adjX": adjoint} if static == "left" else {"adjY": adjoint}
    inputs = ["w", "x"] if static == "left" else ["x", "w"]
    operator = ("BATCH_MATMUL", inputs, ["y"], options("BatchMatMulOptions", **flags))
    other, out = ((2, 8, 3), (2, 12, 3)) if static == "left" else ((2, 3, 8), (2, 3, 12))
    data = model_of(Graph({"x": other, "w": weight, "y": out}, [operator], ["x"], ["y"]))
    x = normal(*other)
    seen = weight.swapaxes(1, 2) if adjoint else weight
    np.testing.assert_allclose(run(data, x), seen @ x if static == "left" else x @ seen, rtol=1e-4, atol=1e-5)
    (layer,) = read(data, tmp_path)
    assert layer.axis == axis
    assert violations([layer]) == [0]


def test_shapes_are_those_that_the_operator_sees(tmp_path: Path) -> None:
    """Stored [4, 2, 8], reshaped to [8, 8], transposed: groups along what was the first axis of the matrix."""
    weight = pruned(normal(8, 12), 0)
    order = np.array([1, 0], np.int32)
    graph = Graph(
        {"x": (2, 8), "w": weight.reshape(4, 2, 12), "r": (8, 12), "order": order, "t": (12, 8), "y": (2, 12)},
        [
            ("RESHAPE", ["w"], ["r"]),
            ("TRANSPOSE", ["r", "order"], ["t"]),
            ("FULLY_CONNECTED", ["x", "t", ""], ["y"]),
        ],
        ["x"],
        ["y"],
    )
    (layer,) = read(model_of(graph), tmp_path)
    assert (layer.shape, layer.axis) == ((12, 8), 1)
    assert np.array_equal(layer.values(), weight.T)


def _while(body_result: str) -> list[Graph]:
    """A loop that is given its weight as an argument and returns ``body_result`` for it."""
    weight = pruned(normal(8, 8), 1)
    loop = ("WHILE", ["x", "w"], ["y", "v"], options("WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2))
    main = Graph({"x": (8, 8), "w": weight, "y": (8, 8), "v": (8, 8)}, [loop], ["x"], ["y"])
    cond = Graph({"h": (8, 8), "w": (8, 8), "c": ()}, [("LESS", ["h", "w"], ["c"])], ["h", "w"], ["c"])
    step = ("FULLY_CONNECTED", ["h", "w", ""], ["next"])
    body = Graph({"h": (8, 8), "w": (8, 8), "next": (8, 8)}, [step], ["h", "w"], ["next", body_result])
    return [main, cond, body]


def test_a_weight_that_is_given_to_a_loop(tmp_path: Path) -> None:
    (layer,) = read(model_of(*_while("w")), tmp_path)
    assert layer.location == "subgraph 2, operator 0"
    assert violations([layer]) == [0]


def test_a_weight_that_its_loop_changes_is_data(tmp_path: Path) -> None:
    assert read(model_of(*_while("next")), tmp_path) == []


def test_a_weight_that_its_loop_makes_from_constants(tmp_path: Path) -> None:
    graphs = _while("changed")
    graphs[2].tensors["changed"] = (8, 8)
    graphs[2].operators.append(("NEG", ["w"], ["changed"]))
    (layer,) = read(model_of(*graphs), tmp_path)
    assert "loop" in layer.obstacle


@pytest.mark.parametrize("op_type", ["IF", "CALL"])
def test_a_weight_that_is_given_to_a_branch(op_type: str, tmp_path: Path) -> None:
    weight = pruned(normal(8, 8), 1)
    branch = dense((8, 8))
    branch.inputs = ["x", "w"]
    given = ["x", "w"]
    if op_type == "IF":
        given, kind = ["c", "x", "w"], options("IfOptions", thenSubgraphIndex=1, elseSubgraphIndex=2)
    else:
        kind = options("CallOptions", subgraph=1)
    main = Graph({"x": (2, 8), "c": (), "w": weight, "y": (2, 8)}, [(op_type, given, ["y"], kind)], ["x", "c"], ["y"])
    layers = read(model_of(main, branch, branch), tmp_path)
    assert violations(layers[:1]) == [0]
    # One tensor, seen the same way: one layer. What nothing calls cannot be known.
    assert [layer.obstacle for layer in layers[1:]] == ([] if op_type == "IF" else [NOT_CALLED])


NOT_CALLED = "an argument of a subgraph that nothing known calls"


def test_two_calls_with_two_weights(tmp_path: Path) -> None:
    branch = dense((8, 8))
    branch.inputs = ["x", "w"]
    kind = options("CallOptions", subgraph=1)
    tensors = {"x": (2, 8), "a": normal(8, 8), "b": normal(8, 8, seed=1), "h": (2, 8), "y": (2, 8)}
    calls = [("CALL", ["x", "a"], ["h"], kind), ("CALL", ["h", "b"], ["y"], kind)]
    (layer,) = read(model_of(Graph(tensors, calls, ["x"], ["y"]), branch), tmp_path)
    assert "several calls" in layer.obstacle


def test_one_weight_of_many_steps_is_one_layer(tmp_path: Path) -> None:
    graph = dense(pruned(normal(8, 8), 1))
    for i in range(1000):
        graph.tensors[f"h{i}"] = (2, 8)
        graph.operators.append(("FULLY_CONNECTED", [f"h{i - 1}" if i else "y", "w", ""], [f"h{i}"]))
    (layer,) = read(model_of(graph), tmp_path)
    assert violations([layer]) == [0]


@pytest.mark.parametrize("op_type", ["UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"])
def test_recurrent_operators(op_type: str, tmp_path: Path) -> None:
    twice = op_type.startswith("BI")
    names = [f"w{i}" for i in range(48 if twice else 24)]
    weights = {name: pruned(normal(12, 8, seed=i), 1) for i, name in enumerate(names)}
    inputs = ["x", *names[1:9], *[""] * 3, *names[12:16], "", *names[17:]]
    if twice:
        inputs = [name if i in (0, *range(1, 9), *range(18, 26)) else "" for i, name in enumerate(["x", *names[1:]])]
    graph = Graph({"x": (1, 5, 8), **weights, "y": (1, 5, 12)}, [(op_type, inputs, ["y"])], ["x"], ["y"])
    layers = read(model_of(graph), tmp_path)
    assert [layer.name for layer in layers] == [*names[1:9], *(names[18:26] if twice else [])]
    assert violations(layers) == [0] * len(layers)


def test_the_lstm_layout_is_the_interpreters(tmp_path: Path) -> None:
    """[units, inputs]: an input channel without weights does not reach the output."""
    units, inputs = 4, 8
    weights = {f"i{g}": normal(units, inputs, seed=g) for g in range(4)}
    for weight in weights.values():
        weight[:, 5] = 0
    weights |= {f"r{g}": normal(units, units, seed=10 + g) for g in range(4)}
    weights |= {f"b{g}": normal(units, seed=20 + g) for g in range(4)}
    given = ["x", *(f"i{g}" for g in range(4)), *(f"r{g}" for g in range(4)), *[""] * 3]
    given += [*(f"b{g}" for g in range(4)), "", "", "h", "c", *[""] * 4]
    kind = options("UnidirectionalSequenceLSTMOptions", fusedActivationFunction=4)
    tensors = {"x": (1, 3, inputs), **weights, "h": (1, units), "c": (1, units), "y": (1, 3, units)}
    graph = Graph(tensors, [("UNIDIRECTIONAL_SEQUENCE_LSTM", given, ["y"], kind)], ["x"], ["y"])

    def variables(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.isVariable = tensor.name in (b"h", b"c")

    data = model_of(graph, change=variables)
    x, other = normal(1, 3, inputs), normal(1, 3, inputs)
    other[..., 5] += 100
    assert np.array_equal(run(data, x), run(data, other))
    layers = read(data, tmp_path)
    assert [(layer.name, layer.axis) for layer in layers] == [(name, 1) for name in given[1:9]]


def test_custom_operators_are_not_looked_into(tmp_path: Path) -> None:
    graph = dense(pruned(normal(8, 8), 1))
    graph.tensors |= {"k": normal(8, 8), "v": normal(8), "z": (2, 8)}
    graph.operators += [("FlexThing", ["y", "k", "v"], ["z"]), ("ethos-u", ["z"], ["z"])]
    layers = read(model_of(graph), tmp_path)
    assert [(layer.op_type, layer.name) for layer in layers[1:]] == [("FlexThing", "k"), ("ethos-u", "z")]
    assert "does not know" in layers[1].obstacle
    assert "compiled" in layers[2].obstacle


def test_computed_and_given_kernels(tmp_path: Path) -> None:
    tensors = {"x": (1, 4, 4, 8), "k": (8, 3, 3, 8), "c": normal(8, 3, 3, 8), "n": (8, 3, 3, 8), "y": (1, 2, 2, 8)}
    operators = [("CONV_2D", ["x", "k"], ["y"]), ("NEG", ["c"], ["n"]), ("CONV_2D", ["x", "n"], ["y"])]
    given, computed = read(model_of(Graph(tensors, operators, ["x", "k"], ["y"])), tmp_path)
    assert "model's inputs" in given.exempt
    assert computed.obstacle == "computed by NEG when the model runs"


def test_ranks_and_shuffled_weights(tmp_path: Path) -> None:
    graph = dense(normal(8, 8))
    graph.operators[0] = (*graph.operators[0][:3], options("FullyConnectedOptions", weightsFormat=1))
    graph.tensors["k"] = normal(8, 8)
    graph.operators.append(("CONV_2D", ["x", "k"], ["y"]))
    shuffled, flat = read(model_of(graph), tmp_path)
    assert "shuffled" in shuffled.obstacle
    assert flat.obstacle == "of rank 2, where 4 is expected"


def test_buffers_behind_the_flatbuffer(tmp_path: Path) -> None:
    """As models above 2 GB have them."""
    weight = pruned(normal(8, 16), 1)

    def outside(model: Any, start: int, size: int) -> None:
        model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, start, size

    graph = dense(weight)
    length = len(model_of(graph, change=lambda model: outside(model, 1 << 20, weight.nbytes)))
    data = model_of(graph, change=lambda model: outside(model, length, weight.nbytes)) + weight.tobytes()
    (layer,) = read(data, tmp_path)
    assert np.array_equal(layer.values(), weight)
    with pytest.raises(ModelError, match=r"tensor 1 \('w'\): holds 512 bytes at"):
        read(data[:-1], tmp_path)


def test_names_are_unique(tmp_path: Path) -> None:
    graph = dense(pruned(normal(8, 8), 1))
    graph.tensors |= {"v": pruned(normal(8, 8), 1), "u": pruned(normal(8, 8), 1)}
    graph.operators += [("FULLY_CONNECTED", ["y", name, ""], ["y"]) for name in "vu"]

    def rename(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"same"

    assert [layer.name for layer in read(model_of(graph, change=rename), tmp_path)] == ["same", "same#2", "same#3"]


# --- files that are not what they should be ----------------------------------------------------------------


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no such file"):
        read_tflite(tmp_path / "none.tflite")


@pytest.mark.parametrize("path", ["a\0b", "/dev/null", "."])
def test_what_is_no_file(path: str) -> None:
    with pytest.raises(ModelError):
        read_tflite(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="no regular file"):
        read_tflite(tmp_path / "pipe")


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"TFL3", b"\0\0\0\0TFL3", b"PK\3\4 zip", b"\xff" * 4 + b"TFL3", b"\x08\0\0\0TFL3" + b"\xff" * 64],
)
def test_wrong_kinds_of_files(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.tflite: "):
        read(data, tmp_path)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            model = model[int(parent)] if parent.isdigit() else getattr(model, parent)
        setattr(model, last, value)

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("subgraphs.0.tensors.1.shape", [8, 9], r"tensor 1 \('w'\): holds 256 bytes; expected 288"),
        ("subgraphs.0.tensors.1.shape", [1 << 30] * 3, "a shape that memory can hold"),
        ("subgraphs.0.tensors.1.shape", [-8, -8], "lengths to be known"),
        ("subgraphs.0.tensors.1.shape", [1] * 40, "40 axes"),
        ("subgraphs.0.tensors.1.type", 10, "expected 512 for float64"),
        ("subgraphs.0.tensors.1.buffer", 77, "buffer 77 of 2"),
        ("subgraphs.0.operators.0.inputs", [0, 9], "beyond the 3"),
        ("subgraphs.0.operators.0.inputs", [0], "expected one for its weights"),
        ("subgraphs.0.operators.0.outputs", [-2], "beyond the 3"),
        ("subgraphs.0.operators.0.opcodeIndex", 4, "code 4 of 1"),
        ("subgraphs.0.outputs", [3], "beyond the 3"),
        ("subgraphs", [], "no subgraph"),
    ],
)
def test_damaged_parts_are_named(path: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read(model_of(dense(normal(8, 8)), change=_set(path, value)), tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("subgraphs.0.operators.0.builtinOptions", None),
        ("subgraphs.0.operators.0.builtinOptions.bodySubgraphIndex", 3),
        ("subgraphs.0.operators.0.builtinOptions.condSubgraphIndex", -1),
        ("subgraphs.0.operators.0.inputs", [0]),
        ("subgraphs.2.outputs", [0]),
        ("subgraphs.1.inputs", []),
    ],
)
def test_damaged_loops(path: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="subgraph 0, operator 0"):
        read(model_of(*_while("w"), change=_set(path, value)), tmp_path)


@pytest.mark.parametrize("kind", ["string", "resource", "variant"])
def test_types_that_hold_no_weights(kind: str, tmp_path: Path) -> None:
    (layer,) = read(model_of(dense(normal(8, 4), types={"w": kind})), tmp_path)
    assert layer.obstacle == f"holds {kind}, which this reader cannot read"


def test_circles_end(tmp_path: Path) -> None:
    tensors = {"x": (2, 8), "a": (8, 8), "b": (8, 8), "y": (2, 8)}
    circle = [("RESHAPE", ["a"], ["b"]), ("RESHAPE", ["b"], ["a"]), ("FULLY_CONNECTED", ["x", "a", ""], ["y"])]
    (layer,) = read(model_of(Graph(tensors, circle, ["x"], ["y"])), tmp_path)
    assert "more than 64 operators" in layer.obstacle


def _overlapping() -> bytes:
    """One operator with a long list of inputs, to which 20,000 entries lead."""
    count = 20_000
    builder = flatbuffers.Builder(1 << 20)
    builder.StartVector(4, count, 4)
    for _ in range(count):
        builder.PrependInt32(0)
    indices = builder.EndVector()
    operators = []
    for _ in range(200):
        schema.OperatorStart(builder)
        schema.OperatorAddInputs(builder, indices)
        schema.OperatorAddOutputs(builder, indices)
        operators.append(schema.OperatorEnd(builder))
    schema.SubGraphStartOperatorsVector(builder, len(operators))
    for operator in operators:
        builder.PrependUOffsetTRelative(operator)
    operator_vector = builder.EndVector()
    schema.TensorStart(builder)
    tensor = schema.TensorEnd(builder)
    schema.SubGraphStartTensorsVector(builder, 1)
    builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddOperators(builder, operator_vector)
    schema.SubGraphAddTensors(builder, tensors)
    subgraph = schema.SubGraphEnd(builder)
    schema.OperatorCodeStart(builder)
    code = schema.OperatorCodeEnd(builder)
    schema.BufferStart(builder)
    buffer = schema.BufferEnd(builder)
    vectors = []
    for start, item in (
        (schema.ModelStartSubgraphsVector, subgraph),
        (schema.ModelStartOperatorCodesVector, code),
        (schema.ModelStartBuffersVector, buffer),
    ):
        start(builder, 1)
        builder.PrependUOffsetTRelative(item)
        vectors.append(builder.EndVector())
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, vectors[0])
    schema.ModelAddOperatorCodes(builder, vectors[1])
    schema.ModelAddBuffers(builder, vectors[2])
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


def test_vectors_that_overlap_are_refused_soon(tmp_path: Path) -> None:
    data = _overlapping()
    with pytest.raises(ModelError, match="longer than itself"), bounded(100_000):
        read(data, tmp_path)


def test_many_inputs_with_many_results_take_no_square_of_time(tmp_path: Path) -> None:
    graph = dense(normal(8, 8))
    graph.tensors |= {f"{kind}{i}": (2, 8) for kind in "io" for i in range(4000)}
    graph.inputs = [f"i{i}" for i in range(4000)]
    graph.operators.append(("PACK", graph.inputs, [f"o{i}" for i in range(4000)]))
    data = model_of(graph)
    with bounded(1_000_000):
        read(data, tmp_path)


def test_weights_that_share_bytes_are_refused(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"x": (2, 256), "w": normal(256, 256), "y": (2, 256)}
    tensors |= {f"w{i}": (256, 256) for i in range(2000)}
    operators = [("FULLY_CONNECTED", ["x", name, ""], ["y"]) for name in tensors if name[0] == "w"]

    def share(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors[3:]:
            tensor.buffer = 1

    with pytest.raises(ModelError, match="over and over"):
        read(model_of(Graph(tensors, operators, ["x"], ["y"]), change=share), tmp_path)


@functools.cache
def _seeds() -> tuple[bytes, ...]:
    quantized = dense(np.arange(64, dtype=np.uint8).reshape(8, 8), quantized={"w": ([7] * 8, 0)})
    convolution = convert(
        tf.function(lambda x: tf.nn.conv2d(x, normal(1, 1, 4, 4), 1, "SAME")).get_concrete_function(
            tf.TensorSpec([1, 2, 2, 4], tf.float32)
        ),
        "float16",
    )
    return model_of(quantized), model_of(*_while("w")), convolution


def survives(data: bytes, folder: Path) -> None:
    """It is read, or refused with an error that names the file; soon, in either case."""
    try:
        with bounded(500_000):
            for layer in read(data, folder):
                if layer.readable:
                    assert layer.values().shape == layer.shape
                    check(layer.values(), layer.axis or 0)
    except SparsekitError as error:
        assert "model.tflite" in str(error)


FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@FUZZ
@given(seed=st.integers(0, 2), data=st.data())
def test_flipped_bytes(seed: int, data: Any, tmp_path: Path) -> None:
    model = bytearray(_seeds()[seed])
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(model) - 1))
        model[position] = data.draw(st.sampled_from((0, 1, 2, 4, 0x7F, 0x80, 0xFF)) | st.integers(0, 255))
    survives(bytes(model), tmp_path)


@FUZZ
@given(seed=st.integers(0, 2), data=st.data())
def test_changed_words(seed: int, data: Any, tmp_path: Path) -> None:
    """Offsets, lengths and indices are words of four bytes."""
    model = bytearray(_seeds()[seed])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(model) // 4 - 1)) * 4
        small, large = st.integers(-4, len(model)), st.integers(-(1 << 31), (1 << 31) - 1)
        model[position : position + 4] = struct.pack("<i", data.draw(small | large))
    survives(bytes(model), tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_cut_off(seed: int, tmp_path: Path) -> None:
    model = _seeds()[seed]
    for length in range(0, len(model), 7):
        survives(model[:length], tmp_path)


@FUZZ
@given(data=st.binary(max_size=300))
def test_noise(data: bytes, tmp_path: Path) -> None:
    survives(data[:4] + b"TFL3" + data[4:], tmp_path)
