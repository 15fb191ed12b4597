"""Zeros that are written again after every update of a live graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from sparsekit.errors import GraphError
from sparsekit.masking import LayerMask


def projected(graph: tf.Graph, masks: Sequence[LayerMask], train_op: Any) -> Any:
    """What is to be run instead of ``train_op``: the same, and then zeros where the masks drop.

    Args:
        graph: the graph.
        masks: those with masking "project".
        train_op: an operation or tensor that updates weights.

    Raises:
        GraphError: it is nothing of the graph, or the graph is finalized.
    """
    update = train_op if isinstance(train_op, (tf.Operation, tf.Tensor)) else getattr(train_op, "op", None)
    if update is None or update.graph is not graph:
        found = f"got {type(train_op).__name__}" if update is None else "is of another graph"
        raise GraphError(found, where="train_op", expected="an operation or tensor of the graph that was pruned")
    if graph.finalized:
        raise GraphError(
            "is finalized and cannot be changed", where="graph", hint="Call project before a session finalizes it."
        )
    written = [mask.project(update) for mask in masks]
    with graph.as_default(), tf.control_dependencies([update, *written]):
        return tf.identity(train_op) if isinstance(train_op, tf.Tensor) else tf.no_op("projected")
