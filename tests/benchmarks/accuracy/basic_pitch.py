"""basic-pitch (Bittner et al. 2022, arXiv 2203.09893): which notes sound in two seconds of music, as Spotify made it.

The SavedModel comes from the PyPI package basic-pitch (Apache-2.0), which is installed without its dependencies.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from accuracy.scoring import bernoulli_divergence, f1, lost_energy
from accuracy.sounds import tone

Array = npt.NDArray[Any]
tf1 = tf.compat.v1

RATE, WINDOW = 22050, 43844
FRAMES, HOP = 172, 256
LOWEST = 21  # A0 in MIDI's numbering, the first of 88 keys
ONSET, FRAME = 0.5, 0.3
"""The thresholds of the package's own note creation."""


@attrs.frozen(eq=False)
class Music:
    """Sound and its notes.

    Attributes:
        windows: float32 [count, 43844, 1], at 22,050 Hz.
        notes: bool [count, 172, 88], which keys sound in which frame.
    """

    windows: Array
    notes: Array


@attrs.frozen(eq=False)
class Heard:
    """The network's probabilities: of a note, of its beginning, [count, 172, 88], of a pitch, [count, 172, 264]."""

    note: Array
    onset: Array
    contour: Array


def saved_model() -> Path:
    """The folder of the SavedModel."""
    found = importlib.util.find_spec("basic_pitch")
    assert found is not None and found.origin is not None, "pip install --no-deps basic-pitch==0.4.0"
    return Path(found.origin).parent / "saved_models" / "icassp_2022" / "nmp"


def music(count: int, seed: tuple[int, ...]) -> Music:
    """Windows of five to twelve notes each, from C2 to C7, of 0.15 to 1 second and any loudness within 20 dB."""
    random = np.random.default_rng(seed)
    windows, notes = np.zeros((count, WINDOW, 1), np.float32), np.zeros((count, FRAMES, 88), np.bool_)
    for window, sounding in zip(windows, notes, strict=True):
        for _ in range(random.integers(5, 13)):
            key, begin = random.integers(36, 97), random.integers(0, WINDOW - RATE // 8)
            length = min(int(random.uniform(0.15, 1.0) * RATE), WINDOW - begin)
            sound = tone(440 * 2 ** ((key - 69) / 12), length, RATE, random)
            # Five milliseconds to begin, twenty to end, or there would be clicks.
            edges = np.minimum(np.arange(length) / (0.005 * RATE), np.arange(length)[::-1] / (0.02 * RATE)).clip(0, 1)
            window[begin : begin + length, 0] += 10 ** random.uniform(-1, 0) * edges * sound
            sounding[begin // HOP : (begin + length) // HOP, key - LOWEST] = True
        window *= random.uniform(0.2, 0.9) / np.abs(window).max()
    return Music(windows, notes)


def listen(folder: str | os.PathLike[str], windows: Array) -> Heard:
    """Run a SavedModel through the loader for sessions, which needs none of the package's Python."""
    with tf.Graph().as_default(), tf1.Session() as session:
        signature = tf1.saved_model.load(session, ["serve"], os.fspath(folder)).signature_def["serving_default"]
        (fed,) = signature.inputs.values()
        fetched = {name: signature.outputs[name].name for name in ("note", "onset", "contour")}
        runs = [session.run(fetched, {fed.name: windows[i : i + 8]}) for i in range(0, len(windows), 8)]
    return Heard(**{name: np.concatenate([run[name] for run in runs]) for name in fetched})


def score(heard: Heard, dense: Heard, truth: Music) -> dict[str, float]:
    """Decisions at the usual thresholds beside the dense network's and the truth; probabilities beside the former."""
    decisions, expected = ((h.note >= FRAME, h.onset >= ONSET) for h in (heard, dense))
    outputs, dense_outputs = (np.concatenate([h.note, h.onset, h.contour], axis=2) for h in (heard, dense))
    return {
        "f1": f1(np.stack(decisions), np.stack(expected)),
        "f1 of notes": f1(decisions[0], expected[0]),
        "f1 of onsets": f1(decisions[1], expected[1]),
        "f1 against the truth": f1(decisions[0], truth.notes),
        "kl": float(bernoulli_divergence(dense_outputs, outputs).sum(axis=2).mean()),
        "output error": 100 * lost_energy(outputs, dense_outputs),
    }
