"""A graph whose function calls are replaced by what they call, so that a session can fetch what happens inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from tensorflow.python.framework import op_def_registry

from sparsekit.errors import ModelError
from sparsekit.graph.node import (
    ArgumentNode,
    Edge,
    FunctionView,
    GraphView,
    LiveGraph,
    LiveNode,
    Node,
    ProtoGraph,
    ProtoNode,
)

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_Defined: TypeAlias = ProtoNode | LiveNode
_CONTROL_FLOW = ("Switch", "RefSwitch", "Enter", "RefEnter")


def inlined(view: ProtoGraph | LiveGraph) -> Any:
    """The same graph with every call of a function replaced by the function's body.

    Each node of a body is named by its ``path``; a call's own name stays, on an op that hands on its results, so that
    all that could be fetched before can be. If, While and Case stay as they are, and so does the library that has their
    functions. What a call does to order is kept: its body's side effects begin after the call's arguments and control
    inputs, and end before anybody goes on who waits for the call.

    A function that asks to be compiled by XLA is not any more.

    Args:
        view: the graph.

    Returns:
        A new GraphDef.

    Raises:
        ModelError: the path of a node inside a function is the name of another node, or a node reads what is not there.
    """
    result = type(view.graph_def)()
    result.versions.CopyFrom(view.graph_def.versions)
    result.library.CopyFrom(view.graph_def.library)
    _add_all(view, "", result)
    seen: set[str] = set()
    for node in result.node:
        if node.name in seen:
            raise ModelError("a node inside a function and another node have this name", where=node.name)
        seen.add(node.name)
    return result


def _add_all(view: GraphView, start: str, result: Any) -> None:
    """Add the nodes of the graph, or of a function body whose call begins with the op ``start``."""
    v1_control_flow = _has_v1_control_flow(view)
    for node in view.nodes():
        if isinstance(node, ArgumentNode):
            continue
        assert isinstance(node, _Defined)
        controls = list(_controls(node))
        # What has no inputs must run where the call runs (in the same loop, say). A side effect must not come early;
        # but an op in a loop of the body must not wait for one outside of it.
        if start and (not node.definition.input or (_has_effects(node) and not v1_control_flow)):
            controls.append(start)
        bodies = view.bodies(node) if node.op in _CALLS else ()
        if bodies:
            _add_call(node, bodies[0], controls, result)
        else:
            copied = _add(node.path, node.op, [_text(edge) for edge in node.inputs], controls, result)
            copied.device = node.definition.device
            _copy_attributes(node, copied)


def _add_call(call: _Defined, body: FunctionView, controls: list[str], result: Any) -> None:
    """The body, between an op that has the call's inputs and one that has its name and its results."""
    start = f"{call.path}/sparsekit/call"
    arguments = [_passed(edge).node.path for edge in call.inputs]
    _add(start, "NoOp", [], [*controls, *arguments], result)
    _add_all(body, start, result)
    results = [_text(edge) for edge in body.results()]
    end = _add(call.path, "IdentityN" if results else "NoOp", results, [*controls, *_effects(body)], result)
    if results:
        end.attr["T"].list.type.extend(call.definition.attr["Tout"].list.type)


def _add(name: str, op: str, inputs: list[str], controls: list[str], result: Any) -> Any:
    node = result.node.add(name=name, op=op)
    node.input.extend(inputs)
    node.input.extend(f"^{control}" for control in dict.fromkeys(controls))
    return node


def _copy_attributes(node: _Defined, copied: Any) -> None:
    view = node.view
    for name, value in node.definition.attr.items():
        if name == "_class":
            value = type(value)()
            value.list.s.extend(_colocations(node))
        elif value.WhichOneof("value") == "placeholder" and isinstance(view, FunctionView):
            # The function's own attributes have their values at the call.
            call = view.call
            assert isinstance(call, _Defined)
            value = call.definition.attr[view.role].func.attr[value.placeholder]
        copied.attr[name].CopyFrom(value)


def _colocations(node: _Defined) -> Iterator[bytes]:
    """The ops that a node wants to be placed with, by their new names."""
    for text in node.definition.attr["_class"].list.s:
        name = text.decode().removeprefix("loc:@")
        other = node.view.node(name)
        if other is not None:
            yield f"loc:@{_passed(Edge(other, 0)).node.path}".encode()


def _controls(node: _Defined) -> Iterator[str]:
    """The nodes that a node waits for, by their new names."""
    for text in node.definition.input:
        if not text.startswith("^"):
            continue
        other = node.view.node(text[1:])
        if other is None:
            raise ModelError(f"waits for '{text[1:]}', which is not there", where=node.path)
        yield _passed(Edge(other, 0)).node.path


def _text(edge: Edge) -> str:
    """How a node of the inlined graph reads an edge of the view."""
    return tensor_name(edge).removesuffix(":0")


def _passed(edge: Edge) -> Edge:
    """The edge that a caller passes where a body has an argument."""
    while isinstance(edge.node, ArgumentNode):
        call, index = edge.node.outside()
        edge = call.inputs[index]
    return edge


def _effects(body: FunctionView) -> list[str]:
    """What of a body runs even if nobody reads its results."""
    names = set(body.definition.control_ret.values())
    if not _has_v1_control_flow(body):  # there, an op may be dead, and would kill who waits for it
        names |= {node.name for node in body.nodes() if _has_effects(node)}
    return [node.path for node in body.nodes() if node.name in names]


def _has_effects(node: Node) -> bool:
    definition = op_def_registry.get(node.op)
    return not isinstance(node, ArgumentNode) and (definition is None or definition.is_stateful)


def _has_v1_control_flow(view: GraphView) -> bool:
    return any(node.op in _CONTROL_FLOW for node in view.nodes())


def tensor_name(edge: Edge) -> str:
    """What a session calls an output of the view in the inlined graph."""
    edge = _passed(edge)
    return f"{edge.node.path}:{edge.index}"
