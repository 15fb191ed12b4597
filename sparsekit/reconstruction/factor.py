"""The inverse of a positive definite matrix through its Cholesky factor, with GEMMs alone (numpy has no more)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Below this size LAPACK's general inverse is faster than halving on.
_LEAF = 128


def inverse_factor(matrix: Array) -> Array:
    """R, lower triangular, with R'R = matrix^-1.

    Args:
        matrix: symmetric positive definite, float64 [K, K]; its lower half is read.

    Returns:
        float64 [K, K].

    Raises:
        numpy.linalg.LinAlgError: it is not positive definite.
    """
    return _inverse_of_lower(np.linalg.cholesky(matrix))


def inverse_diagonal(matrix: Array) -> Array:
    """The diagonal of matrix^-1, float64 [K]; arguments and errors as for `inverse_factor`."""
    factor = inverse_factor(matrix)
    return np.einsum("ij,ij->j", factor, factor)


def _inverse_of_lower(lower: Array) -> Array:
    """[[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]."""
    size = len(lower)
    if size <= _LEAF:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = inverse[half:, half:] @ (lower[half:, :half] @ -inverse[:half, :half])
    return inverse
