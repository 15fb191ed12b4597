"""The chief of a ParameterServerStrategy, or one of its servers: what test_parameter_servers.py starts.

python run_coordinator.py FOLDER CONFIG STEPS FATAL   # the chief dies when it has scheduled FATAL steps more
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
from keras_nets import X, Y, net
from logbook import Logbook

import sparsekit
from sparsekit.errors import GraphError

EVERY = 20
"""Steps between checkpoints, and between entries of the logbook."""


def serve(resolver: Any) -> None:
    tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
    ).join()


def coordinate(resolver: Any, folder: Path, config: str, steps: int, fatal: int) -> None:
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        model = net()
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)
    result = sparsekit.prune(model, json.loads(config))
    result.wrap(optimizer)
    try:
        result.callback  # noqa: B018
    except GraphError as error:
        print(error)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(batches: Any) -> tf.Tensor:
        def replica(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = loss_of(y, model(x))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        return strategy.run(replica, args=next(batches))

    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model, optimizer=optimizer), str(folder / "checkpoints"), max_to_keep=2
    )
    if manager.latest_checkpoint:
        manager.checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    logbook = Logbook(folder / "chief.jsonl")
    logbook.write(int(optimizer.iterations.numpy()), result)
    batches = iter(
        coordinator.create_per_worker_dataset(tf.data.Dataset.from_tensor_slices((X, Y)).repeat().shuffle(80).batch(8))
    )
    for count in range(EVERY, steps + 1, EVERY):
        losses = [coordinator.schedule(step, args=(batches,)) for _ in range(EVERY)]
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        coordinator.join()
        manager.save()
        logbook.write(int(optimizer.iterations.numpy()), result)
        print("loss", float(tf.reduce_mean([loss.fetch() for loss in losses])))
    result.finalize()
    assert sparsekit.verify(model).ok
    print("verified")


if __name__ == "__main__":
    found = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if found.task_type in ("worker", "ps"):
        serve(found)
    else:
        coordinate(found, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
