"""A small network and samples for it, on disk too, for tests of calibration in whatever order or process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import sparsekit

v1 = tf.compat.v1
LAYERS = ("conv", "normed", "grouped", "fc", "out")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f")


def samples(count: int, seed: int = 1) -> np.ndarray:
    """Inputs whose columns depend on each other and have a mean, as a network's do."""
    mixed = normal(count, 6, 6, 4, seed=seed) @ normal(4, 8, seed=2)
    return (np.maximum(mixed, 0) + 0.1 * normal(count, 6, 6, 8, seed=seed + 1)).astype("f")


def network() -> Any:
    """Frozen: convolutions with a bias, a batch normalization and groups, dense layers with a bias and without."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, normal(3, 3, 8, 8), 1, "SAME", name="conv"), normal(8)))
        h = tf.nn.conv2d(h, normal(1, 1, 8, 8), 2, "SAME", name="normed")
        h, _, _ = v1.nn.fused_batch_norm(
            h, np.ones(8, "f"), normal(8), normal(8, seed=5), np.ones(8, "f"), is_training=False
        )
        h = tf.nn.relu(tf.nn.conv2d(tf.nn.relu(h), normal(3, 3, 4, 8), 1, "VALID", name="grouped"))
        h = tf.nn.relu(tf.matmul(tf.reshape(h, [-1, 8]), normal(8, 16), name="fc") + normal(16))
        tf.matmul(h, normal(16, 4), name="out")
    return graph.as_graph_def()


def written(folder: Path) -> None:
    """``dense.pb``, and its samples in ``samples-0.npz`` and ``samples-1.npz``."""
    sparsekit.save(network(), folder / "dense.pb")
    np.savez(folder / "samples-0.npz", x=samples(300))
    np.savez(folder / "samples-1.npz", x=samples(333, seed=9))
