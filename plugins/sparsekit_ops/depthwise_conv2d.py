"""Depthwise convolution: every channel has a kernel of its own, so nothing is summed over input channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparsekit.handler import Constraint, OpHandler

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    def multiply_adds(self, node: Node, inputs: Sequence[tuple[int, ...] | None], output: tuple[int, ...]) -> int:
        height, width, *_ = inputs[1]  # type: ignore[misc]
        return math.prod(output) * height * width
