"""A sum of numbered parts that has the same bits in whatever order, grouping or process the parts are added."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, TypeVar

from sparsekit.errors import SparsekitError

_T = TypeVar("_T")


class OrderedSum(Generic[_T]):
    """Adds parts 0, 1, 2, ... along one fixed binary tree.

    Floating-point addition is commutative, not associative: who adds first decides the last bits. Here a part waits
    until its neighbour is there: 0 and 1 become one, 2 and 3, then these two. Where parts come in order, only as many
    sums are held as there are ones in the binary number of the parts so far.

    Args:
        add: adds two sums; it must be commutative to the bit, and leave both as they are.
    """

    def __init__(self, add: Callable[[_T, _T], _T]) -> None:
        self._add = add
        # By the height in the tree and the place along that height.
        self._sums: dict[tuple[int, int], _T] = {}

    def insert(self, number: int, part: _T) -> None:
        """Add one part.

        Raises:
            SparsekitError: it is there already.
        """
        self._place(0, number, part)

    def merge(self, other: OrderedSum[_T]) -> None:
        """Add all parts of another sum, which stays as it is.

        Raises:
            SparsekitError: one is there already.
        """
        for (height, place), part in other._sums.items():
            self._place(height, place, part)

    def total(self, count: int) -> _T:
        """The sum of parts 0 to ``count`` - 1.

        Raises:
            SparsekitError: there are other parts, or some are missing.
        """
        ordered = sorted(self._sums, key=lambda key: key[1] << key[0])
        end = 0
        for height, place in ordered:
            if place << height != end:
                raise SparsekitError(f"part {end} of {count} is missing", where="calibration sums")
            end += 1 << height
        if not end or end != count:
            raise SparsekitError(f"the first {end} parts", where="calibration sums", expected=f"{count} parts")
        return functools.reduce(self._add, [self._sums[key] for key in ordered])

    def _place(self, height: int, place: int, part: _T) -> None:
        if (height, place) in self._sums:
            raise SparsekitError(f"part {place << height} comes twice", where="calibration sums")
        while (height, place ^ 1) in self._sums:
            part = self._add(self._sums.pop((height, place ^ 1)), part)
            height, place = height + 1, place >> 1
        self._sums[height, place] = part
