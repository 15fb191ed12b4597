"""Layers in the order of the graph, each solved on the inputs that the already pruned ones before it leave it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import attrs
import numpy.typing as npt

from sparsekit.artefact.added_bias import AddedBias, Places
from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.collecting import Forms, Use, collect
from sparsekit.calibration.inlining import inlined
from sparsekit.calibration.moments import fitted, output_sums
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.normalizing import renormalize
from sparsekit.calibration.repairs import fits
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.shifting import NewBias, OutputBias, new_bias, output_bias
from sparsekit.calibration.solving import solve_layer
from sparsekit.config import PruneConfig
from sparsekit.graph.node import FunctionView, Node
from sparsekit.graph.order import in_order, last_turns
from sparsekit.graph.trace import Read, Tracer
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.matrix_form import MatrixForm
from sparsekit.one_shot import check_weights, pruned_weight
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.progress import track
from sparsekit.result import LayerAccount, NormalizationAccount

Array: TypeAlias = npt.NDArray[Any]
_WITHOUT_INPUTS = "magnitude"


def prune_calibrated(
    model: Model,
    layers: Sequence[PlannedLayer],
    samples: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None = None,
) -> tuple[Model, tuple[LayerAccount, ...], tuple[NormalizationAccount, ...]]:
    """A model with masks and weights chosen on sample inputs; the given one is not modified.

    Args:
        model: the model.
        layers: those to be pruned.
        samples: inputs of the model, see `Samples`.
        config: effort, repairs, whose outputs are matched.
        registry: the plugins.
        outputs: the operations whose results are used; None: those of the model.

    Returns:
        The pruned model, an account of every layer, in the order in which they were treated, and one of every batch
        normalization whose statistics were to be measured anew.

    Raises:
        ModelError: a weight cannot be read or is not finite, or TensorFlow cannot run the model on the samples.
        CalibrationError: the samples do not fit the model.
    """
    check_weights(model, layers)
    accounts = []
    slots = [site.node for layer in layers for site in layer.sites]
    with opened(model, outputs, slots) as network, contextlib.closing(Samples(samples, network.inputs)) as batches:
        run = _Run(model, network, batches, config, registry)
        for layer in track(_in_order(model, layers), "Calibrating"):
            begun = time.process_time()
            account = run.treat(layer)
            accounts.append(attrs.evolve(account, seconds=time.process_time() - begun))
        normalizations = run.renormalize(slots) if "batch-norm" in config.repair else []
    return model.changed(run.changes).with_biases(run.biases), tuple(accounts), tuple(normalizations)


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
        biases: what is added to the graph.
    """

    def __init__(
        self, model: Model, network: Network, samples: Samples, config: PruneConfig, registry: Registry
    ) -> None:
        self.biases: list[AddedBias] = []
        self._changes: dict[object, Change] = {}
        self._model = model
        self._network = network
        self._samples = samples
        self._config = config
        self._registry = registry
        self._tracer = Tracer()
        asked_for = {*network.outputs, *(model.outputs or ())}
        self._places = Places(model.view, asked_for, entered_elsewhere=model.entered_elsewhere)

    @property
    def changes(self) -> list[Change]:
        """What becomes of stored values."""
        return list(self._changes.values())

    def _change(self, read: Read, change: Callable[[Array], Array]) -> None:
        # Of what was changed twice (a mean, moved and then measured anew) the last one holds.
        self._changes[tuple(leaf.location for leaf in read.leaves)] = read, change

    def renormalize(self, pruned: Iterable[Node]) -> list[NormalizationAccount]:
        """Measure the statistics of batch normalizations anew."""
        changes, accounts = renormalize(self._model, self._network, self._samples, pruned, self._tracer)
        for read, change in changes:
            self._change(read, change)
        return accounts

    def treat(self, layer: PlannedLayer) -> LayerAccount:
        """Prune one layer."""
        account = LayerAccount(layer.decision.name, layer.decision.criterion)
        # Exporters leave dead copies of layers behind, which see nothing.
        uses = [Use(site, self._handler(site)) for site in layer.sites if self._network.computes(site.node)]
        obstacle = self._obstacle(uses)
        if obstacle:
            return self._by_weights(layer, attrs.evolve(account, criterion=_WITHOUT_INPUTS, note=obstacle))
        settings, _ = self._config.settings_for(layer.decision.name, layer.decision.op_type)
        config = attrs.evolve(self._config, repair=settings.repair)
        light = self._registry.criterion(layer.decision.criterion).needs == "weights" and not fits(config.repair)
        scales = "scale-shift" in config.repair
        place = self._place(layer, uses) if scales or not light else ""
        weight = self._weight(layer)
        if light:
            pruned, shift = self._pruned(layer)(weight), None
        else:
            pruned, shift, account = self._solved(layer, uses, weight, account, config, place)
        if light or scales:
            pruned, shift, account = self._scaled(layer, uses, (weight, pruned), account, config, place)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self._change(layer.source.read, lambda _: pruned)
        return self._shifted(shift, place, account)

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
        change = self._pruned(layer, account.criterion)
        self._network.set((site.source.tensor for site in layer.sites), change(self._weight(layer)))
        self._change(layer.source.read, change)
        return account

    def _pruned(self, layer: PlannedLayer, criterion: str = "") -> Callable[[Array], Array]:
        """What a criterion that goes by weights alone makes of the layer's."""
        decision = attrs.evolve(layer.decision, criterion=criterion or layer.decision.criterion)
        return functools.partial(pruned_weight, layer=attrs.evolve(layer, decision=decision), registry=self._registry)

    def _weight(self, layer: PlannedLayer) -> Array:
        return next(self._model.values(layer.source.read))[1]

    def _place(self, layer: PlannedLayer, uses: list[Use]) -> OutputBias | NewBias | str:
        """Where a shift of the layer's outputs can go, or why it cannot go anywhere."""
        nodes = [site.node for site in layer.sites]
        feeds = next(iter(self._samples)).feeds
        form = self._form(uses)
        bias = output_bias(self._model, self._network, nodes, uses[0].site.node, form, feeds, self._tracer)
        if bias is not None:
            return bias
        computed = [use.site.node for use in uses]
        obstacle = self._places.obstacle(nodes)
        if not obstacle and self._model.several_graphs:
            obstacle = "the SavedModel holds several graphs, which share the weight"
        if not obstacle and not all(self._network.can_fetch(node) for node in nodes):
            obstacle = "its weight is used in a loop or cond too"
        if not obstacle and all(self._network.can_add(node) for node in computed):
            new = new_bias(self._network, computed, nodes, form, feeds)
            if new is not None:
                return new
        return f"no bias is added: {obstacle or 'its outputs have no place for one'}"

    def _shifted(self, shift: Array | None, place: OutputBias | NewBias | str, account: LayerAccount) -> LayerAccount:
        """Store a shift of the outputs [blocks, N]."""
        if shift is None or isinstance(place, str):
            return account
        if isinstance(place, OutputBias):
            read, move = place.moved(shift)
            self._network.set(place.edges, move(next(self._model.values(read))[1]))
            self._change(read, move)
            return account
        value = place.value(shift)
        if not value.any():
            return account
        for node in place.nodes:
            if self._network.can_add(node):
                self._network.add(node, value)
        self.biases += place.added(value)
        return attrs.evolve(account, bias_added=True)

    def _solved(
        self,
        layer: PlannedLayer,
        uses: list[Use],
        weight: Array,
        account: LayerAccount,
        config: PruneConfig,
        place: OutputBias | NewBias | str,
    ) -> tuple[Array, Array | None, LayerAccount]:
        """The weight as a criterion and a fit on sums over the inputs leave it, a shift of the outputs, the account."""
        decision, source = layer.decision, uses[0].site.source
        assert decision.pattern is not None
        dense_path = config.target_path == "dense"
        collected = collect(self._network, uses, self._samples, decision.name, decision.pattern, dense_path)
        solved = solve_layer(
            source.as_op_sees(weight),
            collected,
            self._registry.criterion(decision.criterion),
            decision.pattern,
            config,
            account,
            centered=not isinstance(place, str),
        )
        pruned = source.as_stored(solved.weight).astype(weight.dtype, copy=False)
        account = solved.account
        if isinstance(place, str) and account.damping:
            account = account.noted(place)
        return pruned, solved.shift, account

    def _scaled(
        self,
        layer: PlannedLayer,
        uses: list[Use],
        weights: tuple[Array, Array],
        account: LayerAccount,
        config: PruneConfig,
        place: OutputBias | NewBias | str,
    ) -> tuple[Array, Array | None, LayerAccount]:
        """Run the layer with both weights: the new one with the outputs' deviation restored if that is asked for, the
        shift that restores their mean, the account."""
        edges, dense_path = [site.source.tensor for site in layer.sites], config.target_path == "dense"
        name, source, pruned = layer.decision.name, uses[0].site.source, weights[1]
        sums = output_sums(self._network, uses, self._samples, name, (edges, *weights), dense_path=dense_path)
        lost = sums.error()
        account = attrs.evolve(
            account,
            error_before=lost if account.criterion == _WITHOUT_INPUTS else None,
            error_mask=lost,
            error_after=lost,
            held_back=not account.damping,
            shifted=False,
        )
        if "scale-shift" not in config.repair:
            return pruned, None, account
        if isinstance(place, str):
            return pruned, None, account.noted(place)
        found = fitted(sums, self._samples.count, guard=config.guard)
        account = attrs.evolve(
            account.noted(found.note), error_mask=found.error_mask, error_after=found.error, held_back=found.held_back
        )
        if account.error_before is not None:
            account = attrs.evolve(account, error_before=found.error_mask)
        if found.note:
            return pruned, None, account
        form = self._form(uses)
        matrix = form.weight_matrix(source.as_op_sees(pruned)) * found.scale[:, None, :]
        scaled = source.as_stored(form.weight_from_matrix(matrix)).astype(pruned.dtype, copy=False)
        return scaled, found.shift, attrs.evolve(account, scaled=True, shifted=True)

    def _form(self, uses: list[Use]) -> MatrixForm:
        feeds = next(iter(self._samples)).feeds
        return Forms(self._network, uses[:1]).of(self._network.run([uses[0].data], feeds), feeds)[0]
