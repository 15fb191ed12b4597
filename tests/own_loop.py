"""A pruned network of Keras 3 and its part of a training step, for strategies under which Keras' fit cannot train."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras_nets import net

import sparsekit
from sparsekit.errors import GraphError


class OwnLoop:
    """What every process does before it trains; prints why Keras' fit cannot train the model.

    Args:
        strategy: the model's.
        optimizer: makes one.
        config: of `sparsekit.prune`, as JSON.
        restored: a checkpoint will be: the weights are others, so that nothing comes from them instead.

    Attributes:
        model, optimizer, result: the model is pruned, the optimizer wrapped.
        checkpoint: what to go on needs.
    """

    def __init__(self, strategy: Any, optimizer: Callable[[], Any], config: str, restored: bool = False) -> None:
        with strategy.scope():
            self.model = net(seed=2 if restored else 1)
            self.optimizer = optimizer()
            self.optimizer.build(self.model.trainable_variables)
        self.result = sparsekit.prune(self.model, json.loads(config))
        self.result.wrap(self.optimizer)
        try:
            self.result.callback  # noqa: B018
        except GraphError as error:
            print(error)
        self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.optimizer)
        self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    def replica(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """To be run by the strategy; returns the replica's part of the loss over eight rows."""
        with tf.GradientTape() as tape:
            loss = self._loss(y, self.model(x)) / 8
            scaled = self.optimizer.scale_loss(loss)
        weights = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return loss

    def finish(self) -> None:
        """Finalize and verify."""
        self.result.finalize()
        verification = sparsekit.verify(self.model)
        assert verification.ok, verification
