"""What calibration needs of one layer: how it is laid out as matrices, and sums over its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.calibration.layout import Layout
from sparsekit.calibration.network import Network
from sparsekit.calibration.samples import Samples
from sparsekit.errors import ModelError
from sparsekit.graph.node import Edge
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.matrix_form import Contraction, MatrixForm
from sparsekit.pattern import Pattern
from sparsekit.reconstruction import Statistics

Array: TypeAlias = npt.NDArray[Any]

# Convolutions lay every input value out as often as their kernel has positions: so many bytes at once.
_LOWERED_BYTES = 1 << 27


@attrs.frozen(eq=False)
class Use:
    """An op that uses a layer's weight, and its handler."""

    site: WeightSite
    handler: OpHandler

    @property
    def data(self) -> Edge:
        """What flows into it."""
        return self.site.node.inputs[self.handler.data_input(self.site)]

    @property
    def result(self) -> Edge:
        return Edge(self.site.node, 0)


@attrs.frozen(eq=False)
class Collected:
    """A layer's layout, and the statistics of the inputs of each block."""

    layout: Layout
    statistics: tuple[Statistics, ...]


def collect(
    network: Network, uses: Sequence[Use], samples: Samples, layer: str, pattern: Pattern, dense_path: bool
) -> Collected:
    """Sums over the inputs of all uses of a weight, pooled.

    Args:
        network: runs the model.
        uses: the ops.
        samples: the model's inputs.
        layer: named in errors.
        pattern: n and m of the groups.
        dense_path: whether the inputs that the dense network gives are collected too.

    Raises:
        ModelError: TensorFlow cannot run the model on the samples, or there are none.
    """
    data = [use.data for use in uses]
    forms = Forms(network, uses)
    collected: Collected | None = None
    for batch in samples:
        flows = network.run(data, batch.feeds)
        dense = network.run(data, batch.feeds, dense=True) if dense_path else [None] * len(uses)
        for use, form, flow, before in zip(uses, forms.of(flows, batch.feeds), flows, dense, strict=True):
            if collected is None:
                collected = _empty(form, use.site, layer, pattern, dense_path)
            layout = attrs.evolve(collected.layout, form=form)
            for part in _parts(form, flow):
                lowered = layout.lower(flow[part])
                lowered_before = None if before is None else layout.lower(before[part])
                for block, statistics in enumerate(collected.statistics):
                    statistics.add(
                        lowered[block],
                        batch.fold,
                        samples=len(flow[part]),
                        dense=None if lowered_before is None else lowered_before[block],
                    )
    if collected is None:
        raise ModelError("there are no calibration samples", where=layer)
    return collected


class Forms:
    """The matrix forms of ops, made again where the lengths of their data change."""

    def __init__(self, network: Network, uses: Sequence[Use]) -> None:
        self._network = network
        self._uses = uses
        self._made_for: list[tuple[int, ...]] = []
        self._forms: list[MatrixForm] = []

    def of(self, flows: Sequence[Array], feeds: Any) -> list[MatrixForm]:
        """The forms for data ``flows``, which a run on ``feeds`` gave."""
        lengths = [flow.shape[1:] for flow in flows]
        if lengths != self._made_for:
            results = self._network.run([use.result for use in self._uses], feeds)
            self._forms = [
                use.handler.matrix_form(use.site, flow.shape, result.shape)
                for use, flow, result in zip(self._uses, flows, results, strict=True)
            ]
            self._made_for = lengths
        return self._forms


def _empty(form: MatrixForm, site: WeightSite, layer: str, pattern: Pattern, dense_path: bool) -> Collected:
    shape = site.source.shape_at_op
    blocks, size, _ = form.weight_matrix(np.broadcast_to(np.float32(0), shape)).shape
    layout = Layout.of(form, size, shape[site.source.axis_at_op], pattern)
    filled = size if layout.padding is None else len(layout.padding)
    return Collected(layout, tuple(Statistics.empty(filled, dense_path=dense_path, layer=layer) for _ in range(blocks)))


def _parts(form: MatrixForm, data: Array) -> Iterator[slice]:
    """The data, a few samples at a time where laying it out takes much more memory."""
    if isinstance(form, Contraction) or len(data) < 2:
        yield slice(None)
        return
    _, rows, size = form.lower(data[:1]).shape
    step = max(1, _LOWERED_BYTES // max(1, rows * size * data.itemsize))
    for start in range(0, len(data), step):
        yield slice(start, start + step)
