"""All layers on what flows into them in the dense network: few passes over the samples, and layers in any order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import attrs

from sparsekit.calibration.collecting import Collected, Collector, Use
from sparsekit.calibration.cost import Cost, costs
from sparsekit.calibration.layout import Layout
from sparsekit.calibration.network import Network
from sparsekit.calibration.ordered_sum import OrderedSum
from sparsekit.calibration.placing import Place
from sparsekit.calibration.resuming import FinishedLayers
from sparsekit.calibration.samples import Batch, Samples
from sparsekit.calibration.solving import SolvedLayer
from sparsekit.calibration.treatment import Treatment
from sparsekit.planning import PlannedLayer
from sparsekit.progress import estimated
from sparsekit.reconstruction import Statistics
from sparsekit.result import LayerAccount

Sums: TypeAlias = tuple[Statistics, ...]

BATCHES_PER_SHARD = 8
"""Sums of so many batches are made one batch after the other, and then added along a tree. It is the same for everybody
who computes them: it decides over the last bits."""

MEMORY_LIMIT = 1 << 30
"""Bytes that the sums of one pass and the data for them may take; a larger layer has a pass of its own."""

_FOLDS = 2


@attrs.frozen(eq=False)
class OnePassLayer:
    """A layer that is calibrated.

    Attributes:
        layer: of the plan.
        uses: the ops that use its weight in a run.
        layout: as matrices.
        place: where a shift of its mean outputs can be stored.
        sum_bytes: of its sums.
        data_bytes: of what flows into it for a batch.
        cost: its work.
    """

    layer: PlannedLayer
    uses: tuple[Use, ...]
    layout: Layout
    place: Place
    sum_bytes: int
    data_bytes: int
    cost: Cost

    @property
    def name(self) -> str:
        return self.layer.decision.name

    def load(self, finished: FinishedLayers) -> SolvedLayer | None:
        """What became of it; None where it is not solved."""
        return finished.load(self.name, self.uses[0].site.source.shape_at_op)


Solver: TypeAlias = Callable[[Sequence[OnePassLayer]], Iterable[tuple[OnePassLayer, SolvedLayer]]]
"""Gives every layer with what becomes of it, in any order."""


def look_at(
    layer: PlannedLayer, uses: Sequence[Use], cost: Cost, network: Network, treatment: Treatment
) -> OnePassLayer:
    """What the treatment's one batch tells of a layer.

    Raises:
        ModelError: TensorFlow cannot run the model on the batch.
    """
    collector = collector_of(network, uses, layer)
    flows = network.run(collector.data, treatment.feeds, dense=True)
    blocks, size = collector.lay_out(treatment.feeds, flows)
    layout = collector.layout
    return OnePassLayer(
        layer,
        tuple(uses),
        layout,
        treatment.place(layer, uses, layout.form),
        sum_bytes=8 * _FOLDS * blocks * size * (size + 1),
        data_bytes=sum(flow.nbytes for flow in flows),
        cost=cost,
    )


def collector_of(network: Network, uses: Sequence[Use], layer: PlannedLayer) -> Collector:
    """What adds up the inputs of a layer in the dense network."""
    assert layer.decision.pattern is not None
    return Collector(network, uses, layer.decision.name, layer.decision.pattern)


def shards(batches: int) -> list[range]:
    """The numbers of the batches that each part of the sums is made of."""
    return [range(start, min(start + BATCHES_PER_SHARD, batches)) for start in range(0, batches, BATCHES_PER_SHARD)]


def grouped(layers: Iterable[OnePassLayer], shard_count: int) -> list[list[OnePassLayer]]:
    """The layers that have a pass over the samples together, in their order.

    Args:
        layers: the layers.
        shard_count: how many shards there are: a few of their sums are held at once.
    """
    held = 2 + math.ceil(math.log2(shard_count)) if shard_count > 1 else 1
    groups: list[list[OnePassLayer]] = []
    room = 0
    for layer in layers:
        size = held * layer.sum_bytes + layer.data_bytes
        room -= size
        if not groups or room < 0:
            groups.append([])
            room = MEMORY_LIMIT - size
        groups[-1].append(layer)
    return groups


def sums_of_shard(network: Network, collectors: Sequence[Collector], batches: Iterable[Batch]) -> Iterator[Sums]:
    """The sums of one shard for every collector."""
    for collector in collectors:
        collector.take()  # what is left of a shard that could not be read to its end
    edges = [edge for collector in collectors for edge in collector.data]
    for batch in batches:
        flows = iter(network.run(edges, batch.feeds, dense=True))
        for collector in collectors:
            collector.add(batch, [next(flows) for _ in collector.data])
    for collector in collectors:
        yield collector.take()


def added(a: Sums, b: Sums) -> Sums:
    """Two sums of a layer as one."""
    return tuple(one + other for one, other in zip(a, b, strict=True))


def prune_in_one_pass(
    layers: Sequence[PlannedLayer],
    network: Network,
    treatment: Treatment,
    samples: int,
    finished: FinishedLayers | None,
    solver: Solver,
) -> Iterator[LayerAccount]:
    """Prune layers, each on what flows into it in the dense network.

    Args:
        layers: in the order of the graph.
        network: runs the model; its weights are as they are stored.
        treatment: of the layers.
        samples: how many there are.
        finished: layers that need not be solved any more.
        solver: solves those that must be, in any order.

    Yields:
        The account of every layer, in their order.
    """
    uses = {layer: treatment.uses(layer) for layer in layers}
    obstacles = {layer: treatment.obstacle(layer, uses[layer]) for layer in layers}
    calibrated = [layer for layer in layers if not obstacles[layer]]
    work = costs([uses[layer] for layer in calibrated], samples)
    seen = {
        layer: look_at(layer, uses[layer], cost, network, treatment)
        for layer, cost in zip(calibrated, work, strict=True)
    }
    solved = {layer: seen[layer].load(finished) if finished else None for layer in calibrated}
    for done, solution in solver([seen[layer] for layer in calibrated if solved[layer] is None]):
        solved[done.layer] = solution
    for layer in layers:
        if obstacles[layer]:
            yield treatment.by_weights(layer, obstacles[layer])
            continue
        became = solved[layer]
        assert became is not None
        yield treatment.apply(layer, uses[layer], became, seen[layer].place)


def solver_of_this_process(
    network: Network, samples: Samples, treatment: Treatment, finished: FinishedLayers | None
) -> Solver:
    """Solves one layer after the other.

    Args:
        network: runs the model.
        samples: the model's inputs.
        treatment: of the layers.
        finished: keeps what is solved.
    """

    def solve(layers: Sequence[OnePassLayer]) -> Iterator[tuple[OnePassLayer, SolvedLayer]]:
        parts = shards(len(samples))
        groups = grouped(layers, len(parts))
        passes = [sum(member.cost.forward + member.cost.sums for member in group) for group in groups]
        with estimated("Calibrating", sum(passes) + sum(layer.cost.solution for layer in layers)) as advance:
            for group, work in zip(groups, passes, strict=True):
                collectors = [collector_of(network, member.uses, member.layer) for member in group]
                totals: list[OrderedSum[Sums]] = [OrderedSum(added) for _ in group]
                for number, part in enumerate(parts):
                    sums = sums_of_shard(network, collectors, (samples[index] for index in part))
                    for total, of_shard in zip(totals, sums, strict=True):
                        total.insert(number, of_shard)
                    advance(work / len(parts))
                for member in group:
                    collected = Collected(member.layout, totals.pop(0).total(len(parts)))
                    begun = time.process_time()
                    solved = treatment.solve(member.layer, member.uses[0], collected, not isinstance(member.place, str))
                    solved = timed(solved, begun)
                    if finished:
                        finished.save(member.name, solved)
                    advance(member.cost.solution)
                    yield member, solved

    return solve


def timed(solved: SolvedLayer, begun: float) -> SolvedLayer:
    """With the CPU time that it took since ``begun`` in its account."""
    seconds = time.process_time() - begun
    return attrs.evolve(solved, account=attrs.evolve(solved.account, seconds=seconds))
