"""Conv2DBackpropInput as a layer: the transposed convolution, whose filter is [height, width, out, in]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sparsekit.handler import OpHandler, WeightSite
from sparsekit_ops._im2col import TransposedConvolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsekit.graph.node import Node


class Conv2DBackpropInput(OpHandler):
    """Groups run along the channels of the layer's input, which the filter holds last.

    The op's inputs are (output shape, filter, data); the output shape may be computed from a dynamic batch.
    """

    op_types = ("Conv2DBackpropInput",)

    def group_axis(self, node: Node) -> int:
        return 3

    def multiply_adds(self, node: Node, inputs: Sequence[tuple[int, ...] | None], output: tuple[int, ...]) -> int:
        _, (*kernel, _), data = inputs  # type: ignore[misc]
        return math.prod(data) * math.prod(kernel)  # type: ignore[arg-type]

    def data_input(self, site: WeightSite) -> int:
        return 2

    def matrix_form(
        self, site: WeightSite, data_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> TransposedConvolution:
        return TransposedConvolution.of(site.node, site.source.shape_at_op, output_shape)
