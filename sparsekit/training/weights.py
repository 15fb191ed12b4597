"""The masks of trainable variables: how they are chosen, kept and taken off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from sparsekit.criterion import Criterion
from sparsekit.masking import keep_tensor
from sparsekit.planning import LayerDecision, PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.training.tracing import TracedModel


class MaskedWeight:
    """A variable and its mask. What computes here computes where the variable is, in graphs and out of them.

    Args:
        decision: of the layer.
        variable: its weight.
        criterion: chooses the mask.
        keeps_dropped: whether dropped values are kept apart, to take part when masks are chosen again.

    Attributes:
        mask: 1 where a weight stays, of the variable's shape and dtype.
        shadow: the dropped values, 0 elsewhere; None where they are not kept.
    """

    def __init__(self, decision: LayerDecision, variable: Any, criterion: Criterion, keeps_dropped: bool) -> None:
        self.decision = decision
        self.variable = variable
        self._criterion = criterion
        self.mask = tf.Variable(tf.ones_like(variable), trainable=False, name="mask")
        self.shadow = tf.Variable(tf.zeros_like(variable), trainable=False, name="shadow") if keeps_dropped else None

    @property
    def name(self) -> str:
        """The layer."""
        return self.decision.name

    def choose(self) -> tf.Tensor:
        """Choose the mask anew from all values, dropped ones too, and let it hold.

        Returns:
            How many weights came or went, int64.
        """
        axis, pattern = self.decision.axis, self.decision.pattern
        assert axis is not None and pattern is not None
        # All reads before all assignments.
        weight = self.variable.read_value()
        full = weight if self.shadow is None else weight + self.shadow
        before = self.mask.read_value()
        chosen = keep_tensor(self._criterion.score(full, axis), axis, pattern)
        self.mask.assign(tf.cast(chosen, before.dtype))
        if self.shadow is not None:
            self.shadow.assign(tf.where(chosen, tf.zeros_like(full), full))
        self.variable.assign(tf.where(chosen, full, tf.zeros_like(full)))
        return tf.math.count_nonzero(tf.not_equal(before != 0, chosen))

    def enforce(self) -> None:
        """Write zeros where the mask drops: +0.0, whatever was there."""
        weight = self.variable.read_value()
        self.variable.assign(tf.where(self.mask.read_value() != 0, weight, tf.zeros_like(weight)))

    def project(self) -> None:
        """Take what an optimizer made of dropped weights out again."""
        self.variable.assign(self.variable.read_value() * self.mask.read_value())

    def masked(self, gradient: Any) -> tf.Tensor:
        """A gradient without what flows to dropped weights."""
        return tf.convert_to_tensor(gradient) * tf.cast(self.mask.read_value(), gradient.dtype)

    def density(self) -> tf.Tensor:
        """The share of weights that are not zero, float64."""
        weight = self.variable.read_value()
        return tf.math.count_nonzero(weight) / tf.size(weight, tf.int64)

    def retained(self) -> tf.Tensor:
        """The share of sum |w| that the mask keeps, float64; 1 where dropped values are not known any more."""
        kept = tf.reduce_sum(tf.cast(tf.abs(self.variable.read_value()), tf.float64))
        if self.shadow is None:
            return tf.ones_like(kept)
        dropped = tf.reduce_sum(tf.cast(tf.abs(self.shadow.read_value()), tf.float64))
        return tf.math.divide_no_nan(kept, kept + dropped)


def masked_weights(
    traced: TracedModel, layers: Sequence[PlannedLayer], registry: Registry, keeps_dropped: bool
) -> list[MaskedWeight]:
    """The variables of planned layers with their masks, which keep all weights at first."""
    return [
        MaskedWeight(
            layer.decision,
            traced.variables[layer.source.leaves[0].name],
            registry.criterion(layer.decision.criterion),
            keeps_dropped,
        )
        for layer in layers
    ]
