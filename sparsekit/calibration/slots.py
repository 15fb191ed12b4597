"""Places for biases in a graph that is run for calibration: behind an op, a sum that is nothing until it is fed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from sparsekit.artefact.added_bias import added_name
from sparsekit.graph.order import input_node
from sparsekit.graph.sums import BROADCAST_SUM

_ZERO, _FED = "Const", "PlaceholderWithDefault"


def fed_name(op: str) -> str:
    """The tensor that is fed with what is to be added behind an op of this name; any shape that broadcasts."""
    return f"{added_name(op)}/fed:0"


def sum_name(op: str) -> str:
    """The op's output with what was added."""
    return f"{added_name(op)}:0"


def with_slots(graph_def: Any, names: Collection[str]) -> set[str]:
    """Add a slot behind ops of a GraphDef, in place; all who read the op's first output read the sum.

    Args:
        graph_def: the graph, without functions that read these ops.
        names: the ops; those that have no output whose dtype is known are left out.

    Returns:
        The ops that have a slot.
    """
    taken = {node.name for node in graph_def.node}
    wanted = [node for node in graph_def.node if node.name in names and added_name(node.name) not in taken]
    slots = {node.name: dtype for node in wanted if (dtype := _dtype(node))}
    for node in graph_def.node:
        for index, text in enumerate(node.input):
            name = input_node(text)
            if name in slots and text in (name, f"{name}:0"):
                node.input[index] = added_name(name)
    for name, dtype in slots.items():
        total = added_name(name)
        zero = graph_def.node.add(name=f"{total}/zero", op=_ZERO)
        zero.attr["dtype"].type = dtype
        zero.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0, dtype, ()))
        fed = graph_def.node.add(name=f"{total}/fed", op=_FED, input=[zero.name])
        fed.attr["dtype"].type = dtype
        fed.attr["shape"].shape.unknown_rank = True
        summed = graph_def.node.add(name=total, op=BROADCAST_SUM, input=[name, fed.name])
        summed.attr["T"].type = dtype
    return set(slots)


def _dtype(node: Any) -> int:
    """Of the node's first output, as a number; 0 where it is not known."""
    definition = op_def_registry.get(node.op)
    if definition is None or not definition.output_arg:
        return 0
    output = definition.output_arg[0]
    if output.number_attr or output.type_list_attr:
        return 0
    return int(node.attr[output.type_attr].type if output.type_attr else output.type)
