"""Layers in the order of the graph, each solved on the inputs that the already pruned ones before it leave it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import attrs
import numpy.typing as npt

from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.collecting import Use, collect
from sparsekit.calibration.inlining import inlined
from sparsekit.calibration.keeping import with_layers_kept
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.shifting import output_bias
from sparsekit.calibration.solving import solve_layer
from sparsekit.config import PruneConfig
from sparsekit.graph.node import FunctionView, Node
from sparsekit.graph.order import in_order, last_turns
from sparsekit.graph.trace import Tracer
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.one_shot import check_weights, pruned_weight, retained
from sparsekit.planning import PlannedLayer, Planning
from sparsekit.plugins import Registry
from sparsekit.progress import track
from sparsekit.result import LayerAccount

Array: TypeAlias = npt.NDArray[Any]
_WITHOUT_INPUTS = "magnitude"


@attrs.frozen(eq=False)
class Calibrated:
    """What `prune_calibrated` did.

    Attributes:
        model: the pruned model.
        planning: the layers that were pruned, and why others were left dense.
        accounts: of every pruned layer, in the order in which they were treated.
        changes: what became of stored values.
    """

    model: Model
    planning: Planning
    accounts: tuple[LayerAccount, ...]
    changes: tuple[Change, ...]


def prune_calibrated(
    model: Model,
    planning: Planning,
    samples: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None = None,
) -> Calibrated:
    """A model with masks and weights chosen on sample inputs; the given one is not modified.

    Args:
        model: the model.
        planning: the layers to be pruned.
        samples: inputs of the model, see `Samples`.
        config: effort, repairs, whose outputs are matched, what may stay dense.
        registry: the plugins.
        outputs: the operations whose results are used; None: those of the model.

    Raises:
        ModelError: a weight cannot be read or is not finite, or TensorFlow cannot run the model on the samples.
        CalibrationError: the samples do not fit the model.
    """
    check_weights(model, planning.layers)
    accounts = []
    with opened(model, outputs) as network, contextlib.closing(Samples(samples, network.inputs)) as batches:
        planning = with_layers_kept(planning, model, network, batches, config.keep_dense or 0, registry)
        run = _Run(model, network, batches, config, registry)
        for layer in track(_in_order(model, planning.layers), "Calibrating"):
            begun = time.process_time()
            account = run.treat(layer)
            accounts.append(attrs.evolve(account, seconds=time.process_time() - begun))
    return Calibrated(model.changed(run.changes), planning, tuple(accounts), tuple(run.changes))


def _in_order(model: Model, layers: Iterable[PlannedLayer]) -> list[PlannedLayer]:
    """A layer comes after those that its inputs are made by: the order of the first of its uses."""
    nodes = {node.name: node for node in inlined(model.view).node}
    place = {name: index for index, name in enumerate(in_order(nodes, last_turns(nodes)))}

    def place_of(node: Node) -> int:
        # A node in the body of a loop runs with the loop.
        while node.path not in place and isinstance(node.view, FunctionView):
            node = node.view.call
        return place.get(node.path, 0)

    return sorted(layers, key=lambda layer: min(place_of(site.node) for site in layer.sites))


class _Run:
    """One pass over the layers; every layer sees what was done to those before it.

    Attributes:
        changes: what becomes of stored values.
    """

    def __init__(
        self, model: Model, network: Network, samples: Samples, config: PruneConfig, registry: Registry
    ) -> None:
        self.changes: list[Change] = []
        self._model = model
        self._network = network
        self._samples = samples
        self._config = config
        self._registry = registry
        self._tracer = Tracer()

    def treat(self, layer: PlannedLayer) -> LayerAccount:
        """Prune one layer."""
        account = LayerAccount(layer.decision.name, layer.decision.criterion)
        # Exporters leave dead copies of layers behind, which see nothing.
        uses = [Use(site, self._handler(site)) for site in layer.sites if self._network.computes(site.node)]
        obstacle = self._obstacle(uses)
        if obstacle:
            return self._by_weights(layer, attrs.evolve(account, criterion=_WITHOUT_INPUTS, note=obstacle))
        return self._by_statistics(layer, uses, account)

    def _handler(self, site: WeightSite) -> OpHandler:
        handler = self._registry.handler(site.node.op)
        assert handler is not None
        return handler

    def _obstacle(self, uses: list[Use]) -> str:
        """Why a layer's inputs cannot be had."""
        if not uses:
            return "no run of the model computes it"
        if not all(self._network.can_fetch(use.site.node) for use in uses):
            return "it lies in a loop or cond, where its inputs cannot be fetched"
        lacking = [use.site.node.op for use in uses if not use.handler.has_matrix_form]
        return f"{lacking[0]} has no matrix form" if lacking else ""

    def _by_weights(self, layer: PlannedLayer, account: LayerAccount) -> LayerAccount:
        decision = attrs.evolve(layer.decision, criterion=account.criterion)
        change = functools.partial(pruned_weight, layer=attrs.evolve(layer, decision=decision), registry=self._registry)
        weight = self._weight(layer)
        pruned = change(weight)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self.changes.append((layer.source.read, change))
        return attrs.evolve(account, retained=retained(weight, pruned))

    def _weight(self, layer: PlannedLayer) -> Array:
        return next(self._model.values(layer.source.read))[1]

    def _by_statistics(self, layer: PlannedLayer, uses: list[Use], account: LayerAccount) -> LayerAccount:
        decision, source, config = layer.decision, uses[0].site.source, self._config
        assert decision.pattern is not None
        dense_path = config.target_path == "dense"
        collected = collect(self._network, uses, self._samples, decision.name, decision.pattern, dense_path)
        nodes = [site.node for site in layer.sites]
        feeds = next(iter(self._samples)).feeds
        form = collected.layout.form
        bias = output_bias(self._model, self._network, nodes, uses[0].site.node, form, feeds, self._tracer)
        weight = self._weight(layer)
        criterion = self._registry.criterion(decision.criterion)
        solved = solve_layer(
            source.as_op_sees(weight),
            collected,
            criterion,
            decision.pattern,
            config,
            account,
            centered=bias is not None,
        )
        pruned = source.as_stored(solved.weight).astype(weight.dtype, copy=False)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self.changes.append((layer.source.read, lambda _: pruned))
        if bias is not None and solved.shift is not None:
            read, move = bias.moved(solved.shift)
            self._network.set(bias.edges, move(next(self._model.values(read))[1]))
            self.changes.append((read, move))
        return attrs.evolve(solved.account, retained=retained(weight, pruned))
