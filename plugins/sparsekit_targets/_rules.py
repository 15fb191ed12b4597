"""Rules that targets of several vendors share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsekit.planning import LayerDecision


def int8_weights(layer: LayerDecision) -> bool | None:
    """Whether weights are int8; open before the model is converted."""
    return layer.dtype == "int8" if layer.deployed else None
