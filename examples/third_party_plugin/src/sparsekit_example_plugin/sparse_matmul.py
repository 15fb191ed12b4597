"""SparseMatMul: y = x @ w for an x with many zeros; w is [in, out], or [out, in] under transpose_b."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit import Constraint, Contraction, OpHandler, WeightSite

if TYPE_CHECKING:
    from sparsekit.graph.node import Node


class SparseMatMul(OpHandler):
    """Groups run along the contracted axis of the second operand."""

    op_types = ("SparseMatMul",)
    weight_dtypes = ("float32",)
    constraints = (
        Constraint(
            reason="already-sparse",
            message="b_is_sparse=True says that its weight has zeros of its own; a mask would halve what is left.",
            holds=lambda site: not site.node.attr("b_is_sparse", False),
        ),
    )

    def group_axis(self, node: Node) -> int:
        return 1 if node.attr("transpose_b", False) else 0

    def matrix_form(self, site: WeightSite, data_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Contraction:
        return Contraction("mk", "nk" if self.group_axis(site.node) else "kn", "mn", site.source.shape_at_op)
