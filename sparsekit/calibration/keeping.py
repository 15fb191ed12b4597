"""Layers that stay dense within a budget: those whose pruning costs most at the model's outputs, per multiply-add."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from sparsekit.artefact.model import Model
from sparsekit.calibration.network import Network
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.sensitivity import Errors, choose, measure
from sparsekit.graph.node import Edge
from sparsekit.graph.shapes import Shape
from sparsekit.layer_sensitivity import percent
from sparsekit.multiply_adds import MultiplyAdds
from sparsekit.planning import LayerDecision, PlannedLayer, Planning
from sparsekit.plugins import Registry

NEGLIGIBLE = 0.001
"""A layer stays pruned where its error is a smaller share than this of the errors of all that are weighed."""


def with_layers_kept(
    planning: Planning, model: Model, network: Network, samples: Samples, budget: float, registry: Registry
) -> Planning:
    """The planning with some of its layers left dense.

    Args:
        planning: what would be pruned.
        model: where the weights are stored.
        network: runs it; nothing was set yet.
        samples: the model's inputs.
        budget: the share that may stay dense of the multiply-adds of the layers that would be pruned. Layers
            in loops whose shapes are open are neither kept nor counted.
        registry: the plugins.

    Raises:
        ModelError: TensorFlow cannot run the model on the samples.
    """
    if not budget:
        return planning
    works = _multiply_adds(planning, model, network, samples, registry)
    whole = sum(works.values())
    # Every layer that fits is weighed, tiny or not, output layer or not: what counts is what the error costs.
    costs = {layer: cost / whole for layer, cost in works.items() if 0 < cost <= budget * whole}
    if not costs:
        return planning
    measured = measure(model, network, samples, list(costs), registry, own=False)
    errors = {layer: measured.layers[layer.decision.name] for layer in costs}
    kept = _chosen(costs, errors, budget)
    return _leaving_dense(planning, {d.decision: _reason(d.decision, errors[d], costs[d], budget) for d in kept})


def _multiply_adds(
    planning: Planning, model: Model, network: Network, samples: Samples, registry: Registry
) -> dict[PlannedLayer, int]:
    """Those of every layer for one example; of layers in loops with open shapes none are known, and they count 0."""
    inferred = MultiplyAdds(registry, model)
    works = {layer: inferred.of_layer(layer.sites) for layer in planning.layers}
    if None in works.values():
        # Shapes are open before the model runs; here it can. All layers then, since several samples may run at once.
        feeds = next(iter(choose(samples, 1))).feeds

        def shape_of(edge: Edge) -> Shape:
            seen = network.computes(edge.node) and network.can_fetch(edge.node)
            return network.run([edge], feeds)[0].shape if seen else None

        measured = MultiplyAdds(registry, model, shape_of)
        works = {layer: measured.of_layer(layer.sites) for layer in planning.layers}
    return {layer: work or 0 for layer, work in works.items()}


def _chosen(
    costs: Mapping[PlannedLayer, float], errors: Mapping[PlannedLayer, Errors], budget: float
) -> list[PlannedLayer]:
    """Greedily, the largest error per multiply-add first, as long as there is room."""
    worst = {layer: found.worst or 0.0 for layer, found in errors.items()}
    least = NEGLIGIBLE * sum(worst.values())
    kept, left = [], budget
    for layer in sorted(costs, key=lambda layer: worst[layer] / costs[layer], reverse=True):
        if worst[layer] > least and costs[layer] <= left:
            kept.append(layer)
            left -= costs[layer]
    return kept


def _reason(decision: LayerDecision, errors: Errors, cost: float, budget: float) -> str:
    where = "the model's outputs" if errors.at_outputs is not None else "its own outputs"
    return (
        f"{decision.name}: pruned by magnitude it alone changes {where} by {percent(errors.worst)} of what they vary; "
        f"it has {percent(cost)} of the multiply-adds that could be pruned, and keep_dense leaves "
        f"{percent(budget)} dense."
    )


def _leaving_dense(planning: Planning, reasons: Mapping[LayerDecision, str]) -> Planning:
    """The planning where layers are not pruned, for the reasons given."""
    left = {
        decision: attrs.evolve(decision, status="skip", reason="kept-dense", message=message, verdict=None)
        for decision, message in reasons.items()
    }
    names = {decision.name for decision in left}
    plan = planning.plan
    return Planning(
        plan=attrs.evolve(
            plan,
            decisions=tuple(left.get(decision, decision) for decision in plan.decisions),
            worth_leaving_dense=tuple(name for name in plan.worth_leaving_dense if name not in names),
        ),
        layers=tuple(layer for layer in planning.layers if layer.decision not in left),
        sites={left.get(decision, decision): sites for decision, sites in planning.sites.items()},
    )
