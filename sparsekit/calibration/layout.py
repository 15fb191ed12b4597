"""A layer as the matrix products that it is, with whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.matrix_form import MatrixForm
from sparsekit.pattern import Pattern

Array: TypeAlias = npt.NDArray[Any]


@attrs.frozen(eq=False)
class Layout:
    """A layer as matrix products, one for each block.

    Rows of the matrices are filled up with zeros where a run of input channels ends in a shorter group and another
    run follows: groups must not reach over.

    Attributes:
        form: the op's matrix form.
        padding: bool [K], which rows were filled in; None where none were.
    """

    form: MatrixForm
    padding: Array | None

    @classmethod
    def of(cls, form: MatrixForm, size: int, run: int, pattern: Pattern) -> Layout:
        """Fill up the runs of a form.

        Args:
            form: the op's matrix form.
            size: how many rows its weight matrices have.
            run: how many of them belong together, see `MatrixForm`.
            pattern: n and m.
        """
        if size == run or run % pattern.m == 0:
            return cls(form, None)
        filled = run + -run % pattern.m
        return cls(form, np.tile(np.arange(filled) >= run, size // run))

    def lower(self, data: Array) -> Array:
        """Data as the op reads it as inputs [blocks, rows, K]."""
        return self._fill(self.form.lower(data), 2)

    def matrices(self, seen: Array) -> list[Array]:
        """A weight, as the op sees it, as the matrices [K, N] of the blocks."""
        return list(self._fill(self.form.weight_matrix(seen), 1))

    def weight(self, matrices: Sequence[Array]) -> Array:
        """The inverse of `matrices`."""
        matrix = np.stack(matrices)
        return self.form.weight_from_matrix(matrix if self.padding is None else matrix[:, ~self.padding])

    def _fill(self, matrix: Array, axis: int) -> Array:
        if self.padding is None:
            return matrix
        shape = list(matrix.shape)
        shape[axis] = len(self.padding)
        result = np.zeros(shape, matrix.dtype)
        result[(slice(None),) * axis + (~self.padding,)] = matrix
        return result
