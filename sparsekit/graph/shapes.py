"""The shapes of what flows through a graph, as far as they are known before it runs. Nothing is edited."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.python.framework import op_def_registry

from sparsekit.graph.node import ArgumentNode, Edge, FunctionView, GraphView, LiveNode, Node, ProtoGraph, ProtoNode
from sparsekit.graph.order import in_order
from sparsekit.graph.trace import Read, Tracer

Shape: TypeAlias = tuple[int | None, ...] | None
"""Lengths, None for one that is not known; None where not even the rank is."""

# Larger constants are weights, whose values no shape depends on.
_LARGEST_SHAPE = 1 << 10


class Shapes:
    """Shapes by TensorFlow's own inference, in the graph and in the functions that it calls, by call site.

    An open first axis of a graph's input is taken as one example.
    """

    def __init__(self) -> None:
        self._known: dict[GraphView, dict[str, list[Shape]]] = {}
        self._libraries: dict[GraphView, _Functions] = {}
        self._live: dict[Any, ProtoGraph] = {}
        self._tracer = Tracer()

    def of(self, edge: Edge) -> Shape:
        """The shape of an output."""
        node = edge.node
        if isinstance(node, LiveNode):
            found = self._at_rest(node).node(node.name)
            return self.of(Edge(found, edge.index)) if found is not None else None
        if node.view not in self._known:
            self._known[node.view] = self._inferred(node.view)
        shapes = self._known[node.view].get(node.name, [])
        return shapes[edge.index] if edge.index < len(shapes) else None

    def _at_rest(self, node: LiveNode) -> ProtoGraph:
        """A live graph as it is now: of its own shapes nobody can tell which open lengths are the batch."""
        graph = node.operation.graph
        if graph not in self._live:
            self._live[graph] = ProtoGraph(graph.as_graph_def())
        return self._live[graph]

    def _inferred(self, view: GraphView) -> dict[str, list[Shape]]:
        graph = tf.Graph()
        try:
            graph_def = self._reduced(view)
            with graph.as_default():
                tf.import_graph_def(graph_def, name="")
        # An op that this TensorFlow does not know, attributes that it does not have, or shapes that clash.
        except (ValueError, TypeError, LookupError, RuntimeError, tf.errors.OpError):
            return {}
        return {op.name: [_plain(output.shape) for output in op.outputs] for op in graph.get_operations()}

    def _reduced(self, view: GraphView) -> Any:
        """A GraphDef with the shapes of a view, and nothing in it that takes much to infer them."""
        graph_def = graph_pb2.GraphDef()
        for node in view.nodes():
            self._add(node, graph_def)
        _stop_evaluation(graph_def.node)
        self._functions(view).add(graph_def)
        return graph_def

    def _functions(self, view: GraphView) -> _Functions:
        """Those of the model that the view belongs to."""
        while isinstance(view, FunctionView):
            view = view.call.view
        if view not in self._libraries:
            self._libraries[view] = _Functions(view.library)
        return self._libraries[view]

    def _add(self, node: Node, graph_def: Any) -> None:
        if isinstance(node, ArgumentNode):
            view: Any = node.view
            call, index = node.outside()
            _add_placeholder(
                graph_def, node.name, view.definition.signature.input_arg[node.index].type, self.of(call.inputs[index])
            )
            return
        assert isinstance(node, ProtoNode)
        if node.op == "Const":
            tensor = node.definition.attr["value"].tensor
            shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
            if math.prod(shape) > _LARGEST_SHAPE:
                _add_placeholder(graph_def, node.name, tensor.dtype, shape)
                return
        read = self._tracer.read(Edge(node, 0)) if node.op == "ReadVariableOp" else None
        if isinstance(read, Read) and read.shape is not None:  # inference does not see it through a call
            _add_placeholder(graph_def, node.name, node.definition.attr["dtype"].type, read.shape)
            return
        if node.op == "Placeholder" and not isinstance(node.view, FunctionView):
            _add_placeholder(graph_def, node.name, node.definition.attr["dtype"].type, _one_example(node.attr("shape")))
            return
        copy = graph_def.node.add()
        copy.CopyFrom(node.definition)
        del copy.input[:]  # those that only say in which order ops run among them
        copy.input.extend(f"{edge.node.name}:{edge.index}" for edge in node.inputs)
        # Where the model was built may not be where it is looked at; and what it says of its shapes is only a memory.
        copy.device = ""
        for name in ("_class", "_output_shapes"):
            copy.attr.pop(name, None)


def _one_example(shape: Any) -> Shape:
    """The shape of an input where its batch, an open first axis, is one example."""
    if shape is None:
        return None
    lengths = [None if length < 0 else length for length in shape]
    return tuple(1 if axis == 0 and length is None else length for axis, length in enumerate(lengths))


def _add_placeholder(graph_def: Any, name: str, dtype: int, shape: Shape) -> None:
    node = graph_def.node.add(name=name, op="Placeholder")
    node.attr["dtype"].type = dtype or types_pb2.DT_FLOAT
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())


# TensorFlow's inference runs ops whose inputs are constants, to know the shapes that they compute: whatever the model
# says, for however long, with whatever memory; and it looks back through ops on shapes, and into functions, without a
# bound. So what is computed from constants alone must not be read as it is, except by ops that make it no larger; nor a
# shape that is the work of many ops; and functions that call each other without end are left out.

_SMALL_WORK = {"Cast", "Concat", "ConcatV2", "Identity", "Pack", "Prod", "StridedSlice"}
"""Ops whose result is no larger than their inputs; inference looks back through most of them for what is known."""
_MOST_STEPS = 200
"""Of these ops, each counted as often as it is looked at."""
_MOST_INNER_NODES = 1_000_000
"""That inference looks at in functions, again for every call."""


class _Functions:
    """The functions of a library, made safe; each once."""

    def __init__(self, library: Mapping[str, Any]) -> None:
        self._library = library
        self._safe: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._left = _MOST_INNER_NODES

    def add(self, graph_def: Any) -> None:
        """Add those that the nodes of a graph call, and those that these call; none where that is too much."""
        called = [name for node in graph_def.node for name in self._called(node)]
        self._left -= sum(self._size(name) for name in called)
        if self._left < 0:
            return
        pending, taken = list(called), set(called)
        while pending:
            name = pending.pop()
            graph_def.library.function.add().CopyFrom(self._made_safe(name))
            inner = {other for node in self._library[name].node_def for other in self._called(node)} - taken
            pending += inner
            taken |= inner

    def _called(self, node: Any) -> Iterator[str]:
        names = [node.op, *(attribute.func.name for attribute in node.attr.values() if attribute.HasField("func"))]
        names += [function.name for attribute in node.attr.values() for function in attribute.list.func]
        return (name for name in names if name in self._library)

    def _size(self, name: str) -> int:
        """How many nodes it has, those of the functions that it calls included; too many where it calls itself."""
        waiting = [name]
        open_: set[str] = set()
        while waiting:
            current = waiting[-1]
            if current in self._sizes:
                waiting.pop()
                continue
            called = [other for node in self._library[current].node_def for other in self._called(node)]
            unknown = [other for other in called if other not in self._sizes]
            if unknown and current not in open_:
                open_.add(current)
                waiting += dict.fromkeys(unknown)
                continue
            inner = sum(self._sizes.get(other, _MOST_INNER_NODES + 1) for other in called)
            self._sizes[current] = min(1 + len(self._library[current].node_def) + inner, _MOST_INNER_NODES + 1)
        return self._sizes[name]

    def _made_safe(self, name: str) -> Any:
        if name not in self._safe:
            function = self._safe[name] = type(self._library[name])()
            function.CopyFrom(self._library[name])
            for node in function.node_def:
                data = [text for text in node.input if not text.startswith("^")]
                del node.input[:]
                node.input.extend(data)
            _stop_evaluation(function.node_def, "output:0")
        return self._safe[name]


def _stop_evaluation(nodes: Any, output: str = "0") -> None:
    """Put a Merge of one input, which is never evaluated and has its input's shape, where inference should stop.

    Args:
        nodes: the NodeDefs of a graph or of a function; changed in place.
        output: how the first output of a node is named there.
    """
    by_name = {node.name: node for node in nodes}
    evaluated, stopped = _evaluated_and_stopped(by_name)
    merged: dict[str, str] = {}
    for node in list(by_name.values()):
        for index, text in enumerate(node.input):
            name, _, place = text.partition(":")
            if name not in stopped or name in evaluated:
                continue
            if text not in merged:
                merge = nodes.add(name=f"{name}/stop_{len(merged)}", op="Merge", input=[text])
                merge.attr["N"].i = 1
                merge.attr["T"].type = _output_type(by_name[name], place) or types_pb2.DT_FLOAT
                merged[text] = f"{merge.name}:{output}"
            node.input[index] = merged[text]


def _evaluated_and_stopped(nodes: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The nodes that inference may evaluate, and those that it would or that it looks back through for too long."""
    constant: set[str] = set()
    evaluated: set[str] = set()
    steps = dict.fromkeys(nodes, 0)
    for name in in_order(nodes):
        node = nodes[name]
        inputs = [text.partition(":")[0] for text in node.input]
        if node.op not in _SOURCES and all(other in constant for other in inputs):
            constant.add(name)
        if node.op in _SMALL_WORK:
            steps[name] = 1 + sum(1 + steps.get(other, 0) for other in inputs)
            if steps[name] > _MOST_STEPS:
                steps[name] = 0
                constant.add(name)
            elif all(other in evaluated for other in inputs):
                evaluated.add(name)
        elif node.op == "Const":
            evaluated.add(name)
    return evaluated, constant


_SOURCES = {"Placeholder", "VariableV2", "Variable", "VarHandleOp"}


def _output_type(node: Any, place: str) -> int:
    """The dtype of an output, 0 where it is not known.

    Args:
        node: the NodeDef.
        place: "1" in a graph, "output:1" in a function, "" for the first.
    """
    definition = op_def_registry.get(node.op)
    # What an attribute is by default, exporters leave out.
    attributes = {a.name: a.default_value for a in definition.attr} if definition else {}
    attributes |= dict(node.attr.items())
    name, _, number = place.rpartition(":")
    index = int(number or 0)
    types: list[int] = []
    for argument in definition.output_arg if definition else ():
        if name and argument.name != name:
            continue
        if argument.type_list_attr:
            types += attributes[argument.type_list_attr].list.type
            continue
        dtype = argument.type or attributes[argument.type_attr].type
        count = attributes[argument.number_attr].i if argument.number_attr else 1
        types += [dtype] * max(0, min(count, index + 1))
    return types[index] if index < len(types) else 0


def _plain(shape: tf.TensorShape) -> Shape:
    return None if shape.rank is None else tuple(shape.as_list())
