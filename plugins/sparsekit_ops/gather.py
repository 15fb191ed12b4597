"""Gather from a variable: the lookup of an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sparsekit.handler import Constraint, OpHandler

if TYPE_CHECKING:
    from sparsekit.graph.node import Node


class Gather(OpHandler):
    """Explained, never pruned."""

    op_types = ("Gather", "GatherV2")
    weight_input = 0
    only_explains: ClassVar[bool] = True
    constraints = (
        Constraint(
            reason="embedding",
            message="an embedding is looked up, not multiplied by: there is no product that zeros could speed up.",
            holds=lambda site: False,
        ),
    )

    def group_axis(self, node: Node) -> int:
        return 0
