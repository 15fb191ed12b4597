"""The masks of trainable variables: how they are chosen, kept and taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from sparsekit.criterion import Criterion
from sparsekit.errors import GraphError
from sparsekit.live.mask import keep_tensor
from sparsekit.one_shot import refuse_non_finite
from sparsekit.planning import LayerDecision, PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.training.distribution import Distribution
from sparsekit.training.reading import Backward, MaskedReading, without_dropped
from sparsekit.training.tracing import TracedModel

_OWNER = "_sparsekit_layer"


class MaskedWeight:
    """A variable and its mask. What computes here computes where the variable is, in graphs and out of them.

    Args:
        decision: of the layer.
        variable: its weight.
        criterion: chooses the mask.
        backward: the variable stays dense and is masked where it is read, with this gradient; None: its dropped weights
            are zero in the variable.
        distribution: where the variable lives. What changes a weight is called once for all replicas.

    Attributes:
        mask: 1 where a weight stays, of the variable's shape and dtype.
        shadow: the dropped values, 0 elsewhere, to take part when masks are chosen again; None where the mask is chosen
            once or the variable holds them itself.
        flips: how often a weight came or went in training, int64; what is first dropped after ``start_step`` counts.
    """

    def __init__(
        self,
        decision: LayerDecision,
        variable: Any,
        criterion: Criterion,
        backward: Backward | None,
        distribution: Distribution,
    ) -> None:
        self.decision = decision
        self.variable = variable
        self._criterion = criterion
        self._distribution = distribution
        keeps_dropped = backward is None and decision.update_freq > 0
        with distribution.scope(beside=variable):
            self.mask = tf.Variable(tf.ones_like(variable), trainable=False, name="mask")
            self.flips = tf.Variable(0, dtype=tf.int64, trainable=False, name="flips")
            zeros = tf.zeros_like(variable)
            self.shadow = tf.Variable(zeros, trainable=False, name="shadow") if keeps_dropped else None
        self._reading = MaskedReading(variable, self.mask, backward) if backward else None
        setattr(variable, _OWNER, decision.name)

    @property
    def name(self) -> str:
        """The layer."""
        return self.decision.name

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, by name."""
        state = {"mask": self.mask, "flips": self.flips}
        return state if self.shadow is None else {**state, "shadow": self.shadow}

    def dense(self) -> contextlib.AbstractContextManager[None]:
        """While this lasts, readers of the variable see all that it holds."""
        return contextlib.nullcontext() if self._reading is None else self._reading.dense()

    def choose(self, count: bool = True) -> None:
        """Choose the mask anew from all values, dropped ones too, and let it hold.

        Args:
            count: what comes or goes flips.
        """
        self._on_copies(lambda: self._choose(count))

    def _choose(self, count: bool) -> None:
        axis, pattern = self.decision.axis, self.decision.pattern
        assert axis is not None and pattern is not None
        # All reads before all assignments.
        weight = self._value()
        full = weight if self.shadow is None else weight + self.shadow
        before = self.mask.read_value()
        chosen = keep_tensor(self._criterion.score(full, axis), axis, pattern)
        mask = tf.cast(chosen, before.dtype)
        if count:
            self.flips.assign_add(_differences(before, mask))
        self.mask.assign(mask)
        if self.shadow is not None:
            self.shadow.assign(without_dropped(full, 1 - mask))
        if self._reading is None:
            self.variable.assign(without_dropped(full, mask))

    def forget(self) -> None:
        """Dropped values that are kept apart do not belong to the variable's values any more."""
        self._on_copies(self._clear_shadow)

    def enforce(self) -> int:
        """Where zeros live in the variable, write them where the mask drops: +0.0, whatever was there.

        Weights from elsewhere that follow the pattern by themselves bring their mask with them.

        Returns:
            How many dropped weights were not zero although nothing should have moved them.
        """
        if self._reading is not None:
            return 0
        self._on_copies(self._follow)
        moved = int(self._moved(self.mask.read_value() != 0))
        self._on_copies(self._write_zeros)
        return moved

    def release(self) -> int:
        """Leave a plain variable with plain zeros behind.

        Returns:
            How many dropped weights were not zero although nothing should have moved them.
        """
        moved = self.enforce()
        if self._reading is not None:
            self._on_copies(self._write_zeros)
            self._reading.remove()
        if hasattr(self.variable, _OWNER):
            delattr(self.variable, _OWNER)
        return moved

    def project(self) -> None:
        """Take what an optimizer made of dropped weights out again."""
        if self._reading is None:
            self._on_copies(self._project)

    def take_dropped_from(self, slot: Any) -> None:
        """Write zeros where the mask drops into an optimizer's variable of the weight's shape."""
        self._distribution.on_copies(
            slot, lambda: slot.assign(without_dropped(slot.read_value(), self.mask.read_value()))
        )

    def masked(self, gradient: Any) -> tf.Tensor:
        """A gradient without what flows to dropped weights."""
        return without_dropped(tf.convert_to_tensor(gradient), self.mask.read_value())

    def kept(self) -> tf.Tensor:
        """The weights as the model computes with them."""
        return without_dropped(self._value(), self.mask.read_value())

    def density(self) -> tf.Tensor:
        """The share of weights that are not zero, float64; of those that the model computes with."""
        weight = self._value() if self._reading is None else self.kept()
        return tf.math.count_nonzero(weight) / tf.size(weight, tf.int64)

    def retained(self) -> tf.Tensor:
        """The share of sum |w| that the mask keeps, float64; 1 where dropped values are not known any more."""
        whole = self._value() if self.shadow is None else self._value() + self.shadow.read_value()
        return tf.math.divide_no_nan(_magnitude(self.kept()), _magnitude(whole))

    def _project(self) -> None:
        if self._distribution.asynchronous:
            # What another worker adds to kept weights in between is not lost.
            self.variable.assign_sub(self._value() * (1 - self.mask.read_value()))
        else:
            self._write_zeros()

    def _on_copies(self, do: Callable[[], object]) -> None:
        self._distribution.on_copies(self.variable, do)

    def _value(self) -> tf.Tensor:
        return self.variable.read_value() if self._reading is None else self._reading.value()

    def _moved(self, mask: tf.Tensor) -> tf.Tensor:
        """How many weights that a mask drops are not zero."""
        weight = self._value()
        return tf.math.count_nonzero(tf.where(mask, tf.zeros_like(weight), weight))

    def _follow(self) -> None:
        mask = self.mask.read_value()
        if int(self._moved(mask != 0)) == 0:
            return
        axis, pattern = self.decision.axis, self.decision.pattern
        assert axis is not None and pattern is not None
        # Where fewer weights than may stay are not zero, those stay that did before.
        kept = keep_tensor(2 * tf.cast(self._value() != 0, mask.dtype) + mask, axis, pattern)
        if int(self._moved(kept)) == 0:
            self.mask.assign(tf.cast(kept, mask.dtype))
            self._clear_shadow()

    def _clear_shadow(self) -> None:
        if self.shadow is not None:
            self.shadow.assign(tf.zeros_like(self.shadow))

    def _write_zeros(self) -> None:
        self.variable.assign(without_dropped(self._value(), self.mask.read_value()))


def check_weights(
    traced: TracedModel, layers: Sequence[PlannedLayer], registry: Registry, distribution: Distribution
) -> None:
    """Whether the weights of planned layers can be masked.

    Raises:
        ConfigError: a criterion cannot choose masks while a model trains.
        GraphError: a variable has a mask already, or does not live where the others do.
        ModelError: it holds values that are not finite.
    """
    for layer in layers:
        variable = _variable(traced, layer)
        _check(layer.decision, variable, registry)
        distribution.require_own(layer.decision.name, variable)
        for _, values in traced.values(layer.source.read):
            refuse_non_finite(values, layer.decision.name, layer.decision.weight)


def masked_weights(
    traced: TracedModel,
    layers: Sequence[PlannedLayer],
    registry: Registry,
    backward: Backward | None,
    distribution: Distribution,
) -> list[MaskedWeight]:
    """The variables of planned layers with their masks, which keep all weights at first; see `check_weights`."""
    return [
        MaskedWeight(
            layer.decision,
            _variable(traced, layer),
            registry.criterion(layer.decision.criterion),
            backward,
            distribution,
        )
        for layer in layers
    ]


def _variable(traced: TracedModel, layer: PlannedLayer) -> Any:
    return traced.variables[layer.source.leaves[0].name]


def _check(decision: LayerDecision, variable: Any, registry: Registry) -> None:
    hint = "Export the model and prune the SavedModel with calibration samples."
    registry.require_live(decision.criterion, decision.name, "while a model trains", hint)
    if hasattr(variable, _OWNER):
        raise GraphError(
            f"its weight was pruned before, as '{getattr(variable, _OWNER)}', and is not finalized",
            where=decision.name,
            hint="Call .finalize() of the first result, or keep using that.",
        )


def _differences(mask: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """How many weights one mask keeps and the other drops, int64."""
    # TensorFlow counts in eight bytes a weight. Rows are counted in float32, exact below 2**24.
    rows = tf.reduce_sum(tf.cast(tf.math.squared_difference(mask, other), tf.float32), axis=-1)
    return tf.reduce_sum(tf.cast(rows, tf.int64))


def _magnitude(weight: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(tf.abs(weight), tf.float64))
