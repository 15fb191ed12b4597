"""How fast `keep_mask` is, beside a memory copy, an argsort mask and tfmot: ratios inside one run.

Run ``python tests/benchmarks/bench_kernel.py``. CPU time on one thread, medians of interleaved repetitions.
tfmot (tensorflow_model_optimization) joins where it is installed.
"""

from __future__ import annotations

import importlib
import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from instances import in_turns, one_thread, timed
from rich.console import Console
from rich.table import Table

from sparsekit.pattern import keep_mask

REPETITIONS = 9
Array = npt.NDArray[Any]


@attrs.frozen
class Case:
    """Weights, each with the axis that its groups run along, and the least share of copyto's speed."""

    name: str
    weights: list[tuple[Array, int]]
    limit: float


def main() -> None:
    generator = np.random.default_rng(0)
    square = generator.standard_normal((4096, 4096), np.float32)
    resnet = [(generator.standard_normal(shape, np.float32), max(len(shape) - 2, 0)) for shape in resnet50_shapes()]
    cases = [
        Case("4096x4096 axis 0", [(square, 0)], 0.18),
        Case("4096x4096 axis 1", [(square, 1)], 0.18),
        Case("ResNet-50 kernels", resnet, 0.15),
    ]
    tfmot = tfmot_mask()
    table = Table(title=f"2:4 masks of float32 weights: CPU time, medians of n={REPETITIONS}")
    for column in ("case", "measure", "ratio", "limit", ""):
        table.add_column(column, justify="right" if column in ("ratio", "limit") else "left")
    for case in cases:
        for row in measure(case, tfmot):
            table.add_row(case.name, *row)
        table.add_section()
    Console(width=100).print(table)
    if tfmot is None:
        print("tfmot is not installed: row left out")


def measure(case: Case, tfmot: Callable[[Array, int], Any] | None) -> list[tuple[str, str, str, str]]:
    """The table rows of a case, without its name."""
    floats = [np.empty_like(weight) for weight, _ in case.weights]
    bools = [np.empty(weight.shape, np.bool_) for weight, _ in case.weights]

    def into(buffers: list[Array]) -> None:
        for (weight, axis), buffer in zip(case.weights, buffers, strict=True):
            keep_mask(weight, axis, out=buffer)

    def copy() -> None:
        for (weight, _), buffer in zip(case.weights, floats, strict=True):
            np.copyto(buffer, weight)

    def each(mask: Callable[[Array, int], Any]) -> None:
        for weight, axis in case.weights:
            mask(weight, axis)

    contenders: dict[str, Callable[[], None]] = {
        "copy": copy,
        "bool": lambda: into(bools),
        "float": lambda: into(floats),
        "fresh": lambda: each(keep_mask),
        "argsort": lambda: each(argsort_mask),
    }
    if tfmot is not None:
        contenders["tfmot"] = lambda: each(tfmot)
    seconds = in_turns({name: timed(run) for name, run in contenders.items()}, REPETITIONS, 1)

    rows = [
        row("copyto's speed, bool buffer", seconds["copy"] / seconds["bool"], case.limit, "{:.1%}"),
        row("copyto's speed, float32 buffer", seconds["copy"] / seconds["float"], None, "{:.1%}"),
        row("times argsort (new result)", seconds["argsort"] / seconds["fresh"], 6, "{:.1f}x"),
    ]
    if tfmot is not None:
        rows.append(row("times tfmot m_by_n (new result)", seconds["tfmot"] / seconds["fresh"], 15, "{:.1f}x"))
    if len(case.weights) == 1:
        rows.append(row("peak extra memory / weights", peak_memory(*case.weights[0]), 0.35, "{:.2f}x", most=True))
    return rows


def row(what: str, value: float, limit: float | None, form: str, *, most: bool = False) -> tuple[str, str, str, str]:
    if limit is None:
        return what, form.format(value), "-", ""
    met = value <= limit if most else value >= limit
    return (
        what,
        form.format(value),
        ("<= " if most else ">= ") + form.format(limit),
        "met" if met else "MISSED",
    )


def peak_memory(weight: Array, axis: int) -> float:
    """Peak bytes of a `keep_mask` with a new bool result, per byte of the weight."""
    tracemalloc.start()
    keep_mask(weight, axis)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / weight.nbytes


def argsort_mask(weight: Array, axis: int) -> Array:
    """The straightforward numpy way; the last axis is padded where 4 does not divide it."""
    moved = np.moveaxis(np.abs(weight), axis, -1)
    pad = -moved.shape[-1] % 4
    if pad:
        moved = np.concatenate([moved, np.zeros((*moved.shape[:-1], pad), moved.dtype)], axis=-1)
    groups = moved.reshape(-1, 4)
    mask = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(mask, np.argsort(-groups, axis=1, kind="stable")[:, :2], True, axis=1)
    mask = mask.reshape(moved.shape)[..., : weight.shape[axis]]
    return np.ascontiguousarray(np.moveaxis(mask, -1, axis))


def tfmot_mask() -> Callable[[Array, int], Any] | None:
    """tfmot's m_by_n mask on one thread, or None where it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    try:
        utils = importlib.import_module("tensorflow_model_optimization.python.core.sparsity.keras.pruning_utils")
    except ImportError:
        return None
    import tensorflow as tf

    one_thread()

    def mask(weight: Array, axis: int) -> Any:
        tensor = tf.constant(weight)
        if axis == weight.ndim - 1:  # its groups run along the last axis, once it has rearranged the weights
            return utils.generate_m_by_n_mask(tensor, (2, 4))
        rearranged = utils.weights_rearrange(tensor)
        return utils.m_by_n_sparsity_mask_prepare(utils.generate_m_by_n_mask(rearranged, (2, 4)), tensor.shape)

    return mask


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The 53 convolutions (HWIO) and the dense kernel of ResNet-50."""
    shapes: list[tuple[int, ...]] = [(7, 7, 3, 64)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        shapes.append((1, 1, channels, 4 * width))
        for _ in range(blocks):
            shapes += [(1, 1, channels, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            channels = 4 * width
    return [*shapes, (2048, 1000)]


if __name__ == "__main__":
    main()
