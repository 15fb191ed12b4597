"""What is done to the steps of a Keras optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from sparsekit.config import Masking, PruneConfig
from sparsekit.training.distribution import identity
from sparsekit.training.tracing import is_keras
from sparsekit.training.weights import MaskedWeight

# Each weight's update depends on its own gradient, state and value alone, and a weight of zero without a gradient
# stays zero: tested over 50 steps.
_ELEMENTWISE = {"SGD", "RMSprop", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion"}
# What moves a weight that has no gradient any more, by optimizer: moving averages of the gradient, sums of gradients.
_MOMENTA = ("momentums", "_momentums", "_m", "_linears", "_accumulated_gradients")


@attrs.frozen
class Choice:
    """How zeros are kept.

    Attributes:
        masking: the way.
        why: half a sentence for people.
    """

    masking: Masking
    why: str

    def __str__(self) -> str:
        return f"Masking: {self.masking} ({self.why})."


def chosen_masking(config: PruneConfig, model: Any, optimizer: Any) -> Choice:
    """How zeros are kept through an optimizer's steps.

    Args:
        config: what was asked for.
        model: that is trained.
        optimizer: of Keras; None: any other.
    """
    if config.masking == "forward" or config.gradient != "masked":
        why = "as configured" if config.masking == "forward" else f"gradient {config.gradient} trains dropped weights"
        return Choice("forward", why)
    if optimizer is None:
        return Choice("project", "after every step of any optimizer")
    if config.masking != "auto":
        warning = "" if config.masking == "project" or is_elementwise(optimizer) else f"; {_doubt(optimizer)}"
        return Choice(config.masking, f"as configured{warning}")
    if getattr(model, "jit_compile", False) is True:
        return Choice("project", "the model is compiled by XLA, where this costs less")
    if is_elementwise(optimizer):
        return Choice("in-place", f"{type(inner(optimizer)).__name__} updates every weight by itself")
    return Choice("project", _doubt(optimizer))


def is_elementwise(optimizer: Any) -> bool:
    """Whether zeros stay where the gradient has zeros, and all else is as if they were not there."""
    kind = type(inner(optimizer))
    # Another class of that name, the user's own, may do anything.
    is_known = kind.__name__ in _ELEMENTWISE and kind.__module__.partition(".")[0] == "keras"
    return is_known and not _overwrites(inner(optimizer))


def optimizers_of(model: Any) -> list[Any]:
    """The optimizers that a model holds: the one it is compiled with, and those that a train step of its own uses."""
    held = [getattr(model, "optimizer", None), *getattr(model, "__dict__", {}).values()]
    return list({id(inner(each)): each for each in held if is_optimizer(each)}.values())


def is_optimizer(found: Any) -> bool:
    """Whether it is an optimizer of Keras 3."""
    return hasattr(found, "apply") and hasattr(found, "_trainable_variables") and not is_keras(found)


def inner(optimizer: Any) -> Any:
    """The optimizer in another one that scales losses; of any other, itself."""
    held = getattr(optimizer, "inner_optimizer", None)
    return optimizer if held is None else held


def _overwrites(optimizer: Any) -> bool:
    return bool(getattr(optimizer, "use_ema", False) and getattr(optimizer, "ema_overwrite_frequency", None))


def _doubt(optimizer: Any) -> str:
    name = type(inner(optimizer)).__name__
    if _overwrites(inner(optimizer)):
        return f"{name} overwrites weights with their moving averages"
    return f"{name} is not known to update every weight by itself"


class WrappedOptimizer:
    """An optimizer whose ``apply`` is wrapped, the object itself staying what it is.

    Args:
        optimizer: a Keras 3 optimizer.
        weights: the masked ones.
        choice: how zeros are kept.
        after_step: runs after every step that was about a masked weight, in the step's graph.
    """

    def __init__(
        self,
        optimizer: Any,
        weights: Sequence[MaskedWeight],
        choice: Choice,
        after_step: Callable[[], None],
    ) -> None:
        self.optimizer = optimizer
        self.choice = choice
        self._weights = weights
        self._by_variable = {identity(weight.variable): weight for weight in weights}
        self._after_step = after_step
        self._original = optimizer.apply
        # An attribute of the object: its class, its config and what is saved of it stay as they are.
        object.__setattr__(optimizer, "apply", self._apply)

    def remove(self) -> None:
        """Give the optimizer its own ``apply`` back."""
        self.optimizer.__dict__.pop("apply", None)

    def clear_momenta(self, only: MaskedWeight | None = None) -> None:
        """Take the momentum of dropped weights away, of all masked ones or of one: it would move them."""
        for weight, slot in self._momenta():
            if only is None or weight is only:
                weight.take_dropped_from(slot)

    def _apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        grads = list(grads)
        variables = self.optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
        if len(grads) != len(variables):
            return self._original(grads, trainable_variables)  # which says so
        masked = [self._by_variable.get(identity(variable)) for variable in variables]
        if self.choice.masking == "in-place":
            grads = [
                grad if weight is None or grad is None else weight.masked(grad)
                for grad, weight in zip(grads, masked, strict=True)
            ]
        with contextlib.ExitStack() as dense:
            for weight in self._weights:
                dense.enter_context(weight.dense())
            result = self._original(grads, None if trainable_variables is None else variables)
        for variable, masked_weight in zip(variables, masked, strict=True):
            # What a constraint of the user's makes of a zero, nobody knows.
            if masked_weight is not None and getattr(variable, "constraint", None) is not None:
                masked_weight.project()
        if any(weight is not None for weight in masked):
            self._after_step()
        return result

    def _momenta(self) -> Iterator[tuple[MaskedWeight, Any]]:
        optimizer = inner(self.optimizer)
        if not optimizer.built:
            return
        for slots in (getattr(optimizer, name, None) or () for name in _MOMENTA):
            for variable, slot in zip(optimizer._trainable_variables, slots, strict=False):
                weight = self._by_variable.get(identity(variable))
                if weight is not None and slot is not None:
                    yield weight, slot.value
