"""What calibration needs of one layer: how it is laid out as matrices, and sums over its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.calibration.layout import Layout
from sparsekit.calibration.network import Network
from sparsekit.calibration.samples import Batch, Samples
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
    collector = Collector(network, uses, layer, pattern, dense_path)
    for batch in samples:
        flows = network.run(collector.data, batch.feeds)
        dense = network.run(collector.data, batch.feeds, dense=True) if dense_path else None
        collector.add(batch, flows, dense)
    return Collected(collector.layout, collector.take())


class Collector:
    """Adds what flows into the uses of a weight to the sums of its layer, batch by batch.

    Attributes:
        data: what is to be fetched of every batch.
    """

    def __init__(
        self, network: Network, uses: Sequence[Use], layer: str, pattern: Pattern, dense_path: bool = False
    ) -> None:
        self.data = [use.data for use in uses]
        self._uses = uses
        self._layer = layer
        self._pattern = pattern
        self._dense_path = dense_path
        self._forms = _Forms(network, uses)
        self._layout: Layout | None = None
        self._sums: tuple[Statistics, ...] = ()

    @property
    def layout(self) -> Layout:
        """The layer's layout for the data of the first batch.

        Raises:
            ModelError: no batch was added.
        """
        if self._layout is None:
            raise ModelError("there are no calibration samples", where=self._layer)
        return self._layout

    def lay_out(self, feeds: Any, flows: Sequence[Array]) -> tuple[int, int]:
        """Learn the layout from a batch without adding it.

        Returns:
            How many Gram matrices the layer has, and K, how many rows and columns each has.
        """
        form, site = self._forms.of(flows, feeds)[0], self._uses[0].site
        shape = site.source.shape_at_op
        blocks, size, _ = form.weight_matrix(np.broadcast_to(np.float32(0), shape)).shape
        if self._layout is None:
            self._layout = Layout.of(form, size, shape[site.source.axis_at_op], self._pattern)
        padding = self._layout.padding
        return blocks, size if padding is None else len(padding)

    def add(self, batch: Batch, flows: Sequence[Array], dense: Sequence[Array] | None = None) -> None:
        """Add a batch.

        Args:
            batch: the batch.
            flows: what its run gave along ``data``.
            dense: what the dense network gave there, where the layer is matched to that.
        """
        if not self._sums:
            blocks, size = self.lay_out(batch.feeds, flows)
            self._sums = tuple(
                Statistics.empty(size, dense_path=self._dense_path, layer=self._layer) for _ in range(blocks)
            )
        befores: Sequence[Array | None] = dense or [None] * len(flows)
        for form, flow, before in zip(self._forms.of(flows, batch.feeds), flows, befores, strict=True):
            layout = attrs.evolve(self.layout, form=form)
            for part in _parts(form, flow):
                lowered = layout.lower(flow[part])
                lowered_before = None if before is None else layout.lower(before[part])
                for block, statistics in enumerate(self._sums):
                    statistics.add(
                        lowered[block],
                        batch.fold,
                        samples=len(flow[part]),
                        dense=None if lowered_before is None else lowered_before[block],
                    )

    def take(self) -> tuple[Statistics, ...]:
        """The sums of what was added since they were taken last, a block each."""
        sums, self._sums = self._sums, ()
        return sums


class _Forms:
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


def _parts(form: MatrixForm, data: Array) -> Iterator[slice]:
    """The data, a few samples at a time where laying it out takes much more memory."""
    if isinstance(form, Contraction) or len(data) < 2:
        yield slice(None)
        return
    _, rows, size = form.lower(data[:1]).shape
    step = max(1, _LOWERED_BYTES // max(1, rows * size * data.itemsize))
    for start in range(0, len(data), step):
        yield slice(start, start + step)
