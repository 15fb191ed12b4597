"""Pruning without retraining: masks chosen from the stored weights, zeros written in their place."""

from __future__ import annotations

import functools

import numpy as np

from sparsekit.artefact.model import Array, Change, Model
from sparsekit.errors import ModelError
from sparsekit.pattern import keep_mask
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry
from sparsekit.progress import track


def prune_model(model: Model, layers: tuple[PlannedLayer, ...], registry: Registry) -> Model:
    """A model with zeros where the plan's criteria want them; the given one is not modified.

    Raises:
        ModelError: a weight cannot be read or is not finite.
    """
    # All of them before anything changes, here and not where masks are chosen: a SavedModel's are when it is saved.
    for layer in track(layers, "Checking weights"):
        for _, weight in model.values(layer.source.read):
            refuse_non_finite(weight, layer.decision.name, layer.decision.weight)
    changes: list[Change] = [
        (layer.source.read, functools.partial(pruned_weight, layer=layer, registry=registry)) for layer in layers
    ]
    return model.changed(changes)


def pruned_weight(weight: Array, layer: PlannedLayer, registry: Registry) -> Array:
    """A layer's weight with zeros where its criterion wants them."""
    decision = layer.decision
    assert decision.axis is not None and decision.pattern is not None
    score = registry.criterion(decision.criterion).score(weight, decision.axis)
    return layer.handlers[0].remove_mask(weight, keep_mask(score, decision.axis, decision.pattern))


def refuse_non_finite(weight: Array, layer: str, name: str) -> None:
    """A mask of NaN means nothing.

    Raises:
        ModelError: the weight holds NaN or infinity.
    """
    finite = np.isfinite(weight)
    if not finite.all():
        raise ModelError(
            f"{int(weight.size - finite.sum())} of {weight.size} values of its weight '{name}' are NaN or infinite",
            where=layer,
            hint="Training has diverged; go back to a checkpoint with finite weights.",
        )
