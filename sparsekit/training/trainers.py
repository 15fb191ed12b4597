"""What trains masked weights: optimizers, and larger models that are fitted with the pruned one as a part of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sparsekit.config import PruneConfig
from sparsekit.errors import ConfigError
from sparsekit.training.distribution import Distribution
from sparsekit.training.optimizers import WrappedOptimizer, chosen_masking, inner, is_optimizer, optimizers_of
from sparsekit.training.tracing import retrace
from sparsekit.training.weights import MaskedWeight

_log = logging.getLogger("sparsekit")


class Trainers:
    """Wrapped optimizers, each once however often it is met, and the models whose functions step them.

    Args:
        model: the pruned one.
        weights: its masked weights.
        config: how zeros are kept.
        distribution: where the weights live.
        after_step: runs after every step of a wrapped optimizer, in its graph; told whether zeros are to be written.
    """

    def __init__(
        self,
        model: Any,
        weights: Sequence[MaskedWeight],
        config: PruneConfig,
        distribution: Distribution,
        after_step: Callable[[bool], None],
    ) -> None:
        self._model = model
        self._weights = weights
        self._config = config
        self._distribution = distribution
        self._after_step = after_step
        # By the inner one: an optimizer and the one that scales losses for it take the same steps.
        self._optimizers: dict[int, WrappedOptimizer] = {}
        # Those that hold the pruned one and are trained in its stead.
        self._outer: list[Any] = []

    @property
    def several(self) -> bool:
        """Whether more than one optimizer is wrapped: one may hold momentum of what another one's step dropped."""
        return len(self._optimizers) > 1

    @property
    def choices(self) -> str:
        """How zeros are kept, for people."""
        choices = dict.fromkeys(str(wrapped.choice) for wrapped in self._optimizers.values())
        return " ".join(choices) or str(chosen_masking(self._config, None, None))

    def install(self, trained: Any) -> None:
        """Wrap the optimizers that a model holds: the pruned model, or one that it is a part of.

        Raises:
            ConfigError: an optimizer is wrapped for another result.
        """
        is_new = trained is not self._model and all(trained is not known for known in self._outer)
        new = [optimizer for optimizer in optimizers_of(trained) if id(inner(optimizer)) not in self._optimizers]
        if not (new or is_new):
            return
        for optimizer in new:
            require_free(optimizer, "wrap")
        for optimizer in new:
            self._wrap(optimizer, trained)
        if is_new:
            self._outer.append(trained)
        # Functions that were traced before know nothing of it.
        retrace(trained)

    def wrap(self, optimizer: Any) -> None:
        """Wrap an optimizer, of a loop of the user's, unless it is.

        Raises:
            ConfigError: it is no optimizer of Keras 3, or wrapped for another result.
        """
        if id(inner(optimizer)) in self._optimizers:
            return
        if not is_optimizer(optimizer):
            raise ConfigError(
                f"got {type(optimizer).__name__}",
                where="wrap",
                expected="an optimizer of Keras 3",
                hint="With any other optimizer call .step() after every step.",
            )
        require_free(optimizer, "wrap")
        self._wrap(optimizer, self._model)

    def clear_momenta(self, weight: MaskedWeight | None = None) -> None:
        """Masks have changed, of all weights or of one: what was dropped must not move, unless it is to train on."""
        for wrapped in self._optimizers.values():
            self._clear(wrapped, weight)

    def settle(self) -> None:
        """Take away what momentum came with a checkpoint, where nothing else holds dropped weights at zero."""
        for wrapped in self._optimizers.values():
            if wrapped.choice.masking == "in-place":
                wrapped.clear_momenta()

    def release(self) -> None:
        """Leave optimizers as they were; models compile their functions anew."""
        for wrapped in self._optimizers.values():
            wrapped.remove()
        for trained in (self._model, *self._outer):
            retrace(trained)
        self._outer.clear()

    def _wrap(self, optimizer: Any, trained: Any) -> None:
        choice = chosen_masking(self._config, trained, optimizer)
        if choice.masking == "in-place" and ";" in choice.why:
            _log.warning("%s Dropped weights may move between steps; finalize() takes that out again.", choice)
        after_step = functools.partial(self._after_step, choice.masking == "project")
        wrapped = WrappedOptimizer(optimizer, self._weights, choice, after_step)
        self._optimizers[id(inner(optimizer))] = wrapped
        self._distribution.once(lambda: self._clear(wrapped))

    def _clear(self, wrapped: WrappedOptimizer, weight: MaskedWeight | None = None) -> None:
        # Straight through, momentum is what trains dropped weights.
        if self._config.gradient == "masked":
            wrapped.clear_momenta(weight)


def require_free(optimizer: Any, where: str) -> None:
    """
    Raises:
        ConfigError: the optimizer is wrapped, for another result.
    """
    if any("apply" in getattr(each, "__dict__", ()) for each in (optimizer, inner(optimizer))):
        raise ConfigError(
            f"the {type(optimizer).__name__} is wrapped already, for another model",
            where=where,
            expected="an optimizer for every model",
            hint="Call .finalize() of the other result first; or prune the one model that holds all that it trains.",
        )
