"""How long it takes to insert masks into ResNet-50's graph, and whether a layer's cost grows with the graph.

Run: python tests/benchmarks/bench_insertion.py
"""

from __future__ import annotations

import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

import sparsekit
from sparsekit.table import text_table

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import resnet50

tf1 = tf.compat.v1
REPEATS = 5


def main() -> None:
    rows = []
    sparsekit.plan(_chain(2))  # what the first call alone pays for: plugins, kernels
    times = [_time(_resnet) for _ in range(REPEATS)]
    rows.append(("ResNet-50, 54 layers, s", f"{statistics.median(times):.3f}", "1.0 (try for 0.5)"))
    per_layer = {}
    for layers in (25, 100, 400):
        times = [_time(functools.partial(_chain, layers)) for _ in range(REPEATS)]
        per_layer[layers] = statistics.median(times) / layers
        rows.append((f"chain of {layers} layers, ms a layer", f"{1e3 * per_layer[layers]:.2f}", ""))
    rows.append(("a layer's cost, 400 against 25 layers", f"{per_layer[400] / per_layer[25]:.2f}x", "about 1x"))
    print(text_table((f"insertion, CPU time, median of {REPEATS}", "measured", "limit"), rows), end="")


def _time(build: Callable[[], tf.Graph]) -> float:
    graph = build()
    gc.collect()  # the graphs built before, so that their end is not timed
    start = time.process_time()
    sparsekit.prune(graph, outputs=["logits"])
    return time.process_time() - start


def _resnet() -> tf.Graph:
    with tf.Graph().as_default() as graph:
        resnet50(tf1.placeholder(tf.float32, [None, 224, 224, 3]))
    return graph


def _chain(layers: int) -> tf.Graph:
    with tf.Graph().as_default() as graph:
        x = tf1.placeholder(tf.float32, [None, 16])
        for index in range(layers):
            x = tf.nn.relu(tf.matmul(x, tf1.get_variable(f"w{index}", [16, 16])))
        tf.identity(x, "logits")
    return graph


if __name__ == "__main__":
    main()
