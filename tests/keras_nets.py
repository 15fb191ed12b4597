"""Small networks of Keras 3, and a way to train them that is masked by hand: what all masking is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import sparsekit

SIZES = (16, 12, 3)
TWO_LAYERS = (16, 3)  # where one more tells nothing, and the graph is large
_RANDOM = np.random.default_rng(0)
X = _RANDOM.standard_normal((80, 8)).astype(np.float32)
Y = (X @ _RANDOM.standard_normal((8, SIZES[-1]))).argmax(1)
SPECS = [tf.TensorSpec([None, 8], tf.float32)]


class MaskedByHand(keras.layers.Dense):
    """A dense layer that multiplies by a mask in its call."""

    mask: Any = None

    def call(self, inputs: Any) -> Any:
        mask = tf.cast(self.mask, self.compute_dtype)
        return self.activation(inputs @ (tf.cast(self.kernel, self.compute_dtype) * mask) + self.bias)


def net(layer: Any = keras.layers.Dense, seed: int = 1, sizes: Sequence[int] = SIZES, **options: Any) -> Any:
    """Dense layers, by default three, the same weights for the same seed."""
    keras.utils.set_random_seed(seed)
    *hidden, last = sizes
    layers = [layer(size, activation="relu", name=f"dense_{i}", **options) for i, size in enumerate(hidden)]
    return keras.Sequential([keras.Input((8,)), *layers, layer(last, name="head", **options)])


def compiled(model: Any, optimizer: Any = None, **options: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **options)
    return model


def train(model: Any, *callbacks: Any, epochs: int = 5, **options: Any) -> Any:
    """Ten steps an epoch, always in the same order."""
    return model.fit(
        X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **options
    ).history


def masks_of(result: Any) -> list[Any]:
    return [weight.mask.numpy() for weight in result.weights]


def kernels(model: Any) -> list[Any]:
    return [layer.kernel.numpy() for layer in model.layers]


def pruned_net(optimizer: Any, config: dict[str, Any], sizes: Sequence[int] = SIZES, **options: Any) -> tuple[Any, Any]:
    model = compiled(net(sizes=sizes), optimizer, **options)
    return model, sparsekit.prune(model, config)


def trained_by_hand(optimizer: Any, masks: list[Any], sizes: Sequence[int] = SIZES) -> list[Any]:
    """The weights after training with masks in the layers' own calls."""
    model = compiled(net(MaskedByHand, sizes=sizes), optimizer)
    for layer, mask in zip(model.layers, masks, strict=True):
        layer.mask = mask
    train(model)
    kept = [kernel * mask for kernel, mask in zip(kernels(model), masks, strict=True)]
    return [*kept, *(layer.bias.numpy() for layer in model.layers)]


class ZerosStay(keras.callbacks.Callback):
    """Looks at every weight after every step."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result
        self.steps = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        for weight in self._result.weights:
            assert not weight.variable.numpy()[weight.mask.numpy() == 0].any(), (self.steps, weight.name)


Optimizer = Callable[[], Any]
