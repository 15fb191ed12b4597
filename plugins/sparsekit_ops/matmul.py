"""MatMul: y = x @ w with w of shape [in, out], or [out, in] under transpose_b."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit.handler import Constraint, OpHandler, WeightSite
from sparsekit.matrix_form import Contraction

if TYPE_CHECKING:
    from sparsekit.graph.node import Node


class MatMul(OpHandler):
    """Groups run along the contracted axis of the second operand.

    The constraint on transpose_a and the dtypes are AMCT's ("4选2结构化稀疏", supported layers).
    """

    # The second is what Grappler and freezing tools make of it; its weight stays where it was.
    op_types = ("MatMul", "_FusedMatMul")
    constraints = (
        Constraint(
            reason="transpose-a",
            message="transpose_a=True is not supported; transpose the data before the product.",
            holds=lambda site: not site.node.attr("transpose_a", False),
        ),
    )

    def group_axis(self, node: Node) -> int:
        return 1 if node.attr("transpose_b", False) else 0

    def matrix_form(self, site: WeightSite, data_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Contraction:
        weight = "nk" if site.node.attr("transpose_b", False) else "kn"
        return Contraction("mk", weight, "mn", site.source.shape_at_op)
