"""Does a GraphDef hold together? Whoever reads one afterwards may trust its edges."""

from __future__ import annotations

import functools
from typing import Any

from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import op_def_registry

from sparsekit.errors import ModelError
from sparsekit.graph.node import Node, ProtoGraph, ProtoNode

_DTYPES = frozenset(types_pb2.DataType.values())
_BACKWARD = ("NextIteration", "RefNextIteration")
_DAMAGED = "The model is damaged or was cut off; write it again."


def check_graph_def(graph_def: Any, source: str) -> ProtoGraph:
    """Check names, edges, numbers of inputs, dtypes, constants; unknown ops are passed over. Of function bodies: names
    and edges.

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
            ordered = ordered and (read in behind or read.op in _BACKWARD)
        behind.add(node)
    if not ordered:
        nodes = {node.name: node.definition for node in view.nodes()}
        _check_order(nodes, source)
    for function in graph_def.library.function:
        _check_body(function, f"{source}: function '{function.signature.name}'")
    return view


def _check_body(function: Any, source: str) -> None:
    arguments = {argument.name for argument in function.signature.input_arg}
    nodes: dict[str, Any] = {}
    for node in function.node_def:
        if node.name in nodes or node.name in arguments:
            raise _error(source, node, "two nodes have this name", "every name once")
        nodes[node.name] = node
    known = nodes.keys() | arguments
    for node in function.node_def:
        count = sum(not text.startswith("^") for text in node.input)
        expected = _input_count(node.op, node.attr)
        if expected is not None and count != expected:
            raise _error(source, node, f"is a {node.op} with {count} inputs", f"{expected}")
        for text in node.input:
            if text.removeprefix("^").partition(":")[0] not in known:
                raise _error(source, node, f"reads '{text}', which is not in the function")
    for output in function.signature.output_arg:
        returned = function.ret.get(output.name, "")
        if returned.partition(":")[0] not in known:
            raise ModelError(f"returns '{returned}' as '{output.name}'", where=source, hint=_DAMAGED)
    _check_order(nodes, source)


def _checked_inputs(node: ProtoNode, view: ProtoGraph, source: str) -> list[Node]:
    """What a node of the main graph reads, by control inputs too; the node is checked."""
    definition, op = node.definition, node.op
    try:
        edges = node.inputs
        reads = [edge.node for edge in edges]
        if len(reads) < len(definition.input):
            controls = [text for text in definition.input if text.startswith("^")]
            reads += [view.named(text[1:].partition(":")[0], text, node) for text in controls]
    except ModelError as error:
        raise _error(source, definition, error.found) from error
    attributes = definition.attr
    expected = _input_count(op, attributes)
    if expected is not None and len(edges) != expected:
        raise _error(source, definition, f"is a {op} with {len(edges)} inputs", f"{expected}")
    if op == "Const" and not ("value" in attributes and attributes["value"].HasField("tensor")):
        raise _error(source, definition, "is a constant without a value")
    for key in attributes:
        # Of an attribute that is no dtype this is 0, which is one.
        if attributes[key].type not in _DTYPES:
            raise _error(source, definition, f"its attribute '{key}' is no dtype ({attributes[key].type})")
    return reads


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
    waiting = dict.fromkeys(nodes, 0)
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for text in node.input:
            read = text.removeprefix("^").partition(":")[0]
            # An argument of a function depends on nothing in it.
            if read in nodes and nodes[read].op not in _BACKWARD:
                waiting[name] += 1
                readers[read].append(name)
    ready = [name for name, count in waiting.items() if not count]
    while ready:
        name = ready.pop()
        del waiting[name]
        for reader in readers[name]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if waiting:
        raise _error(source, nodes[next(iter(waiting))], "depends on itself or on a node that does")


def _error(source: str, node: Any, found: str, expected: str = "") -> ModelError:
    return ModelError(
        found, where=f"{source}: {node.name or 'a node without a name'}", expected=expected, hint=_DAMAGED
    )
