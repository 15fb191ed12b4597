"""Gathers the facts: reads every weight once, one in memory at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.artefact.deployed import DeployedLayer
from sparsekit.artefact.model import Change, Model
from sparsekit.handler import WeightSite
from sparsekit.multiply_adds import MultiplyAdds
from sparsekit.one_shot import pruned_weight, retained
from sparsekit.pattern import Pattern, check
from sparsekit.planning import LayerDecision, Plan, PlannedLayer, Planning
from sparsekit.plugins import Registry
from sparsekit.progress import track
from sparsekit.reporting.facts import GroupFacts, LayerFacts

Array: TypeAlias = npt.NDArray[Any]

_CORNER_ROWS = 16
_CORNER_COLUMNS = 32


def gather(
    planning: Planning, model: Model | None, registry: Registry, changes: Iterable[Change] | None = None
) -> tuple[LayerFacts, ...]:
    """The facts about every layer of a plan.

    Args:
        planning: the plan with what it was made from.
        model: where the weights are stored; None for a live graph, whose weights are in no one place.
        registry: the plugins.
        changes: what becomes of stored weights; None: what the layers' criteria say of the weights alone.

    Raises:
        ModelError: a stored weight is damaged.
    """
    work = MultiplyAdds(registry, model)
    change = _by_weights(registry) if changes is None else _by_read(changes)
    pruned = {layer.decision: functools.partial(change, layer) for layer in planning.layers}
    decisions = track(planning.plan.decisions, "Reading weights")
    return tuple(
        _facts(decision, planning.sites.get(decision, ()), pruned.get(decision), model, work) for decision in decisions
    )


def gather_deployed(plan: Plan, layers: Iterable[DeployedLayer]) -> tuple[LayerFacts, ...]:
    """The facts about the layers of a file in a deployment format, in the order of its plan."""
    pairs = list(zip(plan.decisions, layers, strict=True))
    return tuple(_deployed_facts(decision, layer) for decision, layer in track(pairs, "Reading weights"))


def _by_weights(registry: Registry) -> Callable[[PlannedLayer, Array], Array]:
    return lambda layer, weight: pruned_weight(weight, layer, registry)


def _by_read(changes: Iterable[Change]) -> Callable[[PlannedLayer, Array], Array]:
    known = {id(read): change for read, change in changes}  # a Read is equal to itself alone
    return lambda layer, weight: known[id(layer.source.read)](weight.copy())


def _facts(
    decision: LayerDecision,
    sites: Sequence[WeightSite],
    pruned: Callable[[Array], Array] | None,
    model: Model | None,
    work: MultiplyAdds,
) -> LayerFacts:
    if not sites:
        return LayerFacts(decision, note=decision.message)
    facts = LayerFacts(decision, weights=math.prod(sites[0].source.shape), multiply_adds=work.of_layer(sites))
    if model is None:
        return attrs.evolve(facts, note="the weights of a live graph are not read")
    obstacle = model.obstacle(sites[0].source.read)
    if obstacle:
        return attrs.evolve(facts, note=obstacle)
    _, weight = next(model.values(sites[0].source.read))
    return _with_weight(facts, weight, pruned(weight) if pruned else weight)


def _deployed_facts(decision: LayerDecision, layer: DeployedLayer) -> LayerFacts:
    if not layer.readable:
        return LayerFacts(decision, note=decision.message)
    facts = LayerFacts(decision, weights=math.prod(layer.shape or ()))
    weight = layer.values()
    return _with_weight(facts, weight, weight)


def _with_weight(facts: LayerFacts, weight: Array, planned: Array) -> LayerFacts:
    decision = facts.decision
    if weight.dtype.names:  # how older TensorFlow tells quantized numbers
        return attrs.evolve(facts, note=f"its values are {decision.dtype}, which are not looked into")
    pattern = decision.pattern or Pattern(2, 4)
    if decision.axis is None or not -weight.ndim <= decision.axis < weight.ndim:
        return attrs.evolve(facts, note="its groups cannot be located")
    stored = _groups(weight, decision.axis, pattern)
    return attrs.evolve(
        facts,
        stored=stored,
        planned=stored if planned is weight else _groups(planned, decision.axis, pattern),
        retained=retained(weight, planned),
        mask=_corner(planned, decision.axis),
    )


def _groups(weight: Array, axis: int, pattern: Pattern) -> GroupFacts:
    found = check(weight, axis, pattern)
    return GroupFacts(found.density, found.histogram, found.violations)


def _corner(weight: Array, axis: int) -> tuple[str, ...]:
    """Where the first weights are not zero: a row per output, the groups along it."""
    along = np.moveaxis(weight, axis, -1)
    first = along[(0,) * max(0, along.ndim - 2)]
    corner = np.atleast_2d(first)[:_CORNER_ROWS, :_CORNER_COLUMNS]
    return tuple("".join("#" if value else "." for value in row) for row in corner != 0)
