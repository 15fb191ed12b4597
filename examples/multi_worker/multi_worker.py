"""Two workers train one 2:4 sparse Keras 3 model (MultiWorkerMirroredStrategy), here as two processes of this script.

python multi_worker.py               # about half a minute on a laptop
python multi_worker.py --output somewhere

On real machines start the script on each with its own TF_CONFIG; nothing else changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import sparsekit

WORKERS = 2
EPOCHS = 8
BATCH = 60
MINUTES = 5


def load_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's digits as rows of 64 pixels in 0..1: 1,200 for training and 597 for testing."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    images = (images / 16).astype(np.float32)
    a, b, c, d = train_test_split(images, labels, train_size=1200, random_state=0, stratify=labels)
    return (a, c), (b, d)


def build() -> Any:
    """A narrow network: what is dropped is missed."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width, activation="relu", name=f"hidden{i}") for i, width in enumerate((32, 24))]
    return keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(10, name="head")])


def train(strategy: Any, model: Any, optimizer: Any, digits: Any) -> Iterator[int]:
    """The loop of a worker, which Keras' own fit cannot be; yields after every epoch."""
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    @tf.function
    def step(batch: Any) -> None:
        def replica(images: Any, labels: Any) -> None:
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(images, training=True)) / BATCH
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        strategy.run(replica, args=batch)

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices(digits).shuffle(1200, seed=0).batch(BATCH).with_options(options)
    batches = strategy.experimental_distribute_dataset(batches)
    for epoch in range(EPOCHS):
        for batch in batches:
            step(batch)
        yield epoch


def work(output: Path) -> None:
    """One of the workers, as TF_CONFIG says which."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    digits, (images, labels) = load_digits()
    with strategy.scope():
        model = build()
        optimizer = keras.optimizers.Adam(3e-3)
        optimizer.build(model.trainable_variables)

    def accuracy() -> float:
        return float(np.mean(np.argmax(model(images), 1) == labels))

    for _ in train(strategy, model, optimizer, digits):
        pass
    found: dict[str, Any] = {"dense": accuracy(), "masks": []}

    # From here on it is about sparsity. Masks are chosen every 20 steps, an epoch, and stand still for the last three.
    result = sparsekit.prune(model, {"update_freq": 20, "freeze_step": 100})
    result.wrap(optimizer)
    found["one_shot"] = accuracy()
    for _ in train(strategy, model, optimizer, digits):
        masks = b"".join(weight.mask.numpy().tobytes() for weight in result.weights)
        found["masks"].append(hashlib.sha256(masks).hexdigest())
    result.finalize()

    found["fine_tuned"] = accuracy()
    (output / f"worker-{worker}.json").write_text(json.dumps(found))
    if worker == 0:
        print(result)
        model.save(output / "model.keras")


def start_workers(output: Path) -> None:
    """As many processes of this script as there are workers, on this machine; ends them all if one fails."""
    ports = free_ports()
    processes = []
    for worker in range(WORKERS):
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": worker}})
        command = [sys.executable, __file__, "--output", str(output)]
        processes.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}))
    try:
        for worker, process in enumerate(processes):
            if process.wait(60 * MINUTES):
                sys.exit(f"worker {worker} failed")
    finally:
        for process in processes:
            process.kill()


def free_ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(WORKERS)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def report(output: Path) -> None:
    found = [json.loads((output / f"worker-{worker}.json").read_text()) for worker in range(WORKERS)]
    model = keras.models.load_model(output / "model.keras")  # a plain model: no strategy, no masks
    model.export(output / "exported", verbose=False)
    print(sparsekit.verify(model))
    sparse = sparsekit.verify(model).ok and sparsekit.verify(output / "exported").ok
    choices = len(dict.fromkeys(found[0]["masks"]))
    print(f"dense                                  {found[0]['dense']:.1%}")
    print(f"2:4, before fine-tuning                {found[0]['one_shot']:.1%}")
    print(f"2:4, fine-tuned                        {found[0]['fine_tuned']:.1%}")
    print(f"different masks over the epochs        {choices}")
    print(f"same masks on all workers, every time  {all(each['masks'] == found[0]['masks'] for each in found)}")
    print(f"sparse in the model and its export     {sparse}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("multi_worker_output"))
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    if "TF_CONFIG" in os.environ:
        work(output)
        return
    start_workers(output)
    report(output)


if __name__ == "__main__":
    main()
