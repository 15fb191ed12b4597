"""Depthwise convolution: every channel has a kernel of its own, so nothing is summed over input channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit.handler import Constraint, OpHandler

if TYPE_CHECKING:
    from sparsekit.graph.node import Node


class DepthwiseConv2D(OpHandler):
    """Explained, never pruned."""

    op_types = ("DepthwiseConv2dNative",)
    constraints = (
        Constraint(
            reason="no-input-channels",
            message="a depthwise convolution sums over no input channels, so there is no axis to group.",
            holds=lambda site: False,
        ),
    )

    def group_axis(self, node: Node) -> int:
        return 2
