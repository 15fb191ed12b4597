"""From whatever the caller has to a PruneConfig: nothing, a dict, a TOML file, an AMCT text file."""

from __future__ import annotations

import importlib
import os
import re
import reprlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsekit.config import PruneConfig
from sparsekit.errors import ConfigError
from sparsekit.reading import read_text


def load_config(cfg: PruneConfig | Mapping[str, Any] | str | os.PathLike[str] | None) -> PruneConfig:
    """A config from whatever the caller has.

    Args:
        cfg: None for the defaults, a PruneConfig, a dict, or the path of a file: ``.toml`` is read as TOML,
            any other name as AMCT's protobuf text.

    Raises:
        ConfigError: what was given cannot be used; the message names the file and, where known, the line.
        MissingFileError: there is no such file.
    """
    if cfg is None:
        return PruneConfig()
    if isinstance(cfg, PruneConfig):
        return cfg
    if isinstance(cfg, Mapping):
        return PruneConfig.from_dict(cfg)
    if not isinstance(cfg, (str, os.PathLike)):
        expected = "a PruneConfig, a dict, the path of a .toml or AMCT text file, or None"
        raise ConfigError(f"{reprlib.repr(cfg)} ({type(cfg).__name__})", where="config", expected=expected)
    path = Path(os.fsdecode(cfg))
    if path.suffix.lower() == ".toml":
        return _read_toml(path)
    from sparsekit.config_amct import read_amct_config  # protobuf is imported for AMCT files only

    return read_amct_config(path)


def _read_toml(path: Path) -> PruneConfig:
    text = read_text(path, ConfigError)
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        mapping = tomllib.loads(text)
    except (ValueError, RecursionError) as reason:
        at = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(reason))
        line = int(at[1]) if at and at[1] else max(1, len(text.splitlines()))
        found = str(reason)[: at.start()] if at else str(reason)
        raise ConfigError(f"not valid TOML: {found}", where=f"{path}:{line}" if at else str(path)) from reason
    if not mapping:
        hint = 'A minimal config is one line: pattern = "2:4"'
        raise ConfigError("the config is empty", where=f"{path}:1", hint=hint)
    return PruneConfig.from_dict(mapping, source=str(path))
