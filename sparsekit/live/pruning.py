"""The first front door: a live ``tf.Graph`` of a TF1-style training script."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

from sparsekit.config import PruneConfig
from sparsekit.errors import GraphError
from sparsekit.graph.edit import pristine_scope
from sparsekit.graph.forward import ForwardGraph, differentiated
from sparsekit.graph.node import LiveGraph
from sparsekit.live.choice import with_masking
from sparsekit.live.insertion import insert_masks
from sparsekit.live.mask import SCOPE
from sparsekit.live.projection import Projection
from sparsekit.planning import Planning, make_plan
from sparsekit.plugins import Registry
from sparsekit.record import Record
from sparsekit.result import PruneResult
from sparsekit.table import first_of
from sparsekit.target import TargetProfile
from sparsekit.writing import staged

_log = logging.getLogger("sparsekit")

_SHOWN = 3


def require_live(graph: Any) -> None:
    """Raises GraphError where ``graph`` is no ``tf.Graph`` that can be edited."""
    if not isinstance(graph, tf.Graph):
        raise GraphError(
            f"got {type(graph).__name__}",
            where="graph",
            expected="a tf.Graph, such as tf.compat.v1.get_default_graph()",
        )
    if isinstance(graph, FuncGraph):
        raise GraphError(
            f"is the body of the function '{graph.name}', which was compiled already",
            where="graph",
            expected="a tf.Graph that sessions run",
            hint="Save the model and prune the SavedModel, or build it in TF1 style inside tf.Graph().as_default().",
        )


def plan_live(
    graph: Any,
    config: PruneConfig,
    outputs: tuple[str, ...] | None,
    registry: Registry,
    target: TargetProfile | None,
) -> Planning:
    """Plan a live graph; nothing is edited.

    Raises:
        GraphError: it is no ``tf.Graph``.
    """
    require_live(graph)
    view = LiveGraph(graph) if outputs is None else ForwardGraph(graph, outputs)
    return with_masking(graph, make_plan(view, config, outputs, registry, target), config)


def prune_live(
    graph: tf.Graph, planning: Planning, registry: Registry, record: str | os.PathLike[str] | None
) -> PruneResult:
    """Insert the masks that were planned, and write the record.

    Raises:
        GraphError, ConfigError: it cannot be done; the graph is as it was and no record is written.
        SaveError: the record cannot be written; the graph is as it was.
    """
    check_editable(graph, planning, registry)
    text = Record.of(planning.plan).to_text().encode()
    with contextlib.nullcontext() if record is None else staged(record, text):
        masks = insert_masks(graph, planning.layers, registry)
        variables = (
            *(variable for mask in masks for variable in mask.variables),
            *(variable for mask in masks for variable in mask.more_variables),
        )
        with pristine_scope(graph, SCOPE):
            initializer = tf.group(*(variable.initializer for variable in variables), name="initializer")
    if not planning.layers:
        _log.warning("%s No layer was changed.", planning.plan.summary())
    # With this masking none of the layers need be able to.
    needs_train_op = planning.masking == "project" or any(mask.needs_train_op for mask in masks)
    projection = Projection(graph, masks) if needs_train_op else None
    return PruneResult(planning.plan, variables, initializer, projection=projection)


def check_editable(graph: tf.Graph, planning: Planning, registry: Registry) -> None:
    """Everything that stands against the edit, before the first one.

    Raises:
        GraphError, ConfigError: see `prune_live`.
    """
    if graph.finalized:
        raise GraphError(
            "is finalized and cannot be changed",
            where="graph",
            hint="Prune it before a session, Supervisor or MonitoredSession finalizes it.",
        )
    masked = [f"'{d.name}'" for d in planning.plan.decisions if d.reason == "already-masked"]
    if masked:
        raise GraphError(
            f"was pruned before: {first_of(masked, _SHOWN)} already have masks",
            where="graph",
            hint="Prune every graph once, right after it was built or imported.",
        )
    view = LiveGraph(graph)
    scopes = {node.name.partition(f"/{SCOPE}/")[0] for node in view.nodes() if f"/{SCOPE}/" in node.name}
    taken = [d.name for d in planning.plan.pruned if d.name in scopes]
    if taken:
        raise GraphError(
            f"already holds operations under '{taken[0]}/{SCOPE}/'",
            where=taken[0],
            hint="These names are kept for masks; rename them.",
        )
    with_gradients = differentiated(view) if planning.layers else set()
    late = [
        f"'{layer.decision.name}'"
        for layer in planning.layers
        if with_gradients.intersection(
            # The gradient of a loop or cond as a whole is that of the op that calls its body.
            node.path
            for site in layer.sites
            for node in (*site.source.path, *site.source.leaves)
        )
    ]
    if late:
        raise GraphError(
            f"gradients were already built for {first_of(late, _SHOWN)}; they would go past the masks",
            where="graph",
            hint="Call prune after the forward graph is built and before optimizer.minimize or tf.gradients.",
        )
    for decision in planning.plan.pruned:
        hint = "With calibration samples and a session it can choose what training starts from."
        registry.require_live(decision.criterion, decision.name, "inside a training graph", hint)
