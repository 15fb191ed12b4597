"""Estimates of tools and devices, from a file that whoever ran them wrote."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import attrs

from sparsekit.errors import ConfigError
from sparsekit.reading import read_text
from sparsekit.reporting.facts import Estimate

_EXPECTED = (
    'a JSON list of objects such as {"source": "Arm\'s estimate (Vela 5.2)", "quantity": "multiply-adds", '
    '"dense": 92.9e6, "pruned": 46.5e6}'
)


def load_estimates(path: str | os.PathLike[str]) -> tuple[Estimate, ...]:
    """The estimates in a JSON file.

    Raises:
        MissingFileError: there is no such file.
        ConfigError: it holds something else.
    """
    source = os.fsdecode(path)
    try:
        entries = json.loads(read_text(Path(source), ConfigError))
    except ValueError as error:
        raise ConfigError(f"is not JSON ({error})", where=source, expected=_EXPECTED) from error
    if not isinstance(entries, list):
        raise ConfigError(f"holds {type(entries).__name__}", where=source, expected=_EXPECTED)
    return tuple(_estimate(entry, f"{source}: entry {number}") for number, entry in enumerate(entries))


def _estimate(entry: Any, where: str) -> Estimate:
    names = {field.name for field in attrs.fields(Estimate)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise ConfigError(f"{entry!r}"[:200], where=where, expected=f"an object with {', '.join(sorted(names))}")
    texts, numbers = (entry["source"], entry["quantity"]), (entry["dense"], entry["pruned"])
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ConfigError("an empty source or quantity", where=where, expected="whose figure it is, and of what")
    if not all(type(n) in (int, float) and math.isfinite(n) and n >= 0 for n in numbers):
        raise ConfigError(f"dense {numbers[0]!r}, pruned {numbers[1]!r}", where=where, expected="numbers from 0 on")
    return Estimate(*texts, *map(float, numbers))
