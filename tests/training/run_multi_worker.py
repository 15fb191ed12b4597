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
from keras_nets import X, Y, net
from logbook import Logbook

import sparsekit
from sparsekit.errors import GraphError

EVERY = 4
"""Steps between checkpoints."""


def main(folder: Path, config: str, steps: int, victim: int, fatal: int) -> None:
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = net()
        optimizer = keras.optimizers.Adam(0.02)
        optimizer.build(model.trainable_variables)
    result = sparsekit.prune(model, json.loads(config))
    result.wrap(optimizer)
    try:
        result.callback  # noqa: B018
    except GraphError as error:
        print(error)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        def replica(x: tf.Tensor, y: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                loss = loss_of(y, model(x)) / 8
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        strategy.run(replica, args=(x, y))

    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    # All workers must save, and only one of them may write what is read again.
    mine = tf.train.CheckpointManager(checkpoint, str(folder / f"checkpoints-{index}"), max_to_keep=2)
    latest = tf.train.latest_checkpoint(folder / "checkpoints-0")
    if latest:
        checkpoint.restore(latest).assert_consumed()
    logbook = Logbook(folder / f"worker-{index}.jsonl")
    for count in range(int(optimizer.iterations.numpy()), steps):
        rows = slice(count % 10 * 8 + 4 * index, count % 10 * 8 + 4 * index + 4)
        if (index, count) == (victim, fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        step(tf.constant(X[rows]), tf.constant(Y[rows]))
        logbook.write(count + 1, result)
        if (count + 1) % EVERY == 0:
            mine.save()
    result.finalize()
    verification = sparsekit.verify(model)
    assert verification.ok, verification
    model.save_weights(folder / f"worker-{index}.weights.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
