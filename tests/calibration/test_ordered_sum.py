"""Sums whose bits do not depend on who adds what first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.calibration.ordered_sum import OrderedSum
from sparsekit.errors import SparsekitError


def parts_of(count: int, seed: int) -> list[np.ndarray]:
    """Numbers of very different sizes: hardly two orders of adding them give the same bits."""
    random = np.random.default_rng(seed)
    return list(random.standard_normal((count, 16)) * 10.0 ** random.integers(-6, 7, (count, 16)))


def in_order(parts: list[np.ndarray]) -> np.ndarray:
    total: OrderedSum[np.ndarray] = OrderedSum(np.add)
    for number, part in enumerate(parts):
        total.insert(number, part)
    return total.total(len(parts))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(0, 2**31))
def test_any_order_of_arrival_and_any_grouping_gives_the_same_bits(data: st.DataObject, count: int, seed: int) -> None:
    parts = parts_of(count, seed)
    order = data.draw(st.permutations(range(count)))
    owners = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    accumulators: list[OrderedSum[np.ndarray]] = [OrderedSum(np.add) for _ in range(5)]
    for number, owner in zip(order, owners, strict=True):
        accumulators[owner].insert(number, parts[number])
    while len(accumulators) > 1:
        accumulator = accumulators.pop(data.draw(st.integers(0, len(accumulators) - 1)))
        accumulators[data.draw(st.integers(0, len(accumulators) - 1))].merge(accumulator)
    assert accumulators[0].total(count).tobytes() == in_order(parts).tobytes()
    np.testing.assert_allclose(in_order(parts), np.sum(parts, axis=0), rtol=1e-9, atol=1e-3)


def test_the_order_would_matter() -> None:
    parts = parts_of(30, 0)
    assert sum(parts[1:], parts[0]).tobytes() != sum(parts[-2::-1], parts[-1]).tobytes()


def test_sums_in_order_hold_few_parts() -> None:
    held = set()

    class Counted:
        def __init__(self) -> None:
            held.add(self)
            self.most = len(held)

    def add(a: Counted, b: Counted) -> Counted:
        held.difference_update({a, b})
        return Counted()

    total, most = OrderedSum(add), 0
    for number in range(1000):
        total.insert(number, Counted())
        most = max(most, len(held))
    assert most <= 11


@pytest.mark.parametrize(
    ("numbers", "count", "message"),
    [
        ([0, 2], 3, "part 1 of 3 is missing"),
        ([1, 2], 3, "part 0 of 3 is missing"),
        ([0, 1], 3, "the first 2 parts"),
        ([0, 1, 2, 3], 3, "the first 4 parts"),
        ([], 0, "the first 0 parts"),
        ([2, 2], 3, "part 2 comes twice"),
    ],
)
def test_a_part_that_is_missing_or_comes_twice_is_an_error(numbers: list[int], count: int, message: str) -> None:
    total: OrderedSum[float] = OrderedSum(lambda a, b: a + b)
    with pytest.raises(SparsekitError, match=message):
        for number in numbers:
            total.insert(number, 1.0)
        total.total(count)
