"""Conv3DBackpropInputV2 as a layer: the transposed convolution, whose filter is [depth, height, width, out, in]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit_ops.conv2d_backprop_input import Conv2DBackpropInput

if TYPE_CHECKING:
    from sparsekit.graph.node import Node


class Conv3DBackpropInput(Conv2DBackpropInput):
    """Conv2DBackpropInput with one more axis of positions: groups run along the channels of the layer's input."""

    op_types = ("Conv3DBackpropInputV2",)

    def group_axis(self, node: Node) -> int:
        return 4
