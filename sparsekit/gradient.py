"""The gradient of a mask's multiply: it masks, and it keeps the books.

Registered with TensorFlow under a name of its own. This module imports nothing of sparsekit: it may be the first one
that TensorFlow's import brings in (see ``_on_tensorflow``).
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops import gen_control_flow_ops

GRADIENT = "SparsekitMask"
"""The name that the gradient is registered under, and that the multiplies carry."""

MASK, BATCH, DUE, NEXT = "mask", "batch", "due", "next"
"""Names beside the multiply: the mask, the count of trained batches, whether a mask is due, the count after it."""


@tf.RegisterGradient(GRADIENT)  # type: ignore[untyped-decorator]
def _masked_gradient(masked: tf.Operation, gradient: tf.Tensor) -> tuple[tf.Tensor, None]:
    """dy * mask for the weight, after the mask used and the batch count were stored.

    Everything is found by name beside the op, so that this works in a graph that was exported and imported.
    """
    graph, scope = masked.graph, masked.name.rpartition("/")[0]

    def tensor(name: str) -> tf.Tensor:
        return graph.get_tensor_by_name(f"{scope}/{name}:0")

    used, due, following = masked.inputs[1], tensor(DUE), tensor(NEXT)
    counted = _assign(tensor(BATCH), following)
    not_due, _ = gen_control_flow_ops.switch(due, due)
    _, used_when_due = gen_control_flow_ops.switch(used, due)
    with tf.control_dependencies([_assign(tensor(MASK), used_when_due)]):
        was_due = tf.identity(gen_control_flow_ops.switch(due, due)[1])
    stored, _ = gen_control_flow_ops.merge([not_due, was_due])
    with tf.control_dependencies([counted, stored]):
        return gradient * used, None


def _assign(variable: tf.Tensor, value: tf.Tensor) -> tf.Operation:
    if variable.dtype.base_dtype == tf.resource:
        return tf.raw_ops.AssignVariableOp(resource=variable, value=value)
    return tf.raw_ops.Assign(ref=variable, value=value).op
