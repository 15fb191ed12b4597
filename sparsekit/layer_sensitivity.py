"""How much each layer's pruning alone changes what a model computes, as data: printed, and made a config of."""

from __future__ import annotations

import math
import os
from pathlib import Path

import attrs

from sparsekit.config import PruneConfig
from sparsekit.errors import ConfigError
from sparsekit.pattern import Pattern
from sparsekit.table import text_table


@attrs.frozen
class LayerSensitivity:
    """What pruning one layer alone, by magnitude, changes.

    Attributes:
        name: the layer.
        op_type: its TensorFlow type.
        uses: every op that uses its weight.
        shape: the weight's shape as it is stored.
        pattern: the pattern that it was pruned to.
        weights: its elements.
        multiply_adds: as in a report; None where the shapes are not known.
        error: squared change of the layer's own outputs, relative to their square; None where they cannot be fetched.
        output_error: squared change of the model's outputs, relative to their square about their mean, averaged over
            the outputs. None where it was not measured.
        note: what stood in the way of a number or of some of the values that it is made of, "" if nothing did.
    """

    name: str
    op_type: str
    uses: tuple[str, ...]
    shape: tuple[int, ...]
    pattern: Pattern
    weights: int
    multiply_adds: int | None = None
    error: float | None = None
    output_error: float | None = None
    note: str = ""

    @property
    def worst(self) -> float | None:
        """What layers are ranked by: the error at the model's outputs, or at the layer's own where that is all."""
        return self.error if self.output_error is None else self.output_error


@attrs.frozen
class Sensitivity:
    """Every layer that a config prunes, with what its pruning alone does. Prints as a table, the worst layer first.

    Attributes:
        layers: the worst first; those that could not be measured come last.
        together: ``output_error`` where all of them are pruned at once.
        outputs: the model's outputs that were compared; empty where none holds floats.
        samples: how many samples were used.
        config: the config that says what is pruned.
    """

    layers: tuple[LayerSensitivity, ...]
    together: float | None
    outputs: tuple[str, ...]
    samples: int
    config: PruneConfig = attrs.field(repr=False)

    def to_config(self, *, worst: int | None = None, above: float | None = None) -> PruneConfig:
        """The config with some layers left dense besides.

        Args:
            worst: so many layers, those with the largest errors.
            above: all layers whose error at the model's outputs (their own outputs where the model has none to
                compare) is larger; 0.01 is 1 % of what the outputs vary.

        Raises:
            ConfigError: not exactly one of the two was given, or it is no such number.
        """
        if (worst is None) == (above is None):
            raise ConfigError("both or none", where="worst, above", expected="one of them")
        measured = [layer for layer in self.layers if layer.worst is not None]
        if above is not None:
            if not (isinstance(above, (int, float)) and above >= 0):
                raise ConfigError(repr(above), where="above", expected="an error from 0 on, such as 0.01")
            chosen = [layer for layer in measured if layer.worst is not None and layer.worst > above]
        else:
            if type(worst) is not int or worst < 0:
                raise ConfigError(repr(worst), where="worst", expected="a number of layers from 0 on")
            chosen = measured[:worst]
        names = (use for layer in chosen for use in layer.uses)
        return attrs.evolve(self.config, skip_layers=tuple(dict.fromkeys((*self.config.skip_layers, *names))))

    def save_config(
        self, path: str | os.PathLike[str], *, worst: int | None = None, above: float | None = None
    ) -> Path:
        """Write :meth:`to_config` as a TOML file that the product reads.

        Raises:
            ConfigError: as for :meth:`to_config`.
            SaveError: it cannot be written there.
        """
        return self.to_config(worst=worst, above=above).save(path)

    def summary(self) -> str:
        """What was measured, and what the worst layer is, in a few sentences."""
        measured = [layer for layer in self.layers if layer.worst is not None]
        if not measured:
            return "No layer could be measured." if self.layers else "The config prunes no layer."
        lines = [
            f"{len(measured)} of {len(self.layers)} layers measured on {self.samples} samples, each pruned alone, by "
            f"magnitude. The worst is {measured[0].name}."
        ]
        if not self.outputs:
            lines.append("The model has no outputs of floats to compare: the errors are those of the layers' own.")
        elif self.together is not None:
            lines.append(f"All pruned at once: {percent(self.together)} at the model's outputs.")
        return " ".join(lines)

    def table(self, width: int | None = None) -> str:
        """The layers, the worst first, folded to ``width`` columns if one is given."""
        whole = sum(layer.multiply_adds or 0 for layer in self.layers)
        rows = [
            (
                layer.name,
                layer.op_type,
                "x".join(map(str, layer.shape)),
                str(layer.pattern),
                "-" if layer.multiply_adds is None or not whole else f"{layer.multiply_adds / whole:.1%}",
                percent(layer.error),
                percent(layer.output_error),
                layer.note,
            )
            for layer in self.layers
        ]
        header = ("layer", "op", "shape", "pattern", "work", "own error", "error at the outputs", "note")
        return text_table(header, rows, width) if rows else ""

    def __str__(self) -> str:
        return f"{self.table()}{self.summary()}"


def percent(value: float | None) -> str:
    """An error for people, with three digits: "0.0123%"; "-" where there is none."""
    if value is None:
        return "-"
    return f"{100 * value:.3g}%" if math.isfinite(value) else "not finite"
