"""BatchMatMul: y[..., :, :] = x[..., :, :] @ w[..., :, :] with a static w, as dense layers on higher ranks trace to."""

from __future__ import annotations

from string import ascii_uppercase
from typing import TYPE_CHECKING

from sparsekit.handler import Constraint, OpHandler, WeightSite
from sparsekit.matrix_form import Contraction

if TYPE_CHECKING:
    from sparsekit.graph.node import Node


class BatchMatMul(OpHandler):
    """Groups run along the contracted axis of the second operand: -2, or -1 under adj_y."""

    op_types = ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
    constraints = (
        Constraint(
            reason="transpose-a",
            message="adj_x=True is not supported; transpose the data before the product.",
            holds=lambda site: not site.node.attr("adj_x", False),
        ),
    )

    def group_axis(self, node: Node) -> int:
        return -1 if node.attr("adj_y", False) else -2

    def matrix_form(self, site: WeightSite, data_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Contraction:
        weight_shape = site.source.shape_at_op
        data, weight, result = _batch_labels(data_shape[:-2], weight_shape[:-2])
        weight += "nk" if site.node.attr("adj_y", False) else "kn"
        return Contraction(f"{data}mk", weight, f"{result}mn", weight_shape)


def _batch_labels(data_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> tuple[str, str, str]:
    """Labels for the batch axes of data, weight and result, which are broadcast from the last one on.

    An axis that only one of them really has makes rows or columns; only one that both have makes blocks.
    """
    data = weight = result = ""
    for from_last in range(1, max(len(data_shape), len(weight_shape)) + 1):
        label = ascii_uppercase[from_last]
        in_weight = from_last <= len(weight_shape) and weight_shape[-from_last] != 1
        # The data's axis may be the samples: it has length one only if it is stretched to the weight's.
        in_data = from_last <= len(data_shape) and not (data_shape[-from_last] == 1 and in_weight)
        if from_last <= len(weight_shape):
            weight = (label if in_weight else "1") + weight
        if from_last <= len(data_shape):
            data = (label if in_data else "1") + data
        result = (label if in_weight or in_data else "1") + result
    return data, weight, result
