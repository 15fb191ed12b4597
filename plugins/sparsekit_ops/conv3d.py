"""Conv3D: the filter is [depth, height, width, in, out] whatever the data format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit_ops.conv2d import Conv2D

if TYPE_CHECKING:
    from sparsekit.graph.node import Node


class Conv3D(Conv2D):
    """Conv2D with one more axis of positions: groups run along the filter's input channels."""

    op_types = ("Conv3D",)

    def group_axis(self, node: Node) -> int:
        return 3
