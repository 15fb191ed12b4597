"""Pruning without retraining: masks chosen from the stored weights, zeros written in their place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from sparsekit.artefact.model import Array, Change, Model
from sparsekit.errors import ModelError
from sparsekit.handler import OpHandler
from sparsekit.parts import parts
from sparsekit.pattern import Index, Pattern, keep_mask
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.progress import track


def prune_model(model: Model, layers: Sequence[PlannedLayer], registry: Registry) -> Model:
    """A model with zeros where the plan's criteria want them; the given one is not modified.

    Raises:
        ModelError: a weight cannot be read or is not finite.
    """
    if model.changes_later:  # but whether they can be made is said now
        check_weights(model, layers)
    changes: list[Change] = [
        (layer.source.read, functools.partial(_checked_and_pruned, layer=layer, registry=registry)) for layer in layers
    ]
    return model.changed(changes)


def check_weights(model: Model, layers: Sequence[PlannedLayer]) -> None:
    """Read all weights once.

    Raises:
        ModelError: one cannot be read or is not finite.
    """
    for layer in track(layers, "Checking weights"):
        for _, weight in model.values(layer.source.read):
            refuse_non_finite(weight, layer.decision.name, layer.decision.weight)
            del weight  # before the next one is read


def _checked_and_pruned(weight: Array, layer: PlannedLayer, registry: Registry) -> Array:
    refuse_non_finite(weight, layer.decision.name, layer.decision.weight)
    return pruned_weight(weight, layer, registry, overwrite=weight.flags.writeable)


def pruned_weight(weight: Array, layer: PlannedLayer, registry: Registry, overwrite: bool = False) -> Array:
    """A layer's weight with zeros where its criterion wants them.

    Args:
        weight: the weight.
        layer: the layer.
        registry: the plugins.
        overwrite: the result may be the weight's own memory.
    """
    decision = layer.decision
    axis, pattern = decision.axis, decision.pattern
    assert axis is not None and pattern is not None
    score = registry.criterion(decision.criterion).score(weight, axis)
    # A part's scores are read before its weights are written, if they are the weights themselves.
    in_place = overwrite and (score is weight or not np.may_share_memory(score, weight))
    return fold(weight, lambda part: keep_mask(score[part], axis, pattern), layer.handlers[0], axis, pattern, in_place)


def retained(weight: Array, pruned: Array) -> float | None:
    """The share of the sum of ``|weight|`` that belongs to the weights that ``pruned`` keeps, whatever it made of them;
    None where the sum is zero or not finite."""
    if pruned is weight:
        return 1.0
    whole = kept = 0.0
    for part in parts(weight.shape):
        size = np.abs(weight[part])
        whole += float(size.sum(dtype=np.float64))
        kept += float(size.sum(dtype=np.float64, where=pruned[part] != 0))
    return kept / whole if whole > 0 and np.isfinite(whole) else None


def fold(
    weight: Array,
    mask: Callable[[Index], Array],
    handler: OpHandler,
    axis: int,
    pattern: Pattern,
    overwrite: bool = False,
) -> Array:
    """A mask folded into a weight, a part at a time: beside the result, nothing of its size is in memory.

    Args:
        weight: the weight.
        mask: gives the mask of a part, bool.
        handler: folds.
        axis, pattern: the groups, which are not cut.
        overwrite: write into the weight's own memory.

    Returns:
        The pruned weight.
    """
    result = weight if overwrite else np.empty(weight.shape, weight.dtype)
    for part in parts(weight.shape, axis, pattern.m):
        result[part] = handler.remove_mask(weight[part], mask(part))
    return result


def refuse_non_finite(weight: Array, layer: str, name: str) -> None:
    """A mask of NaN means nothing.

    Raises:
        ModelError: the weight holds NaN or infinity.
    """
    if all(np.isfinite(weight[part]).all() for part in parts(weight.shape)):
        return
    bad = sum(int(np.count_nonzero(~np.isfinite(weight[part]))) for part in parts(weight.shape))
    raise ModelError(
        f"{bad} of {weight.size} values of its weight '{name}' are NaN or infinite",
        where=layer,
        hint="Training has diverged; go back to a checkpoint with finite weights.",
    )
