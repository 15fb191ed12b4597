"""One worker of MultiWorkerMirroredStrategy, with a loop of its own: what test_multi_worker_mirrored.py starts two of.

python run_multi_worker.py FOLDER CONFIG STEPS VICTIM STEP   # worker VICTIM dies in step STEP

Those that live to the end then train a few steps with every one of OPTIONS.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras_nets import X, Y
from logbook import Logbook
from own_loop import OwnLoop

EVERY = 4
"""Steps between checkpoints."""
optimizers = keras.optimizers
# Loss scaling decides for every worker by itself whether its gradients are finite: it is not to overflow here.
OPTIONS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "float16": (
        lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1, 0.9), initial_scale=64.0, dynamic_growth_steps=2),
        "mixed_float16",
        {"update_freq": 2, "start_step": 1},
    ),
    "bfloat16": (lambda: optimizers.Lamb(0.01), "mixed_bfloat16", {"update_freq": 2}),
    "averages": (
        lambda: optimizers.AdamW(0.01, weight_decay=0.05, global_clipnorm=0.1, use_ema=True),
        "float32",
        {"update_freq": 2, "masking": "project"},
    ),
}


def main(folder: Path, config: str, steps: int, victim: int, fatal: int) -> None:
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    latest = tf.train.latest_checkpoint(folder / "checkpoints-0")
    loop = OwnLoop(strategy, lambda: optimizers.Adam(0.02), config, restored=latest is not None)
    step = step_of(strategy, loop, index)
    # All workers must save, and only one of them may write what is read again.
    mine = tf.train.CheckpointManager(loop.checkpoint, str(folder / f"checkpoints-{index}"), max_to_keep=2)
    if latest:
        loop.checkpoint.restore(latest).assert_consumed()
    logbook = Logbook(folder / f"worker-{index}.jsonl")
    for count in range(int(loop.optimizer.iterations.numpy()), steps):
        if (index, count) == (victim, fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        step(count)
        logbook.write(count + 1, loop.result)
        if (count + 1) % EVERY == 0:
            mine.save()
    loop.finish()
    loop.model.save_weights(folder / f"worker-{index}.weights.h5")
    for name, (optimizer, policy, options) in OPTIONS.items():
        keras.config.set_dtype_policy(policy)
        loop = OwnLoop(strategy, optimizer, json.dumps(options))
        step = step_of(strategy, loop, index)
        logbook = Logbook(folder / f"{name}-{index}.jsonl")
        for count in range(6):
            step(count)
            logbook.write(count + 1, loop.result)
        loop.finish()


def step_of(strategy: Any, loop: OwnLoop, index: int) -> Any:
    """A training step on the worker's rows of the batch of a number."""

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        strategy.run(loop.replica, args=(x, y))

    def numbered(count: int) -> None:
        rows = slice(count % 10 * 8 + 4 * index, count % 10 * 8 + 4 * index + 4)
        step(tf.constant(X[rows]), tf.constant(Y[rows]))

    return numbered


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
