"""The chief of a ParameterServerStrategy, or one of its servers: what test_parameter_servers.py starts.

python run_coordinator.py FOLDER CONFIG STEPS FATAL   # the chief dies when it has scheduled FATAL steps more
"""

from __future__ import annotations

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

EVERY = 20
"""Steps between checkpoints, and between entries of the logbook."""


def serve(resolver: Any) -> None:
    tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
    ).join()


def coordinate(resolver: Any, folder: Path, config: str, steps: int, fatal: int) -> None:
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    latest = tf.train.latest_checkpoint(folder / "checkpoints")
    loop = OwnLoop(strategy, lambda: keras.optimizers.Adam(0.01), config, restored=latest is not None)
    assert_on_parameter_servers(loop.result)
    optimizer, result = loop.optimizer, loop.result

    @tf.function
    def step(batches: Any) -> tf.Tensor:
        return strategy.run(loop.replica, args=next(batches))

    manager = tf.train.CheckpointManager(loop.checkpoint, str(folder / "checkpoints"), max_to_keep=2)
    if latest:
        loop.checkpoint.restore(latest).assert_consumed()
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
    loop.finish()
    print("verified")


def assert_on_parameter_servers(result: Any) -> None:
    """All that a step needs for a weight is where the weight is."""
    for weight in result.weights:
        assert {variable.device for variable in weight.state.values()} == {weight.variable.device}
    assert "/job:ps/" in result.state.steps.device


if __name__ == "__main__":
    found = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if found.task_type in ("worker", "ps"):
        serve(found)
    else:
        coordinate(found, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
