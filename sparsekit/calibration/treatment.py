"""What is done to one layer, in whatever order the layers are treated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy.typing as npt

from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.collecting import Collected, Use
from sparsekit.calibration.moments import output_sums, scaled_outputs
from sparsekit.calibration.network import Network
from sparsekit.calibration.normalizing import renormalize
from sparsekit.calibration.placing import Place, Shifts
from sparsekit.calibration.repairs import fits
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.shifting import NewBias
from sparsekit.calibration.solving import SolvedLayer, scaled_by_sums, solve_layer
from sparsekit.config import PruneConfig
from sparsekit.graph.trace import Tracer
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.matrix_form import MatrixForm
from sparsekit.one_shot import pruned_weight, retained
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.result import LayerAccount, NormalizationAccount

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
        feeds: as given.
    """

    def __init__(
        self, model: Model, network: Network, feeds: Mapping[str, Array], config: PruneConfig, registry: Registry
    ) -> None:
        self._changes: dict[object, Change] = {}
        self._model = model
        self._network = network
        self.feeds = feeds
        self._config = config
        self._registry = registry
        self._tracer = Tracer()
        self._shifts = Shifts(model, network, self._tracer)

    def result(self) -> Model:
        """The model with all that was done."""
        return self._model.changed(self.changes).with_biases(self._shifts.biases)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What becomes of stored values."""
        return tuple(self._changes.values())

    def _change(self, changes: Iterable[Change]) -> None:
        # Of what was changed twice (a mean, moved and then measured anew) the last one holds.
        self._changes |= {tuple(leaf.location for leaf in read.leaves): (read, change) for read, change in changes}

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

    def goes_by_weights(self, layer: PlannedLayer) -> bool:
        """Whether no sums over a layer's inputs are needed: its criterion ranks weights, and no repair fits them."""
        decision = layer.decision
        needs = self._registry.criterion(decision.criterion).needs
        return needs == "weights" and not fits(settings_of(layer, self._config).repair)

    def scales(self, layer: PlannedLayer) -> bool:
        """Whether mean and deviation of its outputs are to be restored."""
        return "scale-shift" in settings_of(layer, self._config).repair

    def place(self, layer: PlannedLayer, uses: Sequence[Use], form: MatrixForm) -> Place:
        """Where a shift of the layer's outputs can go."""
        nodes, computed = [site.node for site in layer.sites], [use.site.node for use in uses]
        return self._shifts.place(nodes, computed, form, self.feeds)

    def by_weights(self, layer: PlannedLayer, obstacle: str) -> LayerAccount:
        """Prune a layer whose inputs cannot be had."""
        change, weight = self._by_score(layer, _WITHOUT_INPUTS), stored_weight(self._model, layer)
        pruned = change(weight)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self._change([(layer.source.read, change)])
        return LayerAccount(layer.decision.name, _WITHOUT_INPUTS, note=obstacle, retained=retained(weight, pruned))

    def _by_score(self, layer: PlannedLayer, criterion: str) -> Callable[[Array], Array]:
        decision = attrs.evolve(layer.decision, criterion=criterion)
        return functools.partial(pruned_weight, layer=attrs.evolve(layer, decision=decision), registry=self._registry)

    def scored(self, layer: PlannedLayer, use: Use) -> SolvedLayer:
        """What becomes of a layer whose criterion goes by weights alone."""
        decision = layer.decision
        pruned = self._by_score(layer, decision.criterion)(stored_weight(self._model, layer))
        account = LayerAccount(decision.name, decision.criterion)
        return SolvedLayer(use.site.source.as_op_sees(pruned), None, account)

    def solve(self, layer: PlannedLayer, use: Use, collected: Collected, centered: bool) -> SolvedLayer:
        """What becomes of a layer by sums over its inputs."""
        return solve_planned(self._model, layer, use.site, collected, self._config, self._registry, centered)

    def measured(
        self,
        layer: PlannedLayer,
        uses: Sequence[Use],
        solved: SolvedLayer,
        place: Place,
        form: MatrixForm,
        samples: Samples,
    ) -> SolvedLayer:
        """By what a layer makes of its inputs with its old and its new weight: what is lost, and, where that is asked
        for, mean and deviation of its outputs restored."""
        edges, source = [site.source.tensor for site in layer.sites], uses[0].site.source
        pruned = source.as_stored(solved.weight).astype(layer.decision.dtype, copy=False)
        weights = edges, stored_weight(self._model, layer), pruned
        dense_path = self._config.target_path == "dense"
        sums = output_sums(self._network, uses, samples, layer.decision.name, weights, dense_path=dense_path)
        if not self.scales(layer) or isinstance(place, str):
            note = place if self.scales(layer) and isinstance(place, str) else ""
            return SolvedLayer(solved.weight, None, solved.account.noted(note).measured(sums.error()))
        found = scaled_outputs(sums, samples.count, guard=self._config.guard)
        account = solved.account.noted(found.note)
        if found.note:
            # What was fitted keeps the mean shift that belongs to the fit.
            return attrs.evolve(solved, account=account if account.damping else account.measured(found.error_mask))
        matrix = form.weight_matrix(solved.weight) * found.scale[:, None, :]
        account = attrs.evolve(
            account.measured(found.error_mask), error_after=found.error, held_back=True, scaled=True, shifted=True
        )
        return SolvedLayer(form.weight_from_matrix(matrix), found.shift, account)

    def apply(self, layer: PlannedLayer, uses: Sequence[Use], solved: SolvedLayer, place: Place) -> LayerAccount:
        """Let the network and the model have what became of a layer."""
        pruned = uses[0].site.source.as_stored(solved.weight).astype(layer.decision.dtype, copy=False)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self._change([(layer.source.read, lambda _: pruned)])
        account = attrs.evolve(solved.account, retained=retained(stored_weight(self._model, layer), pruned))
        if isinstance(place, str):
            return account.noted(place) if account.damping else account
        if solved.shift is None:
            return account
        self._change(self._shifts.put(place, solved.shift))
        return attrs.evolve(account, bias_added=isinstance(place, NewBias) and bool(solved.shift.any()))

    def renormalize(self, layers: Iterable[PlannedLayer], samples: Samples) -> list[NormalizationAccount]:
        """Measure the statistics of the batch normalizations behind pruned layers anew."""
        nodes = [site.node for layer in layers for site in layer.sites]
        changes, accounts = renormalize(self._model, self._network, samples, nodes, self._tracer)
        self._change(changes)
        return accounts


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
    decision, config = layer.decision, settings_of(layer, config)
    assert decision.pattern is not None
    seen = site.source.as_op_sees(stored_weight(model, layer))
    solved = solve_layer(
        seen,
        collected,
        registry.criterion(decision.criterion),
        decision.pattern,
        config,
        LayerAccount(decision.name, decision.criterion),
        centered=centered,
    )
    if config.order == "one-pass" and "scale-shift" in config.repair and centered:
        return scaled_by_sums(seen, solved, collected, guard=config.guard)
    return solved


def settings_of(layer: PlannedLayer, config: PruneConfig) -> PruneConfig:
    """What holds for a layer."""
    settings, _ = config.settings_for(layer.decision.name, layer.decision.op_type)
    return attrs.evolve(config, repair=settings.repair)


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
