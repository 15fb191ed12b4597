"""What calibration keeps of a layer's inputs: sums over rows, from which every solver works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.errors import SparsekitError

Array = npt.NDArray[Any]

# Rows in one GEMM: few enough that a float32 sum keeps 6 digits, many enough that the GEMM is fast.
_ROWS = 8192
# Squares of what lies between these, and their sums over `_ROWS`, neither overflow nor vanish in float32.
_FLOAT32_SAFE = (1e-15, 1e15)
# The share of a sum of squares that float32 sums may be off by.
_ROUNDING = 1e-6


@attrs.define(eq=False)
class Statistics:
    """Sums over the rows of X, apart for each fold. An accumulator: `add` changes it, ``+`` makes a new one.

    Sums are associative: batches may come in any order and from several processes (then ``+``). Split samples over
    the folds by sample, never by row (the positions of one image resemble each other): cross-validation relies on it.

    Attributes:
        gram: X'X, float64 [folds, K, K].
        column_sum: float64 [folds, K].
        rows: rows of X, int64 [folds].
        samples: what the caller counts as samples, int64 [folds].
        cross_gram: X'D, float64 [folds, K, K]; D [rows, K] is what the layer's input was before anything upstream was
            pruned. None where it is not collected.
        dense_sum: of the columns of D, float64 [folds, K], or None.
        layer: named in errors.
    """

    gram: Array = attrs.field(repr=False)
    column_sum: Array = attrs.field(repr=False)
    rows: Array
    samples: Array
    cross_gram: Array | None = attrs.field(default=None, repr=False)
    dense_sum: Array | None = attrs.field(default=None, repr=False)
    layer: str = ""

    @classmethod
    def empty(cls, size: int, folds: int = 2, *, dense_path: bool = False, layer: str = "") -> Statistics:
        """No rows yet.

        Args:
            size: K.
            folds: how many parts the samples are split into; 2 for cross-validated damping.
            dense_path: whether `add` will get the inputs of the dense network too.
            layer: named in errors.

        Raises:
            SparsekitError: fewer than one input or fold.
        """
        if size < 1 or folds < 1:
            raise SparsekitError(f"{size} inputs, {folds} folds", where=layer or "statistics", expected="1 or more")
        return cls(
            gram=np.zeros((folds, size, size)),
            column_sum=np.zeros((folds, size)),
            rows=np.zeros(folds, np.int64),
            samples=np.zeros(folds, np.int64),
            cross_gram=np.zeros((folds, size, size)) if dense_path else None,
            dense_sum=np.zeros((folds, size)) if dense_path else None,
            layer=layer,
        )

    @property
    def size(self) -> int:
        """K, the number of inputs."""
        return self.gram.shape[1]

    @property
    def folds(self) -> int:
        return self.gram.shape[0]

    def add(
        self, inputs: npt.ArrayLike, fold: int = 0, *, samples: int | None = None, dense: npt.ArrayLike | None = None
    ) -> None:
        """Add a batch.

        float64 is multiplied in float64; anything else in float32, in blocks of rows whose products are summed in
        float64 (values beyond 1e15 in float64 too, where float32 squares would overflow).

        Args:
            inputs: X [rows, K] of any real dtype.
            fold: 0 ... folds - 1.
            samples: how many samples the rows come from; None: every row is one.
            dense: D [rows, K], if the statistics were made with ``dense_path``.

        Raises:
            SparsekitError: NaN or infinity, another shape, no such fold. Nothing was added.
        """
        where = self.layer or "statistics"
        x = self._matrix(inputs)
        d = None if dense is None else self._matrix(dense)
        if not 0 <= fold < self.folds:
            raise SparsekitError(f"fold {fold}", where=where, expected=f"0 to {self.folds - 1}")
        if (d is None) != (self.cross_gram is None) or (d is not None and d.shape != x.shape):
            found = "none" if d is None else f"shape {list(d.shape)}"
            wanted = "none" if self.cross_gram is None else f"shape {list(x.shape)}"
            raise SparsekitError(f"inputs of the dense path: {found}", where=where, expected=wanted)
        for start in range(0, len(x), _ROWS):
            block = x[start : start + _ROWS]
            self.gram[fold] += block.T @ block
            self.column_sum[fold] += block.sum(axis=0, dtype=np.float64)
            if d is not None and self.cross_gram is not None and self.dense_sum is not None:
                dense_block = d[start : start + _ROWS]
                self.cross_gram[fold] += block.T @ dense_block
                self.dense_sum[fold] += dense_block.sum(axis=0, dtype=np.float64)
        self.rows[fold] += len(x)
        self.samples[fold] += len(x) if samples is None else samples

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of all rows of both.

        Raises:
            SparsekitError: they differ in size, folds or dense path.
        """
        if self.gram.shape != other.gram.shape or (self.cross_gram is None) != (other.cross_gram is None):
            raise SparsekitError(
                f"statistics of {other.size} inputs in {other.folds} folds",
                where=self.layer or "statistics",
                expected=f"{self.size} inputs in {self.folds} folds, both with the dense path or both without",
            )
        return Statistics(
            gram=self.gram + other.gram,
            column_sum=self.column_sum + other.column_sum,
            rows=self.rows + other.rows,
            samples=self.samples + other.samples,
            cross_gram=_sum(self.cross_gram, other.cross_gram),
            dense_sum=_sum(self.dense_sum, other.dense_sum),
            layer=self.layer or other.layer,
        )

    def pooled(self, folds: Sequence[int] | None = None) -> Statistics:
        """The given folds (None: all) as one."""
        chosen = list(range(self.folds)) if folds is None else list(folds)
        return Statistics(
            gram=self.gram[chosen].sum(axis=0, keepdims=True),
            column_sum=self.column_sum[chosen].sum(axis=0, keepdims=True),
            rows=self.rows[chosen].sum(keepdims=True),
            samples=self.samples[chosen].sum(keepdims=True),
            cross_gram=None if self.cross_gram is None else self.cross_gram[chosen].sum(axis=0, keepdims=True),
            dense_sum=None if self.dense_sum is None else self.dense_sum[chosen].sum(axis=0, keepdims=True),
            layer=self.layer,
        )

    @property
    def total_rows(self) -> int:
        return int(self.rows.sum())

    def mean(self) -> Array:
        """The mean input, float64 [K]; zeros where there are no rows."""
        return self.column_sum.sum(axis=0) / max(self.total_rows, 1)

    def dense_mean(self) -> Array | None:
        """The mean input of the dense path, float64 [K]; None where it is not collected."""
        return None if self.dense_sum is None else self.dense_sum.sum(axis=0) / max(self.total_rows, 1)

    def mean_square(self) -> Array:
        """The mean square of every input, float64 [K]."""
        return np.einsum("fkk->k", self.gram) / max(self.total_rows, 1)

    def total_gram(self, center: Array | None = None) -> Array:
        """(X - center)'(X - center) over all folds, float64 [K, K]; None: no centre."""
        gram = self.gram.sum(axis=0)
        if center is None:
            return gram
        diagonal = np.diagonal(gram).copy()
        _recenter(gram, self.column_sum.sum(axis=0), center, self.column_sum.sum(axis=0), center, self.total_rows)
        # What is left of an input that is constant is rounding; it would not even be positive.
        constant = np.diagonal(gram) <= _ROUNDING * diagonal
        gram[constant] = 0
        gram[:, constant] = 0
        return gram

    def total_cross_gram(self, center: Array | None = None, dense_center: Array | None = None) -> Array | None:
        """(X - center)'(D - dense_center) over all folds, float64 [K, K]; None where it is not collected."""
        if self.cross_gram is None or self.dense_sum is None:
            return None
        cross = self.cross_gram.sum(axis=0)
        if center is not None and dense_center is not None:
            sums = self.column_sum.sum(axis=0), self.dense_sum.sum(axis=0)
            _recenter(cross, sums[0], center, sums[1], dense_center, self.total_rows)
        return cross

    def _matrix(self, values: npt.ArrayLike) -> Array:
        where = self.layer or "statistics"
        x = np.asarray(values)
        if x.ndim != 2 or x.shape[1] != self.size:
            raise SparsekitError(f"inputs of shape {list(x.shape)}", where=where, expected=f"[rows, {self.size}]")
        if x.dtype != np.float64:
            x = x.astype(np.float32, copy=False)
        largest = float(np.abs(x).max(initial=0))
        if not np.isfinite(largest):
            broken = int(x.size - np.isfinite(x).sum())
            raise SparsekitError(
                f"{broken} of {x.size} calibration inputs are NaN or infinite",
                where=where,
                expected="finite inputs",
                hint="Look at the calibration samples, and at the layers before this one.",
            )
        smallest, greatest = _FLOAT32_SAFE
        return x.astype(np.float64, copy=False) if largest and not smallest < largest < greatest else x


def _sum(a: Array | None, b: Array | None) -> Array | None:
    return None if a is None or b is None else a + b


def _recenter(products: Array, sum_a: Array, center_a: Array, sum_b: Array, center_b: Array, rows: int) -> None:
    """A'B becomes (A - center_a)'(B - center_b), in place."""
    products -= np.outer(sum_a - rows * center_a, center_b)
    products -= np.outer(center_a, sum_b)
