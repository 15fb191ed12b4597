"""A Keras 3 model from dense to 2:4 sparse: train, prune, fine-tune, finalize, report, save and export.

python keras3_finetune.py            # about half a minute on a laptop
python keras3_finetune.py --output somewhere --seed 3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import sparsekit

EPOCHS = 12


class Digits(NamedTuple):
    """scikit-learn's digits, 8x8 pixels in 0..1, split into 1,200 for training and 597 for testing."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Outcome(NamedTuple):
    """Accuracies on the test images, and whether what was written is sparse."""

    dense: float
    control: float
    one_shot: float
    fine_tuned: float
    sparse: bool


def load_digits(seed: int) -> Digits:
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, train_size=1200, random_state=seed, stratify=labels
    )
    return Digits((train_images, train_labels), (test_images, test_labels))


def build() -> Any:
    """A narrow network: what is dropped is missed."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="conv2"),
            layers.Flatten(),
            layers.Dense(24, activation="relu", name="hidden"),
            layers.Dense(10, name="head"),
        ]
    )
    compile_for_training(model)
    return model


def compile_for_training(model: Any) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])


def accuracy(model: Any, digits: Digits) -> float:
    return float(model.evaluate(*digits.test, verbose=0)[1])


def fine_tune(output: Path, seed: int) -> Outcome:
    """The whole way; writes ``model.keras``, ``exported/``, ``report.html`` and TensorBoard's ``logs/``."""
    digits = load_digits(seed)
    keras.utils.set_random_seed(seed)
    model = build()
    model.fit(*digits.train, batch_size=50, epochs=EPOCHS, verbose=0)
    dense = accuracy(model, digits)

    # The control gets the same further training without masks.
    control = keras.models.clone_model(model)
    control.set_weights(model.get_weights())
    compile_for_training(control)
    control.fit(*digits.train, batch_size=50, epochs=EPOCHS, verbose=0)

    # From here on it is about sparsity. Masks are chosen every 24 batches of the first half, then they stand still.
    compile_for_training(model)
    result = sparsekit.prune(model, {"update_freq": 24, "freeze_step": 24 * EPOCHS // 2})
    print(result)
    one_shot = accuracy(model, digits)
    model.fit(
        *digits.train,
        batch_size=50,
        epochs=EPOCHS,
        verbose=2,
        callbacks=[result.make_callback(log_dir=output / "logs", histogram_freq=4)],
    )
    result.finalize()

    # Your own model, your own classes, plain zeros.
    print(sparsekit.verify(model))
    report = sparsekit.report(model)
    totals = report.totals
    print(f"{totals.weights_pruned:,} of {totals.weights:,} weights are in 2:4 layers.")
    report.save(output / "report.html")
    model.save(output / "model.keras")
    model.export(output / "exported", verbose=False)
    sparse = sparsekit.verify(model).ok and sparsekit.verify(output / "exported").ok
    return Outcome(dense, accuracy(control, digits), one_shot, accuracy(model, digits), sparse)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("keras3_output"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    outcome = fine_tune(arguments.output, arguments.seed)
    print(f"dense                               {outcome.dense:.1%}")
    print(f"dense, same extra training          {outcome.control:.1%}")
    print(f"2:4, before fine-tuning             {outcome.one_shot:.1%}")
    print(f"2:4, fine-tuned                     {outcome.fine_tuned:.1%}")
    print(f"sparse in the model and its export  {outcome.sparse}")


if __name__ == "__main__":
    main()
