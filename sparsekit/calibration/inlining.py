"""A graph without calls: every function body in its place, so that a session can fetch what flows inside."""

from __future__ import annotations

from typing import Any

from tensorflow.core.framework import graph_pb2

from sparsekit.graph.node import ArgumentNode, Edge, FunctionView, GraphView, ProtoGraph, ProtoNode

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def inlined(view: ProtoGraph) -> Any:
    """A GraphDef that computes what the graph does, with nodes named by their path.

    A call becomes an ``IdentityN`` of its name, so its outputs keep their names. The bodies of loops and conds stay
    functions: they run as often as the data says.
    """
    result = graph_pb2.GraphDef()
    result.versions.CopyFrom(view.graph_def.versions)
    result.library.CopyFrom(view.graph_def.library)
    _emit(view, result, after=[])
    return result


def _emit(view: GraphView, result: Any, after: list[str]) -> None:
    """Append the nodes of a graph or body.

    Args:
        after: control inputs of those that depend on nothing in the body.
    """
    for node in view.nodes():
        if isinstance(node, ArgumentNode):
            continue
        assert isinstance(node, ProtoNode)
        controls = _controls(node)
        if node.op in _CALLS and (bodies := view.bodies(node)):
            _emit_call(node, bodies[0], result, [*controls, *after])
            continue
        copy = result.node.add()
        copy.CopyFrom(node.definition)
        copy.name = node.path
        copy.attr.pop("_class", None)
        del copy.input[:]
        copy.input.extend(tensor_name(edge) for edge in node.inputs)
        copy.input.extend(controls if node.inputs or controls else after)
        if "frame_name" in copy.attr and view.prefix:
            copy.attr["frame_name"].s = (view.prefix + copy.attr["frame_name"].s.decode()).encode()


def _emit_call(call: ProtoNode, body: FunctionView, result: Any, after: list[str]) -> None:
    _emit(body, result, after)
    outputs = body.results()
    done = [f"^{body.prefix}{name}" for name in body.definition.control_ret.values()]
    if not outputs:
        result.node.add(name=call.path, op="NoOp", input=[*done, *after])
        return
    joined = result.node.add(name=call.path, op="IdentityN")
    joined.input.extend(tensor_name(edge) for edge in outputs)
    joined.input.extend(dict.fromkeys([*done, *after]))
    joined.attr["T"].list.type.extend(call.definition.attr["Tout"].list.type)


def _controls(node: ProtoNode) -> list[str]:
    """Its control inputs; a body's argument is computed before the body begins anyway."""
    names = [text[1:] for text in node.definition.input if text.startswith("^")]
    nodes = [node.view.node(name) for name in names]
    return [f"^{found.path}" for found in nodes if found is not None and not isinstance(found, ArgumentNode)]


def tensor_name(edge: Edge) -> str:
    """What `inlined` calls the output of a node."""
    node, index = edge.node, edge.index
    while isinstance(node, ArgumentNode):
        call, argument = node.outside()
        passed = call.inputs[argument]
        node, index = passed.node, passed.index
    return f"{node.path}:{index}"


def order_of(graph_def: Any) -> dict[str, int]:
    """When each node can run at the earliest, counted in nodes: after all that it depends on.

    What goes round in a loop is left out.
    """
    names = {node.name for node in graph_def.node}
    waiting = {node.name: 0 for node in graph_def.node}
    readers: dict[str, list[str]] = {name: [] for name in names}
    for node in graph_def.node:
        for text in node.input:
            read = text.removeprefix("^").partition(":")[0]
            if read in names:
                waiting[node.name] += 1
                readers[read].append(node.name)
    order: dict[str, int] = {}
    ready = [name for name, count in waiting.items() if not count]
    while ready:
        name = ready.pop()
        order[name] = len(order)
        for reader in readers[name]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order
