"""The edits of a live graph: rewiring an input, and building ops that nothing around them can touch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.framework import ops

from sparsekit.graph.node import LiveNode, Node


def rewire(consumer: Node, index: int, tensor: tf.Tensor) -> None:
    """Let input ``index`` of ``consumer`` read ``tensor``.

    TensorFlow has no public call for this; every release since 1.13 has this one. A session that already ran the
    consumer goes on with the old input.
    """
    assert isinstance(consumer, LiveNode)
    consumer.operation._update_input(index, tensor)


@contextlib.contextmanager
def pristine_scope(graph: tf.Graph, scope: str, beside: tf.Operation | None = None) -> Iterator[None]:
    """Build ops of ``graph`` under the absolute name ``scope``, colocated with ``beside`` if there is one.

    The caller's name scope, control dependencies, control-flow context, devices and colocations do not reach them.
    """
    with (
        graph.as_default(),
        graph.control_dependencies(None),
        ops.colocate_with(beside, ignore_existing=True),
        # Variables are built in an init_scope, which goes back to the caller's devices where there are none here.
        graph.device(None),
        tf.name_scope(f"{scope}/"),
    ):
        yield
