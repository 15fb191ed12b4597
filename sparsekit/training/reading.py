"""A variable that stays dense and is masked where it is read: what a model's forward pass sees of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import attrs
import tensorflow as tf

Gradient = Literal["masked", "ste", "sr-ste"]


@attrs.frozen
class Backward:
    """What dropped weights get for a gradient.

    Attributes:
        kind: see ``gradient`` in :class:`sparsekit.PruneConfig`.
        decay: with ``sr-ste``, the part of a dropped weight that is added to its gradient.
    """

    kind: Gradient
    decay: float


class MaskedReading:
    """While it is installed, who reads the variable gets it times its mask.

    The read of this one object is overridden, so that no layer, name or class changes. What must know the dense values
    gets them: whoever writes a checkpoint (``numpy`` is what Keras stores, a read without a copy what TensorFlow does),
    and an optimizer (see :meth:`dense`).

    Args:
        variable: the weight, one whose reads are its own: not one that has a copy on every device.
        mask: 1 or 0, of its shape and dtype.
        backward: what dropped weights get for a gradient.
    """

    def __init__(self, variable: Any, mask: Any, backward: Backward) -> None:
        self._variable = variable
        self._mask = mask
        self._backward = backward
        self._dense = False
        variable._read_variable_op = self._read
        variable.numpy = self._numpy

    def remove(self) -> None:
        """Let the variable be read as it is."""
        for name in ("_read_variable_op", "numpy"):
            self._variable.__dict__.pop(name, None)

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """While this lasts, readers see all values: weight decay and the like are about these."""
        self._dense = True
        try:
            yield
        finally:
            self._dense = False

    def value(self) -> tf.Tensor:
        """All values."""
        return tf.raw_ops.ReadVariableOp(resource=self._variable.handle, dtype=self._variable.dtype)

    def _read(self, no_copy: bool = False) -> tf.Tensor:
        dense = type(self._variable)._read_variable_op(self._variable, no_copy)
        if no_copy or self._dense:
            return dense
        return _masked(dense, self._mask.read_value(), self._backward)

    def _numpy(self) -> Any:
        return self.value().numpy()


def without_dropped(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Values of a weight (itself, its gradient, an optimizer's state) with +0.0 where the mask drops, NaN or not.

    Not a plain product: TensorFlow would reorder ``gradient * mask * learning_rate`` and compute ``mask *
    learning_rate`` first, one more pass over all weights in every step, and far from where the gradient is in the cache
    (Grappler's ``MinimizeBroadcasts``). Nor `tf.where`, whose CPU kernel takes twice the time.
    """
    return tf.math.multiply_no_nan(values, tf.cast(mask, values.dtype))


def _masked(weight: tf.Tensor, mask: tf.Tensor, backward: Backward) -> tf.Tensor:
    if backward.kind == "masked":
        return without_dropped(weight, mask)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def straight_through(weight: tf.Tensor, mask: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
            if backward.kind == "sr-ste":
                upstream = upstream + tf.cast(backward.decay, weight.dtype) * (1 - mask) * weight
            return upstream, None

        return without_dropped(weight, mask), gradient

    return straight_through(weight, mask)
