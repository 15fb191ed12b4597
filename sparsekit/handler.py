"""What the author of an op handler implements: which input is the weight, which axis is grouped, what must hold.

A new op is one subclass of :class:`OpHandler`, returned from the hook ``sparsekit_op_handlers``::

    class MyDense(OpHandler):
        op_types = ("MyDense",)

        def group_axis(self, node):
            return 1 if node.attr("transposed") else 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import attrs

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from sparsekit.graph.node import Node
    from sparsekit.graph.trace import WeightSource
    from sparsekit.matrix_form import MatrixForm


@attrs.frozen
class WeightSite:
    """An op and the input that holds its weight.

    Attributes:
        node: the op.
        input: which of its inputs holds the weight.
        source: the variable or constant that the weight comes from, seen through casts and reshapes.
    """

    node: Node
    input: int
    source: WeightSource

    def rewire(self, masked: tf.Tensor) -> None:
        """Let the op (or the first op between the weight and it) read ``masked`` in a live graph."""
        from sparsekit.graph.edit import rewire

        rewire(self.source.consumer, self.source.input, masked)


@attrs.frozen
class Constraint:
    """Something that must hold before a layer is pruned.

    Attributes:
        reason: a stable code for machines, kebab-case, such as ``"transpose-a"``.
        message: a sentence for people: what was found and why it stands in the way.
        holds: the predicate; it reads the site and changes nothing.
    """

    reason: str
    message: str
    holds: Callable[[WeightSite], bool]


class OpHandler:
    """How one family of op types is pruned. Subclasses set what differs; every default works.

    Attributes:
        op_types: TensorFlow's op type names that this handler answers for.
        weight_input: index of the data input that holds the weight.
        weight_dtypes: dtypes that the weight's variable or constant may have.
        constraints: what else must hold, checked in this order; the first that fails explains the skip.
        only_explains: its ops are never pruned, and the plan tells only of those that read a variable with several axes
            of its own: a lookup, say, which most graphs also do where there are no weights.
    """

    op_types: ClassVar[tuple[str, ...]] = ()
    weight_input: ClassVar[int] = 1
    weight_dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    constraints: ClassVar[tuple[Constraint, ...]] = ()
    only_explains: ClassVar[bool] = False

    def group_axis(self, node: Node) -> int:
        """The input-channel axis of the weight as this op sees it; groups of m run along it."""
        raise NotImplementedError(f"{type(self).__name__} must say along which axis its weight is grouped")

    def weight_sites(self, node: Node) -> Sequence[tuple[int, int]]:
        """Where the weight may be: (index of the input, group axis there), the first static one counts.

        Override it only for ops that take their weight in one place or another.
        """
        return ((self.weight_input, self.group_axis(node)),)

    def sums_over_more(self, node: Node) -> bool:
        """Whether the op sums over other axes of the weight, too, of which the group axis is the innermost.

        Groups then lie within the group axis, and m must divide its length.
        """
        return False

    def insert_mask(self, site: WeightSite, masked: tf.Tensor) -> None:
        """Let the op of a live graph use ``masked``, the weight times its mask.

        Args:
            site: where the weight enters the op.
            masked: shape and dtype of ``site.source``.
        """
        site.rewire(masked)

    def remove_mask(self, weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Fold a mask into the frozen weight. A large weight comes in parts, of whole groups, one call each.

        Args:
            weight: the trained weight; not to be changed.
            mask: bool, of the same shape.

        Returns:
            The weight with +0.0 where ``mask`` is False, kept values bit for bit.
        """
        import numpy as np

        # As integers: bits times 0 or 1. It takes a ninth of what `where` does.
        bits = np.dtype(f"i{weight.dtype.itemsize}")
        return np.multiply(weight.view(bits), mask, dtype=bits).view(weight.dtype)

    def multiply_adds(self, node: Node, inputs: Sequence[tuple[int, ...] | None], output: tuple[int, ...]) -> int:
        """The multiplications of the op with a dense weight: its cost, by which layers are compared.

        Args:
            node: the op.
            inputs: the shapes of its inputs, the weight's among them; None where one is not known, then an error
                (TypeError) may be raised. An open batch counts as 1.
            output: the shape of its first output.

        Returns:
            By default elements of the output times input channels, which is right for matrix products.
        """
        weight = inputs[self.weight_input]
        return math.prod(output) * weight[self.group_axis(node)]  # type: ignore[index]

    def data_input(self, site: WeightSite) -> int:
        """Index of the input that holds the op's data: by default the first that is not the weight."""
        return 0 if site.input != 0 else 1

    def matrix_form(self, site: WeightSite, data_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> MatrixForm:
        """The op as the product of two matrices, for criteria that need calibration.

        Args:
            site: the op; ``site.source.shape_at_op`` is the shape of its weight.
            data_shape: of the input that :meth:`data_input` names, at run time.
            output_shape: of the op's first output, at run time.

        Returns:
            The form for data and outputs of these shapes, any number of samples.

        Raises:
            NotImplementedError: the op has none, with a sentence that says so. Ask :attr:`has_matrix_form` before
                there are shapes; a handler that has one in general may lack it for some attributes of the op.
        """
        raise NotImplementedError(f"{type(self).__name__} has no matrix form")

    @property
    def has_matrix_form(self) -> bool:
        """Whether the handler gives its ops a matrix form."""
        return type(self).matrix_form is not OpHandler.matrix_form
