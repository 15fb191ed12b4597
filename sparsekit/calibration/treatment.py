"""What is done to one layer, in whatever order the layers are treated."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy.typing as npt

from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.collecting import Collected, Use
from sparsekit.calibration.network import Network
from sparsekit.calibration.shifting import OutputBias, output_bias
from sparsekit.calibration.solving import SolvedLayer, solve_layer
from sparsekit.config import PruneConfig
from sparsekit.graph.trace import Tracer
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.matrix_form import MatrixForm
from sparsekit.one_shot import pruned_weight, retained
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.result import LayerAccount

Array: TypeAlias = npt.NDArray[Any]
_WITHOUT_INPUTS = "magnitude"


class Treatment:
    """Solves layers, and lets the network and the model have what became of them.

    Args:
        model: the model.
        network: runs it.
        feeds: inputs of the model, for the shapes.
        config: effort, repairs, whose outputs are matched.
        registry: the plugins.

    Attributes:
        changes: what becomes of stored values.
        feeds: as given.
    """

    def __init__(
        self, model: Model, network: Network, feeds: Mapping[str, Array], config: PruneConfig, registry: Registry
    ) -> None:
        self.changes: list[Change] = []
        self._model = model
        self._network = network
        self.feeds = feeds
        self._config = config
        self._registry = registry
        self._tracer = Tracer()

    def uses(self, layer: PlannedLayer) -> list[Use]:
        """The ops that use the layer's weight in a run."""
        return uses_in_a_run(layer, self._network, self._registry)

    def obstacle(self, layer: PlannedLayer, uses: Sequence[Use]) -> str:
        """Why a layer cannot be calibrated, "" if it can."""
        if not uses:
            return "no run of the model computes it"
        if not all(self._network.can_fetch(use.site.node) for use in uses):
            return "it lies in a loop or cond, where its inputs cannot be fetched"
        lacking = [use.site.node.op for use in uses if not use.handler.has_matrix_form]
        return f"{lacking[0]} has no matrix form" if lacking else self._model.obstacle(layer.source.read)

    def form(self, use: Use) -> MatrixForm:
        """The matrix form of an op that a run computes."""
        data, result = self._network.run([use.data, use.result], self.feeds)
        return use.handler.matrix_form(use.site, data.shape, result.shape)

    def bias(self, layer: PlannedLayer, uses: Sequence[Use], form: MatrixForm) -> OutputBias | None:
        """Where a shift of the layer's outputs can go."""
        nodes = [site.node for site in layer.sites]
        return output_bias(self._model, self._network, nodes, uses[0].site.node, form, self.feeds, self._tracer)

    def by_weights(self, layer: PlannedLayer, obstacle: str) -> LayerAccount:
        """Prune a layer whose inputs cannot be had."""
        decision = attrs.evolve(layer.decision, criterion=_WITHOUT_INPUTS)
        change = functools.partial(pruned_weight, layer=attrs.evolve(layer, decision=decision), registry=self._registry)
        weight = stored_weight(self._model, layer)
        pruned = change(weight)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self.changes.append((layer.source.read, change))
        return LayerAccount(layer.decision.name, _WITHOUT_INPUTS, note=obstacle, retained=retained(weight, pruned))

    def solve(self, layer: PlannedLayer, use: Use, collected: Collected, centered: bool) -> SolvedLayer:
        """What becomes of a layer."""
        return solve_planned(self._model, layer, use.site, collected, self._config, self._registry, centered)

    def apply(
        self, layer: PlannedLayer, uses: Sequence[Use], solved: SolvedLayer, bias: OutputBias | None
    ) -> LayerAccount:
        """Let the network and the model have what became of a layer."""
        pruned = uses[0].site.source.as_stored(solved.weight).astype(layer.decision.dtype, copy=False)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self.changes.append((layer.source.read, lambda _: pruned))
        if bias is not None and solved.shift is not None:
            read, move = bias.moved(solved.shift)
            self._network.set(bias.edges, move(next(self._model.values(read))[1]))
            self.changes.append((read, move))
        return attrs.evolve(solved.account, retained=retained(stored_weight(self._model, layer), pruned))


def solve_planned(
    model: Model,
    layer: PlannedLayer,
    site: WeightSite,
    collected: Collected,
    config: PruneConfig,
    registry: Registry,
    centered: bool,
) -> SolvedLayer:
    """What becomes of a layer of a plan.

    Args:
        model: where its weight is stored.
        layer: the layer.
        site: an op that a run computes and that uses its weight.
        collected: its layout and statistics.
        config: effort, repairs, whose outputs are matched.
        registry: the plugins.
        centered: a shift of the mean outputs can be stored.
    """
    decision = layer.decision
    assert decision.pattern is not None
    return solve_layer(
        site.source.as_op_sees(stored_weight(model, layer)),
        collected,
        registry.criterion(decision.criterion),
        decision.pattern,
        config,
        LayerAccount(decision.name, decision.criterion),
        centered=centered,
    )


def stored_weight(model: Model, layer: PlannedLayer) -> Array:
    """A layer's weight as it is stored."""
    return next(model.values(layer.source.read))[1]


def uses_in_a_run(layer: PlannedLayer, network: Network, registry: Registry) -> list[Use]:
    """The ops that use a layer's weight. Exporters leave dead copies of layers behind, which see nothing."""
    return [Use(site, _handler(site, registry)) for site in layer.sites if network.computes(site.node)]


def _handler(site: WeightSite, registry: Registry) -> OpHandler:
    handler = registry.handler(site.node.op)
    assert handler is not None
    return handler
