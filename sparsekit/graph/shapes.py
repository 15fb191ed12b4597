"""The shapes of what flows through a graph, as far as they are known before it runs. Nothing is edited."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.core.framework import graph_pb2, types_pb2

from sparsekit.graph.node import ArgumentNode, Edge, GraphView, LiveNode, Node, ProtoNode
from sparsekit.graph.trace import Read, Tracer

Shape: TypeAlias = tuple[int | None, ...] | None
"""Lengths, None for one that is not known; None where not even the rank is."""

# Larger constants are weights, whose values no shape depends on.
_LARGEST_SHAPE = 1 << 10


class Shapes:
    """Shapes by TensorFlow's own inference, in the graph and in the functions that it calls, by call site."""

    def __init__(self) -> None:
        self._known: dict[GraphView, dict[str, list[Shape]]] = {}
        self._tracer = Tracer()

    def of(self, edge: Edge) -> Shape:
        """The shape of an output."""
        node = edge.node
        if isinstance(node, LiveNode):
            return _plain(node.operation.outputs[edge.index].shape)
        if node.view not in self._known:
            self._known[node.view] = self._inferred(node.view)
        shapes = self._known[node.view].get(node.name, [])
        return shapes[edge.index] if edge.index < len(shapes) else None

    def _inferred(self, view: GraphView) -> dict[str, list[Shape]]:
        graph_def = graph_pb2.GraphDef()
        for node in view.nodes():
            self._add(node, graph_def)
        _add_functions(view, graph_def)
        graph = tf.Graph()
        try:
            with graph.as_default():
                tf.import_graph_def(graph_def, name="")
        except (ValueError, tf.errors.OpError):  # an op that this TensorFlow does not know, or shapes that clash
            return {}
        return {op.name: [_plain(output.shape) for output in op.outputs] for op in graph.get_operations()}

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
        copy = graph_def.node.add()
        copy.CopyFrom(node.definition)
        controls = [text for text in copy.input if text.startswith("^")]
        del copy.input[:]
        copy.input.extend(f"{edge.node.name}:{edge.index}" for edge in node.inputs)
        copy.input.extend(text for text in controls)
        # Where the model was built may not be where it is looked at; and what it says of its shapes is only a memory.
        copy.device = ""
        for name in ("_class", "_output_shapes"):
            copy.attr.pop(name, None)


def _add_placeholder(graph_def: Any, name: str, dtype: int, shape: Shape) -> None:
    node = graph_def.node.add(name=name, op="Placeholder")
    node.attr["dtype"].type = dtype or types_pb2.DT_FLOAT
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())


def _add_functions(view: GraphView, graph_def: Any) -> None:
    """The functions that the graph's nodes name, and those that these name."""
    pending = list(graph_def.node)
    taken: set[str] = set()
    while pending:
        for name in _functions(pending.pop()):
            if name in view.library and name not in taken:
                taken.add(name)
                function = graph_def.library.function.add()
                function.CopyFrom(view.library[name])
                pending.extend(function.node_def)


def _functions(node: Any) -> Iterator[str]:
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        for function in attribute.list.func:
            yield function.name


def _plain(shape: tf.TensorShape) -> Shape:
    return None if shape.rank is None else tuple(shape.as_list())
