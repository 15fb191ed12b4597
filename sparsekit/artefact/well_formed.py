"""Does a GraphDef hold together? Whoever reads one afterwards may trust its edges."""

from __future__ import annotations

import functools
from typing import Any

from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import op_def_registry

from sparsekit.errors import ModelError

_DTYPES = frozenset(types_pb2.DataType.values())
_DAMAGED = "The model is damaged or was cut off; write it again."


def check_graph_def(graph_def: Any, source: str) -> None:
    """Check names, edges, numbers of inputs, dtypes, constants; unknown ops are passed over. Of function bodies: names
    and edges.

    Args:
        graph_def: the GraphDef.
        source: where it came from, for messages.

    Raises:
        ModelError: it does not hold together; the message names the node.
    """
    nodes: dict[str, Any] = {}
    for node in graph_def.node:
        if node.name in nodes:
            raise _error(source, node, "two nodes have this name", "every name once")
        nodes[node.name] = node
    for node in graph_def.node:
        _check_node(node, nodes, source)
    _check_order(nodes, source)
    for function in graph_def.library.function:
        _check_body(function, f"{source}: function '{function.signature.name}'")


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
        expected = _input_count(node)
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


def _check_node(node: Any, nodes: dict[str, Any], source: str) -> None:
    data = [text for text in node.input if not text.startswith("^")]
    for text in node.input:
        name, colon, index = text.removeprefix("^").partition(":")
        if name not in nodes:
            raise _error(source, node, f"reads '{text}', which is not in the graph")
        if colon and not index.isdecimal():
            raise _error(source, node, f"reads '{text}', which is no output")
    expected = _input_count(node)
    if expected is not None and len(data) != expected:
        raise _error(source, node, f"is a {node.op} with {len(data)} inputs", f"{expected}")
    if node.op == "Const" and not node.attr["value"].HasField("tensor"):
        raise _error(source, node, "is a constant without a value")
    for name, attribute in node.attr.items():
        if attribute.HasField("type") and attribute.type not in _DTYPES:
            raise _error(source, node, f"its attribute '{name}' is no dtype ({attribute.type})")


def _input_count(node: Any) -> int | None:
    """How many data inputs the node must have, None where its op is unknown."""
    arguments = _input_arguments(node.op)
    if arguments is None:
        return None
    count = 0
    for repeats, types in arguments:
        if repeats:
            count += node.attr[repeats].i
        elif types:
            count += len(node.attr[types].list.type)
        else:
            count += 1
    return count


@functools.cache
def _input_arguments(op: str) -> tuple[tuple[str, str], ...] | None:
    definition = op_def_registry.get(op)
    if definition is None:
        return None
    return tuple((argument.number_attr, argument.type_list_attr) for argument in definition.input_arg)


def _check_order(nodes: dict[str, Any], source: str) -> None:
    """No node may depend on itself, except through the NextIteration of a loop."""
    waiting = dict.fromkeys(nodes, 0)
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for text in node.input:
            read = text.removeprefix("^").partition(":")[0]
            # An argument of a function depends on nothing in it.
            if read in nodes and nodes[read].op not in ("NextIteration", "RefNextIteration"):
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
