"""What a .tflite file holds, read through the flatbuffer schema that ships with TensorFlow.

Layouts, from the operators' kernels in tensorflow/lite/kernels (checked by converting known weights):

| operator | weight | axis of the contraction |
|---|---|---|
| CONV_2D, TRANSPOSE_CONV | [out, height, width, in] | 3 |
| CONV_3D; CONV_3D_TRANSPOSE | [depth, height, width, in, out]; [depth, height, width, out, in] | 3; 4 |
| FULLY_CONNECTED, SVDF (features), the recurrent operators | [units, inputs] | 1 |
| BATCH_MATMUL, right and left operand | [..., K, N] and [..., M, K], or adjoint | -2 and -1, or the other one |

The file is parsed into plain data first, and only that part meets offsets which may lead anywhere.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

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
from sparsekit.errors import ModelError
from sparsekit.reading import read_whole

Key: TypeAlias = tuple[int, int]
"""A tensor: (subgraph, index in it)."""

# Names go into messages and tables, several times a layer; fused operators' are joined.
_MAX_NAME = 1 << 16
_A_TFLITE = "a TensorFlow Lite model (.tflite)"
_DAMAGED = "The file is damaged or was cut off; write it again."
_IDENTIFIER = b"TFL3"
# What flatbuffers' reader raises where an offset leads nowhere.
_BROKEN = (struct.error, TypeError, ValueError, OverflowError)

_OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_DTYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if not name.startswith("_")}


@attrs.frozen
class _Operands:
    """Where an operator's weights are among its inputs, and how they lie."""

    positions: tuple[int, ...]
    axis: int
    rank: int


# input, 4 input-to-gate, 4 recurrent, 3 peephole, 4 biases, projection: lstm_shared.h.
_GATES = (*range(1, 9), 16)
# The same twice, then auxiliary input, 4 forward and 4 backward auxiliary: bidirectional_sequence_lstm.cc.
_BOTH_WAYS = (*_GATES, *range(18, 26), 33, *range(40, 48))

_WEIGHTS = {
    "CONV_2D": _Operands((1,), 3, 4),
    "TRANSPOSE_CONV": _Operands((1,), 3, 4),
    "CONV_3D": _Operands((1,), 3, 5),
    "CONV_3D_TRANSPOSE": _Operands((1,), 4, 5),
    "FULLY_CONNECTED": _Operands((1,), 1, 2),
    "SVDF": _Operands((1,), 1, 2),
    "RNN": _Operands((1, 2), 1, 2),
    "UNIDIRECTIONAL_SEQUENCE_RNN": _Operands((1, 2), 1, 2),
    "BIDIRECTIONAL_SEQUENCE_RNN": _Operands((1, 2, 5, 6, 10, 11), 1, 2),
    "LSTM": _Operands(_GATES, 1, 2),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _Operands(_GATES, 1, 2),
    "BIDIRECTIONAL_SEQUENCE_LSTM": _Operands(_BOTH_WAYS, 1, 2),
}
# input, previous activation, weights, bias, previous state: the basic kernel in lstm.cc.
_BASIC_LSTM = _Operands((2,), 1, 2)
_BASIC_LSTM_INPUTS = 5

_SAME_VALUES = frozenset({"DEQUANTIZE", "QUANTIZE"})
_SAME_ORDER = frozenset({"RESHAPE", "EXPAND_DIMS", "SQUEEZE"})
_UNREADABLE = {
    "DENSIFY": "stored in TensorFlow Lite's sparse format (behind DENSIFY), which hides the groups: "
    "convert without EXPERIMENTAL_SPARSITY, or verify the source model",
    "READ_VARIABLE": "a variable, whose value is not in the file as a constant: freeze the model before converting it",
}
_SPARSE_FORMAT = "stored in TensorFlow Lite's sparse format, which hides the groups: verify the source model"
# Operators with products inside that this reader cannot look into.
_OPAQUE = frozenset({"CUSTOM", "STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL", "STABLEHLO_CUSTOM_CALL"})
_COMPILED = frozenset({"ethos-u", "edgetpu-custom-op"})

# Names that converters make up.
_GENERIC_NAME = re.compile(r"(|(arith|tfl|std|tf)\.\w+|(Identity|StatefulPartitionedCall)[\w:]*)")


def read_tflite(path: str | os.PathLike[str]) -> list[DeployedLayer]:
    """The layers of a TensorFlow Lite model that contract over input channels, in the order of the file.

    All subgraphs are looked at. A product of two tensors that both depend on the model's inputs (attention scores)
    has no weight and is left out; a weight that several operators read along one axis is one layer.

    Args:
        path: the .tflite file; it is read whole.

    Returns:
        The layers; empty if the file holds no weights that this reader knows, which shows nothing.

    Raises:
        MissingFileError: there is no such file.
        ModelError: it is no TensorFlow Lite model, or a damaged one; the message names file and tensor.
    """
    data = read_whole(path, _A_TFLITE)
    source = os.fsdecode(path)
    if data[4:8] != _IDENTIFIER:
        raise ModelError("is no TensorFlow Lite model", where=source, expected=_A_TFLITE)
    model = _Parser(data, source).model()
    return uniquely_named(_Interpretation(model, source, Allowance(len(data), source)).layers())


# --- the file as plain data ------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview | None
    zero_point: Array
    zero_point_axis: int
    unreadable: str


@attrs.frozen(eq=False)
class _Operator:
    op_type: str
    inputs: list[int]
    outputs: list[int]
    callees: tuple[int, ...] = ()
    adjoint: tuple[bool, bool] = (False, False)
    shuffled: bool = False


@attrs.frozen(eq=False)
class _Subgraph:
    tensors: list[_Tensor]
    operators: list[_Operator]
    inputs: list[int]
    outputs: list[int]


@attrs.frozen(eq=False)
class _Model:
    subgraphs: list[_Subgraph]
    entries: frozenset[int]
    """Subgraphs that are called from outside: the first one and those of signatures."""


class _Parser:
    """Reads the tables. Time stays linear in the file's length, although its offsets may overlap."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data = memoryview(data)
        self._source = source
        # Every entry of a vector takes a byte or more, so a file that holds together stays below its own length.
        self._entries_left = len(data)
        self._parsed: dict[tuple[type, int], Any] = {}

    def model(self) -> _Model:
        with self._part("the model"):
            root = schema.Model.GetRootAs(self._data, 0)
            codes = list(self._tables(root.OperatorCodes, root.OperatorCodesLength))
            buffers = list(self._tables(root.Buffers, root.BuffersLength))
            subgraphs = list(self._tables(root.Subgraphs, root.SubgraphsLength))
            signatures = [s.SubgraphIndex() for s in self._tables(root.SignatureDefs, root.SignatureDefsLength)]
        if not subgraphs:
            raise ModelError("holds no subgraph", where=self._source, expected=_A_TFLITE, hint=_DAMAGED)
        names = [self._code(code, i) for i, code in enumerate(codes)]
        return _Model(
            [self._subgraph(subgraph, i, names, buffers) for i, subgraph in enumerate(subgraphs)],
            frozenset((0, *signatures)),
        )

    def _subgraph(self, table: Any, index: int, codes: list[str], buffers: list[Any]) -> _Subgraph:
        part = f"subgraph {index}"
        with self._part(part):
            tensors = list(self._tables(table.Tensors, table.TensorsLength))
            operators = list(self._tables(table.Operators, table.OperatorsLength))
            inputs, outputs = self._vector(table.InputsAsNumpy), self._vector(table.OutputsAsNumpy)
        subgraph = _Subgraph(
            [
                self._once(tensor, f"{part}, tensor {i}", functools.partial(self._tensor, buffers=buffers))
                for i, tensor in enumerate(tensors)
            ],
            [
                self._once(operator, f"{part}, operator {i}", functools.partial(self._operator, codes=codes))
                for i, operator in enumerate(operators)
            ],
            inputs,
            outputs,
        )
        self._check_indices(subgraph, part)
        return subgraph

    def _code(self, table: Any, index: int) -> str:
        """The operator's name; a custom one's own, marked so that it meets no built-in."""
        with self._part(f"operator code {index}"):
            # Codes above 127 came later and have a field of their own: schema.fbs at deprecated_builtin_code.
            code = max(table.BuiltinCode(), table.DeprecatedBuiltinCode())
            name = _OP_NAMES.get(code, f"CUSTOM {code}")
            custom = table.CustomCode() if name == "CUSTOM" else None
        return name if custom is None else f"CUSTOM {self._text(custom)}"

    def _tensor(self, table: Any, part: str, buffers: list[Any]) -> _Tensor:
        name = self._text(table.Name())
        part = f"{part} ('{name}')"
        dtype = _DTYPES.get(table.Type(), f"type {table.Type()}")
        shape = checked_shape(self._vector(table.ShapeAsNumpy), f"{self._source}: {part}")
        data = self._bytes(table, part, buffers)
        zero_point, axis, unreadable = self._quantization(table.Quantization(), dtype)
        if table.Sparsity() is not None:
            unreadable = _SPARSE_FORMAT
        elif table.IsVariable():
            unreadable = _UNREADABLE["READ_VARIABLE"]
        elif getattr(table, "ExternalBuffer", int)():  # the schema of TensorFlow 2.16 does not have it
            unreadable = "stored in another file"
        elif data is not None:
            size = stored_size(dtype, shape)
            if size is None:
                unreadable = f"holds {dtype}, which this reader cannot read"
            elif size != len(data):
                raise ModelError(
                    f"holds {len(data)} bytes",
                    where=f"{self._source}: {part}",
                    expected=f"{size} for {dtype} of shape {list(shape)}",
                    hint=_DAMAGED,
                )
        return _Tensor(name, dtype, shape, data, zero_point, axis, unreadable)

    def _bytes(self, tensor: Any, part: str, buffers: list[Any]) -> memoryview | None:
        index = tensor.Buffer()
        if index >= len(buffers):
            raise ModelError(f"reads buffer {index} of {len(buffers)}", where=f"{self._source}: {part}", hint=_DAMAGED)
        buffer = buffers[index]
        # Models above 2 GB keep buffers behind the flatbuffer; offsets 0 and 1 say that there are none: schema.fbs.
        start, length = buffer.Offset(), buffer.Size()
        if start <= 1:
            length = buffer.DataLength()
            start = buffer._tab.Vector(buffer._tab.Offset(4)) if length else 0
        if not length:
            return None
        if start + length > len(self._data):
            found = f"holds {length} bytes at {start} of a file of {len(self._data)}"
            raise ModelError(found, where=f"{self._source}: {part}", hint=_DAMAGED)
        return self._data[start : start + length]

    def _quantization(self, table: Any, dtype: str) -> tuple[Array, int, str]:
        """Zero points, the axis that they run along, and why they cannot be read. Floats have none that count."""
        none = np.zeros(0, np.int64)
        if table is None or not dtype.startswith(("int", "uint")):
            return none, 0, ""
        if table.DetailsType() not in (0, 1):  # none, custom
            return none, 0, "quantized in blocks, which this reader cannot read"
        zero_point = np.asarray(self._vector(table.ZeroPointAsNumpy), np.int64)
        return zero_point, table.QuantizedDimension(), ""

    def _operator(self, table: Any, part: str, codes: list[str]) -> _Operator:
        index = table.OpcodeIndex()
        if index >= len(codes):
            raise ModelError(f"has code {index} of {len(codes)}", where=f"{self._source}: {part}", hint=_DAMAGED)
        op_type = codes[index]
        return _Operator(
            op_type,
            self._vector(table.InputsAsNumpy),
            self._vector(table.OutputsAsNumpy),
            **_options(table, op_type),
        )

    def _check_indices(self, subgraph: _Subgraph, part: str) -> None:
        count = len(subgraph.tensors)
        for i, operator in enumerate(subgraph.operators):
            # -1 stands for an optional input that is not given.
            if not all(-1 <= index < count for index in (*operator.inputs, *operator.outputs)):
                raise self._beyond(f"{part}, operator {i} ({operator.op_type})", count)
        if not all(0 <= index < count for index in (*subgraph.inputs, *subgraph.outputs)):
            raise self._beyond(part, count)

    def _beyond(self, part: str, count: int) -> ModelError:
        return ModelError(f"reads a tensor beyond the {count}", where=f"{self._source}: {part}", hint=_DAMAGED)

    def _once(self, table: Any, part: str, parse: Callable[..., Any]) -> Any:
        """Tables that many offsets lead to are parsed once."""
        key = (type(table), table._tab.Pos)
        if key not in self._parsed:
            with self._part(part):
                self._parsed[key] = parse(table, part)
        return self._parsed[key]

    def _tables(self, entry: Callable[[int], Any], length: Callable[[], int]) -> Iterator[Any]:
        count = length()
        self._spend(count)
        return map(entry, range(count))

    def _vector(self, as_numpy: Callable[[], Any]) -> list[int]:
        values = as_numpy()
        if isinstance(values, int):  # 0: there is none
            return []
        self._spend(len(values))
        return values.tolist()

    def _text(self, value: bytes | None) -> str:
        if value is None:
            return ""
        self._spend(len(value))
        if len(value) > _MAX_NAME:
            raise ModelError(f"holds a name of {len(value)} bytes", where=self._source, expected=f"at most {_MAX_NAME}")
        return value.decode("utf-8", "replace")

    def _spend(self, entries: int) -> None:
        self._entries_left -= entries
        if self._entries_left < 0:
            raise ModelError("holds vectors longer than itself", where=self._source, hint=_DAMAGED)

    @contextlib.contextmanager
    def _part(self, part: str) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            where = f"{self._source}: {part}"
            raise ModelError(f"cannot be read ({error})", where=where, expected=_A_TFLITE, hint=_DAMAGED) from error


def _options(table: Any, op_type: str) -> dict[str, Any]:
    """Those of an operator's options that matter here."""
    if op_type == "WHILE":
        loop = _option_table(table.BuiltinOptions(), schema.WhileOptions)
        return {"callees": (loop.CondSubgraphIndex(), loop.BodySubgraphIndex())}
    if op_type == "IF":
        choice = _option_table(table.BuiltinOptions(), schema.IfOptions)
        return {"callees": (choice.ThenSubgraphIndex(), choice.ElseSubgraphIndex())}
    if op_type == "CALL":
        return {"callees": (_option_table(table.BuiltinOptions(), schema.CallOptions).Subgraph(),)}
    if op_type == "STABLEHLO_COMPOSITE":
        composite = _option_table(table.BuiltinOptions2(), schema.StableHLOCompositeOptions)
        return {"callees": (composite.DecompositionSubgraphIndex(),)}
    if op_type == "BATCH_MATMUL" and table.BuiltinOptions() is not None:
        product = _option_table(table.BuiltinOptions(), schema.BatchMatMulOptions)
        return {"adjoint": (bool(product.AdjX()), bool(product.AdjY()))}
    if op_type == "FULLY_CONNECTED" and table.BuiltinOptions() is not None:
        return {"shuffled": bool(_option_table(table.BuiltinOptions(), schema.FullyConnectedOptions).WeightsFormat())}
    return {}


def _option_table(union: Any, kind: Any) -> Any:
    if union is None:
        raise ValueError(f"{kind.__name__} are missing")
    options = kind()
    options.Init(union.Bytes, union.Pos)
    return options


# --- what the data means ---------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Call:
    """One call of a subgraph: its arguments and results in the caller, by position."""

    caller: int
    operator: _Operator
    callee: int
    arguments: list[int]
    results: list[int]
    loop: tuple[int, int] | None = None
    """Of a loop: (condition, body)."""


class _Interpretation:
    def __init__(self, model: _Model, source: str, allowance: Allowance) -> None:
        self._model = model
        self._source = source
        self._allowance = allowance
        self._traced: dict[Key, Weight | str] = {}
        self._producers = {
            (s, tensor): operator
            for s, subgraph in enumerate(model.subgraphs)
            for operator in subgraph.operators
            for tensor in operator.outputs
        }
        self._calls = self._find_calls()
        self._argument_positions = {
            (s, tensor): position
            for s, subgraph in enumerate(model.subgraphs)
            for position, tensor in enumerate(subgraph.inputs)
        }
        self._data = self._depends_on_inputs()

    def layers(self) -> Iterator[DeployedLayer]:
        seen: set[Any] = set()
        for s, subgraph in enumerate(self._model.subgraphs):
            for i, operator in enumerate(subgraph.operators):
                location = f"subgraph {s}, operator {i}"
                for key, axis, rank in self._weights_of(s, operator, location):
                    weight = self._weight(key) if key not in self._data else COMPUTED_FROM_INPUTS
                    same = (operator.op_type, axis, weight.key) if isinstance(weight, Weight) else (location, key)
                    if same not in seen:
                        seen.add(same)
                        yield self._layer(s, operator, location, key, weight, axis, rank)
                yield from self._opaque(s, operator, location)

    # --- which inputs are weights

    def _weights_of(self, s: int, operator: _Operator, location: str) -> Iterator[tuple[Key, int, int]]:
        """The tensors that hold weights, their axis and their rank (0: two or more)."""
        if operator.op_type == "BATCH_MATMUL":
            yield from self._matrix_of(s, operator, location)
            return
        operands = _WEIGHTS.get(operator.op_type)
        if operator.op_type == "LSTM" and len(operator.inputs) == _BASIC_LSTM_INPUTS:
            operands = _BASIC_LSTM
        if operator.op_type == "DEPTHWISE_CONV_2D":
            operands = _Operands((1,), 3, 4)
        if operands is None:
            return
        if len(operator.inputs) <= operands.positions[0]:
            raise self._too_few_inputs(operator, location)
        for position in operands.positions:
            key = (s, operator.inputs[position]) if position < len(operator.inputs) else (s, -1)
            # A fully connected operator may multiply two activations.
            if key[1] >= 0 and not (operator.op_type == "FULLY_CONNECTED" and key in self._data):
                yield key, operands.axis, operands.rank

    def _matrix_of(self, s: int, operator: _Operator, location: str) -> Iterator[tuple[Key, int, int]]:
        """The static operand of a product; the right one if both are, none if none is."""
        if len(operator.inputs) != 2 or -1 in operator.inputs:
            raise self._too_few_inputs(operator, location)
        left, right = operator.inputs
        adjoint_left, adjoint_right = operator.adjoint
        if (s, right) not in self._data:
            yield (s, right), -1 if adjoint_right else -2, 0
        elif (s, left) not in self._data:
            yield (s, left), -2 if adjoint_left else -1, 0

    def _too_few_inputs(self, operator: _Operator, location: str) -> ModelError:
        found = f"{operator.op_type} has the inputs {operator.inputs[:8]}"
        return ModelError(found, where=f"{self._source}: {location}", expected="one for its weights")

    def _layer(
        self, s: int, operator: _Operator, location: str, key: Key, weight: Weight | str, axis: int, rank: int
    ) -> DeployedLayer:
        facts: dict[str, Any] = {
            "name": self._name(s, operator, key, weight),
            "op_type": _shown(operator.op_type),
            "location": location,
        }
        if isinstance(weight, str):
            facts["exempt" if weight is COMPUTED_FROM_INPUTS else "obstacle"] = weight
            return DeployedLayer(**facts)
        facts |= {"shape": weight.shape, "dtype": weight.dtype}
        if operator.op_type == "DEPTHWISE_CONV_2D":
            return DeployedLayer(**facts, exempt=NO_CHANNEL_AXIS)
        found = len(weight.shape)
        if operator.shuffled:
            return DeployedLayer(**facts, obstacle="shuffled for one kind of processor: verify the source model")
        if found < 2 or rank not in (0, found):
            return DeployedLayer(**facts, obstacle=f"of rank {found}, where {rank or '2 or more'} is expected")
        return DeployedLayer(**facts, axis=axis % found, note=weight.note, read=weight.read)

    def _opaque(self, s: int, operator: _Operator, location: str) -> Iterator[DeployedLayer]:
        """Constants of two or more axes that go into an operator which this reader does not know."""
        if operator.op_type.partition(" ")[0] not in _OPAQUE:
            return
        op_type = _shown(operator.op_type)
        facts: dict[str, Any] = {"op_type": op_type, "location": location}
        if op_type in _COMPILED:
            obstacle = f"compiled for a device ({op_type}): verify the file that was compiled"
            yield DeployedLayer(name=self._name(s, operator, None, ""), **facts, obstacle=obstacle)
            return
        for tensor in dict.fromkeys(operator.inputs):
            key = (s, tensor)
            shape = self._model.subgraphs[s].tensors[tensor].shape if tensor >= 0 else ()
            if len(shape) > 1 and key not in self._data:
                name = self._name(s, operator, key, "")
                obstacle = f"goes into {op_type}, which this reader does not know"
                yield DeployedLayer(name=name, **facts, shape=shape, obstacle=obstacle)

    def _name(self, s: int, operator: _Operator, key: Key | None, weight: Weight | str) -> str:
        """The weight's name, or the operator's result's where the converter made the weight's up."""
        tensors = self._model.subgraphs[s].tensors
        candidates = [weight.name] if isinstance(weight, Weight) else []
        candidates += [tensors[tensor].name for tensor in ([key[1]] if key else []) + operator.outputs if tensor >= 0]
        # Names of fused operators are joined by semicolons.
        names = [name.partition(";")[0] for name in candidates]
        return next((name for name in names if not _GENERIC_NAME.fullmatch(name)), (names or [operator.op_type])[0])

    # --- where a weight comes from

    def _weight(self, key: Key) -> Weight | str:
        if key not in self._traced:
            self._traced[key] = self._trace(key)
        return self._traced[key]

    def _trace(self, key: Key) -> Weight | str:
        """The weight as ``key`` has it, or why it cannot be read."""
        steps: list[Callable[[Weight], Weight]] = []
        for _ in range(MAX_HOPS):
            tensor = self._tensor(key)
            if tensor.unreadable:
                return tensor.unreadable
            if tensor.data is not None:
                weight = self._stored(key, tensor)
                return functools.reduce(lambda seen, step: step(seen), reversed(steps), weight)
            operator = self._producers.get(key)
            found = self._argument(key) if operator is None else self._before(key, operator)
            if operator is not None:
                steps += self._steps(key, operator)
            if isinstance(found, str):
                return found
            key = found
        return f"behind more than {MAX_HOPS} operators"

    def _before(self, key: Key, operator: _Operator) -> Key | str:
        op_type = operator.op_type
        if op_type in _UNREADABLE:
            return _UNREADABLE[op_type]
        followed = op_type in _SAME_VALUES or op_type in _SAME_ORDER or op_type == "TRANSPOSE"
        if not followed or not operator.inputs or operator.inputs[0] < 0:
            return f"computed by {_shown(op_type)} when the model runs"
        if op_type == "TRANSPOSE" and self._order(key[0], operator) is None:
            return "transposed by an order that is computed when the model runs"
        return key[0], operator.inputs[0]

    def _steps(self, key: Key, operator: _Operator) -> list[Callable[[Weight], Weight]]:
        """What the operator does to the weight's shape."""
        if operator.op_type in _SAME_ORDER:
            shape = self._tensor(key).shape
            return [lambda weight: weight.reshaped(shape)]
        if operator.op_type == "TRANSPOSE":
            order = self._order(key[0], operator)
            return [lambda weight: weight.transposed(order or ())]
        return []

    def _order(self, s: int, operator: _Operator) -> Sequence[int] | None:
        if len(operator.inputs) != 2 or operator.inputs[1] < 0:
            return None
        tensor = self._tensor((s, operator.inputs[1]))
        if tensor.data is None or tensor.unreadable or tensor.dtype not in ("int32", "int64") or len(tensor.data) > 512:
            return None
        return decode(tensor.data, tensor.dtype, tensor.shape, self._source).reshape(-1).tolist()

    def _argument(self, key: Key) -> Key | str:
        """What a subgraph's input is given by those that call it."""
        s, _ = key
        position = self._argument_positions.get(key)
        if position is None:
            return "made by no operator"
        calls = self._calls[s]
        if not calls:
            return "an argument of a subgraph that nothing known calls"
        sources = {(call.caller, call.arguments[position]) for call in calls}
        if len(sources) > 1:
            return "an argument, and given differently by several calls"
        if any(call.loop and self._body_result(call.loop[1], position) != position for call in calls):
            return "changed by the loop that it is in"
        (source,) = sources
        return source if source[1] >= 0 else "not given"

    def _body_result(self, body: int, position: int) -> int | None:
        """Which of the loop body's arguments its result at ``position`` is, unchanged."""
        return self._argument_positions.get((body, self._model.subgraphs[body].outputs[position]))

    def _tensor(self, key: Key) -> _Tensor:
        return self._model.subgraphs[key[0]].tensors[key[1]]

    def _stored(self, key: Key, tensor: _Tensor) -> Weight:
        where = f"{self._source}: subgraph {key[0]}, tensor {key[1]} ('{tensor.name}')"
        data, dtype, shape = tensor.data, tensor.dtype, tensor.shape
        self._allowance.spend(shape)
        weight = Weight(where, tensor.name, (key,), dtype, shape, lambda: decode(data, dtype, shape, where))
        return weight.less_zero_point(tensor.zero_point, tensor.zero_point_axis)

    # --- calls between subgraphs, and what depends on the model's inputs

    def _find_calls(self) -> dict[int, list[_Call]]:
        calls: dict[int, list[_Call]] = defaultdict(list)
        for s, subgraph in enumerate(self._model.subgraphs):
            for i, operator in enumerate(subgraph.operators):
                for call in self._calls_of(s, operator):
                    self._check_call(call, f"subgraph {s}, operator {i} ({operator.op_type})")
                    calls[call.callee].append(call)
        return calls

    def _calls_of(self, s: int, operator: _Operator) -> Iterator[_Call]:
        if operator.op_type == "WHILE":
            loop = (operator.callees[0], operator.callees[1])
            yield _Call(s, operator, loop[0], operator.inputs, [], loop)
            yield _Call(s, operator, loop[1], operator.inputs, operator.outputs, loop)
            return
        arguments = operator.inputs[1:] if operator.op_type == "IF" else operator.inputs
        for callee in operator.callees:
            yield _Call(s, operator, callee, arguments, operator.outputs)

    def _check_call(self, call: _Call, part: str) -> None:
        where = f"{self._source}: {part}"
        if not 0 <= call.callee < len(self._model.subgraphs):
            raise ModelError(f"calls subgraph {call.callee} of {len(self._model.subgraphs)}", where=where)
        callee = self._model.subgraphs[call.callee]
        if len(call.arguments) != len(callee.inputs) or (call.results and len(call.results) != len(callee.outputs)):
            raise ModelError(f"calls subgraph {call.callee} with another number of inputs or outputs", where=where)
        if call.loop and call.callee == call.loop[1] and len(callee.outputs) != len(callee.inputs):
            raise ModelError(f"loops over subgraph {call.callee}, which returns another number of values", where=where)

    def _depends_on_inputs(self) -> set[Key]:
        """Every tensor whose values depend on what the model is given. A shape alone does not count."""
        readers, results = self._readers(), self._results()
        reached = {(s, tensor) for s in self._entries() for tensor in self._model.subgraphs[s].inputs}
        waiting = list(reached)
        spread: set[tuple[int, int]] = set()
        while waiting:
            key = waiting.pop()
            after = [*self._after_operators(key, readers.get(key, []), spread), *self._after_calls(key, results)]
            new = {other for other in after if other[1] >= 0} - reached
            waiting += new
            reached |= new
        return reached

    def _entries(self) -> Iterator[int]:
        return (s for s in self._model.entries if s < len(self._model.subgraphs))

    def _readers(self) -> dict[Key, list[tuple[_Operator, int]]]:
        readers: dict[Key, list[tuple[_Operator, int]]] = defaultdict(list)
        for s, subgraph in enumerate(self._model.subgraphs):
            for operator in subgraph.operators:
                for position, tensor in enumerate(operator.inputs):
                    readers[s, tensor].append((operator, position))
        return readers

    def _results(self) -> dict[Key, list[int]]:
        results: dict[Key, list[int]] = defaultdict(list)
        for s, subgraph in enumerate(self._model.subgraphs):
            for position, tensor in enumerate(subgraph.outputs):
                results[s, tensor].append(position)
        return results

    def _after_operators(
        self, key: Key, readers: list[tuple[_Operator, int]], spread: set[tuple[int, int]]
    ) -> Iterator[Key]:
        """``spread`` remembers the operators whose results were given before: one of many inputs must do it once."""
        s, _ = key
        for operator, position in readers:
            for call in self._calls_of(s, operator):
                inner = position - (len(operator.inputs) - len(call.arguments))
                if inner >= 0:
                    yield call.callee, self._model.subgraphs[call.callee].inputs[inner]
            choice = operator.op_type == "IF" and position == 0
            passes = choice or not (operator.callees or operator.op_type == "SHAPE")
            if passes and (s, id(operator)) not in spread:
                spread.add((s, id(operator)))
                yield from ((s, tensor) for tensor in operator.outputs)

    def _after_calls(self, key: Key, results: dict[Key, list[int]]) -> Iterator[Key]:
        for position in results.get(key, ()):
            for call in self._calls[key[0]]:
                if call.results:
                    yield call.caller, call.results[position]
                if call.loop and call.callee == call.loop[1]:
                    yield from ((part, self._model.subgraphs[part].inputs[position]) for part in call.loop)


def _shown(op_type: str) -> str:
    """As the format names it: a custom operator by its own name."""
    return op_type.removeprefix("CUSTOM ")
