"""What masks cost a training step of one worker, and of two that add up their gradients (MultiWorkerMirroredStrategy).

Every number is CPU time of a worker with one compute thread, gRPC included; dense and masked rounds are interleaved, in
step on both workers; medians over several runs (instances).

Run: python tests/benchmarks/bench_several_workers.py [--instances N]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from instances import Instances, Variant, in_turns, one_thread

ROUNDS, STEPS, MODELS = 6, 10, 3
WIDTH, BATCH = 1024, 64
SECONDS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure()))
        return
    alone, together = [], []
    for _ in range(arguments.instances):
        alone.append(run_workers(1)[0])
        together.append(run_workers(2)[0])
    report(Instances(alone), Instances(together))


def report(alone: Instances, together: Instances) -> None:
    from sparsekit.table import text_table

    rows = [
        ("one worker, dense step, ms", f"{1e3 * alone.median('dense'):.2f}", ""),
        ("each of two workers, dense step, ms", f"{1e3 * together.median('dense'):.2f}", ""),
        ("one worker, masks", alone.cost("masked", "dense"), ""),
        ("each of two workers, masks", together.cost("masked", "dense"), "as one"),
    ]
    header = (
        f"Keras MLP 3x{WIDTH}, SGD, n={len(alone.runs)} instances of {MODELS} models: median (range)",
        "measured",
        "limit",
    )
    print(text_table(header, rows), end="")


def run_workers(count: int) -> list[dict[str, float]]:
    """Processes of this script that train together; what each measured."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": json.dumps(config)}
        command = [sys.executable, __file__, "--worker"]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
    # Of all at once: one that waits to be read keeps the others waiting.
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        said = [pool.submit(process.communicate, timeout=SECONDS) for process in processes]
        try:
            outputs = [each.result() for each in said]
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        if process.returncode:
            sys.exit(errors)
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def measure() -> dict[str, float]:
    """Seconds of CPU a step, of this worker."""
    import tensorflow as tf

    one_thread()
    workers = len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])
    # One worker is trained as most are: without a strategy.
    strategy = tf.distribute.get_strategy() if workers == 1 else tf.distribute.MultiWorkerMirroredStrategy()
    variants = {name: [steps_of(strategy, name == "masked") for _ in range(MODELS)] for name in ("dense", "masked")}
    return in_turns(variants, ROUNDS, STEPS)


def steps_of(strategy: Any, masked: bool) -> Variant:
    import keras
    import numpy as np
    import tensorflow as tf

    import sparsekit

    with strategy.scope():
        layers = [keras.layers.Dense(WIDTH, activation="relu", use_bias=False) for _ in range(3)]
        model = keras.Sequential([keras.Input((WIDTH,)), *layers])
        optimizer = keras.optimizers.SGD(1e-3)
        optimizer.build(model.trainable_variables)
    if masked:
        sparsekit.prune(model).wrap(optimizer)
    x = tf.constant(np.random.RandomState(0).randn(BATCH, WIDTH).astype(np.float32))

    @tf.function
    def step() -> None:
        def replica() -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x)))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        strategy.run(replica)

    def run(steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            step()
        model.layers[0].kernel.numpy()  # all is done when this can be read
        return (time.process_time() - start) / steps

    return run


if __name__ == "__main__":
    main()
