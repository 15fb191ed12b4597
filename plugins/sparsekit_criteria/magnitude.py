"""magnitude: the largest |w| stay."""

from __future__ import annotations

from typing import Any

from sparsekit.criterion import Criterion


class Magnitude(Criterion):
    """The default; AMCT's ``l1_selective_prune``."""

    name = "magnitude"
    live = True

    def score(self, weight: Any, axis: int) -> Any:
        return weight
