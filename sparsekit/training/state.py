"""Masks and counters in the checkpoints of the model that they belong to, whoever writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sparsekit.errors import ConfigError, GraphError
from sparsekit.training.tracing import is_keras
from sparsekit.training.weights import MaskedWeight

_NAME = "sparsekit"
_ATTRIBUTE = "_sparsekit"
_DENSE, _ZEROS = 1, 0


class MaskState:
    """Hangs on the model until it is detached; no layer, weight or name of the model changes.

    TensorFlow's checkpoints of a Keras model or ``tf.Module`` find it as a child. Keras' own files find it as an
    attribute that can save itself.

    Args:
        model: the model; a ``tf.function`` has no place for it.
        dense: whether the variables hold dense values and are masked where they are read.
        steps: the count of steps.
        weights: with their masks.
    """

    def __init__(self, model: Any, dense: bool, steps: tf.Variable, weights: Sequence[MaskedWeight]) -> None:
        self._model = model
        self._expected = _DENSE if dense else _ZEROS
        self._mode = tf.Variable(self._expected, dtype=tf.int64, trainable=False, name="mode")
        self._came_without_masks = False
        self._variables = {"steps": steps, "mode": self._mode}
        for index, weight in enumerate(weights):
            self._variables |= {f"{kind}_{index}": variable for kind, variable in weight.state.items()}
        self.checkpoint = tf.train.Checkpoint(**self._variables)
        if isinstance(model, tf.__internal__.tracking.AutoTrackable):
            model._track_trackable(self.checkpoint, _NAME)
        if is_keras(model):
            # Past the tracking of attributes: it is no layer.
            object.__setattr__(model, _ATTRIBUTE, _saveable(self))

    @staticmethod
    def require_none(where: str, model: Any) -> None:
        """
        Raises:
            GraphError: the model has the state of another result.
        """
        tracked = isinstance(model, tf.__internal__.tracking.AutoTrackable) and model._lookup_dependency(_NAME)
        if tracked or (is_keras(model) and _ATTRIBUTE in vars(model)):
            raise GraphError(
                "other layers of it were pruned before, and are not finalized",
                where=where,
                expected="one result for all layers of a model",
                hint="Call .finalize() of the first result; or prune once, with an override for layers that differ.",
            )

    def detach(self) -> None:
        """Leave the model as it was."""
        if isinstance(self._model, tf.__internal__.tracking.AutoTrackable):
            self._model._delete_tracking(_NAME)
        vars(self._model).pop(_ATTRIBUTE, None) if is_keras(self._model) else None

    def came_without_masks(self) -> bool:
        """Whether weights were read from a file that has no masks for them; asked once.

        Raises:
            ConfigError: it has masks, and its variables hold something else than these do.
        """
        if int(self._mode.numpy()) != self._expected:
            ways = {_DENSE: '"forward"', _ZEROS: '"in-place" or "project"'}
            raise ConfigError(
                f"the checkpoint is of a model with masking {ways[int(self._mode.numpy())]}",
                where="masking",
                expected=ways[self._expected],
                hint="Resume with the config that the checkpoint was made with.",
            )
        came, self._came_without_masks = self._came_without_masks, False
        return came

    def save(self, store: Any) -> None:
        """Write to a store of Keras."""
        for name, variable in self._variables.items():
            store[name] = variable.numpy()

    def load(self, store: Any) -> None:
        """Read from a store of Keras, which is empty where the file knew no masks."""
        names = set(store.keys())
        self._came_without_masks = not names
        for name, variable in self._variables.items():
            if name in names:
                variable.assign(np.asarray(store[name]))


def _saveable(state: MaskState) -> Any:
    """What Keras takes for something to save: of all that it knows, a loss is what does not change a model."""
    import keras

    class SavedMasks(keras.losses.Loss):  # type: ignore[misc]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            raise NotImplementedError

        def save_own_variables(self, store: Any) -> None:
            state.save(store)

        def load_own_variables(self, store: Any) -> None:
            state.load(store)

    return SavedMasks(name=_NAME)
