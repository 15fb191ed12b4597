"""Acme, a vendor that does not exist, and its two accelerators: one gains from 2:4, one does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit import LayerRule, TargetProfile

if TYPE_CHECKING:
    from sparsekit import LayerDecision


def fills_tiles(layer: LayerDecision) -> bool | None:
    if layer.shape is None or layer.axis is None:
        return None
    return layer.shape[layer.axis] % 16 == 0


def is_int8(layer: LayerDecision) -> bool | None:
    return layer.dtype == "int8" if layer.deployed else None


RULES = (
    LayerRule(
        name="whole-tiles",
        message="Input channels must fill tiles of 16.",
        source="invented for this example",
        holds=fills_tiles,
    ),
    LayerRule(
        name="data-type",
        message="Weights must be int8.",
        source="invented for this example",
        holds=is_int8,
    ),
)

PROFILES = (
    TargetProfile(
        name="acme-edge-1",
        vendor="Acme",
        title="Acme Edge 1",
        chips=("AE100",),
        gains=False,
        reason="Its multipliers run at the same speed whatever the weights are.",
        sources=("invented for this example",),
    ),
    TargetProfile(
        name="acme-edge-2",
        vendor="Acme",
        title="Acme Edge 2",
        chips=("AE200", "AE210"),
        gains=True,
        patterns=("2:4",),
        reason="It stores two weights of four and skips the others.",
        sources=("invented for this example",),
        rules=RULES,
    ),
)
