"""Does a GraphDef hold together? Whoever reads one afterwards may trust its edges and the sizes of its constants."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import op_def_registry

from sparsekit.errors import ModelError
from sparsekit.graph.node import Node, ProtoGraph, ProtoNode
from sparsekit.graph.order import BACKWARD, in_order

_DTYPES = frozenset(types_pb2.DataType.values())
# Names go into messages and tables, several times a layer.
_MAX_NAME = 4_096
_MAX_RANK = 254  # TensorFlow's own limit
_MAX_ELEMENTS = 1 << 62
# A constant may be one number that stands for many. So many of them, in all constants together, are made in memory at
# most: no trained weight is stored like this.
_MAX_REPEATED = 1 << 26
_DAMAGED = "The model is damaged or was cut off; write it again."


def check_graph_def(graph_def: Any, source: str) -> ProtoGraph:
    """Check names, edges, numbers of inputs, dtypes, constants; unknown ops are passed over. Of function bodies: names,
    edges and constants.

    Args:
        graph_def: the GraphDef.
        source: where it came from, for messages.

    Returns:
        A view of it, with what was read of it on the way.

    Raises:
        ModelError: it does not hold together; the message names the node.
    """
    try:
        view = ProtoGraph(graph_def)
    except ModelError as error:
        raise ModelError(
            error.found, where=f"{source}: {error.where}", expected=error.expected, hint=_DAMAGED
        ) from error
    # Nearly every graph that TensorFlow writes has its nodes in order, so that nothing can go round in a circle.
    behind: set[Node] = set()
    ordered = True
    for node in view.nodes():
        for read in _checked_inputs(node, view, source):
            if read not in behind and read.op not in BACKWARD:
                ordered = False
        behind.add(node)
    if not ordered:
        nodes = {node.name: node.definition for node in view.nodes()}
        _check_order(nodes, source)
    functions: set[str] = set()
    for function in graph_def.library.function:
        name = function.signature.name
        if name in functions or len(name) > _MAX_NAME:
            found = "two functions have this name" if name in functions else f"its name has {len(name)} characters"
            raise ModelError(found, where=f"{source}: function '{name[:200]}'", hint=_DAMAGED)
        functions.add(name)
        _check_body(function, f"{source}: function '{name}'")
    _check_repeated(graph_def, source)
    return view


def _check_body(function: Any, source: str) -> None:
    arguments = {argument.name for argument in function.signature.input_arg}
    if len(arguments) != len(function.signature.input_arg):
        raise ModelError("two arguments have one name", where=source, hint=_DAMAGED)
    nodes: dict[str, Any] = {}
    for node in function.node_def:
        if node.name in nodes or node.name in arguments:
            raise _error(source, node, "two nodes have this name", "every name once")
        nodes[node.name] = node
    known = nodes.keys() | arguments
    for node in function.node_def:
        _check_text(node, source)
        if node.op == "Const":
            _check_constant(node, source)
        count = sum(not text.startswith("^") for text in node.input)
        expected = _input_count(node.op, node.attr)
        if expected is not None and count != expected:
            raise _error(source, node, f"is a {node.op} with {count} inputs", f"{expected}")
        for text in node.input:
            name, _, output = text.removeprefix("^").partition(":")
            if name not in known:
                raise _error(source, node, f"reads '{text[:200]}', which is not in the function")
            if not _is_index(output.rpartition(":")[2], ":" in output):
                raise _error(source, node, f"reads '{text[:200]}', which is no output")
    for output in function.signature.output_arg:
        returned = function.ret.get(output.name, "")
        name, _, index = returned.partition(":")
        if name not in known or not _is_index(index.rpartition(":")[2], ":" in index):
            raise ModelError(f"returns '{returned[:200]}' as '{output.name}'", where=source, hint=_DAMAGED)
    _check_order(nodes, source)


def _checked_inputs(node: ProtoNode, view: ProtoGraph, source: str) -> list[Node]:
    """What a node of the main graph reads, by control inputs too; the node is checked."""
    definition, op = node.definition, node.op
    _check_text(definition, source)
    try:
        edges = node.inputs
        reads: list[Node] = [edge.node for edge in edges]
        if len(reads) < len(definition.input):
            controls = [text for text in definition.input if text.startswith("^")]
            reads += [view.named(text[1:].partition(":")[0], text, node) for text in controls]
    except ModelError as error:
        raise _error(source, definition, error.found) from error
    attributes = definition.attr
    expected = _input_arguments(op)
    if isinstance(expected, tuple):
        expected = _input_count(op, attributes)
    if expected is not None and len(edges) != expected:
        raise _error(source, definition, f"is a {op} with {len(edges)} inputs", f"{expected}")
    if op == "Const":
        _check_constant(definition, source)
    for key in attributes:
        # Of an attribute that is no dtype this is 0, which is one.
        if attributes[key].type not in _DTYPES:
            raise _error(source, definition, f"its attribute '{key}' is no dtype ({attributes[key].type})")
    return reads


def _is_index(text: str, needed: bool) -> bool:
    """Whether it is the number of an output, or need not be."""
    return not needed or (text.isdecimal() and len(text) < 10)


def _check_text(node: Any, source: str) -> None:
    longest = max(len(node.name), len(node.op))
    if longest > _MAX_NAME:
        found = f"{node.name[:200]}: its name or op has {longest} characters"
        raise ModelError(found, where=source, expected=f"at most {_MAX_NAME}", hint=_DAMAGED)


def _check_constant(node: Any, source: str) -> None:
    if "value" not in node.attr or not node.attr["value"].HasField("tensor"):
        raise _error(source, node, "is a constant without a value")
    tensor = node.attr["value"].tensor
    declared = node.attr["dtype"].type if "dtype" in node.attr else tensor.dtype
    if declared in _DTYPES and declared != tensor.dtype:
        raise _error(source, node, f"holds values of dtype {tensor.dtype}", f"{declared}, as it says")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or len(shape) > _MAX_RANK or (shape and min(shape) < 0):
        raise _error(source, node, "its value has no definite shape")
    if math.prod(size for size in shape if size) > _MAX_ELEMENTS:
        raise _error(source, node, f"its value has the shape {shape}", "one that memory can hold")


def _check_repeated(graph_def: Any, source: str) -> None:
    """Small files may not stand for large arrays: one number may be stored for as many as a shape asks for."""
    claimed = sum(_elements(node) for _, node in _constants(graph_def, source))
    if claimed <= _MAX_REPEATED:
        return
    left = _MAX_REPEATED
    for where, node in _constants(graph_def, source):
        left -= max(0, _elements(node) - _stored_elements(node.attr["value"].tensor))
        if left < 0:
            shape = [dim.size for dim in node.attr["value"].tensor.tensor_shape.dim]
            expected = f"no more than {_MAX_REPEATED:,} values of all constants left out"
            raise _error(where, node, f"stands for {shape} values and stores few of them", expected)


def _constants(graph_def: Any, source: str) -> Iterator[tuple[str, Any]]:
    """Every constant, with the place it is in."""
    yield from ((source, node) for node in graph_def.node if node.op == "Const")
    for function in graph_def.library.function:
        where = f"{source}: function '{function.signature.name}'"
        yield from ((where, node) for node in function.node_def if node.op == "Const")


def _elements(node: Any) -> int:
    return math.prod(dim.size for dim in node.attr["value"].tensor.tensor_shape.dim)


def _stored_elements(tensor: Any) -> int:
    """How many elements there are bytes or numbers for, at most."""
    fields = [value for field, value in tensor.ListFields() if field.name not in ("dtype", "tensor_shape")]
    return max((len(value) for value in fields if hasattr(value, "__len__")), default=0)


def _input_count(op: str, attributes: Any) -> int | None:
    """How many data inputs the node must have, None where its op is unknown."""
    arguments = _input_arguments(op)
    if arguments is None or isinstance(arguments, int):
        return arguments
    count = 0
    for repeats, types in arguments:
        # Asked for a key that it lacks, a map of messages makes it: the graph would be changed.
        if repeats:
            count += attributes[repeats].i if repeats in attributes else 0
        elif types:
            count += len(attributes[types].list.type) if types in attributes else 0
        else:
            count += 1
    return count


@functools.cache
def _input_arguments(op: str) -> int | tuple[tuple[str, str], ...] | None:
    """How many inputs an op has, or which attributes tell that, argument by argument; None where it is unknown."""
    definition = op_def_registry.get(op)
    if definition is None:
        return None
    arguments = tuple((argument.number_attr, argument.type_list_attr) for argument in definition.input_arg)
    return arguments if any(map(any, arguments)) else len(arguments)


def _check_order(nodes: dict[str, Any], source: str) -> None:
    """No node may depend on itself, except through the NextIteration of a loop."""
    circling = nodes.keys() - in_order(nodes)
    if circling:
        first = next(name for name in nodes if name in circling)
        raise _error(source, nodes[first], "depends on itself or on a node that does")


def _error(source: str, node: Any, found: str, expected: str = "") -> ModelError:
    return ModelError(
        found, where=f"{source}: {node.name or 'a node without a name'}", expected=expected, hint=_DAMAGED
    )
