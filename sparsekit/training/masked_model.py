"""A model whose weights stay sparse while it trains."""

from __future__ import annotations

import functools
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import attrs
import tensorflow as tf

from sparsekit.config import PruneConfig
from sparsekit.errors import ConfigError, GraphError
from sparsekit.planning import Plan, Planning
from sparsekit.plugins import Registry
from sparsekit.training.distribution import Distribution, identity
from sparsekit.training.optimizers import chosen_masking, optimizers_of
from sparsekit.training.reading import Backward
from sparsekit.training.schedule import Schedule
from sparsekit.training.state import MaskState
from sparsekit.training.tracing import TracedModel, is_keras, name_of, retrace
from sparsekit.training.trainers import Trainers, require_free
from sparsekit.training.weights import MaskedWeight, check_weights, masked_weights

_log = logging.getLogger("sparsekit")


class MaskedModel:
    """What :func:`sparsekit.prune` did to a model of Keras 3, a ``tf.Module`` or a ``tf.function``.

    The masks were chosen (unless ``start_step`` says later) and hold: by zeros in the model's own variables, or with
    ``masking = "forward"`` wherever these are read. Train the model: ``model.fit(..., callbacks=[result.callback])``,
    or, in a loop of your own, with ``result.wrap(optimizer)`` or with ``result.step()`` after every step of any
    optimizer. Then call :meth:`finalize`. It prints as its plan.

    Attributes:
        model: the user's own.
        weights: the masked ones.
        state: masks, counters and mode as one ``tf.train.Checkpoint``. A checkpoint of the model (``tf.train``'s, and
            what Keras writes: ``.keras``, ``.weights.h5``, ``BackupAndRestore``) holds it already; only that of a
            ``tf.function`` does not, nor one of weights in a dict.
    """

    def __init__(self, model: Any, traced: TracedModel, planning: Planning, config: PruneConfig, registry: Registry):
        """
        Raises:
            ConfigError: the config asks for what cannot be done to this model.
            GraphError: it was pruned before, and not finalized.
            ModelError: weights are not finite.
        """
        self._distribution = Distribution.of(name_of(model), traced.variables.values())
        check_weights(traced, planning.layers, registry, self._distribution)
        MaskState.require_none(name_of(model), model)
        for optimizer in optimizers_of(model):
            require_free(optimizer, "prune")
        self.model = model
        self._config = config
        self._planned = planning.plan
        choice = chosen_masking(config, model, None)
        backward = None
        if choice.masking == "forward":
            self._distribution.require_forward(config)
            backward = Backward(config.gradient, config.sr_ste_decay)
        self.weights: Sequence[MaskedWeight] = masked_weights(
            traced, planning.layers, registry, backward, self._distribution
        )
        self._groups = _by_schedule(self.weights, config)
        with self._distribution.scope():
            self._steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="steps")
        self._trainers = Trainers(model, self.weights, config, self._distribution, self._stepped)
        self._finalized = False
        if config.start_step == 0:
            self._distribution.once(self._choose_first)
        with self._distribution.scope():
            self._state = MaskState(model, choice.masking == "forward", self._steps, self.weights)
        self._warn(config)
        retrace(model)
        self.install()

    @property
    def plan(self) -> Plan:
        """Every layer with its decision, and how zeros are kept."""
        return told(self._planned, self._trainers.choices)

    @property
    def state(self) -> Any:
        return self._state.checkpoint

    @property
    def sparsity(self) -> float:
        """The share of zeros in all masked weights together, 0 to 1; read from the variables."""
        sizes = [weight.variable.shape.num_elements() for weight in self.weights]
        kept = sum(float(weight.density()) * size for weight, size in zip(self.weights, sizes, strict=True))
        return 1.0 - kept / sum(sizes) if sizes else 0.0

    def install(self, trained: Any = None) -> None:
        """Wrap the optimizers that the model holds: that which it is compiled with, those of a train step of its own.

        The callback does this, too.

        Args:
            trained: the model whose ``fit`` trains the pruned one, which is a part of it; None: the pruned one itself.

        Raises:
            ConfigError: an optimizer is wrapped for another result.
            GraphError: the result is finalized, or another model is trained, a copy of the pruned one, say.
        """
        self._require_open()
        trained = self.model if trained is None else trained
        self._require_part_of(trained)
        self._trainers.install(trained)

    def wrap(self, optimizer: Any) -> Any:
        """Let an optimizer of Keras keep the zeros.

        Call it before a ``tf.function`` with a step of the optimizer is traced. Momentum that the optimizer has already
        gathered for dropped weights is taken away. Of several optimizers every one's steps count.

        Args:
            optimizer: the optimizer; the object itself is changed, until `finalize`.

        Returns:
            The same object.

        Raises:
            ConfigError: it is no optimizer of Keras 3, or wrapped for another result.
            GraphError: the result is finalized.
        """
        self._require_open()
        self._trainers.wrap(optimizer)
        return optimizer

    def step(self) -> None:
        """To be called after every step of an optimizer that is not wrapped, inside a ``tf.function`` or out of it."""
        self._require_open()
        self._stepped(True)

    def settle(self) -> None:
        """Make weights, masks and optimizers agree; the callback does this before the first step of every epoch.

        Call it yourself in a loop of your own after something else than training wrote the weights. Where that was a
        file of Keras without masks, these are chosen anew. Where zeros live in the variable and what was written
        follows the pattern with other zeros (the best weights of an earlier epoch, say), these are its mask. Anything
        else is masked as before.

        Raises:
            ConfigError: a checkpoint of another ``masking`` was restored.
        """
        self._require_open()
        self._distribution.once(self._settle)

    def enforce(self) -> None:
        """Write zeros where masks drop and something else than training wrote the weights; `settle` does this, too.

        It logs a warning for every layer whose dropped weights were not zero any more. Neither can be called inside of
        a ``tf.function``.
        """
        for weight in self.weights:
            self._tell(weight, self._distribution.once(weight.enforce))

    def finalize(self) -> Any:
        """Leave plain zeros in plain variables, and optimizers as they were; a second call changes nothing.

        It logs a warning where training ended before ``start_step``: no masks were chosen, and the weights stay dense.

        Returns:
            The model, to be saved by its own means.
        """
        if self._finalized:
            return self.model
        self._finalized = True
        self._warn_of_early_end()
        for weight in self.weights:
            self._tell(weight, self._distribution.once(weight.release))
        self._state.detach()
        self._trainers.release()
        return self.model

    @functools.cached_property
    def callback(self) -> Any:
        """For ``model.fit(..., callbacks=[...])``: keeps the masks, and adds sparsity to the logs of every epoch.

        Raises:
            GraphError: see :meth:`make_callback`.
        """
        return self.make_callback()

    def make_callback(self, log_dir: str | os.PathLike[str] | None = None, histogram_freq: int = 0) -> Any:
        """The same with summaries for TensorBoard.

        Args:
            log_dir: where to write density, retained magnitude and mask flips of every layer, once an epoch; None:
                nowhere.
            histogram_freq: write histograms of the weights that are not dropped every so many epochs; 0: never.

        Returns:
            A Keras callback, to be used instead of :attr:`callback`. Put it before callbacks that read logs.

        Raises:
            ConfigError: ``histogram_freq`` is negative, or there is nowhere to write to.
            GraphError: Keras cannot fit the model under the strategy that it was made for; the message shows the loop.
        """
        from sparsekit.training.callback import SparsityCallback

        self._distribution.require_fit(name_of(self.model))
        if histogram_freq < 0 or (histogram_freq and log_dir is None):
            raise ConfigError(
                f"got {histogram_freq}" + (" without log_dir" if log_dir is None else ""),
                where="histogram_freq",
                expected="a number of epochs, and a log_dir to write histograms to; or 0",
            )
        return SparsityCallback(self, log_dir, histogram_freq)

    def _settle(self) -> None:
        if self._state.came_without_masks():
            for weight in self.weights:
                weight.forget()
            if int(self._steps.numpy()) >= self._config.start_step:
                self._choose_first()
        for weight in self.weights:
            weight.enforce()
        self._trainers.settle()

    def _tell(self, weight: MaskedWeight, moved: int) -> None:
        if moved:
            _log.warning(
                "%s: %d dropped weights were not zero any more and are again: what wrote them (averages of weights, an "
                "optimizer that was not wrapped, a fit without the callback) knew no masks, or older ones (workers "
                "that do not wait for each other).",
                weight.name,
                moved,
            )

    def _warn_of_early_end(self) -> None:
        steps = int(self._steps.numpy())
        if self.weights and steps < self._config.start_step:
            _log.warning(
                "%s: no masks were chosen, its weights stay dense: start_step = %d, and %d steps were counted. Prune "
                "it again with a lower start_step, and train on.",
                name_of(self.model),
                self._config.start_step,
                steps,
            )

    def _stepped(self, project: bool) -> None:
        # No functions without names: these may be traced by AutoGraph, which must find their source.
        self._distribution.once(functools.partial(self._after, project))

    def _after(self, project: bool) -> None:
        """What follows a step, in its graph."""
        if project or self._trainers.several:
            for weight in self.weights:
                weight.project()
        if not any(schedule.needs_steps for schedule in self._groups):
            return
        self._steps.assign_add(1)
        step = self._steps.read_value()
        for schedule, weights in self._groups.items():
            if not schedule.needs_steps:
                continue
            due = schedule.due(step)
            # Loops of one turn or none. XLA's conditional copies all that it may write, in every step; its loop writes
            # in place. A loop for every weight: what one needs for a while serves the next, and memory stays so small
            # that the allocator does not ask the system for it anew in every step.
            for weight in weights:
                tf.while_loop(lambda due: due, functools.partial(self._choose_and_clear, weight), (due,))

    def _choose_and_clear(self, weight: MaskedWeight, due: tf.Tensor) -> tuple[tf.Tensor]:
        weight.choose()
        self._trainers.clear_momenta(weight)
        return (tf.zeros_like(due),)

    def _choose_first(self) -> None:
        for weight in self.weights:
            weight.choose(count=False)

    def _require_part_of(self, trained: Any) -> None:
        # Keras does not know the variables that a tf.Module holds in one of its models.
        if trained is self.model or not is_keras(self.model) or not self.weights:
            return
        held = {identity(variable) for variable in trained.variables}
        if not any(identity(weight.variable) in held for weight in self.weights):
            raise GraphError(
                f"holds none of the weights that {name_of(self.model)} has masks for",
                where=name_of(trained),
                expected="the model that was pruned, or one that it is a part of",
                hint="A copy, or what was loaded from a file, is a model of its own: prune that, too.",
            )

    def _require_open(self) -> None:
        if self._finalized:
            raise GraphError(
                "is finalized: its masks are not kept any more",
                where=name_of(self.model),
                hint="Call sparsekit.prune again to train it further.",
            )

    def _warn(self, config: PruneConfig) -> None:
        if not self.weights:
            _log.warning("%s No layer was changed.", self._planned.summary())
        periods = {weight.decision.update_freq for weight in self.weights}
        if config.gradient != "masked" and periods - {1}:
            _log.warning(
                "gradient %s trains dropped weights so that they may come back, but masks are chosen %s (update_freq = "
                "%d); it is meant for update_freq = 1.",
                config.gradient,
                "once" if periods == {0} else "rarely",
                max(periods),
            )

    def __str__(self) -> str:
        return str(self.plan)


def told(plan: Plan, masking: str) -> Plan:
    """The plan of a model that will be trained, with how zeros are kept: the advice for one shot is not for it."""
    return attrs.evolve(plan, masking=masking, worth_leaving_dense=())


def _by_schedule(weights: Sequence[MaskedWeight], config: PruneConfig) -> dict[Schedule, list[MaskedWeight]]:
    groups: dict[Schedule, list[MaskedWeight]] = defaultdict(list)
    for weight in weights:
        groups[Schedule(config.start_step, weight.decision.update_freq, config.freeze_step)].append(weight)
    return dict(groups)
