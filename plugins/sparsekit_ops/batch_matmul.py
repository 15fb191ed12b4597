"""BatchMatMul: y[..., :, :] = x[..., :, :] @ w[..., :, :] with a static w, as dense layers on higher ranks trace to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit.handler import Constraint, OpHandler

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
