"""The gradients of a masked weight: they mask, and they keep the books.

Registered with TensorFlow under names of their own. This module imports nothing of sparsekit: it may be the first one
that TensorFlow's import brings in (see ``_on_tensorflow``).
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import gen_control_flow_ops

GRADIENT = "SparsekitMask"
"""The name that the gradient of a mask's multiply is registered under, and that the multiplies carry."""

IN_PLACE, PROJECTED = "SparsekitInPlace", "SparsekitProject"
"""Those of an op which hands a weight on whose zeros lie in its variable, kept there by masked gradients, or written
again after every update."""

UNTIL_PROJECTED = "SparsekitUntilProjected"
"""The same as the second for a mask that is chosen again: as long as the variable holds the dropped values, no gradient
moves them."""

READING = "SparsekitRead"
"""That of an op which reads a variable for which masked gradients keep the zeros."""

READS = "_sparsekit_read"
"""Attribute of an op that reads such a variable: the names of the variable and of the scope of its mask."""

MARKS = ("_gradient_op_type", READS)
"""The attributes that an op of the user's own gets in a masked graph."""

MASK, BATCH, ZEROS, SHADOW = "mask", "batch", "zeros", "shadow"
"""Names beside the masked weight, of variables: the mask; the count of trained batches; the count after which the
variable held zeros, -1 before it did; the values that were dropped since, for masks that are chosen again. Where masked
gradients keep zeros that were written once, the second count is 0; while that is to be seen it is below -1, and tells
the weights apart."""

USED, DUE, NEXT, DIRTY, BOOKS = "used", "due", "next", "dirty", "books"
"""And of tensors: the mask of this batch, whether a mask is due, the count after the batch, whether the variable holds
anything but zeros where the mask drops; and what must have run before a gradient is used."""


@tf.RegisterGradient(GRADIENT)  # type: ignore[untyped-decorator]
def _masked_gradient(masked: tf.Operation, gradient: tf.Tensor) -> tuple[tf.Tensor, None]:
    """dy * mask for the weight, after the mask used and the batch count were stored."""
    with tf.control_dependencies([_books(masked)]):
        return gradient * masked.inputs[1], None


@tf.RegisterGradient(IN_PLACE)  # type: ignore[untyped-decorator]
@tf.RegisterGradient(PROJECTED)  # type: ignore[untyped-decorator]
def _passed_gradient(handed_on: tf.Operation, _: tf.Tensor, gradient: tf.Tensor) -> tuple[tf.Tensor, None]:
    """dy for the weight, after the books were kept: the read masks it, or zeros are written again after the update."""
    with tf.control_dependencies([_books(handed_on)]):
        return tf.identity(gradient), None


@tf.RegisterGradient(UNTIL_PROJECTED)  # type: ignore[untyped-decorator]
def _gradient_until_projected(handed_on: tf.Operation, _: tf.Tensor, gradient: tf.Tensor) -> tuple[tf.Tensor, None]:
    """dy while zeros lie in the variable, dy * mask while they do not; after the books were kept."""
    graph, scope = handed_on.graph, handed_on.name.rpartition("/")[0]
    used, dirty = (graph.get_tensor_by_name(f"{scope}/{name}:0") for name in (USED, DIRTY))
    with tf.control_dependencies([_books(handed_on)]):
        clean, more = gen_control_flow_ops.switch(gradient, dirty)
        _, used_then = gen_control_flow_ops.switch(used, dirty)
        return gen_control_flow_ops.merge([clean, more * used_then])[0], None


@tf.RegisterGradient(READING)  # type: ignore[untyped-decorator]
def _read_gradient(read: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
    """dy * mask for the variable, whoever reads it: regularizers would move dropped weights, too."""
    return tf.convert_to_tensor(gradient) * read.graph.get_tensor_by_name(f"{_scope_of_mask(read)}/{USED}:0")


def _scope_of_mask(read: tf.Operation) -> str:
    """By name relative to the variable, so that this works in a graph that was imported under a scope."""
    variable, scope = read.get_attr(READS).decode().split(" ")
    return f"{owner_of(read).name.removesuffix(variable)}{scope}"


def owner_of(read: tf.Operation) -> tf.Operation:
    """The variable's op, of an op that reads it, be that in a cond or in a loop of control flow v1."""
    found = read.inputs[0].op
    while found.type in ("Switch", "Enter", "RefSwitch", "RefEnter"):
        found = found.inputs[0].op
    return found


def _books(masked: tf.Operation) -> tf.Operation:
    """What must have run before a gradient through ``masked`` is used.

    It is the same op for every gradient where that can be: were zeros written twice in a batch, an optimizer could
    have updated the weight between. Everything is found by name beside the op, so that this works in a graph that was
    exported and imported.
    """
    graph, scope = masked.graph, masked.name.rpartition("/")[0]
    # In the branch of a cond, or in a loop, what is built belongs to it and runs with it.
    if ops.get_default_graph() is not graph or graph._get_control_flow_context() is not None:
        return _kept_books(masked, scope)
    try:
        return graph.get_operation_by_name(f"{scope}/{BOOKS}")
    except KeyError:
        with (
            graph.control_dependencies(None),
            ops.colocate_with(masked, ignore_existing=True),
            graph.device(None),
            tf.name_scope(f"{scope}/"),
        ):
            return _kept_books(masked, scope)


def _kept_books(masked: tf.Operation, scope: str) -> tf.Operation:
    graph = masked.graph

    def tensor(name: str) -> tf.Tensor:
        return graph.get_tensor_by_name(f"{scope}/{name}:0")

    def write_zeros(mask: tf.Tensor) -> tf.Operation:
        """Until an update has left them: momentum of a checkpoint moves weights that have no gradient, too.

        That there was one is told by the weights that stay: not every batch updates, where gradients are summed.
        """
        variable = variable_of(masked.inputs[0])
        with tf.control_dependencies([mask]):  # late: another worker may have trained it since
            weight, before = value_of(variable, mask.dtype.base_dtype), value_of(tensor(ZEROS), tf.int64)
        kept, zero = without_dropped(weight, mask), tf.zeros([], mask.dtype.base_dtype)
        moved = tf.reduce_any(tf.logical_and(tf.not_equal(weight, zero), tf.equal(mask, zero)))
        written = where_due(moved, kept, lambda kept: assign(variable, kept))
        now = _to_be_seen(kept)
        # What this batch has seen already, by the books of another gradient, stays so.
        updated = tf.logical_or(tf.equal(before, 0), tf.logical_and(before < -1, tf.not_equal(before, now)))
        stayed = tf.logical_and(updated, tf.logical_not(moved))
        with tf.control_dependencies([written]):
            return assign(tensor(ZEROS), tf.where(stayed, tf.zeros_like(now), now))

    used = tensor(USED)
    kept = [assign(tensor(BATCH), tensor(NEXT))]
    kept.append(where_due(tensor(DUE), used, lambda mask: assign(tensor(MASK), mask)))
    if masked.get_attr("_gradient_op_type") == IN_PLACE.encode():
        kept.append(where_due(tensor(DIRTY), used, write_zeros))
    with tf.control_dependencies(kept):
        return tf.no_op(name=BOOKS)


def _to_be_seen(weight: tf.Tensor) -> tf.Tensor:
    """Below -1, and another number as soon as an update moves the weight."""
    return -2 - tf.bitcast(tf.reduce_sum(tf.abs(tf.cast(weight, tf.float64))), tf.int64)


def where_due(due: tf.Tensor, value: tf.Tensor, write: Callable[[tf.Tensor], tf.Operation]) -> tf.Tensor:
    """To be waited for: where ``due``, ``write`` has run, on the value, which exists only there."""
    no, yes = gen_control_flow_ops.switch(due, due)
    _, value_then = gen_control_flow_ops.switch(value, due)
    with tf.control_dependencies([write(value_then)]):
        yes = tf.identity(yes)
    done, _ = gen_control_flow_ops.merge([no, yes])
    return done


def variable_of(weight: tf.Tensor) -> tf.Tensor:
    """The variable (a reference or a resource) behind a weight as it is read."""
    while weight.op.type in ("Identity", "ReadVariableOp"):
        weight = weight.op.inputs[0]
    return weight


def without_dropped(weight: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The weight with +0.0 where the mask drops."""
    zero = tf.zeros([], mask.dtype.base_dtype)
    return tf.where(tf.not_equal(mask, zero), weight, zero)


def value_of(variable: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """What a variable (a reference or a resource) holds, read under the control dependencies around."""
    if variable.dtype.base_dtype == tf.resource:
        return tf.raw_ops.ReadVariableOp(resource=variable, dtype=dtype)
    return tf.identity(variable)


def assign(variable: tf.Tensor, value: tf.Tensor) -> tf.Operation:
    """Write a variable, a reference or a resource."""
    if variable.dtype.base_dtype == tf.resource:
        return tf.raw_ops.AssignVariableOp(resource=variable, value=value)
    return tf.raw_ops.Assign(ref=variable, value=value).op
