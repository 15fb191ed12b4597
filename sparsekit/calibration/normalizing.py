"""Batch normalizations behind pruned layers: their statistics measured anew in the pruned network, in its order."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sparsekit.artefact.added_bias import everywhere
from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.bias import Normalization, StoredVector, bias_of, normalization, read_elsewhere
from sparsekit.calibration.inlining import inlined
from sparsekit.calibration.network import Network
from sparsekit.calibration.samples import Samples
from sparsekit.errors import ModelError
from sparsekit.graph.node import Node
from sparsekit.graph.order import in_order, input_node, last_turns
from sparsekit.graph.trace import Read, Tracer
from sparsekit.progress import track
from sparsekit.result import NormalizationAccount

Array: TypeAlias = npt.NDArray[Any]

FEWEST_SAMPLES = 16
"""From fewer samples the statistics would be worse than old ones."""
_FOLDED = (
    "looks like a batch normalization that was folded into a multiplication and an addition when the model was frozen: "
    "its statistics are not in it any more"
)


def renormalize(
    model: Model, network: Network, samples: Samples, layers: Iterable[Node], tracer: Tracer
) -> tuple[list[Change], list[NormalizationAccount]]:
    """Measure mean and variance of the inputs of every batch normalization that pruned layers lead to.

    In the order of the graph, each with all before it pruned and measured anew; ``network`` runs with them then.

    Args:
        model: the model.
        network: runs it, pruned.
        samples: the model's inputs.
        layers: the ops of the pruned layers.
        tracer: finds what is stored.

    Returns:
        What becomes of stored values, and an account of every normalization.

    Raises:
        ModelError: TensorFlow cannot run the model on the samples, or inputs are not finite.
    """
    pruned = list(layers)
    groups = _groups(model, network, pruned, tracer)
    changes: list[Change] = []
    accounts = []
    for group in track(groups, "Measuring batch normalizations"):
        used = [found for found in group if network.computes(found.node)]
        obstacle = _obstacle(model, network, group, used, samples)
        if not obstacle:
            mean, variance = _moments(network, used, samples)
            for which, value in (("mean", mean), ("variance", variance)):
                vectors: list[StoredVector] = [getattr(found, which) for found in group]
                stored = _as_stored(model, vectors[0].read, value)
                network.set((vector.edge for vector in vectors), stored)
                changes.append((vectors[0].read, functools.partial(_replaced, new=stored)))
        accounts.append(NormalizationAccount(group[0].node.path, not obstacle, obstacle))
    known = {found.node for group in groups for found in group}
    folded = dict.fromkeys(node.path for node in _folded(pruned, network, known, tracer))
    return changes, [*accounts, *(NormalizationAccount(path, False, _FOLDED) for path in folded)]


def _groups(model: Model, network: Network, pruned: Sequence[Node], tracer: Tracer) -> list[list[Normalization]]:
    """The batch normalizations behind pruned layers; those that read the same stored values are one."""
    nodes = {node.name: node for node in inlined(model.view).node}
    order = in_order(nodes, last_turns(nodes))
    behind = _behind(order, nodes, {node.path for node in pruned})
    place = {name: index for index, name in enumerate(order)}
    groups: dict[object, list[Normalization]] = {}
    for node in everywhere(model.view):
        found = normalization(node, tracer)
        if found is not None:
            groups.setdefault((found.mean.key, found.variance.key), []).append(found)
    used = {
        min(place.get(found.node.path, len(place)) for found in group if network.computes(found.node)): group
        for group in groups.values()
        if any(network.computes(found.node) and found.node.path in behind for found in group)
    }
    return [used[index] for index in sorted(used)]


def _behind(order: Sequence[str], nodes: Mapping[str, Any], start: Collection[str]) -> set[str]:
    reached = set(start)
    for name in order:
        if any(input_node(text) in reached for text in nodes[name].input if not text.startswith("^")):
            reached.add(name)
    return reached


def _obstacle(
    model: Model, network: Network, group: list[Normalization], used: list[Normalization], samples: Samples
) -> str:
    """Why its statistics stay as they are, "" if they can be measured and written."""
    if samples.count < FEWEST_SAMPLES:
        return f"{samples.count} calibration samples are too few to measure its statistics: {FEWEST_SAMPLES} at least"
    if not all(network.can_fetch(found.node) for found in used):
        return "it lies in a loop or cond, where its inputs cannot be fetched"
    for which in ("mean", "variance"):
        vectors: list[StoredVector] = [getattr(found, which) for found in group]
        if obstacle := model.obstacle(vectors[0].read):
            return f"its {which} cannot be written: {obstacle}"
        if read_elsewhere(vectors):
            return f"its {which} is used by others too"
    if group[0].mean.key == group[0].variance.key:
        return "its mean and its variance are one stored value"
    return ""


def _moments(network: Network, used: Sequence[Normalization], samples: Samples) -> tuple[Array, Array]:
    """Mean and variance of the inputs, float64, in the shape that they are broadcast with."""
    rows = 0
    center = total = squares = np.zeros(())
    edges = [found.data for found in used]
    for batch in samples:
        means = network.run([found.mean.added for found in used], batch.feeds) if not rows else []
        if means:
            shapes = [found.along(mean.shape) for found, mean in zip(used, means, strict=True)]
        for found, shape, data in zip(used, shapes, network.run(edges, batch.feeds), strict=True):
            if not np.isfinite(data).all():
                raise ModelError(
                    "its inputs on the calibration samples hold NaN or infinity",
                    where=found.node.path,
                    expected="finite inputs",
                    hint="Look at the calibration samples, and at the layers before this one.",
                )
            full = (1,) * (data.ndim - len(shape)) + shape
            axes = tuple(axis for axis, length in enumerate(full) if length == 1)
            values = data.astype(np.float64)
            if not rows:
                center = values.mean(axis=axes, keepdims=True)
                total, squares = np.zeros(center.shape), np.zeros(center.shape)
            # About a first guess of the mean: squares of large numbers would leave little of a small variance.
            values -= center
            total += values.sum(axis=axes, keepdims=True)
            squares += np.square(values).sum(axis=axes, keepdims=True)
            rows += values.size // max(center.size, 1)
    offset = total / rows
    return (center + offset).ravel(), np.maximum(squares / rows - np.square(offset), 0.0).ravel()


def _replaced(_: Array, new: Array) -> Array:
    return new


def _as_stored(model: Model, read: Read, value: Array) -> Array:
    old = next(model.values(read))[1]
    return value.reshape(old.shape).astype(old.dtype)


def _folded(pruned: Iterable[Node], network: Network, known: Collection[Node], tracer: Tracer) -> Iterator[Node]:
    """What looks like a normalization behind pruned layers whose statistics are gone."""
    for node in pruned:
        if network.computes(node) and (bias := bias_of(node, tracer)) is not None and bias.adder not in known:
            stored = [isinstance(tracer.read(factor), Read) for factor, _ in bias.factors]
            if stored and all(stored):
                yield bias.adder
