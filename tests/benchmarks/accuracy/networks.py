"""What is measured: every network with its rows, its measures and how one seed of it is scored."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import attrs

from accuracy.rows import DENSE, RETRAINED, Row, one_shot_rows, retraining_rows

Scores: TypeAlias = "dict[str, float] | None"
"""Measures by name; None where a row is not available."""


@attrs.frozen
class Measure:
    """A column of a table.

    Args:
        name: its key in scores and its title.
        digits: after the point.
    """

    name: str
    digits: int


@attrs.frozen(eq=False)
class Benchmark:
    """A network and its rows.

    Args:
        name: how it is called.
        title: what it is.
        part: the word that asks for it.
        seeds: at most so many of them are measured; None: as many as are asked for.
        measures: the columns.
        rows: all of them; the dense network is the first.
        run: scores rows with one seed, one after the other.
    """

    name: str
    title: str
    part: str
    seeds: int | None
    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]
    run: Callable[[int, tuple[Row, ...]], Iterator[tuple[Row, Scores]]]


def run_digits(name: str, seed: int, rows: tuple[Row, ...]) -> Iterator[tuple[Row, Scores]]:
    """One network that is trained here: train it, then do to it what the rows say."""
    from accuracy import digits
    from accuracy.running import layer_error, pruned, run_frozen

    data = digits.digits(seed)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "dense"
        dense = digits.dense_network(name, data, seed, checkpoint)

        def logits(graph_def: object) -> digits.Array:
            return run_frozen(graph_def, digits.OUTPUT, digits.INPUT, data.test_images)

        expected = logits(dense)
        for row in rows:
            if row == DENSE:
                yield row, digits.score(expected, expected, data)
            elif row.group == RETRAINED:
                config = None if row.config is None else dict(row.config)
                graph_def = digits.retrained(name, data, seed, row.epochs, config, checkpoint)
                yield row, digits.score(logits(graph_def), expected, data)
            elif result := pruned(dense, row, data.images):
                yield row, digits.score(logits(result.graph_def), expected, data) | layer_error(result)
            else:
                yield row, None


def run_crepe(seed: int, rows: tuple[Row, ...]) -> Iterator[tuple[Row, Scores]]:
    """Calibrated on sounds half of which are noisy, scored on noise as loud as the notes."""
    from accuracy import crepe
    from accuracy.running import layer_error, pruned, run_frozen

    samples = crepe.sounds(512, (None, 0.0), (seed, 0)).frames
    truth = crepe.sounds(4000, (0.0,), (seed, 1))
    dense = crepe.frozen_network()
    expected = run_frozen(dense, crepe.OUTPUT, crepe.INPUT, truth.frames)
    for row in rows:
        if row == DENSE:
            yield row, crepe.score(expected, expected, truth)
        elif result := pruned(dense, row, samples):
            found = run_frozen(result.graph_def, crepe.OUTPUT, crepe.INPUT, truth.frames)
            yield row, crepe.score(found, expected, truth) | layer_error(result)
        else:
            yield row, None


def run_basic_pitch(seed: int, rows: tuple[Row, ...]) -> Iterator[tuple[Row, Scores]]:
    """A SavedModel, read from its folder, written to another one and served from there."""
    from accuracy import basic_pitch
    from accuracy.running import layer_error, pruned

    samples = basic_pitch.music(32, (seed, 0)).windows
    truth = basic_pitch.music(64, (seed, 1))
    dense = basic_pitch.saved_model()
    expected = basic_pitch.listen(dense, truth.windows)
    for row in rows:
        if row == DENSE:
            yield row, basic_pitch.score(expected, expected, truth)
        elif result := pruned(dense, row, samples):
            with tempfile.TemporaryDirectory() as folder:
                found = basic_pitch.listen(result.save(Path(folder) / "pruned"), truth.windows)
            yield row, basic_pitch.score(found, expected, truth) | layer_error(result)
        else:
            yield row, None


def _digits(name: str, title: str) -> Benchmark:
    measures = (
        Measure("accuracy", 1),
        Measure("cross-entropy", 3),
        Measure("kl", 4),
        Measure("output error", 2),
        Measure("layer error", 2),
    )
    rows = (*one_shot_rows(), *retraining_rows())
    return Benchmark(name, title, "digits", None, measures, rows, functools.partial(run_digits, name))


BENCHMARKS = (
    _digits("mlpn", "digits, MLP 64-16-16-10"),
    _digits("mlpw", "digits, MLP 64-256-256-10"),
    _digits("cnn", "digits, residual network with batch normalization and a transposed convolution, 16 channels"),
    _digits("cnn8", "the same with 8 channels"),
    Benchmark(
        "basic-pitch",
        "basic-pitch 0.4.0, a SavedModel, on synthesized music",
        "basic-pitch",
        2,
        (
            Measure("f1", 4),
            Measure("f1 of notes", 4),
            Measure("f1 of onsets", 4),
            Measure("f1 against the truth", 4),
            Measure("kl", 3),
            Measure("output error", 2),
            Measure("layer error", 2),
        ),
        tuple(one_shot_rows()),
        run_basic_pitch,
    ),
    Benchmark(
        "crepe",
        "crepe tiny, on synthesized notes in noise of 0 dB",
        "crepe",
        1,
        (
            Measure("accuracy", 2),
            Measure("correlation", 4),
            Measure("kl", 4),
            Measure("output error", 2),
            Measure("layer error", 2),
        ),
        tuple(row for row in one_shot_rows() if not row.costly),
        run_crepe,
    ),
)
