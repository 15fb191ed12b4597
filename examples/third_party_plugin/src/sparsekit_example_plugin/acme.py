"""Acme, a vendor that does not exist, and its two accelerators: one gains from 2:4, one does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit import TargetProfile

if TYPE_CHECKING:
    from sparsekit import LayerDecision


def whole_tiles(layer: LayerDecision) -> str | None:
    """The note on a layer whose input channels do not fill the Edge 2's tiles of 16."""
    if layer.shape is None or layer.axis is None or layer.shape[layer.axis] % 16 == 0:
        return None
    return f"{layer.shape[layer.axis]} input channels do not fill tiles of 16; the rest of the last tile is lost."


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
        checks=(whole_tiles,),
    ),
)
