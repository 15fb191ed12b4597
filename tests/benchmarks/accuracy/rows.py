"""The rows of the tables: what is done to a dense network. Each is labelled by the very config that it uses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

WITHOUT_SAMPLES = "one-shot, weights alone"
WITH_SAMPLES = "one-shot, with calibration samples"
RETRAINED = "retrained"

CRITERIA = ("magnitude", "wanda", "sparsegpt", "admm")
REPAIRS = ((), ("scale-shift",), ("batch-norm",), ("least-squares",))


@attrs.frozen
class Row:
    """One way to prune.

    Args:
        group: which of the three ways.
        config: what ``sparsekit.prune`` is told; None: no masks (the dense network, or the control of a retraining).
        epochs: of retraining.
        costly: left out where one row takes minutes.
    """

    group: str
    config: Mapping[str, Any] | None
    epochs: int = 0
    costly: bool = False

    @property
    def label(self) -> str:
        """The config as one line of TOML."""
        if self.config is None:
            return f"dense, {self.epochs} epochs on (control)" if self.epochs else "dense"
        config = ", ".join(f"{key} = {json.dumps(value)}" for key, value in self.config.items()) or "defaults"
        return f"{config}, {self.epochs} epochs" if self.epochs else config

    @property
    def key(self) -> str:
        """Equal for the same row of another run."""
        return f"{self.group}: {self.label}"


DENSE = Row("", None)
MAGNITUDE = Row(WITHOUT_SAMPLES, {})
DEFAULT = Row(WITH_SAMPLES, {})


def one_shot_rows() -> Iterator[Row]:
    """The dense network, and every way to prune it without retraining."""
    yield DENSE
    yield MAGNITUDE
    for criterion in ("random", "inverted"):
        yield Row(WITHOUT_SAMPLES, {"criterion": criterion})
    yield DEFAULT
    for criterion, repair in itertools.product(("random", *CRITERIA), REPAIRS):
        costly = criterion != "magnitude" and (criterion, repair) != ("sparsegpt", ())
        yield Row(WITH_SAMPLES, {"criterion": criterion, "repair": list(repair)}, costly=costly)
    yield Row(WITH_SAMPLES, {"target_path": "dense"}, costly=True)
    for effort in ("fast", "high"):
        yield Row(WITH_SAMPLES, {"effort": effort}, costly=True)
    for share in (0.0, 0.05):
        yield Row(WITH_SAMPLES, {"keep_dense": share}, costly=True)
    yield Row(WITH_SAMPLES, {"min_weights": 1024}, costly=True)


def retraining_rows() -> Iterator[Row]:
    """Static masks and a control without, each with the same training from the same dense network on."""
    for epochs in (3, 12):
        yield Row(RETRAINED, None, epochs)
        for config in ({}, {"criterion": "random"}, {"criterion": "inverted"}):
            yield Row(RETRAINED, config, epochs)
