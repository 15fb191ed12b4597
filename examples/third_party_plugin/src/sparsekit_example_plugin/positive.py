"""positive: positive weights stay before negative ones, the largest first."""

from __future__ import annotations

from typing import Any

from sparsekit import Criterion


class Positive(Criterion):
    """Of the negative weights in a group, all worth 0, the first ones stay where there is room."""

    name = "positive"
    live = True

    def score(self, weight: Any, axis: int) -> Any:
        return weight + abs(weight)
