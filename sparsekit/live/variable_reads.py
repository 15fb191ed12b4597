"""Whoever reads a variable of a live graph, now or later, sends a masked gradient back to it."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.framework import ops
from tensorflow.python.ops import resource_variable_ops

from sparsekit.live.gradient import MARKS, READING, owner_of
from sparsekit.live.mask import SCOPE


def mask_gradients(variable: tf.Operation, objects: Sequence[Any], layer: str) -> None:
    """Let every gradient for a variable be masked, that of a regularizer, say, as that of the layer.

    Args:
        variable: its op.
        objects: what stands for it in Python, see `python_variables`.
        layer: whose mask.
    """
    mark = functools.partial(_mark, variable=variable, scope=f"{layer}/{SCOPE}")
    for read in reads(variable):
        mark(read)
    for found in objects:
        is_resource = resource_variable_ops.is_resource_variable(found)
        name = "_read_variable_op" if is_resource else "read_value"
        # An attribute of the object: reads that are built later are ops of their own.
        setattr(found, name, _marking(getattr(found, name), mark))
        if is_resource:
            # Of the value: the gradient of an op that reads parts of the variable itself cannot be masked.
            found.sparse_read = functools.partial(_of_value, tf.gather, found)
            found.gather_nd = functools.partial(_of_value, tf.gather_nd, found)


def reads(variable: tf.Operation) -> list[tf.Operation]:
    """The ops that read it, in the main graph, as far as a gradient flows back through them."""
    kind = "ReadVariableOp" if variable.type == "VarHandleOp" else "Identity"
    return [reader for reader in variable.outputs[0].consumers() if reader.type == kind]


def other_uses(variable: tf.Operation) -> list[tf.Operation]:
    """The ops that use it past its reads, and may send a gradient back: those that read parts of it, functions."""
    readers = reads(variable)
    return [user for user in variable.outputs[0].consumers() if user not in readers and _is_differentiable(user)]


def has_own_gradient(read: tf.Operation) -> bool:
    """Whether somebody else overrode the gradient of the op."""
    return MARKS[0] in read.node_def.attr


def python_variables(graph: tf.Graph) -> dict[tf.Operation, list[Any]]:
    """The variables in the graph's collections, by their ops: several objects may stand for one."""
    objects: dict[tf.Operation, list[Any]] = defaultdict(list)
    found = {id(item): item for key in graph.get_all_collection_keys() for item in graph.get_collection_ref(key)}
    for item in found.values():
        if isinstance(item, tf.Variable):
            is_resource = resource_variable_ops.is_resource_variable(item)
            objects[item.handle.op if is_resource else item.op].append(item)
    return objects


def _is_differentiable(op: tf.Operation) -> bool:
    try:
        return bool(op.outputs) and ops.get_gradient_function(op) is not None
    except LookupError:  # nobody knows
        return True


def _of_value(gather: Callable[..., tf.Tensor], variable: Any, indices: Any, name: str | None = None) -> tf.Tensor:
    return gather(variable.read_value(), indices, name=name)


def _marking(read: Callable[..., tf.Tensor], mark: Callable[[tf.Operation], None]) -> Callable[..., tf.Tensor]:
    @functools.wraps(read)
    def marked(*arguments: Any, **named: Any) -> tf.Tensor:
        value = read(*arguments, **named)
        mark(value.op)
        return value

    return marked


def _mark(read: tf.Operation, variable: tf.Operation, scope: str) -> None:
    # Inside a function it reads what stands for the variable there.
    if read.inputs and owner_of(read) is variable and not has_own_gradient(read):
        for attribute, value in zip(MARKS, (READING, f"{variable.name} {scope}"), strict=True):
            read._set_attr(attribute, attr_value_pb2.AttrValue(s=value.encode()))
