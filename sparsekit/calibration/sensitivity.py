"""Sensitivity: each layer pruned alone, the others dense, and what that changes at its own and at the model's outputs.

Layers are pruned by magnitude, whatever criterion a config has for them: that takes no statistics, so a layer costs a
few runs of the model, and it is the worst that any criterion does (their masks start from there or are guarded by it).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.artefact.model import Model
from sparsekit.calibration.inlining import tensor_name
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.samples import Batch, Samples
from sparsekit.config import PruneConfig
from sparsekit.graph.node import Edge
from sparsekit.layer_sensitivity import LayerSensitivity, Sensitivity
from sparsekit.multiply_adds import MultiplyAdds
from sparsekit.one_shot import check_weights, pruned_weight
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.progress import track

Array: TypeAlias = npt.NDArray[Any]

SAMPLES = 32
"""So many samples are enough to rank layers, see `choose`."""


@attrs.frozen
class Errors:
    """What pruning some layers changes: ``own`` and ``at_outputs`` are `LayerSensitivity`'s, None where unknown."""

    own: float | None = None
    at_outputs: float | None = None
    note: str = ""

    @property
    def worst(self) -> float | None:
        return self.own if self.at_outputs is None else self.at_outputs


@attrs.frozen
class Measured:
    """The errors of layers.

    Attributes:
        layers: by the layer's name.
        together: at the model's outputs where all of them are pruned.
        samples: how many samples were used.
    """

    layers: Mapping[str, Errors]
    together: float | None
    samples: int


def sensitivity_of(
    model: Model,
    layers: Sequence[PlannedLayer],
    samples: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None = None,
) -> Sensitivity:
    """The sensitivity of every layer of a plan.

    Args:
        model: the model.
        layers: those that would be pruned.
        samples: inputs of the model, see `Samples`.
        config: what the plan was made from.
        registry: the plugins.
        outputs: the operations whose results are compared; None: those of the model.

    Raises:
        ModelError: a weight cannot be read or is not finite, or TensorFlow cannot run the model on the samples.
        CalibrationError: the samples do not fit the model.
    """
    check_weights(model, layers)
    work = MultiplyAdds(registry, model)
    with opened(model, outputs) as network, contextlib.closing(Samples(samples, network.inputs)) as batches:
        measured = measure(model, network, batches, layers, registry)
        compared = tuple(tensor_name(edge) for edge in network.results)
    found = [_described(layer, measured.layers[layer.decision.name], work) for layer in layers]
    found.sort(key=lambda layer: -1.0 if layer.worst is None else layer.worst, reverse=True)
    return Sensitivity(tuple(found), measured.together, compared, measured.samples, config)


def _described(layer: PlannedLayer, errors: Errors, work: MultiplyAdds) -> LayerSensitivity:
    decision = layer.decision
    assert decision.shape is not None and decision.pattern is not None
    return LayerSensitivity(
        name=decision.name,
        op_type=decision.op_type,
        uses=decision.uses,
        shape=decision.shape,
        pattern=decision.pattern,
        weights=math.prod(decision.shape),
        multiply_adds=work.of_layer(layer.sites),
        error=errors.own,
        output_error=errors.at_outputs,
        note=errors.note,
    )


def measure(
    model: Model,
    network: Network,
    samples: Samples,
    layers: Sequence[PlannedLayer],
    registry: Registry,
    *,
    own: bool = True,
    limit: int = SAMPLES,
) -> Measured:
    """Prune each layer alone, then all, and compare.

    Args:
        model: where the weights are stored.
        network: runs the model; no weight of it is set, before or after.
        samples: the model's inputs.
        layers: to be measured.
        registry: the plugins.
        own: measure the layers' own outputs too, which takes half as long again. Where the model has no outputs of
            floats, they are measured in any case.
        limit: samples to use, about.

    Raises:
        ModelError: TensorFlow cannot run the model on the samples.
    """
    probes = [_Probe.of(layer, model, network, registry, own or not network.results) for layer in layers]
    able = [probe for probe in probes if not probe.obstacle]
    together = _Comparison()
    batches = list(choose(samples, limit))
    dense: list[Array] = []
    for batch, probe in track([*itertools.product(batches, [None, *able])], "Measuring sensitivity"):
        feeds = batch.feeds
        if probe is None:  # a new batch
            dense = network.run(network.results, feeds, dense=True)
            with _pruned(network, able):
                together.add(dense, network.run(network.results, feeds))
            continue
        before = network.run(probe.results, feeds, dense=True) if probe.results else []
        with _pruned(network, [probe]):
            after = network.run([*probe.results, *network.results], feeds)
        probe.own.add(before, after[: len(before)])
        probe.at_outputs.add(dense, after[len(before) :])
    return Measured(
        {probe.layer.decision.name: probe.errors() for probe in probes},
        together.averaged(),
        sum(batch.samples for batch in batches),
    )


@attrs.frozen(eq=False)
class _Probe:
    """A layer on its way to be measured.

    Attributes:
        layer: the layer.
        weight: as it is stored, but pruned.
        edges: along which it flows.
        results: the layer's own outputs, as far as they can be fetched and are wanted.
        obstacle: why it cannot be measured, "" if it can.
        own, at_outputs: what was seen so far.
    """

    layer: PlannedLayer
    weight: Array | None
    edges: tuple[Edge, ...]
    results: tuple[Edge, ...] = ()
    obstacle: str = ""
    own: _Comparison = attrs.field(factory=lambda: _Comparison())
    at_outputs: _Comparison = attrs.field(factory=lambda: _Comparison())

    @classmethod
    def of(cls, layer: PlannedLayer, model: Model, network: Network, registry: Registry, own: bool) -> _Probe:
        sites = [site for site in layer.sites if network.computes(site.node)]
        edges = tuple(site.source.tensor for site in sites)
        results = tuple(Edge(site.node, 0) for site in sites)
        fetched = results if all(network.can_fetch(edge.node) for edge in results) else ()
        if not sites:
            return cls(layer, None, edges, obstacle="no run of the model computes it")
        if not all(network.can_fetch(edge.node) for edge in edges):
            return cls(layer, None, edges, obstacle="its weight is read in a loop or cond, where none can be put in")
        if not fetched and not network.results:
            return cls(layer, None, edges, obstacle="it lies in a loop or cond, and the model has no other outputs")
        decision = attrs.evolve(layer.decision, criterion="magnitude")
        dense = next(model.values(layer.source.read))[1]
        weight = pruned_weight(dense, attrs.evolve(layer, decision=decision), registry)
        return cls(layer, weight, edges, fetched if own else ())

    def errors(self) -> Errors:
        found = ((self.own, "own values"), (self.at_outputs, "at the outputs"))
        lost = ", ".join(f"{share} {what}" for comparison, what in found if (share := comparison.left_out()))
        note = f"infinite or NaN, so left out: {lost}" if lost else self.obstacle
        return Errors(self.own.pooled(), self.at_outputs.averaged(), note)


@contextlib.contextmanager
def _pruned(network: Network, probes: Sequence[_Probe]) -> Iterator[None]:
    """Within it the layers' weights are pruned."""
    for probe in probes:
        assert probe.weight is not None
        network.set(probe.edges, probe.weight)
    try:
        yield
    finally:
        for probe in probes:
            network.unset(probe.edges)


class _Comparison:
    """Tensors of the dense and of a pruned network, batch after batch; sums in float64.

    Where the dense network's values are not finite, nothing is compared.
    """

    def __init__(self) -> None:
        self._sums: list[_Sums] = []

    def add(self, dense: Sequence[Array], pruned: Sequence[Array]) -> None:
        """One more batch of the same tensors."""
        found = [_Sums.of(before, after) for before, after in zip(dense, pruned, strict=True)]
        self._sums = [a + b for a, b in zip(self._sums, found, strict=True)] if self._sums else found

    def pooled(self) -> float | None:
        """The squared change of all tensors together, relative to their square; None where they are zero."""
        squares = sum(sums.squares for sums in self._sums)
        return sum(sums.change for sums in self._sums) / squares if squares else None

    def averaged(self) -> float | None:
        """The squared change of every tensor relative to its square about its mean, averaged over the tensors that
        vary; None where none does."""
        shares = [sums.change / sums.variation for sums in self._sums if sums.variation > 0]
        return math.fsum(shares) / len(shares) if shares else None

    def left_out(self) -> str:
        """How many values were not compared, of how many; "" where all were."""
        left_out = sum(sums.left_out for sums in self._sums)
        return f"{left_out} of {left_out + sum(sums.count for sums in self._sums)}" if left_out else ""


@attrs.frozen
class _Sums:
    """Over the elements of a tensor: how many are not finite; of the others how many, their sum, their squares, their
    squared change."""

    left_out: int
    count: int
    total: float
    squares: float
    change: float

    @classmethod
    def of(cls, before: Array, after: Array) -> _Sums:
        finite = np.isfinite(before)
        dense = before[finite].astype(np.float64)
        # A result whose length follows from its values is lost as a whole where it has another one.
        lost = after[finite].astype(np.float64) - dense if after.shape == before.shape else dense
        with np.errstate(invalid="ignore", over="ignore"):
            change = float(lost @ lost)
        change = change if math.isfinite(change) else math.inf
        return cls(before.size - dense.size, dense.size, float(dense.sum()), float(dense @ dense), change)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(a + b for a, b in zip(attrs.astuple(self), attrs.astuple(other), strict=True)))

    @property
    def variation(self) -> float:
        """Squares about the mean; 0 where they are rounding."""
        found = self.squares - self.total * self.total / max(self.count, 1)
        return found if found > 1e-12 * self.squares else 0.0


def choose(samples: Samples, limit: int) -> Iterator[Batch]:
    """About ``limit`` samples, the same ones every time, evenly spread over all.

    Whole batches, or every so many samples of longer ones where a run takes any number of them.

    Args:
        samples: all.
        limit: how many; at least one batch is used.
    """
    wanted = min(len(samples), max(1, limit * len(samples) // samples.count))
    places = {i * len(samples) // wanted for i in range(wanted)}
    for place, batch in enumerate(samples):
        if place in places:
            step = -(-batch.samples * wanted // limit) if batch.split.fixed is None else 1
            yield batch.part(slice(None, None, max(step, 1)))
