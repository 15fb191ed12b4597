"""Calibration of a live graph: what it chooses on a session's values is the start of retraining."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import tensorflow as tf

from sparsekit.artefact.model import Array
from sparsekit.calibration.layerwise import prune_calibrated
from sparsekit.calibration.live_model import LiveModel
from sparsekit.calibration.start import CalibratedStart, checksum, chosen_of, require_session
from sparsekit.config import PruneConfig
from sparsekit.graph.node import FunctionView, LiveGraph
from sparsekit.live.pruning import check_editable, prune_live
from sparsekit.planning import LayerDecision, PlannedLayer, Planning
from sparsekit.plugins import Registry
from sparsekit.result import LayerAccount, NormalizationAccount, PruneResult

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
    check_editable(graph, _inside(planning, registry), registry)
    chosen = (
        _calibrated(planning, samples, session, config, registry, outputs) if planning.layers else _Chosen(planning)
    )
    result = prune_live(graph, _inside(chosen.planning, registry), registry, record)
    variables = result.variables[: 2 * len(chosen.masks)]
    state = tuple(zip(chosen.masks, variables[::2], variables[1::2], strict=True))
    start = CalibratedStart(graph, chosen.values, state, chosen.others, session)
    return attrs.evolve(
        result,
        plan=chosen.planning.plan,
        accounts=chosen.accounts,
        normalizations=chosen.normalizations,
        calibrated=start,
    )


@attrs.frozen(eq=False)
class _Chosen:
    """What `CalibratedStart` is made from, what is pruned, and an account of every layer of it."""

    planning: Planning
    values: Mapping[str, Array] = attrs.field(factory=dict)
    masks: Sequence[Array] = ()
    others: Mapping[str, int] = attrs.field(factory=dict)
    accounts: tuple[LayerAccount, ...] = ()
    normalizations: tuple[NormalizationAccount, ...] = ()


def _calibrated(
    planning: Planning,
    samples: Any,
    session: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None,
) -> _Chosen:
    view = planning.layers[0].source.tensor.node.root
    assert isinstance(view, LiveGraph)
    model = LiveModel(view, session, outputs or _callers(planning.layers))
    calibrated = prune_calibrated(model, planning, samples, config, registry, outputs)
    assert isinstance(calibrated.model, LiveModel)
    values, masks = chosen_of(calibrated.model, calibrated.planning.layers)
    others = {name: checksum(value) for name, value in calibrated.model.others(values)}
    return _Chosen(calibrated.planning, values, masks, others, calibrated.accounts, calibrated.normalizations)


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
