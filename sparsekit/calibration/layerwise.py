"""Calibrated pruning: layers in the order of the graph, on what the pruned ones before leave them, or in one pass."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs

from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.collecting import Use, collect
from sparsekit.calibration.cost import costs, sequential
from sparsekit.calibration.inlining import inlined
from sparsekit.calibration.keeping import with_layers_kept
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.one_pass import prune_in_one_pass, solver_of_this_process, timed
from sparsekit.calibration.resuming import FinishedLayers, facts_of_run, facts_of_samples
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.treatment import Treatment
from sparsekit.config import PruneConfig
from sparsekit.graph.node import FunctionView, Node
from sparsekit.graph.order import in_order, last_turns
from sparsekit.one_shot import check_weights
from sparsekit.planning import PlannedLayer, Planning
from sparsekit.plugins import Registry
from sparsekit.progress import estimated
from sparsekit.result import LayerAccount, NormalizationAccount


@attrs.frozen(eq=False)
class Calibrated:
    """What `prune_calibrated` did.

    Attributes:
        model: the pruned model.
        planning: the layers that were pruned, and why others were left dense.
        accounts: of every pruned layer, in the order of the graph.
        normalizations: of every batch normalization whose statistics were to be measured anew.
        changes: what became of stored values.
    """

    model: Model
    planning: Planning
    accounts: tuple[LayerAccount, ...]
    normalizations: tuple[NormalizationAccount, ...]
    changes: tuple[Change, ...]


def prune_calibrated(
    model: Model,
    planning: Planning,
    samples: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    beam: Sequence[str] | None = None,
) -> Calibrated:
    """A model with masks and weights chosen on sample inputs; the given one is not modified.

    Args:
        model: the model.
        planning: the layers to be pruned.
        samples: inputs of the model, see `Samples`.
        config: effort, repairs, whose outputs are matched, in which order, what may stay dense.
        registry: the plugins.
        outputs: the operations whose results are used; None: those of the model.
        resume: a folder that keeps every layer that is solved; those in it already are taken from there.
        beam: options of an Apache Beam pipeline that does the work; the model and the samples are files then.

    Raises:
        ModelError: a weight cannot be read or is not finite, or TensorFlow cannot run the model on the samples.
        CalibrationError: the samples do not fit the model, or the folder is of another run.
        SaveError: the folder cannot be written to.
    """
    check_weights(model, planning.layers)
    if beam is not None:
        from sparsekit.calibration.pipeline import prune_in_a_pipeline

        return prune_in_a_pipeline(model, planning, samples, config, registry, outputs, resume, beam)
    with (
        opened(model, outputs, slots_of(planning.layers)) as network,
        contextlib.closing(Samples(samples, network.inputs)) as batches,
    ):
        planning = with_layers_kept(planning, model, network, batches, config.keep_dense or 0, registry)
        finished = None
        if resume is not None:
            found = facts_of_samples(samples, batches)
            facts = facts_of_run(model, network.outputs, planning.layers, found, config, registry)
            finished = FinishedLayers.open(resume, facts)
        treatment = Treatment(model, network, next(iter(batches)).feeds, config, registry)
        ordered = in_order_of_graph(model, planning.layers)
        if config.order == "one-pass":
            solver = solver_of_this_process(network, batches, treatment, finished)
            accounts = prune_in_one_pass(ordered, network, treatment, batches.count, finished, solver)
        else:
            accounts = _prune_one_by_one(ordered, network, treatment, batches, config, finished)
        done = tuple(accounts)
        normalizations = treatment.renormalize(planning.layers, batches) if "batch-norm" in config.repair else []
    return Calibrated(treatment.result(), planning, done, tuple(normalizations), treatment.changes)


def slots_of(layers: Iterable[PlannedLayer]) -> list[Node]:
    """The ops behind which a bias may be added."""
    return [site.node for layer in layers for site in layer.sites]


def in_order_of_graph(model: Model, layers: Iterable[PlannedLayer]) -> list[PlannedLayer]:
    """A layer comes after those that its inputs are made by: the order of the first of its uses."""
    nodes = {node.name: node for node in inlined(model.view).node}
    place = {name: index for index, name in enumerate(in_order(nodes, last_turns(nodes)))}

    def place_of(node: Node) -> int:
        # A node in the body of a loop runs with the loop.
        while node.path not in place and isinstance(node.view, FunctionView):
            node = node.view.call
        return place.get(node.path, 0)

    return sorted(layers, key=lambda layer: min(place_of(site.node) for site in layer.sites))


def _prune_one_by_one(
    layers: Sequence[PlannedLayer],
    network: Network,
    treatment: Treatment,
    samples: Samples,
    config: PruneConfig,
    finished: FinishedLayers | None,
) -> Iterator[LayerAccount]:
    """Prune layers; each sees what was done to those before it."""
    uses = {layer: treatment.uses(layer) for layer in layers}
    obstacles = {layer: treatment.obstacle(layer, uses[layer]) for layer in layers}
    known = {
        layer: finished.load(layer.decision.name, uses[layer][0].site.source.shape_at_op)
        for layer in layers
        if finished and not obstacles[layer]
    }
    work = sequential(costs([() if obstacles[layer] else uses[layer] for layer in layers], samples.count))
    ahead = [0.0 if known.get(layer) else cost for layer, cost in zip(layers, work, strict=True)]
    with estimated("Calibrating", sum(ahead)) as advance:
        for layer, cost in zip(layers, ahead, strict=True):
            begun = time.process_time()
            if obstacles[layer]:
                account = treatment.by_weights(layer, obstacles[layer])
                yield attrs.evolve(account, seconds=time.process_time() - begun)
            elif (solved := known.pop(layer, None)) is not None:
                place = treatment.place(layer, uses[layer], treatment.form(uses[layer][0]))
                yield treatment.apply(layer, uses[layer], solved, place)
            else:
                yield _prune_one(layer, uses[layer], network, treatment, samples, config, finished)
            advance(cost)


def _prune_one(
    layer: PlannedLayer,
    uses: Sequence[Use],
    network: Network,
    treatment: Treatment,
    samples: Samples,
    config: PruneConfig,
    finished: FinishedLayers | None,
) -> LayerAccount:
    decision = layer.decision
    assert decision.pattern is not None
    begun = time.process_time()
    form = treatment.form(uses[0])
    place = treatment.place(layer, uses, form)
    if treatment.goes_by_weights(layer):
        solved = treatment.scored(layer, uses[0])
    else:
        collected = collect(network, uses, samples, decision.name, decision.pattern, config.target_path == "dense")
        solved = treatment.solve(layer, uses[0], collected, not isinstance(place, str))
    if treatment.goes_by_weights(layer) or treatment.scales(layer):
        solved = treatment.measured(layer, uses, solved, place, form, samples)
    solved = timed(solved, begun)
    if finished:
        finished.save(decision.name, solved)
    return treatment.apply(layer, uses, solved, place)
