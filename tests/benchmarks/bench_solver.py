"""How good calibrated pruning is beside its peers, and what it costs.

Run ``python tests/benchmarks/bench_solver.py [quality] [cost] [cost4096]``; without a word, quality and cost.
Quality: layers of networks trained on digits, calibrated on the training rows, scored on fresh rows; geometric means
of ratios over layers. Cost: CPU time on one thread, beside a float32 GEMM of the same size measured in between.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from peers import alps, damped_by_mean, least_squares, sparsegpt, wanda_mask
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from sparsekit.pattern import keep_mask
from sparsekit.reconstruction import LayerProblem, Statistics, refit
from sparsekit.reconstruction.damping import Damped, damp
from sparsekit.reconstruction.factor import inverse_diagonal
from sparsekit_criteria.admm import SCHEDULES, Admm
from sparsekit_criteria.admm_solver import search

Array = npt.NDArray[Any]
NETWORKS = ((64, 64), (128, 128), (256, 256))
SEEDS = 4


@attrs.frozen
class Layer:
    """A trained layer with inputs for calibration and fresh ones."""

    weight: Array
    inputs: Array
    fresh: Array


def main() -> None:
    wanted = sys.argv[1:] or ["quality", "cost"]
    if unknown := set(wanted) - {"quality", "cost", "cost4096"}:
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are quality, cost, cost4096")
    with threadpool_limits(1):
        if "quality" in wanted:
            quality()
        if "cost" in wanted:
            cost((1024, 2048))
        if "cost4096" in wanted:
            cost((4096,))


# --- quality ---------------------------------------------------------------------------------------------


def quality() -> None:
    """Objective and error on fresh rows, as ratios of admm to each peer."""
    ratios: dict[tuple[str, str], list[float]] = {}
    fallbacks, count, dampings = 0, 0, []
    for layer in trained_layers():
        count += 1
        calibration = Statistics.empty(len(layer.weight))
        for fold in (0, 1):
            calibration.add(layer.inputs[fold::2], fold)
        solution = Admm().solve(LayerProblem(layer.weight, calibration))
        fallbacks += bool(solution.fallback)
        dampings.append(solution.damping)
        gram = calibration.gram.sum(axis=0)
        same, usual = damp(gram, solution.damping).gram, damped_by_mean(gram)
        wanda = wanda_mask(layer.weight, gram)
        found = {
            "ALPS, same damping": alps(layer.weight, same),
            "ALPS, 1 %": alps(layer.weight, usual),
            "SparseGPT, same damping": sparsegpt(layer.weight, same),
            "SparseGPT, 1 %": sparsegpt(layer.weight, usual),
            "Wanda + least squares, same damping": least_squares(layer.weight, same, wanda),
            "Wanda + least squares, 1 %": least_squares(layer.weight, usual, wanda),
            "Wanda": layer.weight * wanda,
            "magnitude": layer.weight * keep_mask(layer.weight, 0),
        }
        for name, weight in found.items():
            # An objective compares optimisers, so both are asked the same: the damped one.
            ours, peer = (energy(same, layer.weight - v) for v in (solution.weight, weight))
            ratios.setdefault((name, "objective"), []).append(ours / peer)
            ours, peer = (float(np.square(layer.fresh @ (layer.weight - v)).sum()) for v in (solution.weight, weight))
            ratios.setdefault((name, "error on fresh rows"), []).append(ours / peer)
        system = Damped(usual, inverse_diagonal(usual), 0.01)
        mask = search(layer.weight, system, keep_mask_of_rows, SCHEDULES["normal"], np.float64).mask
        ours, peer = (
            energy(usual, layer.weight - v) for v in (refit(layer.weight, mask, usual).weight, found["ALPS, 1 %"])
        )
        ratios.setdefault(("ALPS, both at its 1 %", "objective"), []).append(ours / peer)
    limits = {
        ("ALPS, same damping", "objective"): 0.97,
        ("ALPS, both at its 1 %", "objective"): 0.97,
        ("SparseGPT, 1 %", "error on fresh rows"): 0.45,
        ("Wanda + least squares, 1 %", "error on fresh rows"): 0.72,
    }
    table = Table(title=f"admm / peer on digits layers, n={count} layers, {SEEDS} seeds; dampings {spread(dampings)}")
    for column in ("peer", "measure", "geometric mean", "median", "range", "limit", ""):
        table.add_column(column)
    for key, values in ratios.items():
        mean, limit = float(np.exp(np.log(values).mean())), limits.get(key)
        met = "" if limit is None else "met" if mean <= limit else "MISSED"
        shown = (f"{mean:.3f}", f"{statistics.median(values):.3f}", spread(values))
        table.add_row(*key, *shown, "-" if limit is None else f"<= {limit}", met)
    Console(width=130).print(table)
    print(f"fell back to magnitude: {fallbacks} of {count}")


def trained_layers() -> Iterator[Layer]:
    """Every layer of small networks; half of the rows train and calibrate, the others are fresh."""
    digits = load_digits()
    data, labels = digits.data / 16, digits.target
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(data))
        seen, fresh = np.split(order, [len(order) // 2])
        for hidden in NETWORKS:
            network = MLPClassifier(hidden, max_iter=60, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                network.fit(data[seen], labels[seen])
            inputs, others = data[seen], data[fresh]
            for weight, bias in zip(network.coefs_, network.intercepts_, strict=True):
                yield Layer(weight, inputs, others)
                inputs, others = np.maximum(inputs @ weight + bias, 0), np.maximum(others @ weight + bias, 0)


def keep_mask_of_rows(score: Array) -> Array:
    return keep_mask(score, 0)


def energy(gram: Array, weight: Array) -> float:
    return float(np.vdot(weight, gram @ weight))


def spread(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


# --- cost ------------------------------------------------------------------------------------------------


def cost(sizes: tuple[int, ...]) -> None:
    """CPU seconds after the Gram matrix, K = N; damping, search, refit and errors included."""
    seconds_limit = {1024: 0.9, 2048: 6.3, 4096: 49.0}
    table = Table(title="cost of admm, effort normal, one thread")
    for column in ("K = N", "CPU s", "limit", "float32 GEMMs", "limit", "n", "iterations", "damping", "peak GB"):
        table.add_column(column, justify="right")
    for size in sizes:
        problem = synthetic(size)
        left, right = (np.random.default_rng(i).standard_normal((size, size), np.float32) for i in (0, 1))
        gemms, solves = [], []
        solution = None
        for _ in range(3 if size <= 2048 else 1):
            gemms += [cpu_seconds(np.matmul, left, right) for _ in range(3)]
            start = time.process_time()
            solution = Admm().solve(problem)
            solves.append(time.process_time() - start)
            gemms += [cpu_seconds(np.matmul, left, right) for _ in range(3)]
        assert solution is not None
        seconds, gemm = statistics.median(solves), statistics.median(gemms)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        table.add_row(
            str(size),
            f"{seconds:.2f}",
            f"<= {seconds_limit[size]}",
            f"{seconds / gemm:.0f}",
            "<= 100",
            str(len(solves)),
            str(solution.iterations),
            f"{solution.damping:g}",
            f"{peak:.2f}",
        )
    Console(width=110).print(table)


def synthetic(size: int) -> LayerProblem:
    """Correlated inputs, twice as many rows as inputs, as after a ReLU."""
    random = np.random.default_rng(0)
    calibration = Statistics.empty(size)
    mixing = random.standard_normal((size // 4, size), np.float32)
    for fold in (0, 1):
        for _ in range(4):
            hidden = random.standard_normal((size // 4, size // 4), np.float32) @ mixing / np.float32(size**0.5 / 2)
            noise = random.standard_normal((size // 4, size), np.float32)
            calibration.add(np.maximum(hidden + noise / 2, 0), fold)
    weight = random.standard_normal((size, size), np.float32)
    return LayerProblem(weight, calibration)


def cpu_seconds(run: Callable[..., Any], *arguments: Any) -> float:
    start = time.process_time()
    run(*arguments)
    return time.process_time() - start


if __name__ == "__main__":
    main()
