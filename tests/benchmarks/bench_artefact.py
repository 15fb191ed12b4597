"""How long models at rest take, beside a plain walk over their protos and beside writing them; and their memory.

Run: python tests/benchmarks/bench_artefact.py [--million]
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

import sparsekit
from sparsekit.table import text_table

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import resnet50

tf1 = tf.compat.v1
REPEATS = 5
SIZES = (1_000, 10_000, 100_000)
LAYER_BYTES = 256 << 20


def main() -> None:
    sparsekit.plan(chain(8, 4))  # what the first call alone pays for: plugins
    sizes = (*SIZES, 1_000_000) if "--million" in sys.argv else SIZES
    header = (f"models at rest, CPU time, median of {REPEATS}", "measured", "limit")
    rows = [*large_graphs(sizes), *stripping(), *memory()]
    print(text_table(header, rows), end="")


def chain(nodes: int, every: int | None) -> Any:
    """A chain of ReLUs; with ``every``, one node in so many is a layer, its 8x8 constant another."""
    graph_def = graph_pb2.GraphDef()
    graph_def.node.add(name="x", op="Placeholder").attr["dtype"].type = 1
    weight = tf.make_tensor_proto(np.random.default_rng(0).standard_normal((8, 8)).astype("f"))
    last = "x"
    while len(graph_def.node) < nodes:
        number = len(graph_def.node)
        if every and number % every == 0:
            constant = graph_def.node.add(name=f"w{number}", op="Const")
            constant.attr["dtype"].type = 1
            constant.attr["value"].tensor.CopyFrom(weight)
            node = graph_def.node.add(name=f"layer{number}", op="MatMul", input=[last, constant.name])
        else:
            node = graph_def.node.add(name=f"relu{number}", op="Relu", input=[last])
        node.attr["T"].type = 1
        last = node.name
    return graph_def


def large_graphs(sizes: tuple[int, ...]) -> list[tuple[str, str, str]]:
    rows = []
    for every, name in ((None, "chain"), (4, "chain, every 4th node a layer")):
        per_node: dict[int, dict[str, float]] = {}
        for nodes in sizes:
            graph_def = chain(nodes, every)
            repeats = REPEATS if nodes <= SIZES[-1] else 1
            verbs: dict[str, Callable[[], object]] = {
                "walk": lambda g=graph_def: [(n.name, n.op, list(n.input)) for n in g.node],  # type: ignore[misc]
                "plan": lambda g=graph_def: sparsekit.plan(g),  # type: ignore[misc]
                "prune": lambda g=graph_def: sparsekit.prune(g),  # type: ignore[misc]
            }
            taken = interleaved(verbs, repeats)
            per_node[nodes] = {verb: seconds / nodes for verb, seconds in taken.items()}
            if nodes == SIZES[-1]:
                for verb, limit in (("plan", "1.5"), ("prune", "2.5")):
                    ratio = taken[verb] / taken["walk"]
                    rows.append((f"{name}, {nodes:,} nodes: {verb}, s", f"{taken[verb]:.2f}", limit))
                    rows.append((f"{name}, {nodes:,} nodes: {verb} / a walk over the protos", f"{ratio:.1f}x", ""))
        for verb in ("plan", "prune"):
            curve = ", ".join(f"{1e6 * per_node[nodes][verb]:.1f}" for nodes in sizes)
            rows.append((f"{name}: {verb}, us a node at {', '.join(f'{n:,}' for n in sizes)}", curve, "flat"))
    return rows


def stripping() -> list[tuple[str, str, str]]:
    """Strip and save a frozen ResNet-50, beside serializing and writing what comes out."""
    with tf.Graph().as_default() as graph, tf1.Session(graph=graph) as session:
        resnet50(tf1.placeholder(tf.float32, [None, 224, 224, 3]), training=False)
        sparsekit.prune(graph, outputs=["logits"])
        session.run(tf1.global_variables_initializer())
        masked = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
    with tempfile.TemporaryDirectory() as folder:
        pruned = sparsekit.strip(masked)

        def write() -> None:
            with open(Path(folder) / "plain.pb", "wb") as file:
                file.write(pruned.SerializeToString())
                file.flush()
                os.fsync(file.fileno())

        verbs = {
            "write": write,
            "strip": lambda: sparsekit.save(sparsekit.strip(masked), Path(folder) / "stripped.pb"),
            "save": lambda: sparsekit.save(pruned, Path(folder) / "saved.pb"),
        }
        taken = interleaved(verbs, REPEATS)
    return [
        ("ResNet-50: strip and save / serialize and write", f"{taken['strip'] / taken['write']:.2f}x", "1.5x"),
        ("ResNet-50: save / serialize and write", f"{taken['save'] / taken['write']:.2f}x", ""),
    ]


def interleaved(verbs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median CPU time of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in verbs}
    for _ in range(repeats):
        for name, verb in verbs.items():
            gc.collect()
            start = time.process_time()
            verb()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


_MEASURED = """
import resource, sys
import numpy as np, tensorflow as tf
import sparsekit
tf1 = tf.compat.v1
rows = int(sys.argv[2]) // 4 // 4096
with tf.Graph().as_default() as graph:
    x = tf1.placeholder(tf.float32, [None, rows])
    tf.matmul(x, np.random.default_rng(0).standard_normal((rows, 4096), np.float32), name="fc")
graph_def = graph.as_graph_def()
del graph
sparsekit.plan(graph_def)
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = now()
if sys.argv[1] == "prune":
    kept = sparsekit.prune(graph_def)
elif sys.argv[1] == "verify":
    kept = sparsekit.verify(graph_def)
high = int([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0]) << 10
print(high - before)
"""


def memory() -> list[tuple[str, str, str]]:
    """Resident memory at its peak above what was there before, over the size of the one layer."""
    rows = []
    for verb, graph in (("prune", 1), ("verify", 0)):
        ended = subprocess.run(
            [sys.executable, "-c", _MEASURED, verb, str(LAYER_BYTES)], capture_output=True, text=True, check=True
        )
        extra = int(ended.stdout) / LAYER_BYTES - graph
        beside = ", beside the new graph" if graph else ""
        rows.append(
            (f"{verb} one layer of {LAYER_BYTES >> 20} MB: extra memory / layer{beside}", f"{extra:.2f}x", "1.2x")
        )
    return rows


if __name__ == "__main__":
    main()
