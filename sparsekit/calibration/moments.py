"""Scale and shift of a layer's outputs: what it takes is summed over the outputs, a few vectors a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.calibration.collecting import Forms, Use
from sparsekit.calibration.network import Network
from sparsekit.calibration.samples import Samples
from sparsekit.calibration.solving import FEW_SAMPLES, FEWEST_ROWS
from sparsekit.errors import ModelError
from sparsekit.graph.node import Edge
from sparsekit.reconstruction import OutputMoments, scale_shift
from sparsekit.reconstruction.repair import deviation

Array: TypeAlias = npt.NDArray[Any]
_FOLDS = 2


@attrs.define(eq=False)
class OutputSums:
    """Sums over the rows of a layer's outputs, apart for each fold: of what they should be, Y, and are, Z.

    Attributes:
        rows: int64 [folds].
        sums: of Y, Z, Y^2, Z^2 and Y Z, float64 [5, folds, blocks, N].
    """

    rows: Array
    sums: Array

    @classmethod
    def empty(cls, blocks: int, columns: int) -> OutputSums:
        return cls(np.zeros(_FOLDS, np.int64), np.zeros((5, _FOLDS, blocks, columns)))

    def add(self, wanted: Array, found: Array, fold: int) -> None:
        """Add outputs [blocks, rows, N]."""
        wanted, found = wanted.astype(np.float64), found.astype(np.float64)
        self.rows[fold] += wanted.shape[1]
        self.sums[0, fold] += wanted.sum(axis=1)
        self.sums[1, fold] += found.sum(axis=1)
        for index, (a, b) in enumerate(((wanted, wanted), (found, found), (wanted, found)), 2):
            self.sums[index, fold] += np.einsum("brn,brn->bn", a, b)

    def of(self, folds: Sequence[int]) -> OutputSums:
        """Those of some folds alone."""
        chosen = np.isin(np.arange(_FOLDS), folds)
        return OutputSums(self.rows * chosen, self.sums * chosen[:, None, None])

    @property
    def filled(self) -> list[int]:
        """The folds that have rows."""
        return [int(fold) for fold in np.flatnonzero(self.rows)]

    def scale_shift(self) -> tuple[Array, Array]:
        """What gives Z mean and standard deviation of Y: (scale, shift), [blocks, N] each."""
        wanted, found, wanted_squares, found_squares, _ = self.sums.sum(axis=1) / max(int(self.rows.sum()), 1)
        return scale_shift(
            OutputMoments(wanted, deviation(wanted, wanted_squares)),
            OutputMoments(found, deviation(found, found_squares)),
        )

    def error(self, scale: Array | float = 1.0, shift: Array | float = 0.0) -> float:
        """``|Y - scale Z - shift|^2 / |Y|^2``; 0.0 where Y is zero."""
        wanted, found, wanted_squares, found_squares, products = self.sums.sum(axis=1)
        rows = int(self.rows.sum())
        lost = wanted_squares + scale**2 * found_squares + rows * np.square(shift) - 2 * scale * products
        lost += 2 * shift * (scale * found - wanted)
        energy = float(wanted_squares.sum())
        return max(float(lost.sum()), 0.0) / energy if energy > 0 else 0.0

    def held_back(self) -> tuple[float, float]:
        """Errors on rows that were not looked at, each fold's by the other's: as they are, scaled and shifted."""
        as_found = scaled = energy = 0.0
        for fold in self.filled:
            scored = self.of([fold])
            weight = float(scored.sums[2].sum())
            as_found += weight * scored.error()
            scaled += weight * scored.error(*self.of([other for other in self.filled if other != fold]).scale_shift())
            energy += weight
        return (as_found / energy, scaled / energy) if energy > 0 else (0.0, 0.0)


@attrs.frozen(eq=False)
class Scaled:
    """What is done to a layer's outputs: Z becomes ``scale * Z + shift``.

    Attributes:
        scale, shift: [blocks, N].
        error_mask, error: before and after, as shares of the energy of Y, on rows that were not looked at.
        note: why nothing is done, "" if something is.
    """

    scale: Array
    shift: Array
    error_mask: float
    error: float
    note: str = ""


def scaled_outputs(sums: OutputSums, samples: int, *, guard: bool) -> Scaled:
    """What restores mean and standard deviation of every output.

    Args:
        sums: over the outputs.
        samples: how many there were.
        guard: leave outputs alone where that is worse on rows that were not looked at; few samples are always guarded.
    """
    scale, shift = sums.scale_shift()
    before, after, held_back = sums.error(), sums.error(scale, shift), len(sums.filled) > 1
    if held_back:
        before, after = sums.held_back()
    note = ""
    if not held_back:
        note = "mean and deviation are not restored from one sample"
    elif min(sums.rows[sums.filled]) < FEWEST_ROWS:
        note = f"mean and deviation are not restored from fewer than {FEWEST_ROWS} rows of outputs in either half"
    elif (guard or samples < FEW_SAMPLES) and after > before:
        note = f"with mean and deviation restored held-back samples lose {after:.3g}, with the mask alone {before:.3g}"
    return Scaled(scale, shift, before, before if note else after, note)


def output_sums(
    network: Network,
    uses: Sequence[Use],
    samples: Samples,
    layer: str,
    weights: tuple[Sequence[Edge], Array, Array],
    *,
    dense_path: bool,
) -> OutputSums:
    """Run a layer with its old and its new weight, on the inputs that the pruned layers before it leave it.

    Args:
        network: runs the model.
        uses: the ops that use the weight.
        samples: the model's inputs.
        layer: named in errors.
        weights: what reads the weight, the dense one, and the pruned one, which flows there from now on.
        dense_path: the outputs of the dense network are wanted, not those of the dense weight.

    Raises:
        ModelError: TensorFlow cannot run the model on the samples, or outputs are not finite.
    """
    edges, before, after = weights
    data, results = [use.data for use in uses], [use.result for use in uses]
    forms = Forms(network, uses)
    sums: OutputSums | None = None
    for batch in samples:
        network.set(edges, before)
        wanted = network.run(results, batch.feeds, dense=dense_path)
        network.set(edges, after)
        seen = network.run([*data, *results], batch.feeds)
        flows, found = seen[: len(data)], seen[len(data) :]
        for form, y, z in zip(forms.of(flows, batch.feeds), wanted, found, strict=True):
            _refuse_non_finite(y, layer)
            _refuse_non_finite(z, layer)
            y, z = form.output_matrix(y), form.output_matrix(z)
            sums = sums or OutputSums.empty(y.shape[0], y.shape[2])
            sums.add(y, z, batch.fold)
    if sums is None:
        raise ModelError("there are no calibration samples", where=layer)
    return sums


def _refuse_non_finite(outputs: Array, layer: str) -> None:
    finite = np.isfinite(outputs)
    if not finite.all():
        raise ModelError(
            f"{outputs.size - np.count_nonzero(finite)} of {outputs.size} of its outputs on the calibration samples "
            "are NaN or infinite",
            where=layer,
            expected="finite outputs",
            hint="Look at the calibration samples, and at the layers before this one.",
        )
