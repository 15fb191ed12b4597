"""The Keras callback that keeps masks and tells about sparsity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from sparsekit.training.masked_model import MaskedModel


class SparsityCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Put it before others that read the logs (TensorBoard, CSVLogger)."""

    def __init__(self, masked: MaskedModel) -> None:
        super().__init__()
        self._masked = masked

    def on_train_begin(self, logs: Any = None) -> None:
        self._masked.install()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is None or not self._masked.weights:
            return
        size = sum(int(weight.variable.shape.num_elements()) for weight in self._masked.weights)
        kept = sum(
            float(weight.density()) * int(weight.variable.shape.num_elements()) for weight in self._masked.weights
        )
        logs["sparsity"] = 1.0 - kept / size

    def on_train_end(self, logs: Any = None) -> None:
        # A moving average of weights, if the optimizer has written one at the end, began before the masks.
        for weight in self._masked.weights:
            weight.project()
