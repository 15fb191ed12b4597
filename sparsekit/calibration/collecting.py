"""What calibration needs of one layer: its weight as matrices, and sums over its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.calibration.network import Network
from sparsekit.calibration.samples import Samples
from sparsekit.errors import ModelError
from sparsekit.graph.node import Edge
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.matrix_form import Contraction, MatrixForm
from sparsekit.planning import PlannedLayer
from sparsekit.reconstruction import Statistics

Array: TypeAlias = npt.NDArray[Any]

# Convolutions lay every input value out as often as their kernel has positions: so many bytes at once.
_LOWERED_BYTES = 1 << 27


@attrs.frozen(eq=False)
class Collected:
    """A layer as matrix products, one for each block.

    Rows of the matrices are filled up with zeros where a run of input channels ends in a shorter group and another
    run follows: groups must not reach over.

    Attributes:
        form: the layout.
        statistics: of the inputs of each block.
        run: how many rows belong together, see `MatrixForm`.
        filled: as many and those that were filled in.
        padding: bool [K], which rows were filled in; None where none were.
    """

    form: MatrixForm
    statistics: tuple[Statistics, ...]
    run: int
    filled: int
    padding: Array | None

    @classmethod
    def empty(
        cls, form: MatrixForm, shape: tuple[int, ...], layer: PlannedLayer, run: int, dense_path: bool
    ) -> Collected:
        """Nothing yet.

        Args:
            form: the layout.
            shape: [blocks, rows, K] of inputs.
            layer: the layer.
            run: see above.
            dense_path: whether inputs of the dense network come too.
        """
        blocks, _, size = shape
        pattern = layer.decision.pattern
        assert pattern is not None
        filled = run if size == run else run + -run % pattern.m
        padding = None
        if filled != run:
            padding = np.tile(np.arange(filled) >= run, size // run)
        statistics = (
            Statistics.empty(size // run * filled, dense_path=dense_path, layer=layer.decision.name)
            for _ in range(blocks)
        )
        return cls(form, tuple(statistics), run, filled, padding)

    def add(self, lowered: Array, dense: Array | None, fold: int, samples: int) -> None:
        """Add inputs [blocks, rows, K]."""
        for block, statistics in enumerate(self.statistics):
            before = None if dense is None else self._fill(dense[block], 1)
            statistics.add(self._fill(lowered[block], 1), fold, samples=samples, dense=before)

    def matrices(self, seen: Array) -> list[Array]:
        """A weight, as the op sees it, as the matrices [K, N] of the blocks."""
        return [self._fill(matrix, 0) for matrix in self.form.weight_matrix(seen)]

    def weight(self, matrices: Sequence[Array]) -> Array:
        """The inverse of `matrices`."""
        return self.form.weight_from_matrix(np.stack([self._drop(matrix) for matrix in matrices]))

    def _fill(self, matrix: Array, axis: int) -> Array:
        if self.padding is None:
            return matrix
        shape = list(matrix.shape)
        shape[axis] = len(self.padding)
        result = np.zeros(shape, matrix.dtype)
        kept = np.flatnonzero(~self.padding)
        result[(slice(None),) * axis + (kept,)] = matrix
        return result

    def _drop(self, matrix: Array) -> Array:
        return matrix if self.padding is None else matrix[~self.padding]


def collect(
    network: Network,
    sites: Sequence[WeightSite],
    handlers: Sequence[OpHandler],
    samples: Samples,
    layer: PlannedLayer,
    dense_path: bool,
) -> Collected:
    """Sums over the inputs of all uses of a weight, pooled.

    Raises:
        ModelError: TensorFlow cannot run the model on the samples, or there are none.
    """
    data = [site.node.inputs[handler.data_input(site)] for site, handler in zip(sites, handlers, strict=True)]
    results = [Edge(site.node, 0) for site in sites]
    collected: Collected | None = None
    for batch in samples:
        flows = network.run([*data, *results], batch.feeds)
        dense = network.run(data, batch.feeds, dense=True) if dense_path else [None] * len(sites)
        for i, (site, handler) in enumerate(zip(sites, handlers, strict=True)):
            form = handler.matrix_form(site, flows[i].shape, flows[len(sites) + i].shape)
            for part, before in _parts(form, flows[i], dense[i]):
                lowered = form.lower(part)
                if collected is None:
                    run = site.source.shape_at_op[site.source.axis_at_op]
                    collected = Collected.empty(form, lowered.shape, layer, run, dense_path)
                collected.add(lowered, None if before is None else form.lower(before), batch.fold, len(part))
    if collected is None:
        raise ModelError("there are no calibration samples", where=layer.decision.name)
    return collected


def _parts(form: MatrixForm, data: Array, dense: Array | None) -> Iterator[tuple[Array, Array | None]]:
    """The data, a few samples at a time where laying it out takes much more memory."""
    if isinstance(form, Contraction) or len(data) < 2:
        yield data, dense
        return
    _, rows, size = form.lower(data[:1]).shape
    step = max(1, _LOWERED_BYTES // max(1, rows * size * data.itemsize))
    for start in range(0, len(data), step):
        yield data[start : start + step], None if dense is None else dense[start : start + step]
