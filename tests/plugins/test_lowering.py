"""The matrix forms of the built-in handlers: X @ W is what TensorFlow's op gives, whatever its attributes.

In float64 wherever the CPU kernel knows it: there the two agree to 1e-12. What only an accelerator's kernel computes
(dilated and channels-first transposed convolutions, channels-first float64) is compared with a sum written out here, or
with the channels-last op on transposed data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.graph.node import LiveGraph, Node, ProtoGraph, ProtoNode
from sparsekit.graph.trace import Tracer, WeightSource
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.matrix_form import MatrixForm
from sparsekit.pattern import keep_mask
from sparsekit_ops import _im2col
from sparsekit_ops.batch_matmul import BatchMatMul
from sparsekit_ops.conv2d import Conv2D
from sparsekit_ops.conv2d_backprop_input import Conv2DBackpropInput
from sparsekit_ops.conv3d import Conv3D
from sparsekit_ops.depthwise_conv2d import DepthwiseConv2D
from sparsekit_ops.einsum import Einsum
from sparsekit_ops.matmul import MatMul

Array = npt.NDArray[Any]
raw = tf.raw_ops
_BELOW = 1e-12
_BELOW_FLOAT32 = 1e-5


def _random(*shape: int, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


@attrs.frozen(eq=False)
class Op:
    """An op in a graph: its handler, and where its weight is."""

    handler: OpHandler
    site: WeightSite

    def form(self, data: Array, output: Array) -> MatrixForm:
        return self.handler.matrix_form(self.site, data.shape, output.shape)


def _op(handler: OpHandler, weight: Array, build: Callable[[Any], Any], weight_input: int = 1) -> Op:
    """The op that ``build`` makes of the weight in a graph that is never run."""
    with tf.Graph().as_default() as graph:
        build(tf.constant(weight))
    live = _site(handler, LiveGraph(graph), weight_input)
    at_rest = _site(handler, ProtoGraph(graph.as_graph_def()), weight_input)
    assert live.source.shape_at_op == at_rest.source.shape_at_op
    return Op(handler, at_rest)


def _site(handler: OpHandler, view: Any, weight_input: int) -> WeightSite:
    (node,) = (node for node in view.nodes() if node.op in handler.op_types)
    axis = dict(handler.weight_sites(node))[weight_input]
    source = Tracer().trace(node, weight_input, axis)
    assert isinstance(source, WeightSource)
    return WeightSite(node, weight_input, source)


def _check(op: Op, data: Array, weight: Array, output: Array, below: float = _BELOW) -> tuple[int, ...]:
    """The product is the output, the weight comes back, groups lie along the rows; returns the shape of W."""
    form = op.form(data, output)
    x, w, y = form.lower(data), form.weight_matrix(weight), form.output_matrix(output)
    assert x.ndim == w.ndim == y.ndim == 3
    np.testing.assert_allclose(x @ w, y, rtol=0, atol=below * max(1.0, np.abs(y).max(initial=0)))
    assert (x.dtype, w.dtype, y.dtype) == (data.dtype, weight.dtype, output.dtype)
    back = form.weight_from_matrix(w)
    assert back.shape == weight.shape and back.tobytes() == weight.tobytes()
    axis = op.site.source.axis_at_op
    runs = w.reshape(w.shape[0], -1, weight.shape[axis], w.shape[2])
    mask = keep_mask(runs, 2).reshape(w.shape)
    assert (form.weight_from_matrix(mask) == keep_mask(weight, axis)).all()
    return w.shape


# --- products --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul(transpose_b: bool) -> None:
    data, weight = _random(7, 10), _random(*((6, 10) if transpose_b else (10, 6)))
    op = _op(MatMul(), weight, lambda w: tf.matmul(data, w, transpose_b=transpose_b))
    shape = _check(op, data, weight, tf.matmul(data, weight, transpose_b=transpose_b).numpy())
    assert shape == (1, 10, 6)
    assert op.handler.data_input(op.site) == 0


BATCHES: list[tuple[tuple[int, ...], tuple[int, ...], int]] = [
    ((), (), 1),
    ((2,), (), 1),
    ((2, 3), (), 1),
    ((2, 3), (1,), 1),
    ((2, 3), (1, 1), 1),
    ((2,), (1, 1, 1), 1),
    ((2, 3), (3,), 3),
    ((2, 3), (2, 3), 6),
    ((2, 3), (2, 1), 2),
    ((4, 1, 3), (2, 1), 1),
    ((4, 1, 3), (2, 3), 3),
    ((), (2, 3), 1),
    ((1,), (2, 3), 1),
    ((1,), (1,), 1),
]


@pytest.mark.parametrize(("data_batch", "weight_batch", "blocks"), BATCHES)
@pytest.mark.parametrize("adj_y", [False, True])
def test_batch_matmul(data_batch: tuple[int, ...], weight_batch: tuple[int, ...], blocks: int, adj_y: bool) -> None:
    data, weight = _random(*data_batch, 5, 9), _random(*weight_batch, *((4, 9) if adj_y else (9, 4)))

    def build(weight: Any) -> Any:
        return raw.BatchMatMulV2(x=data, y=weight, adj_y=adj_y)

    op = _op(BatchMatMul(), weight, build)
    assert _check(op, data, weight, build(weight).numpy())[0] == blocks


def test_a_batch_axis_of_the_data_alone_costs_no_copies_of_the_weight() -> None:
    data, weight = _random(6, 5, 9), _random(9, 4)
    op = _op(BatchMatMul(), weight, lambda w: raw.BatchMatMulV2(x=data, y=w))
    output = np.matmul(data, weight)
    form = op.form(data, output)
    assert form.lower(data).shape == (1, 30, 9)
    assert form.lower(data[:1]).shape == (1, 5, 9) and form.output_matrix(output[:1]).shape == (1, 5, 4)
    assert np.shares_memory(form.lower(data), data)


EQUATIONS: list[tuple[str, tuple[int, ...], tuple[int, ...], int, int]] = [
    # equation, shapes of the operands, index of the weight, blocks
    ("ab,bc->ac", (4, 8), (8, 5), 1, 1),
    ("ab,bc->ca", (4, 8), (8, 5), 1, 1),
    ("abc,cd->abd", (2, 3, 8), (8, 5), 1, 1),
    ("abc,cde->abde", (2, 3, 8), (8, 5, 2), 1, 1),
    ("abc,dec->dabe", (2, 3, 8), (5, 2, 8), 1, 1),
    ("abc,dce->ebad", (2, 3, 8), (5, 8, 2), 1, 1),
    ("dc,abc->abd", (5, 8), (2, 3, 8), 0, 1),
    ("bshk,hkd->bshd", (2, 3, 4, 8), (4, 8, 5), 1, 4),
    ("hkd,bshk->dbhs", (4, 8, 5), (2, 3, 4, 8), 0, 4),
    ("bghk,hdgk->bhdg", (2, 3, 4, 8), (4, 5, 3, 8), 1, 12),
    ("...k,kn->...n", (2, 3, 8), (8, 5), 1, 1),
    ("k...,kn->n...", (8, 2, 3), (8, 5), 1, 1),
    ("kn,...k->...n", (8, 5), (8,), 0, 1),
    ("b...ck,ckn->bn...c", (2, 3, 4, 6, 8), (6, 8, 5), 1, 6),
    ("iik,kn->in", (3, 3, 8), (8, 5), 1, 1),
    ("abk,kn->an", (3, 4, 8), (8, 5), 1, 1),
    ("ak,kn->aan", (3, 8), (8, 5), 1, 1),
    ("Zk,kA->ZA", (3, 8), (8, 5), 1, 1),
]


@pytest.mark.parametrize(("equation", "first", "second", "weight_input", "blocks"), EQUATIONS)
def test_einsum(equation: str, first: tuple[int, ...], second: tuple[int, ...], weight_input: int, blocks: int) -> None:
    operands = [_random(*first), _random(*second)]
    data, weight = operands[1 - weight_input], operands[weight_input]

    def build(weight: Any) -> Any:
        inputs = [weight if i == weight_input else operands[i] for i in range(2)]
        return raw.Einsum(inputs=inputs, equation=equation)

    op = _op(Einsum(), weight, build, weight_input)
    assert _check(op, data, weight, build(weight).numpy())[:2] == (blocks, 8)
    assert op.handler.data_input(op.site) == 1 - weight_input


@st.composite
def _equations(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Any product of data with one contracted label, batch labels, rows and columns, in any order."""
    counts = [draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.integers(0, 2))]
    letters = iter("abcdefg")
    blocks, rows, columns = ("".join(itertools.islice(letters, count)) for count in counts)
    data, weight, result = (
        "".join(draw(st.permutations(labels)))
        for labels in (blocks + rows + "k", blocks + columns + "k", blocks + rows + columns)
    )
    lengths = {label: draw(st.integers(1, 4)) for label in blocks + rows + columns} | {"k": draw(st.integers(1, 9))}
    return (
        f"{data},{weight}->{result}",
        tuple(lengths[label] for label in data),
        tuple(lengths[label] for label in weight),
    )


@settings(deadline=None)
@given(_equations())
def test_any_einsum(drawn: tuple[str, tuple[int, ...], tuple[int, ...]]) -> None:
    equation, data_shape, weight_shape = drawn
    data, weight = _random(*data_shape), _random(*weight_shape)
    op = _op(Einsum(), weight, lambda w: raw.Einsum(inputs=[data, w], equation=equation))
    _check(op, data, weight, np.asarray(np.einsum(equation, data, weight)))


# --- convolutions ----------------------------------------------------------------------------------------

PADDINGS: list[Any] = ["SAME", "VALID", ((1, 2), (0, 3)), ((0, 0), (4, 1))]


def _per_axis(spatial: Sequence[int], *, first: bool = False) -> list[int]:
    """Strides or dilations in the order of the data format."""
    return [1, 1, *spatial] if first else [1, *spatial, 1]


def _pads(padding: Any, *, first: bool = False) -> dict[str, Any]:
    """The attributes of a padding."""
    if isinstance(padding, str):
        return {"padding": padding}
    spatial = [number for pair in padding for number in pair]
    return {"padding": "EXPLICIT", "explicit_paddings": [0] * (4 if first else 2) + spatial + [0] * (0 if first else 2)}


def _conv2d(data: Any, weight: Any, strides: Any, padding: Any, dilations: Any, *, first: bool = False) -> Any:
    return raw.Conv2D(
        input=data,
        filter=weight,
        strides=_per_axis(strides, first=first),
        dilations=_per_axis(dilations, first=first),
        data_format="NCHW" if first else "NHWC",
        **_pads(padding, first=first),
    )


def _check_conv2d(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
    dilations: tuple[int, int],
    groups: int = 1,
    channels: int = 5,
    outputs: int = 3,
) -> None:
    """In both data formats."""
    data, weight = _random(2, *size, channels * groups), _random(*kernel, channels, outputs * groups)
    output = _conv2d(data, weight, strides, padding, dilations).numpy()
    for first in (False, True):
        seen, result = (np.moveaxis(array, -1, 1) if first else array for array in (data, output))

        def build(weight: Any, seen: Any = seen, first: bool = first) -> Any:
            return _conv2d(seen, weight, strides, padding, dilations, first=first)

        shape = _check(_op(Conv2D(), weight, build), seen, weight, result)
        assert shape == (groups, kernel[0] * kernel[1] * channels, outputs)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_conv2d(padding: Any, strides: tuple[int, int], dilations: tuple[int, int], groups: int) -> None:
    _check_conv2d((9, 10), (3, 2), strides, padding, dilations, groups)


@st.composite
def _convolutions(draw: st.DrawFn) -> dict[str, Any]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, dilations = pair(1, 4), pair(1, 3)
    spans = [(length - 1) * gap + 1 for length, gap in zip(kernel, dilations, strict=True)]
    size = tuple(span + draw(st.integers(0, 6)) for span in spans)
    padding = draw(st.sampled_from(["SAME", "VALID", "EXPLICIT"]))
    return {
        "size": size,
        "kernel": kernel,
        "dilations": dilations,
        "strides": pair(1, 4),
        "padding": (pair(0, 3), pair(0, 3)) if padding == "EXPLICIT" else padding,
        "groups": draw(st.integers(1, 3)),
        "channels": draw(st.integers(1, 6)),
        "outputs": draw(st.integers(1, 3)),
    }


@settings(deadline=None)
@given(_convolutions())
def test_any_conv2d(drawn: dict[str, Any]) -> None:
    _check_conv2d(**drawn)


def test_same_padding_of_data_smaller_than_the_filter() -> None:
    _check_conv2d((2, 1), (5, 3), (1, 1), "SAME", (1, 1))


def test_conv2d_float32_in_both_formats_of_tensorflow_itself() -> None:
    """oneDNN's kernels take channels-first float32: to 1e-5 of the largest output."""
    weight = _random(3, 3, 4, 6, dtype=np.float32)
    for first, shape in ((False, (2, 7, 8, 8)), (True, (2, 8, 7, 8))):
        data = _random(*shape, dtype=np.float32)

        def build(weight: Any, data: Any = data, first: bool = first) -> Any:
            return _conv2d(data, weight, (2, 1), "SAME", (1, 1), first=first)

        try:
            output = build(weight).numpy()
        except tf.errors.InvalidArgumentError as error:  # a build of TensorFlow without oneDNN
            assert first and "NHWC" in str(error)
            continue
        _check(_op(Conv2D(), weight, build), data, weight, output, _BELOW_FLOAT32)


@pytest.mark.parametrize("fused", ["_FusedConv2D", "_FusedMatMul"])
def test_a_fused_op_has_the_form_of_the_product_in_it(fused: str) -> None:
    """What Grappler makes of a layer with its bias; attributes and the first two inputs stay what they were."""
    if fused == "_FusedConv2D":
        data, weight = _random(2, 6, 7, 8), _random(3, 3, 4, 6)
        plain = _op(Conv2D(), weight, lambda w: _conv2d(data, w, (2, 1), "SAME", (1, 1)))
        output = _conv2d(data, weight, (2, 1), "SAME", (1, 1)).numpy()
    else:
        data, weight = _random(7, 10), _random(6, 10)
        plain = _op(MatMul(), weight, lambda w: tf.matmul(data, w, transpose_b=True))
        output = data @ weight.T
    node = plain.site.node
    assert isinstance(node, ProtoNode)
    graph_def = type(node.view.graph_def)()  # type: ignore[attr-defined]
    graph_def.CopyFrom(node.view.graph_def)  # type: ignore[attr-defined]
    next(other for other in graph_def.node if other.name == node.name).op = fused
    op = Op(plain.handler, _site(plain.handler, ProtoGraph(graph_def), 1))
    assert op.site.node.op == fused and op.handler.data_input(op.site) == 0
    _check(op, data, weight, output)


def test_attributes_that_a_graph_def_leaves_out_have_their_defaults() -> None:
    data, weight = _random(2, 6, 7, 8), _random(3, 3, 8, 6)
    op = _op(Conv2D(), weight, lambda w: _conv2d(data, w, (2, 1), "SAME", (1, 1)))
    for name in ("dilations", "explicit_paddings", "data_format", "use_cudnn_on_gpu"):
        del op.site.node.definition.attr[name]  # type: ignore[attr-defined]
    _check(op, data, weight, _conv2d(data, weight, (2, 1), "SAME", (1, 1)).numpy())


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("dilations", [(1, 1, 1), (1, 2, 2)], ids=str)
def test_conv3d(padding: str, strides: tuple[int, ...], dilations: tuple[int, ...]) -> None:
    """The CPU kernel knows no dilations in float64: there the filter has zeros in its gaps instead."""
    data, weight = _random(2, 5, 6, 7, 5), _random(2, 3, 2, 5, 4)
    spread = np.zeros([(n - 1) * gap + 1 for n, gap in zip(weight.shape, (*dilations, 1, 1), strict=True)])
    spread[tuple(slice(None, None, gap) for gap in dilations)] = weight

    def conv3d(data: Any, weight: Any, dilations: Any, first: bool = False) -> Any:
        return raw.Conv3D(
            input=data,
            filter=weight,
            strides=_per_axis(strides, first=first),
            dilations=_per_axis(dilations, first=first),
            padding=padding,
            data_format="NCDHW" if first else "NDHWC",
        )

    output = conv3d(data, spread, (1, 1, 1)).numpy()
    for first in (False, True):
        seen, result = (np.moveaxis(array, -1, 1) if first else array for array in (data, output))

        def build(weight: Any, seen: Any = seen, first: bool = first) -> Any:
            return conv3d(seen, weight, dilations, first)

        assert _check(_op(Conv3D(), weight, build), seen, weight, result) == (1, 60, 4)


# --- transposed convolutions -----------------------------------------------------------------------------


def _deconv(
    shape: tuple[int, ...], weight: Any, data: Any, strides: Any, padding: Any, dilations: Any, first: bool = False
) -> Any:
    return raw.Conv2DBackpropInput(
        input_sizes=shape,
        filter=weight,
        out_backprop=data,
        strides=_per_axis(strides, first=first),
        dilations=_per_axis(dilations, first=first),
        data_format="NCHW" if first else "NHWC",
        **_pads(padding, first=first),
    )


def _transposed(shape: tuple[int, ...], weight: Array, data: Array, strides: Any, before: Any, dilations: Any) -> Array:
    """The definition: every element of the data adds its multiple of the filter to the output."""
    output = np.zeros(shape)
    for row, column, i, j in itertools.product(*map(range, (*data.shape[1:3], *weight.shape[:2]))):
        y = row * strides[0] + i * dilations[0] - before[0]
        x = column * strides[1] + j * dilations[1] - before[1]
        if 0 <= y < shape[1] and 0 <= x < shape[2]:
            output[:, y, x] += data[:, row, column] @ weight[i, j].T
    return output


def _check_deconv(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
    dilations: tuple[int, int],
    channels: int = 8,
    outputs: int = 5,
) -> None:
    """``size`` is the output's; the data is as large as the convolution's output would be."""
    weight = _random(*kernel, outputs, channels)
    shape = (2, *size, outputs)
    forward = _conv2d(np.zeros(shape), weight, strides, padding, dilations)
    data = _random(*forward.shape)
    spans = [(length - 1) * gap + 1 for length, gap in zip(kernel, dilations, strict=True)]
    before = (
        {
            "SAME": [
                max(0, (n - 1) * stride + span - whole) // 2
                for n, stride, span, whole in zip(data.shape[1:3], strides, spans, size, strict=True)
            ],
            "VALID": [0, 0],
        }[padding]
        if isinstance(padding, str)
        else [pair[0] for pair in padding]
    )
    output = _transposed(shape, weight, data, strides, before, dilations)
    if max(dilations) == 1:
        np.testing.assert_allclose(_deconv(shape, weight, data, strides, padding, dilations), output, atol=1e-11)
    for first in (False, True):
        seen, result = (np.moveaxis(array, -1, 1) if first else array for array in (data, output))

        def build(weight: Any, seen: Any = seen, result: Any = result, first: bool = first) -> Any:
            return _deconv(result.shape, weight, seen, strides, padding, dilations, first)

        op = _op(Conv2DBackpropInput(), weight, build)
        assert op.handler.data_input(op.site) == 2
        assert _check(op, seen, weight, result) == (1, kernel[0] * kernel[1] * channels, outputs)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("size", [(9, 10), (10, 9)], ids=str)
def test_transposed_conv2d(
    padding: Any, strides: tuple[int, int], dilations: tuple[int, int], size: tuple[int, int]
) -> None:
    _check_deconv(size, (3, 2), strides, padding, dilations)


@settings(deadline=None)
@given(_convolutions())
def test_any_transposed_conv2d(drawn: dict[str, Any]) -> None:
    drawn.pop("groups")
    _check_deconv(**drawn)


def test_a_filter_smaller_than_its_stride_leaves_gaps() -> None:
    _check_deconv((8, 7), (1, 2), (3, 4), "SAME", (1, 1))


def test_a_grouped_transposed_convolution_says_that_it_has_no_matrix_form() -> None:
    data, weight = _random(2, 8, 8, 6, dtype=np.float32), _random(3, 3, 4, 6, dtype=np.float32)
    op = _op(Conv2DBackpropInput(), weight, lambda w: _deconv((2, 8, 8, 12), w, data, (1, 1), "SAME", (1, 1)))
    with pytest.raises(NotImplementedError, match=r"grouped transposed convolution \(12 output channels, 4 of them"):
        op.handler.matrix_form(op.site, data.shape, (2, 8, 8, 12))


# --- what callers rely on --------------------------------------------------------------------------------


def test_who_has_a_matrix_form() -> None:
    having = (MatMul(), BatchMatMul(), Einsum(), Conv2D(), Conv3D(), Conv2DBackpropInput())
    assert all(handler.has_matrix_form for handler in having)
    assert not DepthwiseConv2D().has_matrix_form


def test_a_handler_without_one_says_so() -> None:
    class Plain(OpHandler):
        op_types = ("MatMul",)

        def group_axis(self, node: Node) -> int:
            return 0

    data, weight = _random(3, 4), _random(4, 5)
    op = _op(Plain(), weight, lambda w: tf.matmul(data, w))
    with pytest.raises(NotImplementedError, match="Plain has no matrix form"):
        op.form(data, data @ weight)


def test_the_number_of_samples_is_free() -> None:
    data, weight = _random(4, 6, 6, 4), _random(3, 3, 4, 6)
    op = _op(Conv2D(), weight, lambda w: _conv2d(data, w, (1, 1), "SAME", (1, 1)))
    form = op.form(data[:1], _conv2d(data[:1], weight, (1, 1), "SAME", (1, 1)).numpy())
    parts = [form.lower(data[i : i + 2]) for i in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), form.lower(data))


def test_columns_are_output_channels_block_after_block() -> None:
    """So that what is found per column can be added to a bias."""
    data, weight = _random(2, 4, 4, 6), _random(1, 1, 3, 8)
    op = _op(Conv2D(), weight, lambda w: _conv2d(data, w, (1, 1), "SAME", (1, 1)))
    channels = np.broadcast_to(np.arange(8), (2, 4, 4, 8))
    assert (op.form(data, channels).output_matrix(channels) == [[range(4)], [range(4, 8)]]).all()


def test_a_convolution_is_copied_once() -> None:
    """The view of the patches owns nothing; what lower returns is as large as X and no larger."""
    data, weight = _random(2, 8, 8, 4), _random(3, 3, 4, 6)
    op = _op(Conv2D(), weight, lambda w: _conv2d(data, w, (1, 1), "VALID", (1, 1)))
    x = op.form(data, np.empty((2, 6, 6, 6))).lower(data)
    base = x if x.base is None else x.base
    assert base.nbytes == x.nbytes == 2 * 6 * 6 * 9 * 4 * 8
    patches = _im2col._patches(data, (3, 3), (1, 1), (1, 1))
    assert np.shares_memory(patches, data)
