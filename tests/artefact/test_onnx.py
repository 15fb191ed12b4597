"""The .onnx reader: real conversions, layouts as onnxruntime has them, hand-made graphs, and hostile files.

Needs the packages onnx, onnxruntime and tf2onnx: without them it fails, it is not skipped.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx
from bounded import bounded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from test_tflite import (
    CONV_NET,
    KINDS,
    TRANSFORMER,
    Network,
    assert_judged,
    lstm_layer,
    normal,
    pruned,
    violations,
)

import sparsekit
from sparsekit.artefact.deployed import DeployedLayer
from sparsekit.artefact.onnx_model import read_onnx
from sparsekit.errors import MissingFileError, ModelError, SparsekitError
from sparsekit.pattern import check

Array = npt.NDArray[Any]
MS = "com.microsoft"


# --- real conversions --------------------------------------------------------------------------------------


@functools.cache
def converted(network: Network, kind: str) -> Any:
    signature = [tf.TensorSpec(network.input_shape, tf.float32, name="x")]
    function = tf.function(network.build(network.weights(kind)))
    model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
    return model


def saved(model: Any, folder: Path, **how: Any) -> Path:
    path = folder / "model.onnx"
    if how:
        onnx.save(model, path, **how)
    else:
        path.write_bytes(model.SerializeToString())  # onnx.save checks more than a hostile file stands
    return path


class Samples(CalibrationDataReader):
    """What onnxruntime's static quantizer is calibrated with."""

    def __init__(self, model: Any) -> None:
        (given,) = model.graph.input
        shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
        self._samples: Iterator[dict[str, Array]] = iter([{given.name: normal(*shape, seed=i)} for i in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._samples, None)


def optimized(path: Path, level: str) -> Path:
    """The model as onnxruntime saves it after its own optimizations."""
    result = path.with_name("optimized.onnx")
    how = onnxruntime.SessionOptions()
    how.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    how.optimized_model_filepath = str(result)
    how.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), how, providers=["CPUExecutionProvider"])
    return result


def _float(model: Any, path: Path) -> Path:
    return path


def _dynamic(kind: QuantType, model: Any, path: Path) -> Path:
    result = path.with_name("quantized.onnx")
    quantize_dynamic(path, result, weight_type=kind)
    return result


def _static(form: QuantFormat, per_channel: bool, model: Any, path: Path) -> Path:
    result = path.with_name("quantized.onnx")
    quantize_static(path, result, Samples(model), quant_format=form, per_channel=per_channel)
    return result


FORMATS: dict[str, Callable[[Any, Path], Path]] = {
    "float": _float,
    "dynamic int8": functools.partial(_dynamic, QuantType.QInt8),
    "dynamic uint8": functools.partial(_dynamic, QuantType.QUInt8),
    "QDQ": functools.partial(_static, QuantFormat.QDQ, False),
    "QDQ per channel": functools.partial(_static, QuantFormat.QDQ, True),
    "QOperator": functools.partial(_static, QuantFormat.QOperator, False),
    "QOperator per channel": functools.partial(_static, QuantFormat.QOperator, True),
    "optimized": lambda model, path: optimized(path, "EXTENDED"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", FORMATS)
def test_conv_net(to: str, kind: str, tmp_path: Path) -> None:
    model = converted(CONV_NET, kind)
    layers = read_onnx(FORMATS[to](model, saved(model, tmp_path)))
    assert [layer.exempt[:9] for layer in layers] == ["", "", "depthwise", ""]
    assert_judged(layers, kind, 3)
    stored = "float32" if to in ("float", "optimized") else "uint8" if "uint8" in to else "int8"
    assert {layers[0].dtype, layers[3].dtype} == {stored}
    assert ("zero is stored as" in layers[0].note) == (to == "dynamic uint8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", FORMATS)
def test_transformer(to: str, kind: str, tmp_path: Path) -> None:
    """The products of activations in the attention are no layers."""
    model = converted(TRANSFORMER, kind)
    assert_judged(read_onnx(FORMATS[to](model, saved(model, tmp_path))), kind, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_lstm_in_the_body_of_a_loop(kind: str, tmp_path: Path) -> None:
    layer = lstm_layer(kind)
    signature = [tf.TensorSpec([1, 5, 16], tf.float32, name="x")]
    model, _ = tf2onnx.convert.from_function(tf.function(lambda x: layer(x)), input_signature=signature, opset=17)
    layers = read_onnx(saved(model, tmp_path))
    assert_judged(layers, kind, 2)
    assert all("while" in layer.location for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_graph(kind: str, tmp_path: Path) -> None:
    function = CONV_NET.function(kind)
    names = {"input_names": [function.inputs[0].name], "output_names": [function.outputs[0].name]}
    model, _ = tf2onnx.convert.from_graph_def(function.graph.as_graph_def(), opset=15, **names)
    assert_judged(read_onnx(saved(model, tmp_path)), kind, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_external_data(kind: str, tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(converted(CONV_NET, kind).SerializeToString())
    path = saved(model, tmp_path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    layers = read_onnx(path)
    assert_judged(layers, kind, 3)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"weights\.bin"):
        layers[0].values()
    with pytest.raises(ModelError, match=r"model\.onnx: tensor '.*': ends at byte"):
        read_onnx(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(MissingFileError, match=r"weights\.bin"):
        read_onnx(path)


def test_differences_are_those_of_weights_wherever_they_lie(tmp_path: Path) -> None:
    for kind in ("right", "wrong"):
        (tmp_path / kind).mkdir()
        model = onnx.ModelProto.FromString(converted(CONV_NET, kind).SerializeToString())
        saved(model, tmp_path / kind, save_as_external_data=True, size_threshold=0, location="weights.bin")
    a, b = (tmp_path / kind / "model.onnx" for kind in ("right", "wrong"))
    difference = sparsekit.diff(a, b)
    assert {change.name for change in difference.values} == {"conv", "up", "fc"}
    assert not difference.whole and "Only the weights of layers were compared." in str(difference)
    difference = sparsekit.diff(a, a)
    assert difference.identical and difference.summary() == "No weight of a layer differs."


def test_blocked_layout_is_an_obstacle(tmp_path: Path) -> None:
    """What onnxruntime saves with ENABLE_ALL is laid out for one kind of processor."""
    layers = read_onnx(optimized(saved(converted(CONV_NET, "right"), tmp_path), "ALL"))
    blocked = [layer for layer in layers if "nchwc" in layer.op_type]
    assert blocked
    assert all("verify the source file" in layer.obstacle for layer in blocked)


def test_names_are_those_of_the_network(tmp_path: Path) -> None:
    names = [layer.name for layer in read_onnx(saved(converted(CONV_NET, "right"), tmp_path))]
    assert names == ["conv", "up", "depthwise", "fc"]


@pytest.mark.parametrize("kind", KINDS)
def test_lstm_operator_quantized(kind: str, tmp_path: Path) -> None:
    """ONNX' own LSTM, and DynamicQuantizeLSTM, whose weights lie the other way around."""
    weights = {"w": pruned(normal(1, 48, 16), 1 if kind == "wrong" else 2)}
    weights["r"] = pruned(normal(1, 48, 12), 1 if kind == "wrong" else 2)
    if kind == "broken":
        for weight in weights.values():
            weight[0, 0, :4] = 1
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], name="lstm", hidden_size=12)
    model = model_of([node], weights, {"x": (5, 1, 16)}, {"y": (1, 1, 12)})
    path = saved(model, tmp_path)
    assert [(layer.name, layer.axis) for layer in read_onnx(path)] == [("lstm W", 2), ("lstm R", 2)]
    assert_judged(read_onnx(path), kind, 2)
    for dtype in (QuantType.QInt8, QuantType.QUInt8):
        layers = read_onnx(_dynamic(dtype, model, path))
        assert {layer.op_type for layer in layers} == {f"{MS}.DynamicQuantizeLSTM"}
        assert_judged(layers, kind, 2)


# --- layouts, as onnxruntime has them ----------------------------------------------------------------------


def model_of(
    nodes: Sequence[Any],
    stored: dict[str, Array],
    inputs: dict[str, Sequence[int]],
    outputs: dict[str, Sequence[int] | None],
    **more: Any,
) -> Any:
    def infos(values: dict[str, Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]

    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(list(nodes), "main", infos(inputs), infos(outputs), tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, **more)


def layers_of(model: Any, folder: Path) -> list[DeployedLayer]:
    return read_onnx(saved(model, folder))


def run(model: Any, x: Array) -> Array:
    """Unoptimized: onnxruntime may otherwise compute with integers what the graph computes with floats."""
    how = onnxruntime.SessionOptions()
    how.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    how.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), how, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@attrs.frozen
class Layout:
    """An operator, its weight ("w" among its inputs), and where the input channels are in its other operand."""

    op_type: str
    inputs: str
    x: tuple[int, ...]
    channels: int
    w: tuple[int, ...]
    axis: int
    attributes: dict[str, Any] = attrs.field(factory=dict)
    others: dict[str, tuple[int, ...]] = attrs.field(factory=dict)
    outputs: str = "y"
    position: int = 0


LAYOUTS = {
    "Conv": Layout("Conv", "x w", (1, 8, 4, 4), 1, (12, 8, 3, 3), 1),
    "Conv 1D": Layout("Conv", "x w", (1, 8, 4), 1, (12, 8, 3), 1),
    "Conv 3D": Layout("Conv", "x w", (1, 8, 4, 4, 4), 1, (12, 8, 3, 3, 3), 1),
    "Conv in groups": Layout("Conv", "x w", (1, 16, 4, 4), 1, (12, 8, 3, 3), 1, {"group": 2}),
    "ConvTranspose": Layout("ConvTranspose", "x w", (1, 8, 4, 4), 1, (8, 12, 3, 3), 0),
    "ConvTranspose in groups": Layout("ConvTranspose", "x w", (1, 16, 4, 4), 1, (16, 6, 3, 3), 1, {"group": 2}),
    "MatMul": Layout("MatMul", "x w", (2, 8), 1, (8, 12), 0),
    "MatMul of many": Layout("MatMul", "x w", (3, 2, 8), 2, (3, 8, 12), 1),
    "MatMul by a vector": Layout("MatMul", "x w", (2, 8), 1, (8,), 0),
    "MatMul from the left": Layout("MatMul", "w x", (8, 2), 0, (12, 8), 1),
    "Gemm": Layout("Gemm", "x w", (2, 8), 1, (8, 12), 0),
    "Gemm transposed": Layout("Gemm", "x w", (2, 8), 1, (12, 8), 1, {"transB": 1}),
    "Gemm from the left": Layout("Gemm", "w x", (8, 2), 0, (12, 8), 1),
    "Gemm from the left transposed": Layout("Gemm", "w x", (8, 2), 0, (8, 12), 0, {"transA": 1}),
    "Einsum": Layout("Einsum", "x w", (2, 3, 8), 2, (5, 8, 12), 1, {"equation": "abi, nio->abno"}),
    "LSTM W": Layout("LSTM", "x w r", (3, 1, 8), 2, (1, 48, 8), 2, {"hidden_size": 12}, {"r": (1, 48, 12)}),
    "GRU W": Layout("GRU", "x w r", (3, 1, 8), 2, (1, 36, 8), 2, {"hidden_size": 12}, {"r": (1, 36, 12)}),
    "RNN W": Layout("RNN", "x w r", (3, 1, 8), 2, (1, 12, 8), 2, {"hidden_size": 12}, {"r": (1, 12, 12)}),
    # The first hidden state takes the input's place.
    "LSTM R": Layout(
        *("LSTM", "i v w  n x", (1, 1, 8), 2, (1, 32, 8), 2, {"hidden_size": 8}),
        {"i": (1, 1, 4), "v": (1, 32, 4)},
        " y",
        1,
    ),
    "FusedMatMul": Layout(f"{MS}.FusedMatMul", "x w", (2, 8), 1, (12, 8), 1, {"transB": 1}),
    "FusedMatMul from the left": Layout(f"{MS}.FusedMatMul", "w x", (8, 2), 0, (8, 12), 0, {"transA": 1}),
    "FusedConv": Layout(f"{MS}.FusedConv", "x w", (1, 8, 4, 4), 1, (12, 8, 3, 3), 1, {"activation": "Relu"}),
    "FusedGemm": Layout(
        f"{MS}.FusedGemm", "x w b", (2, 8), 1, (12, 8), 1, {"transB": 1, "activation": "Relu"}, {"b": (12,)}
    ),
    "Attention": Layout(f"{MS}.Attention", "x w b", (1, 2, 8), 2, (8, 24), 0, {"num_heads": 2}, {"b": (24,)}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_onnxruntimes(name: str, tmp_path: Path) -> None:
    """An input channel whose weights along the reported axis are zero does not reach the output."""
    layout = LAYOUTS[name]
    stored = {"w": normal(*layout.w), **{other: normal(*shape) for other, shape in layout.others.items()}}

    def model() -> Any:
        domain, _, op_type = layout.op_type.rpartition(".")
        inputs = [{"n": ""}.get(i, i) for i in layout.inputs.replace("  ", " n ").split(" ")]
        node = helper.make_node(op_type, inputs, layout.outputs.split(" "), domain=domain, **layout.attributes)
        return model_of([node], stored, {"x": layout.x}, {"y": None})

    layer = layers_of(model(), tmp_path)[layout.position]
    assert layer.axis == layout.axis
    seen = stored["w"].reshape(layer.shape or ())
    channels = seen.shape[layer.axis]
    np.moveaxis(seen, layer.axis, 0)[5] = 0
    x = normal(*layout.x)
    other = x.copy()
    np.moveaxis(other, layout.channels, 0)[5::channels] += 10
    assert np.array_equal(run(model(), x), run(model(), other))
    np.moveaxis(other, layout.channels, 0)[6::channels] += 10
    assert not np.array_equal(run(model(), x), run(model(), other))
    values = layers_of(model(), tmp_path)[layout.position].values()
    assert np.array_equal(values, seen)


# --- graphs made by hand -----------------------------------------------------------------------------------


def dense(*nodes: Any, w: Array | None = None, last: str = "v", functions: Sequence[Any] = (), **stored: Array) -> Any:
    """x [2, K] times what ``nodes`` make of w, called ``last``."""
    weights = {"w": pruned(normal(8, 12), 0) if w is None else w, **stored}
    product = helper.make_node("MatMul", ["x", last], ["y"], name="product")
    return model_of([*nodes, product], weights, {"x": (2, 8)}, {"y": None}, functions=functions)


def node(op_type: str, inputs: str, outputs: str, **more: Any) -> Any:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **more)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


W = pruned(normal(8, 12), 0)


@pytest.mark.parametrize(
    ("nodes", "stored"),
    [
        ([node("Identity", "w", "v")], {"w": W}),
        ([node("Cast", "w", "v", to=TensorProto.FLOAT)], {"w": W.astype(np.float16)}),
        ([node("Transpose", "w", "v")], {"w": W.T.copy()}),
        ([node("Transpose", "w", "v", perm=[1, 0])], {"w": W.T.copy()}),
        ([node("Reshape", "w s", "v")], {"w": W.reshape(2, 4, 12), "s": ints(-1, 12)}),
        ([node("Reshape", "w s", "v")], {"w": W.reshape(8, 3, 4), "s": ints(0, 12)}),
        ([node("Flatten", "w", "v")], {"w": W.reshape(8, 3, 4)}),
        ([node("Flatten", "w", "v", axis=-1)], {"w": W.reshape(2, 4, 12)}),
        ([node("Squeeze", "w a", "v")], {"w": W.reshape(1, 8, 12), "a": ints(0)}),
        ([node("Squeeze", "w", "v")], {"w": W.reshape(8, 1, 12)}),
        ([node("Unsqueeze", "w a", "u"), node("Squeeze", "u a", "v")], {"w": W, "a": ints(-3)}),
        (
            [node("Constant", "", "v", value=numpy_helper.from_array(W))],
            {"w": W},
        ),
        (
            [node("Constant", "", "s", value_ints=[8, 12]), node("Reshape", "w s", "v")],
            {"w": W.reshape(-1)},
        ),
    ],
)
def test_weights_behind_other_operators(nodes: list[Any], stored: dict[str, Array], tmp_path: Path) -> None:
    model = dense(*nodes, **stored)
    (layer,) = layers_of(model, tmp_path)
    assert (layer.name, layer.shape, layer.axis) == ("product", (8, 12), 0)
    assert np.array_equal(layer.values(), stored["w"] if stored["w"].dtype == np.float16 else W)
    np.testing.assert_allclose(run(model, x := normal(2, 8)), x @ W, rtol=1e-2, atol=1e-2)


def test_groups_that_a_reshape_breaks(tmp_path: Path) -> None:
    """2:4 where it is stored, not where it is multiplied."""
    stored = pruned(normal(16, 6), 0)
    (layer,) = layers_of(dense(node("Reshape", "w s", "v"), w=stored, s=ints(8, 12)), tmp_path)
    assert check(stored, 0).violations == 0
    assert violations([layer])[0] > 0


@pytest.mark.parametrize(
    ("nodes", "obstacle"),
    [
        ([node("Neg", "w", "v")], "computed by Neg when the model runs"),
        ([node("Mul", "w w", "v")], "computed by Mul when the model runs"),
        ([node("Shape", "x", "s"), node("Reshape", "w s", "v")], "computed by Reshape"),
        ([node("Reshape", "w o", "v")], "computed by Reshape"),
        ([node("QuantizeLinear", "w o", "v")], "computed by QuantizeLinear"),
    ],
)
def test_computed_weights(nodes: list[Any], obstacle: str, tmp_path: Path) -> None:
    (layer,) = layers_of(dense(*nodes, o=np.float32([np.nan])), tmp_path)
    assert layer.obstacle.startswith(obstacle)
    assert not layer.readable


def _quantized(zero: Array, dtype: Any) -> Array:
    limits = np.iinfo(dtype)
    return np.clip(np.round(W * 20) + zero, limits.min, limits.max).astype(dtype)


@pytest.mark.parametrize(
    ("zero", "shape", "attributes"),
    [
        (np.uint8(128), (), {}),
        (np.arange(120, 132, dtype=np.uint8), (12,), {"axis": 1}),
        (np.arange(120, 132, dtype=np.uint8), (12,), {"axis": -1}),
        (np.arange(120, 128, dtype=np.uint8)[:, None], (8,), {"axis": 0}),
        (np.array([[100] * 12, [140] * 12], np.uint8), (2, 12), {"axis": 0, "block_size": 4}),
        (np.array([[100] * 12, [140] * 12], np.uint8), (2, 12), {"axis": 0, "block_size": 5}),
    ],
)
def test_dequantized_weights(zero: Array, shape: tuple[int, ...], attributes: dict[str, int], tmp_path: Path) -> None:
    block = attributes.get("block_size")
    spread = zero[np.arange(8) // block] if block else zero
    stored = _quantized(spread, np.uint8)
    points = {"z": zero.reshape(shape), "s": np.full(shape, 0.05, np.float32)}
    model = dense(node("DequantizeLinear", "w s z", "v", **attributes), w=stored, **points)
    (layer,) = layers_of(model, tmp_path)
    assert violations([layer]) == [0]
    assert layer.dtype == "uint8"
    x = normal(2, 8)
    np.testing.assert_allclose(run(model, x), x @ (layer.values() * np.float32(0.05)), rtol=1e-3, atol=1e-3)


def test_quantized_in_the_graph(tmp_path: Path) -> None:
    """As quantization-aware training exports: zero becomes the zero point, exactly, and zero again."""
    nodes = [node("QuantizeLinear", "w s z", "q"), node("DequantizeLinear", "q s z", "v")]
    points = {"s": np.float32([0.05]).reshape(()), "z": np.array(117, np.uint8)}
    (layer,) = layers_of(dense(*nodes, **points), tmp_path)
    assert violations([layer]) == [0]
    nodes[1] = node("DequantizeLinear", "q s other", "v")
    (layer,) = layers_of(dense(*nodes, **points, other=np.array(118, np.uint8)), tmp_path)
    assert layer.obstacle == "computed by QuantizeLinear when the model runs"


def test_int4(tmp_path: Path) -> None:
    stored = np.clip(np.round(W * 2), -7, 7)
    assert check(stored, 0).violations == 0
    for dtype, zero in ((ml_dtypes.int4, 0), (ml_dtypes.uint4, 8)):
        points = {"z": np.array(zero, dtype), "s": np.array(0.5, np.float32)}
        model = dense(node("DequantizeLinear", "w s z", "v"), w=(stored + zero).astype(dtype), **points)
        (layer,) = layers_of(model, tmp_path)
        assert layer.dtype == np.dtype(dtype).name
        assert np.array_equal(layer.values(), stored)
        x = normal(2, 8)
        np.testing.assert_allclose(run(model, x), x @ (stored / 2).astype(np.float32), rtol=1e-3, atol=1e-3)


def test_zero_points_of_integer_products(tmp_path: Path) -> None:
    zero = np.arange(120, 132, dtype=np.uint8)
    stored = {"w": _quantized(zero, np.uint8), "z": zero, "one": np.array(3, np.uint8)}
    right = node("MatMulInteger", "q w one z", "y")
    left = node("MatMulInteger", "t q z one", "y2")
    stored["t"] = np.ascontiguousarray(stored["w"].T)
    quantize = node("DynamicQuantizeLinear", "x", "q s p")
    layers = layers_of(model_of([quantize, right, left], stored, {"x": (8, 8)}, {"y": None}), tmp_path)
    assert [layer.axis for layer in layers] == [0, 1]
    assert {layer.note for layer in layers} == {"zero is stored as 120 to 131"}
    assert violations(layers) == [0, 0]


def test_a_zero_point_that_is_computed(tmp_path: Path) -> None:
    stored = {"w": _quantized(np.uint8(9), np.uint8)}
    nodes = [node("DynamicQuantizeLinear", "x", "q s p"), node("MatMulInteger", "q w p p", "y")]
    (layer,) = layers_of(model_of(nodes, stored, {"x": (2, 8)}, {"y": None}), tmp_path)
    assert "zero point that is computed" in layer.obstacle


def test_depthwise_and_kernels_that_are_data(tmp_path: Path) -> None:
    stored = {"d": normal(8, 1, 3, 3), "t": normal(8, 1, 3, 3)}
    nodes = [
        node("Conv", "x d", "a", group=8),
        node("ConvTranspose", "x t", "b", group=8),
        node("Conv", "x k", "c"),
    ]
    model = model_of(nodes, stored, {"x": (1, 8, 4, 4), "k": (8, 8, 3, 3)}, {"a": None})
    reasons = [layer.exempt for layer in layers_of(model, tmp_path)]
    assert [reason[:9] for reason in reasons] == ["depthwise", "depthwise", "its kerne"]


@pytest.mark.parametrize(
    ("equation", "shape", "obstacle"),
    [
        ("ab,bcd->acd", (8, 3, 4), ""),
        ("ab,cb", (12, 8), "that this reader does not know"),
        ("...b,bc->...c", (8, 12), "that this reader does not know"),
        ("ab,bb->a", (8, 8), "over several axes"),
        ("ab,ab->", (2, 8), "over several axes"),
    ],
)
def test_einsum(equation: str, shape: tuple[int, ...], obstacle: str, tmp_path: Path) -> None:
    model = model_of(
        [node("Einsum", "x w", "y", equation=equation)], {"w": pruned(normal(*shape), 0)}, {"x": (2, 8)}, {"y": None}
    )
    (layer,) = layers_of(model, tmp_path)
    assert obstacle in layer.obstacle
    assert layer.readable == (not obstacle)


def test_einsum_without_a_contraction(tmp_path: Path) -> None:
    model = model_of(
        [node("Einsum", "x w", "y", equation="ab,ab->ab")], {"w": normal(2, 8)}, {"x": (2, 8)}, {"y": None}
    )
    assert layers_of(model, tmp_path) == []


def _graph(name: str, nodes: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str], **stored: Array) -> Any:
    infos = [[helper.make_empty_tensor_value_info(name) for name in names] for names in (inputs, outputs)]
    return helper.make_graph(
        list(nodes), name, *infos, [numpy_helper.from_array(value, name) for name, value in stored.items()]
    )


def _loop(returned: str, *more: Any) -> Any:
    """A Loop that carries its weight along and returns ``returned`` for it."""
    step = [node("Identity", "go", "on"), node("MatMul", "h k", "next", name="step"), *more]
    body = _graph("body", step, ["i", "go", "h", "k"], ["on", "next", returned])
    loop = node("Loop", "n t x w", "y kept", body=body)
    stored = {"w": pruned(normal(8, 8), 0), "n": ints(3), "t": np.array(True)}
    return model_of([loop], stored, {"x": (2, 8)}, {"y": None})


def test_loop(tmp_path: Path) -> None:
    for model in (_loop("k"), _loop("same", node("Identity", "k", "same"))):
        (layer,) = layers_of(model, tmp_path)
        assert (layer.name, layer.location, layer.shape) == ("step", "graph 'body', node 1", (8, 8))
        assert violations([layer]) == [0]
    (layer,) = layers_of(_loop("changed", node("Neg", "k", "changed")), tmp_path)
    assert layer.obstacle == "changed by the Loop that it is in"
    assert layers_of(_loop("next"), tmp_path) == []


@pytest.mark.parametrize("carried", [True, False])
def test_scan(carried: bool, tmp_path: Path) -> None:
    weight = pruned(normal(8, 8) if carried else normal(3, 8, 8), -2)
    body = _graph(
        "body",
        [node("MatMul", "h k", "next"), node("Identity", "k", "same")],
        ["h", "k"],
        ["next", "same"] if carried else ["next"],
    )
    scan = node("Scan", "x w", "y kept" if carried else "y", body=body, num_scan_inputs=0 if carried else 1)
    (layer,) = layers_of(model_of([scan], {"w": weight}, {"x": (2, 8)}, {"y": None}), tmp_path)
    assert (layer.axis, layer.obstacle) == ((0, "") if carried else (None, "made by Scan when the model runs"))


def test_branches_and_outer_scopes(tmp_path: Path) -> None:
    outer = _graph("then", [node("MatMul", "x w", "a", name="outer")], [], ["a"])
    inner = _graph("else", [node("MatMul", "x u", "b", name="inner")], [], ["b"], u=pruned(normal(8, 8), 0))
    choose = node("If", "c", "y", then_branch=outer, else_branch=inner)
    last = node("MatMul", "y w", "z", name="last")
    stored = {"w": pruned(normal(8, 8), 0), "c": np.array(True)}
    layers = layers_of(model_of([choose, last], stored, {"x": (2, 8)}, {"z": None}), tmp_path)
    # "outer" and "last" share a weight.
    assert sorted(layer.name for layer in layers) == ["inner", "last"]
    assert violations(layers) == [0, 0]


def test_functions_of_the_model(tmp_path: Path) -> None:
    body = [
        node("Constant", "", "c", value=numpy_helper.from_array(pruned(normal(8, 8), 0))),
        node("MatMul", "a c", "h", name="inside"),
        node("MatMul", "h b", "r", name="given"),
    ]
    gemm = helper.make_node("Gemm", ["h", "c"], ["g"], name="unknown")
    gemm.attribute.append(onnx.AttributeProto(name="transB", ref_attr_name="t", type=onnx.AttributeProto.INT))
    function = helper.make_function("mine", "Dense", ["a", "b"], ["r"], [*body, gemm], [helper.make_opsetid("", 21)])
    call = node("Dense", "x w", "y", domain="mine", name="call")
    model = model_of([call], {"w": normal(8, 8)}, {"x": (2, 8)}, {"y": None}, functions=[function])
    called, inside, unknown = layers_of(model, tmp_path)
    assert (called.name, called.op_type, called.readable) == ("call", "mine.Dense", False)
    assert violations([inside]) == [0]
    assert "arguments of a function" in unknown.obstacle


def test_a_function_in_place_of_a_known_operator(tmp_path: Path) -> None:
    body = [node("Neg", "b", "n"), node("Add", "a n", "r")]
    function = helper.make_function("", "MatMul", ["a", "b"], ["r"], body, [helper.make_opsetid("", 21)])
    (layer,) = layers_of(dense(last="w", w=normal(8, 8), functions=[function]), tmp_path)
    assert "does not know" in layer.obstacle


def test_unknown_operators(tmp_path: Path) -> None:
    stored = {"m": normal(8, 8), "v": normal(8)}
    nodes = [
        node("MatMulNBits", "x m v", "a", domain=MS, name="packed"),
        node("SkipLayerNormalization", "x v v", "b", domain=MS),
        node("RotaryEmbedding", "x m m m", "c", domain=MS),
        node("Thing", "x m", "d", domain="elsewhere", name="thing"),
        node("Add", "x m", "e"),
    ]
    layers = layers_of(model_of(nodes, stored, {"x": (8, 8)}, {"a": None}), tmp_path)
    assert [layer.name for layer in layers] == ["packed", "thing"]
    assert all("does not know" in layer.obstacle for layer in layers)


def test_sparse_initializers_are_an_obstacle(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.ones(4, np.float32), "k")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(ints(0, 9, 30, 60)), [8, 8])
    model = model_of([node("MatMul", "x k", "y"), node("MatMul", "x c", "z")], {}, {"x": (2, 8)}, {"y": None})
    model.graph.sparse_initializer.append(sparse)
    model.graph.node.insert(0, node("Constant", "", "c", sparse_value=sparse))
    assert [layer.obstacle[:22] for layer in layers_of(model, tmp_path)] == ["stored in ONNX's spars"] * 2


@pytest.mark.parametrize(
    "dtype",
    [
        *("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int4", "int8", "int16", "int32", "int64", "uint4", "uint8", "uint16", "uint32", "uint64"),
    ],
)
def test_types_in_raw_and_in_typed_fields(dtype: str, tmp_path: Path) -> None:
    values = np.where(W == 0, 0, np.abs(np.round(W)).clip(1, 7)).astype(getattr(ml_dtypes, dtype, None) or dtype)
    raw = numpy_helper.from_array(values, "v")
    typed = helper.make_tensor("v", raw.data_type, values.shape, values.reshape(-1).astype(float).tolist())
    if np.dtype(dtype if hasattr(np, dtype) else np.uint8).kind in "iu":
        typed = helper.make_tensor("v", raw.data_type, values.shape, values.reshape(-1).astype(int).tolist())
    assert not typed.HasField("raw_data")
    for tensor in (raw, typed):
        model = dense()
        model.graph.initializer.append(tensor)
        (layer,) = layers_of(model, tmp_path)
        assert layer.dtype == dtype
        assert np.array_equal(layer.values().astype(float), values.astype(float))


def test_one_weight_of_many_steps_is_one_layer(tmp_path: Path) -> None:
    steps = [node("MatMul", f"h{i} w" if i else "x w", f"h{i + 1}") for i in range(2000)]
    (layer,) = layers_of(model_of(steps, {"w": pruned(normal(8, 8), 0)}, {"x": (2, 8)}, {"h5": None}), tmp_path)
    assert violations([layer]) == [0]


def test_one_weight_along_two_axes_is_two_layers(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w", "a"), node("Gemm", "x w", "b", transB=1)]
    layers = layers_of(model_of(nodes, {"w": pruned(normal(8, 8), 0)}, {"x": (2, 8)}, {"a": None}), tmp_path)
    assert [layer.axis for layer in layers] == [0, 1]
    assert violations(layers)[0] == 0 < violations(layers)[1]


def test_no_weights_give_no_layers(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t"), node("MatMul", "x t", "s"), node("Relu", "s", "y")]
    assert layers_of(model_of(nodes, {}, {"x": (2, 8)}, {"y": None}), tmp_path) == []


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    """As files before IR version 4 have it."""
    model = model_of([node("MatMul", "x w", "y")], {"w": W}, {"x": (2, 8), "w": (8, 12)}, {"y": None})
    assert violations(layers_of(model, tmp_path)) == [0]


# --- files that are not what they should be ----------------------------------------------------------------


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SparsekitError, match=r"sparsekit\[onnx\]"):
        read_onnx(saved(dense(last="w"), tmp_path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no such file"):
        read_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize("path", ["a\0b", "/dev/null", "."])
def test_what_is_no_file(path: str) -> None:
    with pytest.raises(ModelError):
        read_onnx(path)


@pytest.mark.parametrize("kind", ["empty", "noise", "graph_def", "tflite", "no graph"])
def test_wrong_kinds_of_files(kind: str, tmp_path: Path) -> None:
    data = {
        "empty": b"",
        "noise": bytes(range(256)),
        "graph_def": CONV_NET.function("right").graph.as_graph_def().SerializeToString(),
        "tflite": b"\x1c\0\0\0TFL3" + bytes(64),
        "no graph": onnx.ModelProto(ir_version=8).SerializeToString(),
    }[kind]
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.onnx: is "):
        read_onnx(tmp_path / "model.onnx")


def _weight(model: Any) -> Any:
    return model.graph.initializer[0]


def _dims(*dims: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        _weight(model).dims[:] = dims

    return change


def _elsewhere(**entries: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        _weight(model).data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            _weight(model).external_data.add(key=key, value=value)

    return change


def _rename(old: str, new: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for part in model.graph.node:
            part.input[:] = [new if name == old else name for name in part.input]
            part.output[:] = [new if name == old else name for name in part.output]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_dims(8, 13), r"tensor 'w': holds 384 bytes; expected 416 for float32 of shape \[8, 13\]"),
        (_dims(1 << 40, 1 << 40), "a shape that memory can hold"),
        (_dims(-8, -12), "lengths to be known"),
        (_dims(*[1] * 40), "40 axes"),
        (_elsewhere(location="../secret"), "a file in the model's folder"),
        (_elsewhere(location="/etc/passwd"), "a file in the model's folder"),
        (_elsewhere(location="C:\\data"), "a file in the model's folder"),
        (_elsewhere(), "a file in the model's folder"),
        (_elsewhere(location="model.onnx", offset="x"), "numbers of bytes"),
        (_elsewhere(location="model.onnx", offset="-1"), "numbers of bytes"),
        (_elsewhere(location="model.onnx", length="12"), "12 bytes of external data"),
        (_elsewhere(location="model.onnx", offset="9999"), "ends at byte 10383"),
        (_elsewhere(location="none"), "there is no such file"),
        (_elsewhere(location="."), "is a folder"),
        (_rename("w", "nowhere"), "reads 'nowhere', which nothing makes"),
        (_rename("y", "w"), "makes 'w', which is there already"),
        (_rename("w", ""), "no input 1"),
    ],
)
def test_damaged_parts_are_named(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    model = dense(last="w")
    change(model)
    with pytest.raises(SparsekitError, match=message) as error:
        layers_of(model, tmp_path)
    assert isinstance(error.value, ModelError | MissingFileError)


@pytest.mark.parametrize(
    ("nodes", "stored", "message"),
    [
        ([node("Reshape", "w s", "v")], {"s": ints(8, 13)}, "is reshaped to"),
        ([node("Reshape", "w s", "v")], {"s": ints(-1, 0, 0)}, "is reshaped to"),
        ([node("Transpose", "w", "v", perm=[0, 0])], {}, "is transposed by"),
        ([node("Squeeze", "w a", "v")], {"a": ints(1)}, "is reshaped to"),
        ([node("DequantizeLinear", "w s z", "v")], {"s": W, "z": np.uint8([1, 2])}, "has zero points of shape"),
        ([node("DequantizeLinear", "w s z", "v")], {"s": W, "z": np.float32([np.nan])}, "has zero points of type"),
    ],
)
def test_shapes_that_do_not_fit(nodes: list[Any], stored: dict[str, Array], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"model\.onnx: tensor 'w': .*{message}"):
        layers_of(dense(*nodes, w=_quantized(np.uint8(9), np.uint8), **stored), tmp_path)


def test_groups_that_do_not_divide(tmp_path: Path) -> None:
    model = model_of(
        [node("ConvTranspose", "x w", "y", group=3)], {"w": normal(8, 4, 3, 3)}, {"x": (1, 8, 4, 4)}, {"y": None}
    )
    with pytest.raises(ModelError, match="8 input channels in 3 groups"):
        layers_of(model, tmp_path)


def test_circles_and_long_chains_end(tmp_path: Path) -> None:
    circle = [node("Identity", "b", "a"), node("Identity", "a", "b")]
    chain = [node("Identity", f"c{i}" if i else "w", f"c{i + 1}") for i in range(1000)]
    uses = [node("MatMul", f"x c{i}", f"y{i}") for i in range(1, 1001)]
    model = model_of([*circle, *chain, *uses, node("MatMul", "x a", "y")], {"w": W}, {"x": (2, 8)}, {"y": None})
    with bounded(5_000_000):
        layers = layers_of(model, tmp_path)
    assert layers[-1].obstacle == "behind more than 64 operators"


def test_many_inputs_with_many_results_take_no_square_of_time(tmp_path: Path) -> None:
    inputs, outputs = ([f"{kind}{i}" for i in range(5000)] for kind in "io")
    model = model_of([helper.make_node("Thing", inputs, outputs)], {}, dict.fromkeys(inputs, (2,)), {"o1": None})
    with bounded(1_000_000):
        layers_of(model, tmp_path)


def test_weights_that_are_named_over_and_over(tmp_path: Path) -> None:
    """Each use subtracts other zero points from the same large weight."""
    stored = {"w": np.ones((512, 512), np.uint8)} | {f"z{i}": np.full(1, i % 255, np.uint8) for i in range(3000)}
    nodes = [node("MatMulInteger", f"x w z0 z{i}", f"y{i}") for i in range(3000)]
    with pytest.raises(ModelError, match="over and over"):
        layers_of(model_of(nodes, stored, {"x": (2, 512)}, {"y0": None}), tmp_path)


def test_deep_nesting(tmp_path: Path) -> None:
    def field(number: int, content: bytes) -> bytes:
        length, size = bytearray(), len(content)
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + content

    for depth, reason in ((30, "reads 'x', which nothing makes"), (500, "is no ONNX model")):
        graph = field(1, field(1, b"x"))  # GraphProto.node, NodeProto.input
        for _ in range(depth):
            graph = field(1, field(5, field(1, b"a") + field(6, graph)))  # NodeProto.attribute, AttributeProto.g
        (tmp_path / "model.onnx").write_bytes(b"\x08\x08" + field(7, graph))
        with pytest.raises(ModelError, match=reason):
            read_onnx(tmp_path / "model.onnx")


@functools.cache
def _seeds() -> tuple[bytes, ...]:
    points = {"z": np.arange(12, dtype=np.uint8), "s": np.ones(12, np.float32)}
    quantized = dense(node("DequantizeLinear", "w s z", "v", axis=1), w=_quantized(np.uint8(9), np.uint8), **points)
    transposed = dense(
        node("Transpose", "w", "u", perm=[1, 0]), node("Reshape", "u s", "v"), w=W.T.copy(), s=ints(8, 12)
    )
    lstm = model_of(
        [node("LSTM", "x w r", "y", hidden_size=4), node("ConvTranspose", "x t", "z", group=2)],
        {"w": normal(1, 16, 4), "r": normal(1, 16, 4), "t": normal(8, 2, 3)},
        {"x": (3, 1, 4)},
        {"y": None},
    )
    return tuple(model.SerializeToString() for model in (quantized, transposed, lstm, _loop("k")))


def survives(data: bytes, folder: Path) -> None:
    """It is read, or refused with an error that names a file; soon, in either case."""
    path = folder / "model.onnx"
    path.write_bytes(data)
    try:
        with bounded(500_000):
            for layer in read_onnx(path):
                if layer.readable:
                    assert layer.values().shape == layer.shape
                    check(layer.values(), layer.axis or 0)
    except SparsekitError as error:
        assert str(folder) in str(error)


FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@FUZZ
@given(seed=st.integers(0, 3), data=st.data())
def test_flipped_bytes(seed: int, data: Any, tmp_path: Path) -> None:
    model = bytearray(_seeds()[seed])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(model) - 1))
        model[position] = data.draw(st.sampled_from((0, 1, 2, 4, 0x7F, 0x80, 0xFF)) | st.integers(0, 255))
    survives(bytes(model), tmp_path)


NUMBERS = st.sampled_from([-(1 << 63), -2, -1, 0, 1, 2, 3, 8, 12, 1 << 31, (1 << 63) - 1])


@FUZZ
@given(seed=st.integers(0, 3), data=st.data())
def test_changed_fields(seed: int, data: Any, tmp_path: Path) -> None:
    """Files that protobuf accepts, with parts that do not belong together."""
    model = onnx.ModelProto.FromString(_seeds()[seed])
    graph = model.graph
    names = [*(t.name for t in graph.initializer), "x", "y", "v", "", "h", "k", "nowhere"]
    for _ in range(data.draw(st.integers(1, 4))):
        part = data.draw(st.sampled_from([*graph.node, *graph.initializer]))
        if isinstance(part, onnx.TensorProto):
            part.data_type = data.draw(st.sampled_from([part.data_type, *range(-1, 30)]))
            if part.dims:
                part.dims[data.draw(st.integers(0, len(part.dims) - 1))] = data.draw(NUMBERS)
            continue
        part.op_type = data.draw(
            st.sampled_from([part.op_type] * 4 + ["MatMul", "Conv", "ConvTranspose", "Gemm", "LSTM", "Scan", "Loop"])
        )
        if part.input:
            part.input[data.draw(st.integers(0, len(part.input) - 1))] = data.draw(st.sampled_from(names))
        for attribute in part.attribute:
            attribute.i = data.draw(NUMBERS) if attribute.HasField("i") else 0
            attribute.ints[:] = [data.draw(NUMBERS) for _ in attribute.ints]
    survives(model.SerializeToString(), tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_cut_off(seed: int, tmp_path: Path) -> None:
    model = _seeds()[seed]
    for length in range(0, len(model), 5):
        survives(model[:length], tmp_path)


@FUZZ
@given(data=st.binary(max_size=300))
def test_noise(data: bytes, tmp_path: Path) -> None:
    survives(data, tmp_path)
