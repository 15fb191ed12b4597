"""CPU time of variants that take turns, such as ways to train a step; in one process or in several (instances)."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

# Runs so many steps and says how many seconds of CPU one took.
Variant = Callable[[int], float]


def timed(step: Callable[[], Any]) -> Variant:
    """A variant of a step that is nothing but a call."""

    def run(steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            step()
        return (time.process_time() - start) / steps

    return run


def in_turns(variants: Mapping[str, Variant | Sequence[Variant]], rounds: int, steps: int) -> dict[str, float]:
    """Seconds a step of every variant: the median of rounds that take turns, forwards and backwards.

    Args:
        variants: by name. Of several equal ones the result is the mean of their medians: where in memory a model lies
            moves its steps by a few percent.
        rounds: how often each runs.
        steps: of a round.
    """
    runs = [(name, run) for name, equals in variants.items() for run in _several(equals)]
    for _, run in runs:
        run(3)
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        for index in range(len(runs))[:: -1 if turn % 2 else 1]:
            seconds[index].append(runs[index][1](steps))
    medians: dict[str, list[float]] = {name: [] for name in variants}
    for (name, _), values in zip(runs, seconds, strict=True):
        medians[name].append(statistics.median(values))
    return {name: statistics.mean(values) for name, values in medians.items()}


def _several(variants: Variant | Sequence[Variant]) -> Sequence[Variant]:
    return variants if isinstance(variants, Sequence) else [variants]


def one_thread() -> None:
    """Let TensorFlow use one thread alone; before it does anything else."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def run_instances(
    measure: Callable[[], dict[str, float]], description: str | None, environment: Mapping[str, str] | None = None
) -> Instances | None:
    """Measure in fresh processes of the script that calls this, as many as its arguments say.

    Args:
        measure: what such a process measures, seconds by variant.
        description: of the script.
        environment: what its processes have beside this one's.

    Returns:
        What was measured; None in such a process itself, which has printed its part.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure()))
        return None
    # tfmot knows Keras 2 alone.
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    command = [sys.executable, sys.argv[0], "--worker"]
    runs = []
    for _ in range(arguments.instances):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return Instances(runs)


@attrs.frozen
class Instances:
    """What several processes measured, by variant."""

    runs: Sequence[Mapping[str, float]]

    def has(self, name: str) -> bool:
        return name in self.runs[0]

    def median(self, name: str) -> float:
        return statistics.median(run[name] for run in self.runs)

    def cost(self, name: str, base: str) -> str:
        """What a variant takes more than another, in percent, with the range."""
        percents = [100 * (run[name] / run[base] - 1) for run in self.runs]
        return f"{statistics.median(percents):+.1f} % ({min(percents):+.1f}..{max(percents):+.1f})"

    def ratio(self, of: Callable[[Mapping[str, float]], float]) -> str:
        """Any ratio within an instance, with the range."""
        ratios = [of(run) for run in self.runs]
        return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}..{max(ratios):.2f})"
