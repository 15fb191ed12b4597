"""The facts about a model that a report shows, as data: what is stored, what would stay, what it is worth."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import attrs

from sparsekit.layer_sensitivity import Sensitivity
from sparsekit.planning import LayerDecision, Plan
from sparsekit.result import LayerAccount
from sparsekit.writing import write_whole


@attrs.frozen
class GroupFacts:
    """How the groups of one weight are filled.

    Attributes:
        density: non-zeros / size.
        histogram: groups with 0, 1, ... m non-zeros: m + 1 numbers. A shorter group at the end of an axis counts too.
        violations: groups with more than n non-zeros.
    """

    density: float
    histogram: tuple[int, ...]
    violations: int

    @property
    def groups(self) -> int:
        return sum(self.histogram)


@attrs.frozen
class LayerFacts:
    """What is known about one layer.

    Attributes:
        decision: what is done to it, and why.
        weights: how many elements its weight has, 0 where none was found.
        stored: its weight as it is stored; None where it could not be read.
        planned: its weight as it would be after pruning (as stored where it is left dense).
        retained: share of the sum of ``|weight|`` that stays; None where the weight could not be read.
        mask: a corner of what stays, a string a row, "#" for a non-zero and "." for a zero. Along a row the groups
            run: the first 32 input channels at most; the rows are the first 16 output channels (of the first kernel
            position).
        multiply_adds: of all its uses in one run of the model (a SavedModel's default signature), an open batch
            counted as one example, a loop's body as one turn. None where the shapes are not known before it runs.
        note: what stood in the way of a fact, "" if nothing did.
    """

    decision: LayerDecision
    weights: int = 0
    stored: GroupFacts | None = None
    planned: GroupFacts | None = None
    retained: float | None = None
    mask: tuple[str, ...] = ()
    multiply_adds: int | None = None
    note: str = ""


@attrs.frozen
class Totals:
    """Sums over all layers whose weight was found.

    Attributes:
        layers, pruned: how many there are, and how many the plan prunes.
        weights, weights_pruned: their elements.
        density, density_planned: non-zeros / size over all of them, as stored and after pruning; None where a weight
            could not be read.
        multiply_adds, multiply_adds_pruned: for one example, over the layers whose shapes are known.
        multiply_adds_unknown: how many layers' are not.
    """

    layers: int
    pruned: int
    weights: int
    weights_pruned: int
    density: float | None
    density_planned: float | None
    multiply_adds: int
    multiply_adds_pruned: int
    multiply_adds_unknown: int

    @classmethod
    def of(cls, layers: Iterable[LayerFacts]) -> Totals:
        """The sums over ``layers``."""
        found = [layer for layer in layers if layer.weights]
        pruned = [layer for layer in found if layer.decision.pruned]
        known = [layer for layer in found if layer.multiply_adds is not None]
        return cls(
            layers=len(found),
            pruned=len(pruned),
            weights=sum(layer.weights for layer in found),
            weights_pruned=sum(layer.weights for layer in pruned),
            density=_density([(layer.weights, layer.stored) for layer in found]),
            density_planned=_density([(layer.weights, layer.planned) for layer in found]),
            multiply_adds=sum(layer.multiply_adds or 0 for layer in known),
            multiply_adds_pruned=sum(layer.multiply_adds or 0 for layer in known if layer.decision.pruned),
            multiply_adds_unknown=len(found) - len(known),
        )


def _density(parts: list[tuple[int, GroupFacts | None]]) -> float | None:
    size = sum(weights for weights, _ in parts)
    nonzeros = 0.0
    for weights, groups in parts:
        if groups is None:
            return None
        nonzeros += weights * groups.density
    return nonzeros / size if size else None


@attrs.frozen
class Estimate:
    """What a tool or a device says a pruned model gains; never a figure of sparsekit's own.

    Attributes:
        source: whose figure it is, as people should read it: "Arm's estimate (Vela 5.2, ethos-u85-256)".
        quantity: what was counted or measured, with its unit: "multiply-adds", "cycles".
        dense, pruned: the figures of the dense and of the pruned model.
    """

    source: str
    quantity: str
    dense: float
    pruned: float


@attrs.frozen
class Report:
    """A model, layer by layer: the plan with what it means. Prints as text.

    Attributes:
        source: the model's path, or what it is.
        plan: the plan.
        layers: the facts, one for every decision of the plan, in its order.
        estimates: what tools or devices say of it.
        accounts: of a model that was pruned with calibration, what that did to every layer.
        sensitivity: what pruning every layer alone changes, where it was measured.
    """

    source: str
    plan: Plan
    layers: tuple[LayerFacts, ...]
    estimates: tuple[Estimate, ...] = ()
    accounts: tuple[LayerAccount, ...] = ()
    sensitivity: Sensitivity | None = None

    @property
    def totals(self) -> Totals:
        """The sums over all layers."""
        return Totals.of(self.layers)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as one self-contained HTML page, whole or not at all.

        Returns:
            Where it lies.

        Raises:
            SaveError: it cannot be written there.
        """
        from sparsekit.reporting.page import page

        return write_whole(path, page(self).encode("utf-8"))

    def __str__(self) -> str:
        from sparsekit.reporting.text import text

        return text(self)
