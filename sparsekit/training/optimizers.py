"""What is done to the steps of a Keras optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from sparsekit.training.weights import MaskedWeight

# Each weight's update depends on its own gradient, state and value alone, and a weight of zero without a gradient
# stays zero: tested over 50 steps.
_ELEMENTWISE = {"SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion"}
# Moving averages of the gradient's direction, by optimizer: they move a weight that has no gradient any more.
_MOMENTA = ("momentums", "_momentums", "_m")


def is_elementwise(optimizer: Any) -> bool:
    """Whether zeros stay where the gradient has zeros, and all else is as if they were not there."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return is_elementwise(inner) if inner is not None else type(optimizer).__name__ in _ELEMENTWISE


class WrappedOptimizer:
    """An optimizer whose ``apply`` is wrapped, the object itself staying what it is.

    Args:
        optimizer: a Keras 3 optimizer.
        weights: the masked ones.
        mask_gradients: drop gradients of dropped weights before a step.
        after_step: runs after every step, in the step's graph.
    """

    def __init__(
        self,
        optimizer: Any,
        weights: Sequence[MaskedWeight],
        mask_gradients: bool,
        after_step: Callable[[], None],
    ) -> None:
        self.optimizer = optimizer
        self._by_handle = {id(weight.variable.handle): weight for weight in weights}
        self._mask_gradients = mask_gradients
        self._after_step = after_step
        self._original = optimizer.apply
        # An attribute of the object: its class, its config and what is saved of it stay as they are.
        object.__setattr__(optimizer, "apply", self._apply)

    def remove(self) -> None:
        """Give the optimizer its own ``apply`` back."""
        self.optimizer.__dict__.pop("apply", None)

    def clear_momenta(self) -> None:
        """Take the momentum of dropped weights away: it would move them."""
        for weight, slot in self._momenta():
            slot.assign(slot.read_value() * tf.cast(weight.mask.read_value(), slot.dtype))

    def _apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        grads = list(grads)
        variables = self.optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
        if self._mask_gradients:
            grads = [self._masked(grad, variable) for grad, variable in zip(grads, variables, strict=True)]
        result = self._original(grads, None if trainable_variables is None else variables)
        self._after_step()
        return result

    def _masked(self, gradient: Any, variable: Any) -> Any:
        weight = self._by_handle.get(id(variable.handle))
        return gradient if weight is None or gradient is None else weight.masked(gradient)

    def _momenta(self) -> Iterator[tuple[MaskedWeight, Any]]:
        optimizer = getattr(self.optimizer, "inner_optimizer", None) or self.optimizer
        if not optimizer.built:
            return
        slots: Sequence[Any] = next((found for name in _MOMENTA if (found := getattr(optimizer, name, None))), ())
        for variable, slot in zip(optimizer._trainable_variables, slots, strict=False):
            weight = self._by_handle.get(id(variable.handle))
            if weight is not None and slot is not None:
                yield weight, slot.value
