"""What follows every update of a live graph: zeros are written again, and masks are chosen that are due."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from sparsekit.errors import GraphError
from sparsekit.live.mask import LayerMask
from sparsekit.live.refreshing import refreshed
from sparsekit.live.updates import TrainOp, Update

_log = logging.getLogger("sparsekit")


class Projection:
    """Makes of every train op one that also keeps the masks.

    Args:
        graph: the graph.
        masks: of all layers, those too that do not need it.
    """

    def __init__(self, graph: tf.Graph, masks: Sequence[LayerMask]) -> None:
        self._graph = graph
        self._masks = [mask for mask in masks if mask.needs_train_op]
        self._weights = {mask.owner for mask in masks}
        # By layer and by name: what earlier train ops move its weights with.
        self._slots: dict[str, dict[str, tf.Tensor]] = {}

    def __call__(self, train_op: Any) -> Any:
        """What is to be run instead of ``train_op``: the same, and then zeros where the masks of what it updates drop.

        Args:
            train_op: an operation or tensor that updates weights.

        Raises:
            GraphError: it is nothing of the graph, or the graph is finalized.
        """
        graph = self._graph
        update = train_op if isinstance(train_op, (tf.Operation, tf.Tensor)) else getattr(train_op, "op", None)
        if update is None or update.graph is not graph:
            found = f"got {type(train_op).__name__}" if update is None else "is of another graph"
            raise GraphError(found, where="train_op", expected="an operation or tensor of the graph that was pruned")
        if graph.finalized:
            raise GraphError(
                "is finalized and cannot be changed", where="graph", hint="Call project before a session finalizes it."
            )
        # Everything is asked before the first op is built.
        runs = TrainOp(update, self._weights)
        # What it does not update another train op may, in the same run and at the same time.
        masks = [mask for mask in self._masks if runs.writers_of(mask.owner)]
        updates = {mask.layer: runs.update_of(mask.owner) for mask in masks if mask.shadow is not None}
        written = [
            self._refreshed(mask, update, updates[mask.layer]) if mask.layer in updates else mask.project(update)
            for mask in masks
        ]
        _warn(updates)
        if self._masks and not masks:
            _log.warning(
                "project: '%s' updates none of the masked layers, so nothing follows it. If something else updates "
                "them in its stead (a queue runner), their masks are kept in the forward pass.",
                update.name,
            )
        with graph.as_default(), tf.control_dependencies([update, *written]):
            return tf.identity(train_op) if isinstance(train_op, tf.Tensor) else tf.no_op("projected")

    def _refreshed(self, mask: LayerMask, train_op: tf.Operation | tf.Tensor, update: Update) -> tf.Operation:
        # An earlier train op's choice knows nothing of the momentum of this one, which may move what was dropped.
        every_step = bool(update.doubt) or mask.layer in self._slots
        slots = self._slots.setdefault(mask.layer, {})
        slots |= {slot.name: slot for slot in update.slots}
        return refreshed(mask, train_op, tuple(slots.values()), every_step)


def _warn(updates: dict[str, Update]) -> None:
    for layer, update in updates.items():
        if update.doubt:
            _log.warning(
                "%s: %s. Zeros are written again after every step, but momentum kept there is not cleared where the "
                "mask drops, and moves weights that come back. Optimizers of tf.compat.v1.train are understood.",
                layer,
                update.doubt,
            )
