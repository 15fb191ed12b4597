"""What an .onnx file holds, read through the `onnx` package (``pip install "sparsekit[onnx]"``).

Layouts, from the operators' specifications (https://onnx.ai/onnx/operators, for com.microsoft onnxruntime's
docs/ContribOperators.md; the main ones checked by converting known weights):

| operator | weight | axis of the contraction |
|---|---|---|
| Conv, FusedConv, DeformConv, ConvInteger, QLinearConv | [out, in / groups, ...] | 1 |
| ConvTranspose | [in, out / groups, ...] | 0; within a group: 1 of [groups, in / groups, out / groups, ...] |
| MatMul and its integer and fused kinds | right [..., K, N], left [..., M, K] | -2, -1 |
| Gemm, FusedGemm, QGemm | B [K, N] or transposed, A [M, K] or transposed | 0 or 1, 1 or 0 |
| LSTM, GRU, RNN | W [directions, gates, in], R [directions, gates, hidden] | 2 |
| DynamicQuantizeLSTM | W [directions, in, gates], R [directions, hidden, gates] | 1 |
| Attention, QAttention (com.microsoft) | [in, 3 hidden] | 0 |
| Einsum | any, where one label is summed over | that label's |

A weight is followed through what keeps its values and says so in the file; the shape that the operator sees is the
one that is reported.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

import attrs
import numpy as np
from google.protobuf.message import DecodeError

from sparsekit.artefact.deployed import (
    COMPUTED_FROM_INPUTS,
    MAX_HOPS,
    NO_CHANNEL_AXIS,
    Allowance,
    Array,
    DeployedLayer,
    Weight,
    checked_shape,
    decode,
    stored_size,
    uniquely_named,
)
from sparsekit.errors import ModelError, SparsekitError
from sparsekit.reading import read_proto, size_of

Key: TypeAlias = tuple[int, str]
"""A value: (the scope that defines it, its name there)."""

_AN_ONNX = "an ONNX model (.onnx)"
_A_DATA_FILE = "the model's external data beside it"
_DAMAGED = "The file is damaged or was cut off; write it again."

# onnx.proto, TensorProto.DataType, in its order; `stored_size` says which of them can be read.
_DTYPES = (
    *("undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16"),
    *("float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "uint4", "int4", "float4_e2m1", "float8_e8m0", "uint2", "int2"),
)
_EXTERNAL = 1  # TensorProto.DataLocation

_MS = "com.microsoft"
_KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training"})
# Operators of onnxruntime whose larger constants are tables, not weights of a product.
_NO_PRODUCT = frozenset(
    {f"{_MS}.{name}" for name in ("EmbedLayerNormalization", "QEmbedLayerNormalization", "GroupQueryAttention")}
    | {f"{_MS}.{name}" for name in ("RotaryEmbedding", "MultiHeadAttention", "RelativePositionBias", "QuantizeLinear")}
    | {f"{_MS}.{name}" for name in ("DequantizeLinear", "QLinearAdd", "QLinearMul", "QLinearConcat", "BiasAdd")}
)

# Convolutions: input of the weight, and of its zero point.
_CONVOLUTIONS = {
    "Conv": (1, None),
    "DeformConv": (1, None),
    "ConvInteger": (1, 3),
    "QLinearConv": (3, 5),
    f"{_MS}.FusedConv": (1, None),
    f"{_MS}.QLinearConv": (3, 5),
}
# Products: (left, its zero point), (right, its zero point).
_Sides: TypeAlias = tuple[tuple[int, int | None], tuple[int, int | None]]
_PRODUCTS: dict[str, _Sides] = {
    "MatMul": ((0, None), (1, None)),
    "MatMulInteger": ((0, 2), (1, 3)),
    "QLinearMatMul": ((0, 2), (3, 5)),
    f"{_MS}.FusedMatMul": ((0, None), (1, None)),
    f"{_MS}.TransposeMatMul": ((0, None), (1, None)),
    f"{_MS}.DynamicQuantizeMatMul": ((0, None), (1, 3)),
    f"{_MS}.MatMulIntegerToFloat": ((0, 4), (1, 5)),
}
_GEMMS: dict[str, _Sides] = {
    "Gemm": ((0, None), (1, None)),
    f"{_MS}.FusedGemm": ((0, None), (1, None)),
    f"{_MS}.QGemm": ((0, 2), (3, 5)),
}
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
# Attention's one weight: its zero point.
_ATTENTION: dict[str, int | None] = {f"{_MS}.Attention": None, f"{_MS}.QAttention": 7}

_SAME_VALUES = frozenset({"Identity", "Cast", "CastLike"})
_DEQUANTIZE = frozenset({"DequantizeLinear", f"{_MS}.DequantizeLinear"})
_QUANTIZE = frozenset({"QuantizeLinear", f"{_MS}.QuantizeLinear"})


def read_onnx(path: str | os.PathLike[str]) -> list[DeployedLayer]:
    """The layers of an ONNX model that contract over input channels, in the order of the file.

    Subgraphs (If, Loop, Scan) and the model's own functions are looked at. A product of two tensors that both depend
    on the model's inputs (attention scores) has no weight and is left out; a weight that several operators of one
    type read along one axis is one layer.

    Args:
        path: the .onnx file; it is read whole. Data that lies in files beside it is read layer by layer.

    Returns:
        The layers; empty if the file holds no weights that this reader knows, which shows nothing.

    Raises:
        SparsekitError: the `onnx` package is not installed.
        MissingFileError: there is no such file, or no such file of external data.
        ModelError: it is no ONNX model, or a damaged one; the message names file and tensor.
    """
    source = os.fsdecode(path)
    proto = _onnx(source).ModelProto()
    data = read_proto(path, _AN_ONNX)
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError("is no ONNX model", where=source, expected=_AN_ONNX) from error
    if not proto.ir_version or not proto.graph.node:
        raise ModelError("is no ONNX model, or one without operators", where=source, expected=_AN_ONNX)
    length = len(data)
    del data  # the message has its own copy
    try:
        scopes = _Scopes(proto, source)
        return uniquely_named(_Interpretation(scopes, source, length).layers())
    except UnicodeDecodeError as error:  # some versions of protobuf raise where others return bytes
        raise ModelError(f"holds a name that is no text ({error})", where=source, hint=_DAMAGED) from error


def _onnx(source: str) -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise SparsekitError(
            f"an ONNX model needs the package 'onnx', which cannot be imported ({error})",
            where=source,
            hint="Install it with: pip install 'sparsekit[onnx]'",
        ) from error


# --- the graph and its subgraphs, with names resolved -------------------------------------------------------


@attrs.frozen(eq=False)
class _Node:
    scope: int
    index: int
    proto: Any
    op_type: str
    """With its domain before it, unless that is ONNX's own."""
    inputs: list[Key | None] = attrs.field(factory=list)
    outputs: list[Key | None] = attrs.field(factory=list)
    bodies: list[int] = attrs.field(factory=list)

    @property
    def name(self) -> str:
        return self.proto.name or next(iter(self.proto.output), "") or self.op_type

    def attribute(self, name: str) -> Any:
        return next((attribute for attribute in self.proto.attribute if attribute.name == name), None)

    def integer(self, name: str, default: int = 0) -> int:
        found = self.attribute(name)
        return default if found is None else found.i

    def input(self, position: int) -> Key | None:
        return self.inputs[position] if position < len(self.inputs) else None


@attrs.frozen(eq=False)
class _Scope:
    """A graph, a subgraph or a function."""

    name: str
    parent: int | None
    owner: _Node | None
    inputs: list[str]
    results: list[str]
    arguments: dict[str, int]
    """The positions of the inputs."""
    nodes: list[_Node] = attrs.field(factory=list)
    stored: dict[str, Any] = attrs.field(factory=dict)
    """Initializers: TensorProto, or None for one in the sparse format."""
    made: dict[str, _Node] = attrs.field(factory=dict)


class _Scopes:
    """All scopes of a model; every input of every node leads to a value that exists.

    Attributes:
        scopes: the model's graph first.
        functions: the operators that the model itself defines.
    """

    def __init__(self, model: Any, source: str) -> None:
        self._source = source
        self.scopes: list[_Scope] = []
        self.functions = {_qualified(function.domain, function.name) for function in model.functions}
        self._define(model.graph, None, None)
        for function in model.functions:
            self._define(function, None, None)
        for scope in self.scopes:
            self._resolve(scope)

    def _define(self, graph: Any, parent: int | None, owner: _Node | None) -> int:
        """Collect the names of a GraphProto or FunctionProto. Protobuf itself limits how deep subgraphs nest."""
        inputs, results = _names(graph.input), _names(graph.output)
        stored = [getattr(graph, "initializer", ()), [s.values for s in getattr(graph, "sparse_initializer", ())]]
        self._check_text([graph.name, *inputs, *results, *(tensor.name for tensors in stored for tensor in tensors)])
        arguments = {name: position for position, name in enumerate(inputs)}
        if len(arguments) != len(inputs):
            raise ModelError(f"graph '{graph.name}' has two inputs of one name", where=self._source, hint=_DAMAGED)
        scope = _Scope(graph.name, parent, owner, inputs, results, arguments)
        index = len(self.scopes)
        self.scopes.append(scope)
        scope.stored.update({tensor.name: tensor for tensor in stored[0]})
        scope.stored.update({tensor.name: None for tensor in stored[1]})
        for i, proto in enumerate(graph.node):
            self._check_text([proto.name, proto.op_type, proto.domain, *proto.input, *proto.output])
            self._check_text([name for part in proto.attribute for name in (part.name, part.ref_attr_name)])
            node = _Node(index, i, proto, _op_type(proto))
            scope.nodes.append(node)
            for name in filter(None, proto.output):
                if name in scope.made or name in scope.stored or name in arguments:
                    raise self._error(node, f"makes '{name}', which is there already")
                scope.made[name] = node
            for attribute in proto.attribute:
                bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
                node.bodies.extend(self._define(body, index, node) for body in bodies)
        return index

    def _resolve(self, scope: _Scope) -> None:
        for node in scope.nodes:
            for name in node.proto.input:
                key = self.find(node.scope, name) if name else None
                if name and key is None:
                    raise self._error(node, f"reads '{name}', which nothing makes")
                node.inputs.append(key)
            node.outputs.extend((node.scope, name) if name else None for name in node.proto.output)

    def find(self, index: int, name: str) -> Key | None:
        """The value that ``name`` means in a scope: its own, else one of those around it."""
        at: int | None = index
        while at is not None:
            scope = self.scopes[at]
            if name in scope.stored or name in scope.made or name in scope.arguments:
                return at, name
            at = scope.parent
        return None

    def producer(self, key: Key) -> _Node | None:
        scope = self.scopes[key[0]]
        return scope.made.get(key[1])

    def location(self, node: _Node) -> str:
        return f"graph '{self.scopes[node.scope].name}', node {node.index}"

    def _check_text(self, names: list[Any]) -> None:
        """Protobuf gives a name that is no text as bytes."""
        for name in names:
            if not isinstance(name, str):
                raise ModelError(f"holds a name that is no text ({name[:40]!r})", where=self._source, hint=_DAMAGED)

    def _error(self, node: _Node, found: str) -> ModelError:
        where = f"{self._source}: {self.location(node)} ('{node.name}')"
        return ModelError(found, where=where, hint=_DAMAGED)


def _names(values: Any) -> list[str]:
    """The names of a graph's inputs, or of a function's, which has only names."""
    return [value if isinstance(value, str) else value.name for value in values]


def _op_type(proto: Any) -> str:
    return _qualified(proto.domain, proto.op_type)


def _qualified(domain: str, name: str) -> str:
    return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


# --- what the graph means --------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Use:
    """A weight that a node reads, and how it lies there.

    Attributes:
        key: the value.
        axis: of the contraction.
        ranks: the lowest and the highest rank that make sense.
        zero_point: the value that holds its zero point.
        zero_axis: the axis that several zero points run along.
        groups: of a transposed convolution, whose input channels are the groups' one after another.
        depthwise: an axis of length 1 is no axis to prune.
        label: tells the weights of one node apart.
        zero_shape: zero points in a shape that fits the weight.
    """

    key: Key
    axis: int
    ranks: tuple[int, int] = (2, 32)
    zero_point: Key | None = None
    zero_axis: int = 0
    groups: int = 1
    depthwise: bool = False
    label: str = ""
    zero_shape: Callable[[Array], Array] = lambda zero_point: zero_point


class _Interpretation:
    def __init__(self, scopes: _Scopes, source: str, length: int) -> None:
        self._scopes = scopes
        self._source = source
        self._allowance = Allowance(length + self._external_bytes(), source)
        self._weights: dict[tuple[Key, Key | None, int], Weight | str] = {}
        self._data = self._depends_on_inputs()

    def layers(self) -> Iterator[DeployedLayer]:
        seen: set[Any] = set()
        for scope in self._scopes.scopes:
            for node in scope.nodes:
                for found in self._uses(node):
                    if isinstance(found, DeployedLayer):
                        yield found
                        continue
                    if any(attribute.ref_attr_name for attribute in node.proto.attribute):
                        yield self._unreadable(node, "with attributes that are arguments of a function of the model")
                        continue
                    weight = self._weight(found) if found.key not in self._data else COMPUTED_FROM_INPUTS
                    tensor = weight.key if isinstance(weight, Weight) else (node, found.label)
                    same = (node.op_type, found.axis, found.groups, tensor)
                    if same not in seen:
                        seen.add(same)
                        yield self._layer(node, found, weight)

    # --- which inputs are weights

    def _uses(self, node: _Node) -> Iterator[_Use | DeployedLayer]:
        op_type = node.op_type
        if op_type in self._scopes.functions:
            yield from self._opaque(node)
        elif op_type in _CONVOLUTIONS:
            yield from self._convolution(node, *_CONVOLUTIONS[op_type])
        elif op_type == "ConvTranspose":
            groups = node.integer("group", 1)
            key = self._needed(node, 1)
            yield _Use(key, 1 if groups > 1 else 0, (3, 32), groups=groups, depthwise=groups > 1)
        elif op_type in _PRODUCTS:
            yield from self._product(node, _PRODUCTS[op_type])
        elif op_type in _GEMMS:
            yield from self._gemm(node, _GEMMS[op_type])
        elif op_type in _RECURRENT:
            yield _Use(self._needed(node, 1), 2, (3, 3), label=" W")
            yield _Use(self._needed(node, 2), 2, (3, 3), label=" R")
        elif op_type == f"{_MS}.DynamicQuantizeLSTM":
            for position, zero_point, label in ((1, 9, " W"), (2, 11, " R")):
                key = self._needed(node, position)
                yield _Use(key, 1, (3, 3), node.input(zero_point), label=label, zero_shape=_by_direction)
        elif op_type in _ATTENTION:
            yield _Use(self._needed(node, 1), 0, (2, 2), _optional(node, _ATTENTION[op_type]), 1)
        elif op_type == "Einsum":
            yield from self._einsum(node)
        elif node.proto.domain not in ("ai.onnx", *_KNOWN_DOMAINS) and op_type not in _NO_PRODUCT:
            yield from self._opaque(node)

    def _convolution(self, node: _Node, position: int, zero_point: int | None) -> Iterator[_Use]:
        key = self._needed(node, position)
        yield _Use(key, 1, (3, 32), _optional(node, zero_point), 0, depthwise=node.integer("group", 1) > 1)

    def _product(self, node: _Node, sides: _Sides) -> Iterator[_Use | DeployedLayer]:
        """The static operand of a product; the right one if both are, none if none is."""
        side = self._static_side(node, sides)
        if side is None:
            return
        position, zero_point = sides[side]
        transposed = node.integer("transB" if side else "transA")
        if node.integer("transBatchB" if side else "transBatchA"):
            yield self._unreadable(node, "with its batch axis moved, which this reader does not know")
            return
        zero = _optional(node, zero_point)
        # Zero points run along the rows of the left operand and along the columns of the right one.
        rows, columns = (-1, -2) if transposed else (-2, -1)
        yield _Use(self._needed(node, position), rows if side else columns, (1, 32), zero, columns if side else rows)

    def _gemm(self, node: _Node, sides: _Sides) -> Iterator[_Use]:
        side = self._static_side(node, sides)
        if side is None:
            return
        position, zero_point = sides[side]
        transposed = int(bool(node.integer("transB" if side else "transA")))
        axis = transposed if side else 1 - transposed
        yield _Use(self._needed(node, position), axis, (2, 2), _optional(node, zero_point), 1 - axis)

    def _static_side(self, node: _Node, sides: _Sides) -> int | None:
        right, left = (self._needed(node, sides[side][0]) for side in (1, 0))
        if right not in self._data:
            return 1
        return 0 if left not in self._data else None

    def _einsum(self, node: _Node) -> Iterator[_Use | DeployedLayer]:
        static = [i for i, key in enumerate(node.inputs) if key and key not in self._data]
        if not static:
            return
        attribute = node.attribute("equation")
        equation = attribute.s.decode("utf-8", "replace").replace(" ", "") if attribute is not None else ""
        operands, arrow, result = equation.partition("->")
        terms = operands.split(",")
        letters = all(term.isalpha() for term in terms) and (result.isalpha() or not result)
        if not (arrow and letters and len(terms) == len(node.inputs) and len(static) == 1):
            yield self._unreadable(node, f"an Einsum ('{equation[:80]}') that this reader does not know")
            return
        labels = terms[static[0]]
        others = set("".join(terms[: static[0]] + terms[static[0] + 1 :]))
        summed = [label for label in labels if label not in result and label in others]
        if len(summed) == 1 and len(set(labels)) == len(labels):
            rank = len(labels)
            yield _Use(self._needed(node, static[0]), labels.index(summed[0]), (rank, rank))
        elif summed:
            yield self._unreadable(node, f"an Einsum ('{equation[:80]}') that contracts over several axes")

    def _opaque(self, node: _Node) -> Iterator[DeployedLayer]:
        """Constants of two or more axes that go into an operator which this reader does not know."""
        blocked = node.proto.domain == "com.microsoft.nchwc"
        for key in dict.fromkeys(node.inputs):
            if key is None or key in self._data:
                continue
            weight = self._weight(_Use(key, 0))
            if isinstance(weight, Weight) and len(weight.shape) < 2:
                continue
            obstacle = f"goes into {node.op_type}, which this reader does not know"
            if blocked:
                obstacle = "in onnxruntime's blocked layout, which hides the groups: verify the source file instead"
            shape = weight.shape if isinstance(weight, Weight) else None
            yield attrs.evolve(self._unreadable(node, obstacle), shape=shape)

    def _unreadable(self, node: _Node, obstacle: str) -> DeployedLayer:
        return DeployedLayer(node.name, node.op_type, self._scopes.location(node), obstacle=obstacle)

    def _needed(self, node: _Node, position: int) -> Key:
        key = node.input(position)
        if key is None:
            raise self._error(node, f"{node.op_type} has no input {position}, which holds its weights")
        return key

    def _error(self, node: _Node, found: str) -> ModelError:
        where = f"{self._source}: {self._scopes.location(node)} ('{node.name}')"
        return ModelError(found, where=where, hint=_DAMAGED)

    def _layer(self, node: _Node, use: _Use, weight: Weight | str) -> DeployedLayer:
        facts: dict[str, Any] = {
            "name": node.name + use.label,
            "op_type": node.op_type,
            "location": self._scopes.location(node),
        }
        if isinstance(weight, str):
            facts["exempt" if weight is COMPUTED_FROM_INPUTS else "obstacle"] = weight
            return DeployedLayer(**facts)
        rank = len(weight.shape)
        low, high = use.ranks
        if not low <= rank <= high:
            expected = f"{low}" if low == high else f"{low} or more"
            obstacle = f"of rank {rank}, where {expected} is expected"
            return DeployedLayer(**facts, shape=weight.shape, dtype=weight.dtype, obstacle=obstacle)
        if use.groups > 1:
            weight = self._by_group(node, weight, use.groups)
            rank += 1
        # Runtimes and compilers that read this format choose the precision of floats themselves.
        facts |= {
            "shape": weight.shape,
            "dtype": weight.dtype,
            "dtype_is_final": weight.dtype.startswith(("int", "uint")),
        }
        # A vector has but one axis.
        axis = 0 if rank == 1 else use.axis % rank
        if use.depthwise and weight.shape[axis] == 1:
            return DeployedLayer(**facts, exempt=NO_CHANNEL_AXIS)
        return DeployedLayer(**facts, axis=axis, note=weight.note, read=weight.read)

    def _by_group(self, node: _Node, weight: Weight, groups: int) -> Weight:
        channels = weight.shape[0]
        if channels % groups:
            raise self._error(node, f"has {channels} input channels in {groups} groups")
        return weight.reshaped((groups, channels // groups, *weight.shape[1:]))

    # --- where a weight comes from

    def _weight(self, use: _Use) -> Weight | str:
        """The weight with its zero point subtracted, or why it cannot be read."""
        known = (use.key, use.zero_point, use.zero_axis)
        if known not in self._weights:
            if use.zero_point is None:
                self._weights[known] = self._trace(use.key)
            else:
                self._weights[known] = self._dequantized(use, use.zero_point)
        return self._weights[known]

    def _dequantized(self, use: _Use, zero_point: Key) -> Weight | str:
        before = self._before_quantizer(use.key, zero_point)
        if before is not None:
            return self._trace(before)
        weight = self._trace(use.key)
        if isinstance(weight, str):
            return weight
        zero = self._constant(zero_point)
        return _NO_ZERO_POINT if zero is None else weight.less_zero_point(use.zero_shape(zero), use.zero_axis)

    def _trace(self, key: Key) -> Weight | str:
        steps: list[Callable[[Weight], Weight]] = []
        for _ in range(MAX_HOPS):
            stored = self._stored(key)
            if isinstance(stored, Weight):
                return functools.reduce(lambda weight, step: step(weight), reversed(steps), stored)
            node = self._scopes.producer(key)
            before = stored or (self._argument(key) if node is None else self._before(node, steps))
            if isinstance(before, str):
                return before
            key = before
        return f"behind more than {MAX_HOPS} operators"

    def _before(self, node: _Node, steps: list[Callable[[Weight], Weight]]) -> Key | str:
        """Where the values come from that a node passes on; what it does to them is added to ``steps``."""
        key = node.input(0)
        if key is None:
            return f"computed by {node.op_type} when the model runs"
        if node.op_type in _SAME_VALUES:
            return key
        if node.op_type in _DEQUANTIZE:
            return self._before_dequantizer(node, key, steps)
        step = self._reshaping(node)
        if step is None:
            return f"computed by {node.op_type} when the model runs"
        steps.append(step)
        return key

    def _reshaping(self, node: _Node) -> Callable[[Weight], Weight] | None:
        """What a node does to the shape; None for one that does more, or in a way that is not in the file."""
        if node.op_type == "Transpose":
            order = node.attribute("perm")
            return lambda weight: weight.transposed(range(len(weight.shape))[::-1] if order is None else order.ints)
        if node.op_type == "Flatten":
            axis = node.integer("axis", 1)
            return lambda weight: weight.reshaped(_flattened(weight, axis))
        if node.op_type not in ("Reshape", "Squeeze", "Unsqueeze"):
            return None
        attribute = node.attribute("shape" if node.op_type == "Reshape" else "axes")
        given = node.input(1)
        if given is not None:
            constant = self._constant(given)
            if constant is None or constant.dtype.kind not in "iu":
                return None
            numbers: Sequence[int] | None = [int(number) for number in constant.reshape(-1)[:64]]
        else:
            numbers = None if attribute is None else list(attribute.ints)
        if node.op_type == "Reshape":
            keep_zeros = bool(node.integer("allowzero"))
            return lambda weight: weight.reshaped(_new_shape(weight, numbers or (), keep_zeros))
        change = _squeezed if node.op_type == "Squeeze" else _unsqueezed
        return lambda weight: weight.reshaped(change(weight, numbers))

    def _before_dequantizer(self, node: _Node, key: Key, steps: list[Callable[[Weight], Weight]]) -> Key | str:
        zero_point = node.input(2)
        before = self._before_quantizer(key, zero_point)
        if before is not None:
            return before
        if zero_point is None:
            return key
        zero = self._constant(zero_point)
        if zero is None:
            return _NO_ZERO_POINT
        axis, block = node.integer("axis", 1), node.integer("block_size")
        steps.append(lambda weight: weight.less_zero_point(zero, axis, block))
        return key

    def _before_quantizer(self, key: Key, zero_point: Key | None) -> Key | None:
        """The floats behind a QuantizeLinear with this zero point: it makes the zero point of 0, exactly."""
        node = self._scopes.producer(key)
        if node is None or node.op_type not in _QUANTIZE or node.input(2) != zero_point:
            return None
        return node.input(0)

    def _argument(self, key: Key) -> Key | str:
        """What a subgraph's input is given by the node that holds it."""
        scope = self._scopes.scopes[key[0]]
        position = scope.arguments.get(key[1])
        if position is None or scope.owner is None:
            return "an argument of a function of the model"
        given = _given(scope.owner, len(scope.arguments), position)
        if given is None:
            return f"made by {scope.owner.op_type} when the model runs"
        source, result = given
        if result >= len(scope.results) or self._passed_on(key[0], scope.results[result]) != key:
            return f"changed by the {scope.owner.op_type} that it is in"
        return scope.owner.input(source) or "not given"

    def _passed_on(self, scope: int, name: str) -> Key | None:
        """The value that a subgraph returns, behind Identity."""
        key = self._scopes.find(scope, name)
        for _ in range(MAX_HOPS):
            node = self._scopes.producer(key) if key else None
            if node is None or node.op_type != "Identity":
                return key
            key = node.input(0)
        return None

    # --- what is stored

    def _stored(self, key: Key) -> Weight | str | None:
        """A stored weight, why it cannot be read, or None for what is not stored."""
        scope = self._scopes.scopes[key[0]]
        if key[1] in scope.stored:
            tensor = scope.stored[key[1]]
        else:
            node = scope.made.get(key[1])
            if node is None or node.op_type != "Constant":
                return None
            value = node.attribute("value")
            numbers = _numbers(node)
            if numbers is not None:
                self._allowance.spend(numbers.shape)
                return Weight(self._where(key), key[1], (key,), numbers.dtype.name, numbers.shape, lambda: numbers)
            tensor = value.t if value is not None and value.HasField("t") else None
        if tensor is None:
            return "stored in ONNX's sparse format, which hides the groups: verify the source model"
        return self._tensor(key, tensor)

    def _tensor(self, key: Key, tensor: Any) -> Weight | str:
        where = self._where(key)
        known = 0 <= tensor.data_type < len(_DTYPES)
        dtype = _DTYPES[tensor.data_type] if known else f"type {tensor.data_type}"
        shape = checked_shape(tensor.dims, where)
        size = stored_size(dtype, shape)
        if size is None:
            return f"holds {dtype}, which this reader cannot read"
        if tensor.HasField("segment"):
            return "stored in segments, which this reader cannot read"
        self._allowance.spend(shape)
        if tensor.data_location == _EXTERNAL:
            read = self._external(tensor, size, where)
        else:
            read = functools.partial(_bytes, tensor, dtype, where)
            found = len(read())
            if found != size:
                expected = f"{size} for {dtype} of shape {list(shape)}"
                raise ModelError(f"holds {found} bytes", where=where, expected=expected, hint=_DAMAGED)
        return Weight(where, key[1], (key,), dtype, shape, lambda: decode(read(), dtype, shape, where))

    def _external(self, tensor: Any, size: int, where: str) -> Callable[[], bytes]:
        """Reads a tensor that lies in a file beside the model, which must be long enough already now."""
        entries = _external_entries(tensor)
        file = self._beside(entries.get("location", ""), where)
        start, length = (_number(entries.get(name, default), where) for name, default in _RANGE)
        if length not in (0, size):
            raise ModelError(f"has {length} bytes of external data", where=where, expected=f"{size}")
        if start + size > size_of(file, _A_DATA_FILE):
            raise ModelError(f"ends at byte {start + size} of '{file}', which is shorter", where=where, hint=_DAMAGED)
        return functools.partial(_read_range, file, start, size, where)

    def _beside(self, location: str, where: str) -> str:
        parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
        outside = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor or ".." in parts
        if not location or outside or "\0" in location:
            raise ModelError(f"lies in {location[:200]!r}", where=where, expected="a file in the model's folder")
        return str(Path(self._source).parent / location)

    def _external_bytes(self) -> int:
        """Bytes of external data that the initializers claim to have and that are there."""
        files: dict[str, int] = {}
        for key, tensor in self._initializers():
            if tensor is not None and tensor.data_location == _EXTERNAL:
                file = self._beside(_external_entries(tensor).get("location", ""), self._where(key))
                if file not in files:
                    files[file] = size_of(file, _A_DATA_FILE)
        return sum(files.values())

    def _initializers(self) -> Iterator[tuple[Key, Any]]:
        for index, scope in enumerate(self._scopes.scopes):
            for name, tensor in scope.stored.items():
                yield (index, name), tensor

    def _constant(self, key: Key) -> Array | None:
        """The values of a stored tensor, behind Identity at most."""
        passed = self._passed_on(*key)
        weight = None if passed is None else self._stored(passed)
        return weight.read() if isinstance(weight, Weight) else None

    def _where(self, key: Key) -> str:
        return f"{self._source}: tensor '{key[1]}'"

    # --- what depends on the model's inputs

    def _depends_on_inputs(self) -> set[Key]:
        """Every value that depends on what the model is given. A shape alone does not count.

        A function's arguments count: what is stored and given to a function is reported where it is called.
        """
        readers, results = self._readers(), self._results()
        reached = {
            (index, name)
            for index, scope in enumerate(self._scopes.scopes)
            for name in scope.arguments
            if scope.owner is None and name not in scope.stored
        }
        waiting = list(reached)
        spread: set[_Node] = set()
        while waiting:
            key = waiting.pop()
            after = [*self._after_nodes(readers.get(key, []), spread), *self._after_results(results.get(key, []))]
            new = {other for other in after if other is not None} - reached
            waiting += new
            reached |= new
        return reached

    def _readers(self) -> dict[Key, list[tuple[_Node, int]]]:
        readers: dict[Key, list[tuple[_Node, int]]] = defaultdict(list)
        for scope in self._scopes.scopes:
            for node in scope.nodes:
                for position, key in enumerate(node.inputs):
                    if key is not None:
                        readers[key].append((node, position))
        return readers

    def _results(self) -> dict[Key, list[tuple[int, int]]]:
        """Which values subgraphs return: (subgraph, position)."""
        results: dict[Key, list[tuple[int, int]]] = defaultdict(list)
        for index, scope in enumerate(self._scopes.scopes):
            for position, name in enumerate(scope.results):
                key = self._scopes.find(index, name) if scope.owner else None
                if key is not None:
                    results[key].append((index, position))
        return results

    def _after_nodes(self, readers: list[tuple[_Node, int]], spread: set[_Node]) -> Iterator[Key | None]:
        """``spread`` remembers the nodes whose results were given before: one of many inputs must do it once."""
        for node, position in readers:
            if node.op_type in ("Shape", "Size"):
                continue
            carried = node.op_type == "Scan" or (node.op_type == "Loop" and position >= 2)
            if carried:
                for body in node.bodies:
                    names = self._scopes.scopes[body].inputs
                    yield (body, names[position]) if position < len(names) else None
            elif node not in spread:
                spread.add(node)
                yield from node.outputs

    def _after_results(self, results: list[tuple[int, int]]) -> Iterator[Key | None]:
        for body, position in results:
            scope = self._scopes.scopes[body]
            owner = scope.owner
            if owner is None:
                continue
            # A loop's body returns first whether to go on; what comes next is carried into the next turn.
            first = 1 if owner.op_type == "Loop" else 0
            if position - first in range(len(owner.outputs)):
                yield owner.outputs[position - first]
            argument = position + first
            given = _given(owner, len(scope.arguments), argument)
            if given is not None and given[1] == position:
                yield body, scope.inputs[argument]


_NO_ZERO_POINT = "quantized with a zero point that is computed when the model runs"
_RANGE = (("offset", "0"), ("length", "0"))


def _given(owner: _Node, count: int, position: int) -> tuple[int, int] | None:
    """For an argument of a loop's body: the input of the loop and the result of the body that it comes from.

    None for what the loop itself makes: its counter, its condition, slices.
    """
    if owner.op_type == "Loop" and 2 <= position < count:
        return position, position - 1
    if owner.op_type == "Scan" and 0 <= position < count - owner.integer("num_scan_inputs"):
        return position, position
    return None


def _optional(node: _Node, position: int | None) -> Key | None:
    return None if position is None else node.input(position)


def _by_direction(zero_point: Array) -> Array:
    """Zero points [directions] or [directions, gates] for weights [directions, inputs, gates]."""
    if zero_point.ndim == 1:
        return zero_point.reshape(-1, 1, 1)
    return zero_point[:, None, :] if zero_point.ndim == 2 else zero_point


def _new_shape(weight: Weight, numbers: Sequence[int], keep_zeros: bool) -> tuple[int, ...]:
    """The shape that Reshape asks for: 0 copies a length, -1 is what is left."""
    shape = [
        weight.shape[i] if number == 0 and not keep_zeros and i < len(weight.shape) else number
        for i, number in enumerate(numbers)
    ]
    if shape.count(-1) == 1:
        known = math.prod(number for number in shape if number != -1)
        shape[shape.index(-1)] = math.prod(weight.shape) // known if known > 0 else 0
    return tuple(shape)


def _flattened(weight: Weight, axis: int) -> tuple[int, int]:
    shape = weight.shape
    at = axis + len(shape) if axis < 0 else axis
    return math.prod(shape[:at]), math.prod(shape[at:])


def _squeezed(weight: Weight, axes: Sequence[int] | None) -> tuple[int, ...]:
    rank = len(weight.shape)
    drop = {axis % rank for axis in axes} if axes and rank else {i for i, n in enumerate(weight.shape) if n == 1}
    return tuple(length for i, length in enumerate(weight.shape) if i not in drop)


def _unsqueezed(weight: Weight, axes: Sequence[int] | None) -> tuple[int, ...]:
    rank = len(weight.shape) + len(axes or ())
    new = {axis % rank for axis in axes or ()}
    lengths = iter(weight.shape)
    return tuple(1 if i in new else next(lengths, 1) for i in range(rank))


def _numbers(node: _Node) -> Array | None:
    """A Constant that is written as numbers."""
    for name, dtype in (("value_ints", np.int64), ("value_floats", np.float32)):
        attribute = node.attribute(name)
        if attribute is not None:
            return np.asarray(attribute.ints if dtype is np.int64 else attribute.floats, dtype)
    for name in ("value_int", "value_float"):
        attribute = node.attribute(name)
        if attribute is not None:
            return np.asarray(attribute.i if name == "value_int" else attribute.f)
    return None


def _bytes(tensor: Any, dtype: str, where: str) -> bytes:
    """A tensor's bytes, from whichever of its fields holds them."""
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if dtype in ("float32", "complex64"):
        return np.asarray(tensor.float_data, "<f4").tobytes()
    if dtype in ("float64", "complex128"):
        return np.asarray(tensor.double_data, "<f8").tobytes()
    if dtype == "int64":
        return np.asarray(tensor.int64_data, "<i8").tobytes()
    if dtype in ("uint32", "uint64"):
        return np.asarray(tensor.uint64_data, "<u8").astype(f"<u{np.dtype(dtype).itemsize}").tobytes()
    # Everything narrower lies in int32_data, bit for bit: onnx.proto.
    width = {"int32": 4, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2}.get(dtype, 1)
    numbers = np.asarray(tensor.int32_data, "<i4")
    if width < 4 and numbers.size and not -(1 << (8 * width - 1)) <= numbers.min() <= numbers.max() < 1 << (8 * width):
        raise ModelError(f"holds numbers that {dtype} cannot", where=where, hint=_DAMAGED)
    return numbers.astype(f"<i{width}").tobytes()


def _external_entries(tensor: Any) -> dict[str, str]:
    """Those that are text; what is not one of them is missing then."""
    pairs = [(entry.key, entry.value) for entry in tensor.external_data]
    return {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"has external data at {text[:40]!r}", where=where, expected="numbers of bytes")
    return int(text)


def _read_range(file: str, start: int, size: int, where: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            stream.seek(start)
            data = stream.read(size)
    except OSError as error:
        raise ModelError(f"cannot read '{file}' ({error.strerror})", where=where, expected=_A_DATA_FILE) from error
    if len(data) != size:
        raise ModelError(f"reads {len(data)} bytes of '{file}'", where=where, expected=f"{size}", hint=_DAMAGED)
    return data
