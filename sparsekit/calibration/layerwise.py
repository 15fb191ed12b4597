"""Layers in the order of the graph, each solved on the inputs that the already pruned ones before it leave it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.collecting import Forms, Use, collect
from sparsekit.calibration.inlining import inlined
from sparsekit.calibration.moments import output_sums, scaled_outputs
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.normalizing import renormalize
from sparsekit.calibration.placing import Place, Shifts
from sparsekit.calibration.repairs import fits
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.shifting import NewBias
from sparsekit.calibration.solving import solve_layer
from sparsekit.config import PruneConfig
from sparsekit.criterion import Criterion
from sparsekit.graph.node import Edge, FunctionView, Node
from sparsekit.graph.order import in_order, last_turns
from sparsekit.graph.trace import Tracer, WeightSource
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
    return run.result(), tuple(accounts), tuple(normalizations)


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


@attrs.frozen(eq=False)
class _Task:
    """A layer whose inputs can be had.

    Attributes:
        layer: the layer.
        uses: the ops that use its weight and that a run computes.
        config: what holds for it.
        criterion: chooses its mask.
        form: the first op's matrix form.
        place: where a shift of its outputs can go; "" where there will be none.
        weight: as it is stored.
    """

    layer: PlannedLayer
    uses: list[Use]
    config: PruneConfig
    criterion: Criterion
    form: MatrixForm
    place: Place
    weight: Array

    @property
    def name(self) -> str:
        return self.layer.decision.name

    @property
    def source(self) -> WeightSource:
        return self.uses[0].site.source

    @property
    def edges(self) -> list[Edge]:
        """What reads the weight."""
        return [site.source.tensor for site in self.layer.sites]

    def as_stored(self, seen: Array) -> Array:
        """A weight, as the first op sees it, as it is stored."""
        return self.source.as_stored(seen).astype(self.weight.dtype, copy=False)


@attrs.frozen(eq=False)
class _Pruned:
    """A layer's weight as it will be stored, a shift of its outputs [blocks, N] or None, and the account."""

    weight: Array
    shift: Array | None
    account: LayerAccount


class _Run:
    """One pass over the layers; every layer sees what was done to those before it."""

    def __init__(
        self, model: Model, network: Network, samples: Samples, config: PruneConfig, registry: Registry
    ) -> None:
        self._changes: dict[object, Change] = {}
        self._model = model
        self._network = network
        self._samples = samples
        self._config = config
        self._registry = registry
        self._tracer = Tracer()
        self._shifts = Shifts(model, network, self._tracer)

    def result(self) -> Model:
        """The model with all that was done."""
        return self._model.changed(self._changes.values()).with_biases(self._shifts.biases)

    def _change(self, changes: Iterable[Change]) -> None:
        # Of what was changed twice (a mean, moved and then measured anew) the last one holds.
        self._changes |= {tuple(leaf.location for leaf in read.leaves): (read, change) for read, change in changes}

    def renormalize(self, pruned: Iterable[Node]) -> list[NormalizationAccount]:
        """Measure the statistics of the batch normalizations behind pruned ops anew."""
        changes, accounts = renormalize(self._model, self._network, self._samples, pruned, self._tracer)
        self._change(changes)
        return accounts

    def treat(self, layer: PlannedLayer) -> LayerAccount:
        """Prune one layer."""
        account = LayerAccount(layer.decision.name, layer.decision.criterion)
        # Exporters leave dead copies of layers behind, which see nothing.
        uses = [Use(site, self._handler(site)) for site in layer.sites if self._network.computes(site.node)]
        obstacle = self._obstacle(uses)
        if obstacle:
            return self._by_weights(layer, attrs.evolve(account, criterion=_WITHOUT_INPUTS, note=obstacle))
        task = self._task(layer, uses)
        if task.criterion.needs == "weights" and not fits(task.config.repair):
            # No sums over the inputs are needed.
            pruned = self._measured(task, _Pruned(self._by_score(layer)(task.weight), None, account))
        else:
            pruned = self._solved(task, account)
            if "scale-shift" in task.config.repair:
                pruned = self._measured(task, pruned)
        self._network.set(task.edges, pruned.weight)
        self._change([(layer.source.read, lambda _: pruned.weight)])
        account = attrs.evolve(pruned.account, retained=_retained(task.weight, pruned.weight))
        if pruned.shift is None or isinstance(task.place, str):
            return account
        self._change(self._shifts.put(task.place, pruned.shift))
        return attrs.evolve(account, bias_added=isinstance(task.place, NewBias) and bool(pruned.shift.any()))

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
        change = self._by_score(layer, account.criterion)
        weight = self._weight(layer)
        pruned = change(weight)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self._change([(layer.source.read, change)])
        return attrs.evolve(account, retained=_retained(weight, pruned))

    def _by_score(self, layer: PlannedLayer, criterion: str = "") -> Callable[[Array], Array]:
        """What a criterion that goes by weights alone makes of a layer's weight."""
        decision = attrs.evolve(layer.decision, criterion=criterion or layer.decision.criterion)
        return functools.partial(pruned_weight, layer=attrs.evolve(layer, decision=decision), registry=self._registry)

    def _weight(self, layer: PlannedLayer) -> Array:
        return next(self._model.values(layer.source.read))[1]

    def _task(self, layer: PlannedLayer, uses: list[Use]) -> _Task:
        settings, _ = self._config.settings_for(layer.decision.name, layer.decision.op_type)
        criterion = self._registry.criterion(layer.decision.criterion)
        feeds = next(iter(self._samples)).feeds
        (form,) = Forms(self._network, uses[:1]).of(self._network.run([uses[0].data], feeds), feeds)
        place: Place = ""
        if criterion.needs == "statistics" or set(settings.repair) - {"batch-norm"}:
            nodes, computed = [site.node for site in layer.sites], [use.site.node for use in uses]
            place = self._shifts.place(nodes, computed, form, feeds)
        config = attrs.evolve(self._config, repair=settings.repair)
        return _Task(layer, uses, config, criterion, form, place, self._weight(layer))

    def _solved(self, task: _Task, account: LayerAccount) -> _Pruned:
        """By sums over the inputs."""
        decision, dense_path = task.layer.decision, task.config.target_path == "dense"
        assert decision.pattern is not None
        solved = solve_layer(
            task.source.as_op_sees(task.weight),
            collect(self._network, task.uses, self._samples, decision.name, decision.pattern, dense_path),
            task.criterion,
            decision.pattern,
            task.config,
            account,
            centered=not isinstance(task.place, str),
        )
        account = solved.account
        if isinstance(task.place, str) and account.damping:
            account = account.noted(task.place)
        return _Pruned(task.as_stored(solved.weight), solved.shift, account)

    def _measured(self, task: _Task, pruned: _Pruned) -> _Pruned:
        """By what the layer makes of its inputs with either weight: what is lost, and, where that is asked for, mean
        and deviation of its outputs restored."""
        dense_path = task.config.target_path == "dense"
        weights = task.edges, task.weight, pruned.weight
        sums = output_sums(self._network, task.uses, self._samples, task.name, weights, dense_path=dense_path)
        scaled = "scale-shift" in task.config.repair
        if not scaled or isinstance(task.place, str):
            note = task.place if scaled and isinstance(task.place, str) else ""
            return attrs.evolve(pruned, account=pruned.account.noted(note).measured(sums.error()), shift=None)
        found = scaled_outputs(sums, self._samples.count, guard=task.config.guard)
        if found.note:
            account = pruned.account.noted(found.note)
            # What was fitted keeps the mean shift that belongs to the fit.
            return attrs.evolve(pruned, account=account if account.damping else account.measured(found.error_mask))
        matrix = task.form.weight_matrix(task.source.as_op_sees(pruned.weight)) * found.scale[:, None, :]
        account = attrs.evolve(
            pruned.account.measured(found.error_mask),
            error_after=found.error,
            held_back=True,
            scaled=True,
            shifted=True,
        )
        return _Pruned(task.as_stored(task.form.weight_from_matrix(matrix)), found.shift, account)


def _retained(before: Array, after: Array) -> float:
    """The share of sum |w| of the weights that are still there."""
    whole = float(np.abs(before).sum(dtype=np.float64))
    return float(np.abs(before).sum(dtype=np.float64, where=after != 0)) / whole if whole else 1.0
