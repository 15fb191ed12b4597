"""A model whose weights stay sparse while it trains."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf

from sparsekit.config import PruneConfig
from sparsekit.errors import ConfigError
from sparsekit.planning import Plan, Planning
from sparsekit.plugins import Registry
from sparsekit.training.optimizers import WrappedOptimizer, is_elementwise
from sparsekit.training.schedule import Schedule
from sparsekit.training.tracing import TracedModel
from sparsekit.training.weights import MaskedWeight, masked_weights

Masking = Literal["in-place", "project"]


class MaskedModel:
    """What :func:`sparsekit.prune` did to a model of Keras 3, a ``tf.Module`` or a ``tf.function``.

    The masks were chosen (unless ``start_step`` says later) and zeros written into the model's own variables. Train it:
    ``model.fit(..., callbacks=[result.callback])``, or, in a loop of your own, with ``result.wrap(optimizer)`` or with
    ``result.step()`` after every step of any optimizer. Then call :meth:`finalize`.

    Attributes:
        plan: every layer with its decision.
        state: the masks and counters, to be put into a ``tf.train.Checkpoint``.
    """

    def __init__(self, model: Any, traced: TracedModel, planning: Planning, config: PruneConfig, registry: Registry):
        self.plan: Plan = planning.plan
        self.model = model
        self._asked = config.masking
        self._schedule = Schedule.of(config)
        self.weights: Sequence[MaskedWeight] = masked_weights(
            traced, planning.layers, registry, keeps_dropped=self._schedule.period > 0
        )
        self._steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="steps")
        self.flips = [tf.Variable(0, dtype=tf.int64, trainable=False, name="flips") for _ in self.weights]
        self._wrapped: dict[int, WrappedOptimizer] = {}
        self.state = tf.train.Checkpoint(
            steps=self._steps,
            masks={weight.name: weight.mask for weight in self.weights},
            shadows={weight.name: weight.shadow for weight in self.weights if weight.shadow is not None},
        )
        if self._schedule.start == 0:
            self._choose()
        self.install()

    def install(self) -> None:
        """Wrap the optimizer that the model was compiled with, if it is compiled; the callback does this, too."""
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None or id(optimizer) in self._wrapped:
            return
        self.wrap(optimizer)
        # A train function that was traced before knows nothing of it.
        if getattr(self.model, "train_function", None) is not None:
            self.model.make_train_function(force=True)

    def masking_for(self, optimizer: Any) -> tuple[Masking, str]:
        """How zeros are kept through an optimizer's steps, and why."""
        if self._asked in ("in-place", "project"):
            return self._asked, "as configured"
        if getattr(self.model, "jit_compile", False) is True:
            return "project", "the model is compiled by XLA, where this costs less"
        if is_elementwise(optimizer):
            return "in-place", f"{type(optimizer).__name__} updates every weight by itself"
        return "project", f"{type(optimizer).__name__} is not known to update every weight by itself"

    def wrap(self, optimizer: Any) -> Any:
        """Let an optimizer of Keras keep the zeros.

        Args:
            optimizer: the optimizer; the object itself is changed, until `finalize`.

        Returns:
            The same object.

        Raises:
            ConfigError: it is no optimizer of Keras 3.
        """
        if id(optimizer) in self._wrapped:
            return optimizer
        if not hasattr(optimizer, "apply") or not hasattr(optimizer, "_trainable_variables"):
            raise ConfigError(
                f"got {type(optimizer).__name__}",
                where="wrap",
                expected="an optimizer of Keras 3",
                hint="With any other optimizer call .step() after every step.",
            )
        masking, _ = self.masking_for(optimizer)
        wrapped = WrappedOptimizer(
            optimizer, self.weights, masking == "in-place", functools.partial(self._after, masking, id(optimizer))
        )
        self._wrapped[id(optimizer)] = wrapped
        return optimizer

    def step(self) -> None:
        """To be called after every step of an optimizer that is not wrapped, inside a ``tf.function`` or out of it."""
        self._after("project", None)

    def finalize(self) -> Any:
        """Write plain zeros into the variables and give the optimizers back as they were.

        Returns:
            The model, to be saved by its own means.
        """
        for weight in self.weights:
            weight.enforce()
        wrapped = bool(self._wrapped)
        for optimizer in self._wrapped.values():
            optimizer.remove()
        self._wrapped.clear()
        if wrapped and getattr(self.model, "train_function", None) is not None:
            self.model.make_train_function(force=True)
        return self.model

    @functools.cached_property
    def callback(self) -> Any:
        """For ``model.fit(..., callbacks=[...])``: keeps the masks, and adds sparsity to the logs of every epoch."""
        from sparsekit.training.callback import SparsityCallback

        return SparsityCallback(self)

    def _after(self, masking: Masking, optimizer: int | None) -> None:
        if masking == "project":
            for weight in self.weights:
                weight.project()
        if not self._schedule.needs_steps:
            return
        step = self._steps.assign_add(1)

        def choose() -> tf.Tensor:
            self._choose()
            if optimizer is not None:
                self._wrapped[optimizer].clear_momenta()
            return tf.constant(True)

        tf.cond(self._schedule.due(tf.identity(step)), choose, lambda: tf.constant(False))

    def _choose(self) -> None:
        for weight, flips in zip(self.weights, self.flips, strict=True):
            flips.assign(weight.choose())

    def __str__(self) -> str:
        lines = [str(self.plan)]
        for wrapped in self._wrapped.values():
            masking, why = self.masking_for(wrapped.optimizer)
            lines.append(f"Masking: {masking} ({why}).")
        if not self._wrapped:
            lines.append("Masking: is chosen when the optimizer is known.")
        return "\n".join(lines)
