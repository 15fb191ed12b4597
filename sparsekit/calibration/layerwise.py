"""Layers in the order of the graph, each solved on the inputs that the already pruned ones before it leave it."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.bias import BiasSite, bias_of, read_elsewhere
from sparsekit.calibration.collecting import Collected, collect
from sparsekit.calibration.inlining import inlined, order_of
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.repairs import repaired
from sparsekit.calibration.samples import Samples
from sparsekit.config import PruneConfig
from sparsekit.graph.node import Edge, FunctionView, Node
from sparsekit.graph.trace import Tracer
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.matrix_form import MatrixForm
from sparsekit.one_shot import pruned_weight, refuse_non_finite
from sparsekit.pattern import Pattern
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.progress import track
from sparsekit.reconstruction import LayerProblem, mean_shift
from sparsekit.result import LayerAccount

Array: TypeAlias = npt.NDArray[Any]
_WITHOUT_INPUTS = "magnitude"


def prune_calibrated(
    model: Model,
    layers: Sequence[PlannedLayer],
    samples: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None = None,
) -> tuple[Model, tuple[LayerAccount, ...]]:
    """A model with masks and weights chosen on sample inputs; the given one is not modified.

    Args:
        model: the model.
        layers: those to be pruned.
        samples: inputs of the model, see `Samples`.
        config: effort, repairs, whose outputs are matched.
        registry: the plugins.
        outputs: the operations whose results are used; None: those of the model.

    Returns:
        The pruned model, and an account of every layer, in the order in which they were treated.

    Raises:
        ModelError: a weight cannot be read or is not finite, or TensorFlow cannot run the model on the samples.
        CalibrationError: the samples do not fit the model.
    """
    for layer in layers:
        for _, weight in model.values(layer.source.read):
            refuse_non_finite(weight, layer.decision.name, layer.decision.weight)
    changes: list[Change] = []
    accounts = []
    with opened(model) as network, contextlib.closing(Samples(samples, network.inputs)) as batches:
        run = _Run(model, network, batches, config, registry)
        for layer in track(_in_order(model, layers), "Calibrating"):
            begun = time.process_time()
            account = run.treat(layer)
            accounts.append(attrs.evolve(account, seconds=time.process_time() - begun))
        changes = run.changes
    return model.changed(changes), tuple(accounts)


def _in_order(model: Model, layers: Iterable[PlannedLayer]) -> list[PlannedLayer]:
    """A layer comes after those that its inputs are made by: the order of the first of its uses."""
    order = order_of(inlined(model.view))

    def place(node: Node) -> int:
        # A node in the body of a loop runs with the loop.
        while node.path not in order and isinstance(node.view, FunctionView):
            node = node.view.call
        return order.get(node.path, 0)

    return sorted(layers, key=lambda layer: min(place(site.node) for site in layer.sites))


@attrs.frozen(eq=False)
class _Bias:
    """The bias of a layer: where it is stored, all edges that read it; and for every column of the layer's matrices,
    [blocks, N], its place in the bias and the factor that comes between."""

    site: BiasSite
    edges: tuple[Edge, ...]
    places: Array
    factor: Array


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
        sites = [site for site in layer.sites if self._network.computes(site.node)]
        note = self._obstacle(sites)
        if note:
            return self._by_weights(layer, attrs.evolve(account, criterion=_WITHOUT_INPUTS, note=note))
        return self._by_statistics(layer, sites, account)

    def _obstacle(self, sites: list[WeightSite]) -> str:
        """Why a layer's inputs cannot be had."""
        if not sites:
            return "no run of the model computes it"
        if not all(self._network.can_fetch(site.node) for site in sites):
            return "it lies in a loop or cond, where its inputs cannot be fetched"
        lacking = [site.node.op for site in sites if not self._handler(site).has_matrix_form]
        return f"{lacking[0]} has no matrix form" if lacking else ""

    def _handler(self, site: WeightSite) -> OpHandler:
        handler = self._registry.handler(site.node.op)
        assert handler is not None
        return handler

    def _by_weights(self, layer: PlannedLayer, account: LayerAccount) -> LayerAccount:
        decision = attrs.evolve(layer.decision, criterion=account.criterion)
        change = functools.partial(pruned_weight, layer=attrs.evolve(layer, decision=decision), registry=self._registry)
        self._network.set((site.source.tensor for site in layer.sites), change(self._weight(layer)))
        self.changes.append((layer.source.read, change))
        return account

    def _weight(self, layer: PlannedLayer) -> Array:
        return next(self._model.values(layer.source.read))[1]

    def _by_statistics(self, layer: PlannedLayer, sites: list[WeightSite], account: LayerAccount) -> LayerAccount:
        weight = self._weight(layer)
        dense_path = self._config.target_path == "dense"
        found = collect(self._network, sites, [self._handler(site) for site in sites], self._samples, layer, dense_path)
        bias = self._bias(layer, sites[0], found.form)
        criterion = self._registry.criterion(layer.decision.criterion)
        problems = self._problems(layer, found, sites[0].source.as_op_sees(weight), bias is not None)
        solutions = [repaired(problem, criterion.solve(problem), self._config.repair) for problem in problems]
        pruned = found.weight([solution.weight for solution in solutions])
        pruned = sites[0].source.as_stored(pruned).astype(weight.dtype, copy=False)
        self._network.set((site.source.tensor for site in layer.sites), pruned)
        self.changes.append((layer.source.read, lambda _: pruned))
        # A mean shift after a mask alone does harm.
        refitted = bias is not None and all(solution.damping for solution in solutions)
        if bias is not None and refitted:
            shift = [
                mean_shift(p.weight, s.weight, p.statistics, p.target) for p, s in zip(problems, solutions, strict=True)
            ]
            self._shift(bias, np.stack(shift))
        size = sum(problem.weight.size for problem in problems)
        return attrs.evolve(
            account,
            error_before=sum(s.error_before * p.weight.size for p, s in zip(problems, solutions, strict=True)) / size,
            error_after=sum(s.error_after * p.weight.size for p, s in zip(problems, solutions, strict=True)) / size,
            damping=max(solution.damping for solution in solutions),
            iterations=max(solution.iterations for solution in solutions),
            shifted=refitted,
            note="; ".join(dict.fromkeys(solution.fallback for solution in solutions if solution.fallback)),
        )

    def _problems(self, layer: PlannedLayer, found: Collected, seen: Array, centered: bool) -> list[LayerProblem]:
        pattern = layer.decision.pattern
        assert isinstance(pattern, Pattern)
        return [
            LayerProblem(
                weight=matrix,
                statistics=statistics,
                pattern=pattern,
                effort=self._config.effort,
                target="dense" if self._config.target_path == "dense" else "own",
                centered=centered,
                padding=found.padding,
            )
            for matrix, statistics in zip(found.matrices(seen), found.statistics, strict=True)
        ]

    def _bias(self, layer: PlannedLayer, site: WeightSite, form: MatrixForm) -> _Bias | None:
        """Where a shift of the layer's outputs can go, None where there is no bias of its own, channel by channel.

        Args:
            layer: the layer.
            site: one of its uses that a run computes.
            form: its matrix form.
        """
        found = [bias_of(use.node, self._tracer) for use in layer.sites]
        biases = [bias for bias in found if bias is not None]
        if len(biases) < len(found) or len({(bias.key, bias.sign) for bias in biases}) != 1:
            return None
        bias = biases[layer.sites.index(site)]
        if self._model.obstacle(bias.read) or read_elsewhere(biases) or not self._network.can_fetch(bias.adder):
            return None
        batch = next(iter(self._samples))
        edges = [Edge(site.node, 0), bias.summand, bias.added, *(edge for pair in bias.factors for edge in pair)]
        output, summand, added, *multiplied = self._network.run(edges, batch.feeds)
        if bias.read.shape is None or math.prod(bias.read.shape) != added.size:
            return None
        if bias.channel_axis is not None:
            axis = bias.channel_axis % summand.ndim
            added = added.reshape([-1 if i == axis else 1 for i in range(summand.ndim)])
        places = _by_column(np.arange(added.size).reshape(added.shape), summand.shape, output.shape, form)
        if places is None or sorted(places.ravel()) != list(range(added.size)):
            return None
        factor = np.ones(places.shape)
        for value, outputs in zip(multiplied[::2], multiplied[1::2], strict=True):
            columns = _by_column(value, outputs.shape, output.shape, form)
            if columns is None:
                return None
            factor = factor * columns
        return _Bias(bias, tuple(other.edge for other in biases), places, factor)

    def _shift(self, bias: _Bias, shift: Array) -> None:
        """Add to the bias what pruning took from the mean outputs, [blocks, N]."""
        by = np.zeros(bias.places.size)
        by[bias.places.ravel()] = (bias.site.sign * shift * bias.factor).ravel()
        change = functools.partial(_moved, by=by)
        self.changes.append((bias.site.read, change))
        self._network.set(bias.edges, change(next(self._model.values(bias.site.read))[1]))


def _by_column(
    values: Array, combined_shape: tuple[int, ...], output_shape: tuple[int, ...], form: MatrixForm
) -> Array | None:
    """Values that are combined with an op's output, one for every column of its matrix form: [blocks, N]; None where
    they are not the same in all rows.

    Args:
        values: to be broadcast.
        combined_shape: of the output where it is combined with them.
        output_shape: of the output as the op returns it.
        form: the op's matrix form.
    """
    try:
        matrix = form.output_matrix(np.broadcast_to(values, combined_shape).reshape(output_shape))
    except ValueError:  # the result is larger than the output
        return None
    first: Array = matrix[:, 0, :]
    return first if matrix.shape[1] and (matrix == first[:, None, :]).all() else None


def _moved(value: Array, by: Array) -> Array:
    return (value + by.reshape(value.shape)).astype(value.dtype)
