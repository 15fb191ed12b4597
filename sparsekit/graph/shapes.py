"""The shapes of what flows through a graph, as far as they are known before it runs. Nothing is edited."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.python.framework import op_def_registry

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
        _stop_evaluation(graph_def)
        graph = tf.Graph()
        try:
            with graph.as_default():
                tf.import_graph_def(graph_def, name="")
        # An op that this TensorFlow does not know, attributes that it does not have, or shapes that clash.
        except (ValueError, TypeError, LookupError, RuntimeError, tf.errors.OpError):
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
        del copy.input[:]  # those that only say in which order ops run among them
        copy.input.extend(f"{edge.node.name}:{edge.index}" for edge in node.inputs)
        # Where the model was built may not be where it is looked at; and what it says of its shapes is only a memory.
        copy.device = ""
        for name in ("_class", "_output_shapes"):
            copy.attr.pop(name, None)


def _add_placeholder(graph_def: Any, name: str, dtype: int, shape: Shape) -> None:
    node = graph_def.node.add(name=name, op="Placeholder")
    node.attr["dtype"].type = dtype or types_pb2.DT_FLOAT
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())


# TensorFlow's inference runs ops whose inputs are constants, to know the shapes that they compute: whatever the model
# says, for however long, with whatever memory; and it looks back through ops on shapes without a bound. So nothing
# computed from constants alone may be read as it is, nor a shape that is the work of many ops.


_ON_SHAPES = {"Cast", "Concat", "ConcatV2", "Pack", "StridedSlice"}
"""The ops that inference sees through where a shape is not constant."""
_MOST_STEPS = 200
"""Of these ops, each counted as often as it is looked at."""


def _stop_evaluation(graph_def: Any) -> None:
    """Put a Merge of one input, which is never evaluated and has its input's shape, where inference should stop."""
    nodes = {node.name: node for node in graph_def.node}
    constant, steps = _constant_and_steps(nodes)
    merged: dict[str, str] = {}
    for node in list(nodes.values()):
        for index, text in enumerate(node.input):
            name, _, output = text.partition(":")
            if not (constant[name] and nodes[name].op != "Const") and steps[name] <= _MOST_STEPS:
                continue
            if text not in merged:
                merged[text] = _add_merge(graph_def, nodes[name], int(output or 0), len(merged), nodes)
            node.input[index] = merged[text]


def _constant_and_steps(nodes: dict[str, Any]) -> tuple[dict[str, bool], dict[str, int]]:
    """For every node: whether it depends on constants alone, and how many steps a look back from it takes."""
    constant = dict.fromkeys(nodes, False)  # what turns in a circle, through a loop, does not
    steps = dict.fromkeys(nodes, 0)
    waiting = {name: len(node.input) for name, node in nodes.items()}
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        for text in node.input:
            readers[text.partition(":")[0]].append(name)
    ready = [name for name, count in waiting.items() if not count]
    while ready:
        name = ready.pop()
        node = nodes[name]
        inputs = [text.partition(":")[0] for text in node.input]
        constant[name] = node.op not in _SOURCES and all(constant[other] for other in inputs)
        if node.op in _ON_SHAPES:
            steps[name] = min(1 + sum(1 + steps[other] for other in inputs if steps[other] <= _MOST_STEPS), 1 << 30)
        for reader in readers[name]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return constant, steps


_SOURCES = {"Placeholder", "VariableV2", "Variable", "VarHandleOp"}


def _add_merge(graph_def: Any, node: Any, output: int, number: int, taken: dict[str, Any]) -> str:
    name = f"stop_{number}"
    while name in taken:
        name += "_"
    merge = graph_def.node.add(name=name, op="Merge", input=[f"{node.name}:{output}"])
    merge.attr["N"].i = 1
    merge.attr["T"].type = _output_type(node, output) or types_pb2.DT_FLOAT
    return f"{name}:0"


def _output_type(node: Any, output: int) -> int:
    """The dtype of an output, 0 where it is not known."""
    definition = op_def_registry.get(node.op)
    types: list[int] = []
    for argument in definition.output_arg if definition else ():
        if argument.type_list_attr:
            types += node.attr[argument.type_list_attr].list.type
            continue
        dtype = argument.type or node.attr[argument.type_attr].type
        count = node.attr[argument.number_attr].i if argument.number_attr else 1
        types += [dtype] * min(count, output + 1)
    return types[output] if output < len(types) else 0


def _plain(shape: tf.TensorShape) -> Shape:
    return None if shape.rank is None else tuple(shape.as_list())
