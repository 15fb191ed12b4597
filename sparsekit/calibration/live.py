"""Calibration of a live graph: what it chooses on a session's values is the start of retraining."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import attrs
import tensorflow as tf

from sparsekit.artefact.model import Array
from sparsekit.calibration.layerwise import prune_calibrated
from sparsekit.calibration.live_model import LiveModel
from sparsekit.calibration.start import CalibratedStart, chosen, require_session
from sparsekit.config import PruneConfig
from sparsekit.graph.node import FunctionView, LiveGraph
from sparsekit.live import check_editable, prune_live
from sparsekit.planning import LayerDecision, PlannedLayer, Planning
from sparsekit.plugins import Registry
from sparsekit.result import LayerAccount, PruneResult

_REFRESHES = "magnitude"
"""Chooses again inside the graph, where what chose the start cannot."""


def prune_live_calibrated(
    graph: tf.Graph,
    planning: Planning,
    samples: Any,
    session: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None,
    record: str | os.PathLike[str] | None,
) -> PruneResult:
    """Choose masks, weights and biases on samples, then insert the masks that were planned.

    Args:
        graph: the graph.
        planning: made for it.
        samples: inputs of the graph, see `Samples`.
        session: a session of the graph with the dense weights. It is read, nothing else.
        config: effort, repairs, whose outputs are matched.
        registry: the plugins.
        outputs: the operations whose results are used; None: what the layers need is run.
        record: where to write the record.

    Returns:
        The result of `prune_live`, with the start and an account of every layer.

    Raises:
        GraphError, ConfigError, SaveError: as `prune_live`; also a session that is closed, is of another graph, or in
            which variables have no values.
        ModelError: weights that are not finite, or TensorFlow cannot run the graph on the samples.
        CalibrationError: the samples do not fit the graph.
    """
    require_session(session, graph)
    inside = _inside(planning, registry)
    check_editable(graph, inside, registry)
    values, masks, accounts = _calibrated(planning, samples, session, config, registry, outputs)
    result = prune_live(graph, inside, registry, record)
    state = zip(masks, result.variables[::2], result.variables[1::2], strict=True)
    start = CalibratedStart(graph, values, tuple(state), session)
    return attrs.evolve(result, plan=planning.plan, accounts=accounts, calibrated=start)


def _calibrated(
    planning: Planning,
    samples: Any,
    session: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None,
) -> tuple[dict[str, Array], list[Array], tuple[LayerAccount, ...]]:
    """Values of variables, the mask of every layer, and an account of every layer."""
    if not planning.layers:
        return {}, [], ()
    view = planning.layers[0].source.tensor.node.root
    assert isinstance(view, LiveGraph)
    model = LiveModel(view, session, outputs or _callers(planning.layers))
    changed, accounts = prune_calibrated(model, planning.layers, samples, config, registry, outputs)
    assert isinstance(changed, LiveModel)
    return (*chosen(changed, planning.layers), accounts)


def _inside(planning: Planning, registry: Registry) -> Planning:
    """The same with criteria that can choose inside the graph."""

    def with_criterion(decision: LayerDecision) -> LayerDecision:
        live = not decision.criterion or registry.criterion(decision.criterion).live
        return decision if live else attrs.evolve(decision, criterion=_REFRESHES)

    return attrs.evolve(
        planning,
        plan=attrs.evolve(planning.plan, decisions=tuple(map(with_criterion, planning.plan.decisions))),
        layers=tuple(attrs.evolve(layer, decision=with_criterion(layer.decision)) for layer in planning.layers),
    )


def _callers(layers: Sequence[PlannedLayer]) -> tuple[str, ...]:
    """The ops of the main graph that are layers, or call functions with layers."""
    names = []
    for layer in layers:
        for site in layer.sites:
            node = site.node
            while isinstance(node.view, FunctionView):
                node = node.view.call
            names.append(node.name)
    return tuple(dict.fromkeys(names))
