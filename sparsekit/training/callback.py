"""The Keras callback that keeps masks and tells about sparsity."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import keras

from sparsekit.training.summaries import SummaryWriter

if TYPE_CHECKING:
    from sparsekit.training.masked_model import MaskedModel


class SparsityCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Adds ``sparsity`` to the logs of every epoch: progress bar, history, CSV. Nothing is read in between.

    Args:
        masked: the pruned model.
        log_dir, histogram_freq: see :meth:`MaskedModel.make_callback`.
    """

    def __init__(self, masked: MaskedModel, log_dir: str | os.PathLike[str] | None, histogram_freq: int) -> None:
        super().__init__()
        self._masked = masked
        self._log_dir = log_dir
        self._histogram_freq = histogram_freq
        self._writer: SummaryWriter | None = None
        self._flips: dict[str, int] = {}
        self._settled = False

    def on_train_begin(self, logs: Any = None) -> None:
        self._masked.install(self.model)
        if self._log_dir is not None:
            self._writer = SummaryWriter(self._log_dir)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._settled = False
        self._flips = {weight.name: int(weight.flips.numpy()) for weight in self._masked.weights}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Once an epoch, now that all callbacks have restored what they restore at its start: `SwapEMAWeights` shows
        # averages of weights between epochs, which are not what masks belong to.
        if not self._settled:
            self._settled = True
            self._masked.settle()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None and self._masked.weights:
            logs["sparsity"] = self._masked.sparsity
        if self._writer is not None:
            shows_weights = self._histogram_freq > 0 and (epoch + 1) % self._histogram_freq == 0
            self._writer.write(epoch, self._scalars(), self._histograms() if shows_weights else {})

    def on_train_end(self, logs: Any = None) -> None:
        # A moving average of weights, if the optimizer has written one at the end, began before the masks.
        self._masked.enforce()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self) -> dict[str, float]:
        scalars = {}
        for weight in self._masked.weights:
            scalars[f"sparsity/density/{weight.name}"] = float(weight.density())
            scalars[f"sparsity/retained/{weight.name}"] = float(weight.retained())
            scalars[f"sparsity/flips/{weight.name}"] = int(weight.flips.numpy()) - self._flips[weight.name]
        return scalars

    def _histograms(self) -> dict[str, Any]:
        return {
            f"sparsity/kept/{weight.name}": weight.kept().numpy()[weight.mask.numpy() != 0]
            for weight in self._masked.weights
        }
