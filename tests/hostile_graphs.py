"""GraphDefs that nobody would write but to do harm: small files that ask for much memory, time or depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.core.framework import graph_pb2, tensor_pb2, types_pb2

FLOAT, INT32, INT64, STRING = types_pb2.DT_FLOAT, types_pb2.DT_INT32, types_pb2.DT_INT64, types_pb2.DT_STRING


class Graph:
    """A GraphDef that is put together by hand, so that it may be wrong."""

    def __init__(self) -> None:
        self.proto: Any = graph_pb2.GraphDef()
        self.node("x", "Placeholder", dtype=FLOAT)

    def node(self, name: str, op: str, inputs: Sequence[str] = (), into: Any = None, **attributes: Any) -> str:
        """Add a node. Attributes: bool, int, float, text, TensorProto; "dtype", "T" and the like as numbers of types;
        lists of types; a function's name as ``f``."""
        node = (self.proto.node if into is None else into).add(name=name, op=op, input=inputs)
        for key, value in attributes.items():
            _set(node.attr[key], key, value)
        return name

    def const(self, name: str, value: Any = None, into: Any = None, **changes: Any) -> str:
        """Add a constant; ``changes`` are made to its TensorProto, the ``shape`` among them; ``declared`` is the dtype
        that the node says it has."""
        array = np.ones((8, 8), np.float32) if value is None else np.asarray(value)
        tensor = _tensor(array)
        declared = changes.pop("declared", changes.get("dtype", tensor.dtype))
        for key, change in changes.items():
            if key == "shape":
                del tensor.tensor_shape.dim[:]
                for size in change:
                    tensor.tensor_shape.dim.add(size=size)
            elif isinstance(change, list):
                getattr(tensor, key).extend(change)
            else:
                setattr(tensor, key, change)
        return self.node(name, "Const", into=into, dtype=declared, value=tensor)

    def layer(self, weight: str, name: str = "fc", x: str = "x", **more: Any) -> str:
        return self.node(name, "MatMul", [x, weight], T=FLOAT, **more)

    def function(self, name: str, arguments: int = 1) -> Any:
        """A function of floats that returns its first argument; its nodes go into the result's ``node_def``."""
        function = self.proto.library.function.add()
        function.signature.name = name
        for index in range(arguments):
            function.signature.input_arg.add(name=f"a{index}", type=FLOAT)
        function.signature.output_arg.add(name="r", type=FLOAT)
        function.ret["r"] = "a0" if arguments else ""
        return function

    def call(self, name: str, function: str, inputs: Sequence[str] = ("x",), into: Any = None) -> str:
        types = [FLOAT] * len(inputs)
        return self.node(name, "PartitionedCall", inputs, into, Tin=types, Tout=[FLOAT], f=function)


def _tensor(array: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.make_tensor_proto(array)


def _set(attribute: Any, key: str, value: Any) -> None:
    if isinstance(value, tensor_pb2.TensorProto):
        attribute.tensor.CopyFrom(value)
    elif key == "f":
        attribute.func.name = value
    elif isinstance(value, bool):
        attribute.b = value
    elif isinstance(value, list):
        attribute.list.type.extend(value)
    elif isinstance(value, float):
        attribute.f = value
    elif isinstance(value, str):
        attribute.s = value.encode()
    elif key in ("dtype", "T", "Tidx", "Tshape", "Tdim", "Tperm", "DstT", "SrcT", "out_type", "Index"):
        attribute.type = value
    else:
        attribute.i = value


def _with(weight: Callable[[Graph], str]) -> Callable[[], Any]:
    """A graph of one layer with this weight."""

    def build() -> Any:
        graph = Graph()
        graph.layer(weight(graph))
        return graph.proto

    return build


def _behind(op: str, second: Callable[[Graph], str], **attributes: Any) -> Callable[[], Any]:
    """A layer whose weight goes through an op with a second input, such as a shape."""
    return _with(lambda g: g.node("through", op, [g.const("w"), second(g)], T=FLOAT, **attributes))


def _repeated(shape: Sequence[int], **value: Any) -> Callable[[], Any]:
    return _with(lambda g: g.const("w", shape=shape, tensor_content=b"", **(value or {"float_val": [1.0]})))


def _concat_of(count: int) -> Callable[[], Any]:
    def build() -> Any:
        graph = Graph()
        parts = [graph.const(f"w{i}", np.ones((2, 2), "f")) for i in range(count)]
        graph.const("axis", np.int32(0))
        graph.layer(graph.node("w", "ConcatV2", [*parts, "axis"], N=count, T=FLOAT, Tidx=INT32))
        return graph.proto

    return build


def _concat_twice() -> Any:
    """Every concatenation is of the one before, twice: 2 ** 60 parts."""
    graph = Graph()
    graph.const("axis", np.int32(0))
    last = graph.const("w")
    for i in range(60):
        last = graph.node(f"c{i}", "ConcatV2", [last, last, "axis"], N=2, T=FLOAT, Tidx=INT32)
    graph.layer(last)
    return graph.proto


def _chain(op: str, length: int, layers: int = 1, **attributes: Any) -> Callable[[], Any]:
    def build() -> Any:
        graph = Graph()
        last = graph.const("w")
        for i in range(length):
            last = graph.node(f"c{i}", op, [last, *attributes.get("more", [])], T=FLOAT)
        for i in range(layers):
            graph.layer(last, f"fc{i}")
        return graph.proto

    return build


def _concat_chain() -> Any:
    """Concatenations of one part each, one behind the other."""
    graph = Graph()
    graph.const("axis", np.int32(0))
    last = graph.const("w")
    for i in range(20_000):
        last = graph.node(f"c{i}", "ConcatV2", [last, "axis"], N=1, T=FLOAT, Tidx=INT32)
    graph.layer(last)
    return graph.proto


def _shared_parts() -> Any:
    """One large weight as a part of many: reading them all is reading it many times."""
    graph = Graph()
    graph.const("axis", np.int32(0))
    graph.const("big", np.ones((1 << 18, 4), np.float32))
    for i in range(200):
        graph.const(f"s{i}", np.ones((1, 4), np.float32))
        graph.layer(graph.node(f"c{i}", "ConcatV2", ["big", f"s{i}", "axis"], N=2, T=FLOAT, Tidx=INT32), f"fc{i}")
    return graph.proto


def _layout_constants() -> Any:
    """A layout that is a million numbers, for many layers."""
    graph = Graph()
    graph.const("layout", np.ones(1 << 20, np.int32))
    for i in range(2_000):
        graph.node(f"r{i}", "Reshape", [graph.const(f"w{i}"), "layout"], T=FLOAT, Tshape=INT32)
        graph.layer(f"r{i}", f"fc{i}")
    return graph.proto


def _many_repeated() -> Any:
    """Each weight is 64 MB of one number, and there are many."""
    graph = Graph()
    for i in range(2_000):
        graph.layer(graph.const(f"w{i}", shape=[1 << 12, 1 << 12], tensor_content=b"", float_val=[1.0]), f"fc{i}")
    return graph.proto


def _many_readers() -> Any:
    """A weight that many ops read which are no layers."""
    graph = Graph()
    graph.layer(graph.const("w"))
    for i in range(20_000):
        graph.node(f"n{i}", "Neg", ["w"], T=FLOAT)
    return graph.proto


def _many_layers_many_readers() -> Any:
    """Weights that all go into one long chain of ops."""
    graph = Graph()
    for i in range(5_000):
        graph.layer(graph.const(f"w{i}"), f"fc{i}")
    graph.node("sum", "AddN", [f"w{i}" for i in range(5_000)], N=5_000, T=FLOAT)
    last = "sum"
    for i in range(5_000):
        last = graph.node(f"n{i}", "Neg", [last], T=FLOAT)
    return graph.proto


def _large_bodies() -> Any:
    """A large function that is called often."""
    graph = Graph()
    function = graph.function("f")
    for i in range(10_000):
        graph.const(f"w{i}", np.float32(1), into=function.node_def)
    for i in range(10_000):
        graph.call(f"call{i}", "f")
    return graph.proto


def _long_prefixes() -> Any:
    """A long name in front of the names of everything that is called."""
    graph = Graph()
    graph.call("n" * (1 << 20), "f")
    outer, inner = graph.function("f"), graph.function("g", 2)
    graph.node("fc", "MatMul", ["a0", "a1"], inner.node_def, T=FLOAT)
    for i in range(15_000):
        graph.call(f"c{i}", "g", ["a0", "a0"], outer.node_def)
    return graph.proto


def _long_names(op: bool) -> Callable[[], Any]:
    """A long name that the message of every layer repeats."""

    def build() -> Any:
        graph = Graph()
        long = "n" * (1 << 20)
        graph.node("odd" if op else long, long if op else "Sqrt", [graph.const("w")], T=FLOAT)
        graph.node("handed_on", "Identity", ["odd" if op else long], T=FLOAT)
        for i in range(20_000):
            graph.layer("handed_on", f"fc{i}")
        return graph.proto

    return build


def _many_functions() -> Any:
    graph = Graph()
    for i in range(50_000):
        graph.function(f"f{i}")
    graph.layer(graph.const("w"))
    return graph.proto


def _deep_calls() -> Any:
    graph = Graph()
    graph.call("call", "f0")
    for i in range(5_000):
        function = graph.function(f"f{i}")
        graph.call("c", f"f{i + 1}", ["a0"], function.node_def)
    graph.function("f5000")
    return graph.proto


def _one_weight_many_layers() -> Any:
    graph = Graph()
    graph.const("w", np.ones((64, 64), np.float32))
    for i in range(25_000):
        graph.layer("w", f"fc{i}")
    return graph.proto


def _body(change: Callable[[Graph, Any], object], arguments: int = 2, inputs: Sequence[str] = ("x", "w")) -> Any:
    """A layer in a function that is called with its weight."""

    def build() -> Any:
        graph = Graph()
        graph.const("w")
        function = graph.function("f", arguments)
        graph.node("fc", "MatMul", ["a0", f"a{arguments - 1}"], function.node_def, T=FLOAT)
        function.ret["r"] = "fc:product:0"
        graph.call("call", "f", inputs)
        change(graph, function)
        return graph.proto

    return build


def _while(change: Callable[[Graph, Any], object]) -> Callable[[], Any]:
    def build() -> Any:
        graph = Graph()
        graph.const("w")
        body, condition = graph.function("body", 2), graph.function("cond", 2)
        body.signature.output_arg.add(name="s", type=FLOAT)
        graph.node("fc", "MatMul", ["a0", "a1"], body.node_def, T=FLOAT)
        body.ret["r"], body.ret["s"] = "fc:product:0", "a1"
        node = graph.node("loop", "While", ["x", "w"], T=[FLOAT, FLOAT])
        for key in ("body", "cond"):
            graph.proto.node[-1].attr[key].func.name = key
        assert node and condition
        change(graph, body)
        return graph.proto

    return build


def _inferred(shape: Callable[[Graph], str]) -> Callable[[], Any]:
    """A layer whose data is reshaped by something computed: shape inference must not compute it."""

    def build() -> Any:
        graph = Graph()
        graph.node("data", "Reshape", ["x", shape(graph)], T=FLOAT, Tshape=INT32)
        graph.layer(graph.const("w"), x="data")
        return graph.proto

    return build


def _range(graph: Graph) -> str:
    inputs = [graph.const("from", np.int32(0)), graph.const("to", np.int32(2**31 - 1)), graph.const("by", np.int32(1))]
    return graph.node("range", "Range", inputs, Tidx=INT32)


def _fill(graph: Graph) -> str:
    inputs = [graph.const("dims", np.int32([1 << 30])), graph.const("one", np.int32(1))]
    return graph.node("fill", "Fill", inputs, T=INT32, index_type=INT32)


def _outer(graph: Graph) -> str:
    """An innocent operator: each addition is of a row and a column."""
    last = graph.const("row0", np.ones((1000, 1, 1, 1), np.int32))
    for i, shape in enumerate([(1, 1000, 1, 1), (1, 1, 1000, 1), (1, 1, 1, 1000)]):
        last = graph.node(f"sum{i}", "AddV2", [last, graph.const(f"row{i + 1}", np.ones(shape, np.int32))], T=INT32)
    return last


def _squares(graph: Graph) -> str:
    """Multiplications of matrices, for long."""
    last = graph.const("m", np.ones((32, 32), np.int32))
    for i in range(3_000):
        last = graph.node(f"square{i}", "MatMul", [last, last], T=INT32)
    return last


def _tile(graph: Graph) -> str:
    last = graph.const("t", np.ones(1024, np.int32))
    graph.const("times", np.int32([1024]))
    for i in range(4):
        last = graph.node(f"tile{i}", "Tile", [last, "times"], T=INT32, Tmultiples=INT32)
    return last


def _read_file(graph: Graph) -> str:
    text = graph.node("read", "ReadFile", [graph.const("file", np.array(b"/dev/zero", object))])
    return graph.node("decode", "DecodeRaw", [text], out_type=INT32, little_endian=True)


def _range_inside() -> Any:
    """A shape that is computed in a function."""
    graph = Graph()
    graph.layer(graph.const("w"), x=graph.call("call", "f"))
    body = graph.function("f")
    names = []
    for name, value in {"from": 0, "to": 2**31 - 1, "by": 1}.items():
        names.append(graph.const(name, np.int32(value), into=body.node_def) + ":output:0")
    graph.node("range", "Range", names, body.node_def, Tidx=INT32)
    graph.node("data", "Reshape", ["a0", "range:output:0"], body.node_def, T=FLOAT, Tshape=INT32)
    body.ret["r"] = "data:output:0"
    return graph.proto


def _functions_as_ops(names: Sequence[str], times: int) -> Callable[[], Any]:
    """Functions that are called by nodes whose op is their name, as TensorFlow 1 did."""

    def build() -> Any:
        graph = Graph()
        graph.layer(graph.const("w"), x=graph.node("first", names[0], ["x"]))
        for name, called in zip(names, [*names[1:], names[0] if times == 1 else ""], strict=True):
            body = graph.function(name)
            last = "a0"
            for i in range(times if called else 0):
                last = graph.node(f"c{i}", called, [last], body.node_def) + ":r:0"
            body.ret["r"] = last
        return graph.proto

    return build


ATTACKS: Mapping[str, Callable[[], Any]] = {
    # Values and shapes
    "one_value_for_a_terabyte": _repeated([1 << 20, 1 << 20]),
    "one_value_for_4_gigabytes": _repeated([1 << 15, 1 << 15]),
    "one_text_for_a_gigabyte": _with(
        lambda g: g.const("w", shape=[1 << 14, 1 << 14], tensor_content=b"", dtype=STRING, string_val=[b"a"])
    ),
    "no_value_for_a_terabyte": _with(lambda g: g.const("w", shape=[1 << 20, 1 << 20], tensor_content=b"")),
    "many_of_one_value": _many_repeated,
    "a_shape_beyond_64_bits": _repeated([1 << 32, 1 << 32]),
    "a_shape_that_wraps_to_1": _repeated([(1 << 62) + 1, 4, (1 << 62) + 1]),
    "a_negative_shape": _repeated([-8, -8]),
    "a_negative_length": _with(lambda g: g.const("w", shape=[-1, 8])),
    "content_too_short": _with(lambda g: g.const("w", tensor_content=bytes(12))),
    "content_too_long": _with(lambda g: g.const("w", tensor_content=bytes(8 * 8 * 4 + 4))),
    "content_of_no_whole_number": _with(lambda g: g.const("w", tensor_content=bytes(8 * 8 * 4 - 1))),
    "more_values_than_the_shape": _with(lambda g: g.const("w", tensor_content=b"", float_val=[1.0] * 100)),
    "a_rank_of_300": _with(lambda g: g.const("w", shape=[1] * 300, tensor_content=bytes(4))),
    "unknown_rank": _with(lambda g: g.const("w", np.float32(1))),
    "text_declared_as_float": _with(lambda g: g.const("w", np.full((8, 8), b"a", object), declared=FLOAT)),
    "integers_declared_as_float": _with(lambda g: g.const("w", np.ones((8, 8), np.int8), declared=FLOAT)),
    "half_in_the_wrong_field": _with(
        lambda g: g.const("w", tensor_content=b"", dtype=types_pb2.DT_HALF, float_val=[1.0])
    ),
    "half_beyond_16_bits": _with(
        lambda g: g.const("w", tensor_content=b"", dtype=types_pb2.DT_HALF, half_val=[1 << 30] * 64)
    ),
    "bfloat16_beyond_16_bits": _with(
        lambda g: g.const("w", tensor_content=b"", dtype=types_pb2.DT_BFLOAT16, half_val=[-5] * 64)
    ),
    "integers_beyond_8_bits": _with(
        lambda g: g.const("w", tensor_content=b"", dtype=types_pb2.DT_QINT8, int_val=[1 << 20] * 64)
    ),
    "a_variant": _with(lambda g: g.const("w", tensor_content=b"", dtype=types_pb2.DT_VARIANT)),
    "a_reference": _with(lambda g: g.const("w", dtype=types_pb2.DT_FLOAT_REF)),
    "no_dtype": _with(lambda g: g.const("w", dtype=0)),
    "odd_complex": _with(
        lambda g: g.const(
            "w",
            tensor_content=b"",
            dtype=types_pb2.DT_COMPLEX64,
            declared=types_pb2.DT_COMPLEX64,
            scomplex_val=[1.0] * 3,
        )
    ),
    "shape_is_text": _with(lambda g: g.node("w", "VariableV2", dtype=FLOAT, shape="8x8", container="", shared_name="")),
    # Layouts
    "reshape_by_a_terabyte": _behind("Reshape", lambda g: g.const("s", np.int64(1), shape=[1 << 40]), Tshape=INT64),
    "reshape_by_huge_numbers": _behind("Reshape", lambda g: g.const("s", np.int64([2**62, 2**62])), Tshape=INT64),
    "reshape_by_a_scalar": _behind("Reshape", lambda g: g.const("s", np.int64(64)), Tshape=INT64),
    "reshape_by_a_matrix": _behind("Reshape", lambda g: g.const("s", np.int64([[8, 8]])), Tshape=INT64),
    "reshape_by_two_unknowns": _behind("Reshape", lambda g: g.const("s", np.int64([-1, -1])), Tshape=INT64),
    "reshape_by_minus_five": _behind("Reshape", lambda g: g.const("s", np.int64([-8, -8])), Tshape=INT64),
    "reshape_by_a_million_numbers": _layout_constants,
    "expand_dims_far_away": _behind("ExpandDims", lambda g: g.const("s", np.int64(2**62)), Tdim=INT64),
    "squeeze_far_away": _with(lambda g: g.node("q", "Squeeze", [g.const("w")], T=FLOAT, squeeze_dims=2**62)),
    "squeeze_a_scalar": _with(lambda g: g.node("q", "Squeeze", [g.const("w", np.float32(1))], T=FLOAT)),
    "transpose_by_huge_numbers": _behind("Transpose", lambda g: g.const("p", np.int64([2**62, -(2**63)])), Tperm=INT64),
    "transpose_by_a_terabyte": _behind("Transpose", lambda g: g.const("p", np.int32(0), shape=[1 << 40]), Tperm=INT32),
    "concat_of_other_shapes": _with(
        lambda g: g.node(
            "c",
            "ConcatV2",
            [g.const("w"), g.const("v", np.ones((3, 5), "f")), g.const("a", np.int32(0))],
            N=2,
            T=FLOAT,
            Tidx=INT32,
        )
    ),
    "concat_of_other_types": _with(
        lambda g: g.node(
            "c",
            "ConcatV2",
            [g.const("w"), g.const("v", np.full((8, 8), b"a", object)), g.const("a", np.int32(0))],
            N=2,
            T=FLOAT,
            Tidx=INT32,
        )
    ),
    "concat_of_scalars": _with(
        lambda g: g.node(
            "c",
            "ConcatV2",
            [g.const("w", np.float32(1)), g.const("v", np.float32(1)), g.const("a", np.int32(0))],
            N=2,
            T=FLOAT,
            Tidx=INT32,
        )
    ),
    "concat_along_text": _with(
        lambda g: g.node(
            "c", "ConcatV2", [g.const("w"), g.const("v"), g.const("a", np.array(b"x", object))], N=2, T=FLOAT
        )
    ),
    "concat_along_far_away": _with(
        lambda g: g.node("c", "ConcatV2", [g.const("w"), g.const("v"), g.const("a", np.int64(2**62))], N=2, T=FLOAT)
    ),
    "concat_of_minus_one": _with(lambda g: g.node("c", "ConcatV2", [], N=-1, T=FLOAT)),
    # Much of it
    "concat_of_many": _concat_of(50_000),
    "concat_of_concats": _concat_twice,
    "concat_chain": _concat_chain,
    "reshape_chain": _chain("Squeeze", 20_000, 1_000),
    "identity_chain": _chain("Identity", 12_000, 2_000),
    "cast_chain": _chain("StopGradient", 50_000, 1),
    "shared_parts": _shared_parts,
    "many_readers": _many_readers,
    "many_layers_many_readers": _many_layers_many_readers,
    "one_weight_many_layers": _one_weight_many_layers,
    "large_bodies": _large_bodies,
    "long_prefixes": _long_prefixes,
    "long_op": _long_names(True),
    "long_name": _long_names(False),
    "many_functions": _many_functions,
    "deep_calls": _deep_calls,
    # Functions
    "an_argument_that_nobody_passes": _body(lambda g, f: None, 9),
    "an_argument_too_many": _body(lambda g, f: None, 1),
    "an_index_that_is_no_number": _body(lambda g, f: f.ret.update(r="fc:product:one")),
    "an_index_of_5000_digits": _body(lambda g, f: f.ret.update(r="fc:product:" + "9" * 5000)),
    "an_input_index_of_5000_digits": _with(lambda g: g.const("w") + ":" + "9" * 5000),
    "an_output_that_is_not_there": _with(lambda g: g.const("w") + ":7"),
    "an_input_of_a_function_that_is_no_output": _body(lambda g, f: f.node_def[0].input.__setitem__(1, "a1:nope:x")),
    "a_function_that_is_not_there": _body(lambda g, f: g.call("odd", "nope")),
    "a_loop_whose_body_returns_too_little": _while(lambda g, body: body.signature.output_arg.pop()),
    "a_loop_whose_body_takes_too_little": _while(lambda g, body: body.signature.input_arg.pop()),
    "a_loop_without_a_body": _while(lambda g, body: g.proto.node[-1].attr.pop("body")),
    "a_loop_whose_body_is_a_number": _while(lambda g, body: g.proto.node[-1].attr["body"].__setattr__("i", 3)),
    "a_dtype_in_a_function_that_is_none": _body(lambda g, f: f.node_def[0].attr["T"].__setattr__("type", 93)),
    "two_functions_of_one_name": _body(lambda g, f: g.function("f", 2)),
    "two_arguments_of_one_name": _body(lambda g, f: f.signature.input_arg.add(name="a0", type=FLOAT)),
    "a_function_without_a_name": _body(lambda g, f: g.function("")),
    "a_convolution_inside_without_its_inputs": _body(
        lambda g, f: g.node("conv", "Conv2D", ["a0", "a1"], f.node_def, strides=1)
    ),
    # Attributes of another kind
    "an_equation_that_is_a_number": _with(lambda g: g.node("e", "Einsum", ["x", g.const("w")], N=2, equation=3, T=1)),
    "an_equation_of_many_commas": _with(
        lambda g: g.node("e", "Einsum", ["x", g.const("w")], N=2, equation="a," * 250_000, T=1)
    ),
    "a_transpose_that_is_text": _with(lambda g: g.layer(g.const("w"), "odd", transpose_b="yes")),
    # Shape inference
    "a_range_as_a_shape": _inferred(_range),
    "a_fill_as_a_shape": _inferred(_fill),
    "an_outer_sum_as_a_shape": _inferred(_outer),
    "matrix_products_as_a_shape": _inferred(_squares),
    "a_tiled_shape": _inferred(_tile),
    "a_file_as_a_shape": _inferred(_read_file),
    "a_range_in_a_function_as_a_shape": _range_inside,
    "a_function_that_is_its_own_op": _functions_as_ops(["f"], 1),
    "functions_that_are_each_others_ops": _functions_as_ops([f"f{i}" for i in range(40)], 2),
}
