"""Einsum of data and one static operand that share contracted labels."""

from __future__ import annotations

import math
from string import ascii_letters
from typing import TYPE_CHECKING

from sparsekit.handler import Constraint, OpHandler, WeightSite
from sparsekit.matrix_form import Contraction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsekit.graph.node import Node


class Einsum(OpHandler):
    """Groups run along the label that both operands have and the result has not; of several, the weight's last."""

    op_types = ("Einsum",)
    constraints = (
        Constraint(
            reason="einsum-contraction",
            message="its equation sums over no label of data and weight, or the weight alone does, or on a diagonal.",
            holds=lambda site: len(_contracted(site.node)) > 0 and _is_plain(site),
        ),
    )

    def group_axis(self, node: Node) -> int:
        return self.weight_sites(node)[0][1]

    def weight_sites(self, node: Node) -> Sequence[tuple[int, int]]:
        # Either operand may be the static one; the second is the usual place.
        operands, contracted = _operands(node), _contracted(node)
        last = [max((labels.find(label) for label in contracted), default=0) for labels in operands]
        return [(i, last[i]) for i in reversed(range(len(operands)))]

    def sums_over_more(self, node: Node) -> bool:
        return len(_contracted(node)) > 1

    def multiply_adds(self, node: Node, inputs: Sequence[tuple[int, ...] | None], output: tuple[int, ...]) -> int:
        lengths: dict[str, int] = {}
        for labels, shape in zip(_operands(node), inputs, strict=True):
            if "." in labels:
                raise TypeError("an ellipsis hides labels")
            lengths |= zip(labels, shape, strict=True)  # type: ignore[arg-type]
        return math.prod(lengths.values())

    def matrix_form(self, site: WeightSite, data_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Contraction:
        operands, result = _operands(site.node), _result(site.node)
        weight = operands.pop(site.input)
        (data,) = operands
        # What an ellipsis stands for is in the data alone, so these are rows.
        unused = [label for label in ascii_letters if label not in data + weight]
        hidden = "".join(unused[: len(data_shape) - len(data.replace("...", ""))])
        return Contraction(data.replace("...", hidden), weight, result.replace("...", hidden), site.source.shape_at_op)


def _operands(node: Node) -> list[str]:
    return _equation(node).partition("->")[0].split(",")


def _result(node: Node) -> str:
    return _equation(node).partition("->")[2]


def _equation(node: Node) -> str:
    return str(node.attr("equation", "")).replace(" ", "")


def _contracted(node: Node) -> set[str]:
    """The labels that every operand has and the result has not."""
    shared = set.intersection(*(set(labels) for labels in _operands(node)))
    return {label for label in shared - set(_result(node)) if label.isalpha()}


def _is_plain(site: WeightSite) -> bool:
    """No ellipsis, no diagonal in the weight, whose axes would then not be its labels; no label summed in it alone."""
    operands = _operands(site.node)
    labels = operands.pop(site.input)
    elsewhere = set("".join(operands)) | set(_result(site.node))
    return "." not in labels and len(set(labels)) == len(labels) and set(labels) <= elsewhere
