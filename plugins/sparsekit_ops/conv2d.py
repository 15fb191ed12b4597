"""Conv2D: the filter is [height, width, in, out] whatever the data format; in a grouped one, in = channels / groups."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from sparsekit.handler import OpHandler, WeightSite
from sparsekit_ops._im2col import Convolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsekit.graph.node import Node


class Conv2D(OpHandler):
    """Groups run along the filter's input channels, within one convolution group."""

    # The second is what Grappler and freezing tools make of it; its weight stays where it was.
    op_types: ClassVar[tuple[str, ...]] = ("Conv2D", "_FusedConv2D")

    def group_axis(self, node: Node) -> int:
        return 2

    def multiply_adds(self, node: Node, inputs: Sequence[tuple[int, ...] | None], output: tuple[int, ...]) -> int:
        *kernel, _ = inputs[1]  # type: ignore[misc]
        return math.prod(output) * math.prod(kernel)

    def matrix_form(self, site: WeightSite, data_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Convolution:
        return Convolution.of(site.node, site.source.shape_at_op, data_shape)
