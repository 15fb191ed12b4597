"""What masks and weights were after every step, bit for bit, for processes to be compared by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Logbook:
    """Appends a line a step to a file, at once: its writer may be killed.

    Args:
        path: the file; what is in it stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, step: int, result: Any) -> None:
        line = {
            "step": step,
            "counted": int(result.state.steps.numpy()),
            "masks": [_digest(weight.mask) for weight in result.weights],
            "shadows": [_digest(weight.shadow) for weight in result.weights if weight.shadow is not None],
            "weights": [_digest(weight.variable) for weight in result.weights],
            "dropped": [float(abs(w.variable.numpy() * (w.mask.numpy() == 0)).max()) for w in result.weights],
            "flips": [int(weight.flips.numpy()) for weight in result.weights],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_logbook(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _digest(variable: Any) -> str:
    return hashlib.sha256(variable.numpy().tobytes()).hexdigest()
