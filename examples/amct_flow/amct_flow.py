"""AMCT's 2:4 flow in nine steps, as its documentation gives them, on real data.

The import line is the one difference to a script for Huawei's tool.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from network import OUTPUT, Digits, build, evaluate, freeze, load_digits, minimize, tf1, train

# Step 1: import and log level.
import sparsekit.compat.amct_tensorflow as amct

LOG_FILE = Path("amct_log", "amct_tensorflow.log")
CONFIG = str(Path(__file__).with_name("retrain.cfg"))


def main(output: Path, seed: int = 0) -> None:
    amct.set_logging_level(print_level="info", save_level="info")
    output.mkdir(parents=True, exist_ok=True)
    data = load_digits(seed)

    # Step 2: the trained model that the user starts from, evaluated.
    model = build(training=True, seed=seed)
    train(model, minimize(model, 2e-3), data, epochs=40, save_to=output / "dense.ckpt", seed=seed)
    model = build(training=False)
    with model.graph.as_default():
        saver = tf1.train.Saver(tf1.global_variables())
    dense = freeze(model, lambda session: saver.restore(session, str(output / "dense.ckpt")), output / "dense.pb")
    print("dense: accuracy {:.4f}, cross-entropy {:.4f}".format(*evaluate(dense, data)))

    pruned = retrain(data, output / "dense.ckpt", output, epochs=20, seed=seed)

    # Step 9: the pruned model, evaluated.
    print("pruned and retrained: accuracy {:.4f}, cross-entropy {:.4f}".format(*evaluate(pruned, data)))


def retrain(
    data: Digits,
    dense_checkpoint: Path,
    output: Path,
    epochs: int,
    seed: int = 0,
    on_epoch: Callable[[], Any] = lambda: None,
) -> Path:
    """Steps 3 to 8: from a dense checkpoint to a pruned pb."""
    record_file = str(output / "record.txt")
    masked_pb = output / "masked.pb"

    # Step 3: the training graph, and a saver for the dense checkpoint, made before masks are inserted.
    train_model = build(training=True, seed=seed)
    with train_model.graph.as_default():
        dense_saver = tf1.train.Saver(tf1.global_variables())

    # Step 4: insert masks into it.
    amct.create_prune_retrain_model(
        graph=train_model.graph, outputs=[OUTPUT], record_file=record_file, config_defination=CONFIG
    )

    # Step 5: gradients, after that; train; save a checkpoint.
    train_op = minimize(train_model, 1e-3)
    train(
        train_model,
        train_op,
        data,
        epochs,
        save_to=output / "retrained.ckpt",
        restore=lambda session: dense_saver.restore(session, str(dense_checkpoint)),
        seed=seed,
        on_epoch=on_epoch,
    )

    # Step 6: the inference graph; insert masks into it; the record is written anew.
    test_model = build(training=False)
    amct.create_prune_retrain_model(
        graph=test_model.graph, outputs=[OUTPUT], record_file=record_file, config_defination=CONFIG
    )

    # Step 7: restore what was trained, masks included, and freeze.
    with test_model.graph.as_default():
        saver = tf1.train.Saver(tf1.global_variables())
    freeze(test_model, lambda session: saver.restore(session, str(output / "retrained.ckpt")), masked_pb)

    # Step 8: take the masks out; this writes user_model_pruned.pb.
    amct.save_prune_retrain_model(
        pb_model=str(masked_pb), outputs=[OUTPUT], record_file=record_file, save_path=str(output / "user_model")
    )
    return output / "user_model_pruned.pb"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output"))
