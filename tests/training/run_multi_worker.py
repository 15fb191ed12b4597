"""One worker of MultiWorkerMirroredStrategy, with a loop of its own: what test_multi_worker_mirrored.py starts two of.

python run_multi_worker.py FOLDER CONFIG STEPS VICTIM STEP   # worker VICTIM dies in step STEP
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import keras
import tensorflow as tf
from keras_nets import X, Y
from logbook import Logbook
from own_loop import OwnLoop

EVERY = 4
"""Steps between checkpoints."""


def main(folder: Path, config: str, steps: int, victim: int, fatal: int) -> None:
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    latest = tf.train.latest_checkpoint(folder / "checkpoints-0")
    loop = OwnLoop(strategy, lambda: keras.optimizers.Adam(0.02), config, restored=latest is not None)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        strategy.run(loop.replica, args=(x, y))

    # All workers must save, and only one of them may write what is read again.
    mine = tf.train.CheckpointManager(loop.checkpoint, str(folder / f"checkpoints-{index}"), max_to_keep=2)
    if latest:
        loop.checkpoint.restore(latest).assert_consumed()
    logbook = Logbook(folder / f"worker-{index}.jsonl")
    for count in range(int(loop.optimizer.iterations.numpy()), steps):
        rows = slice(count % 10 * 8 + 4 * index, count % 10 * 8 + 4 * index + 4)
        if (index, count) == (victim, fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        step(tf.constant(X[rows]), tf.constant(Y[rows]))
        logbook.write(count + 1, loop.result)
        if (count + 1) % EVERY == 0:
            mine.save()
    loop.finish()
    loop.model.save_weights(folder / f"worker-{index}.weights.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
