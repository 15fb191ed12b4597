"""AMCT's retraining config (protobuf text of an AMCTRetrainConfig) as a PruneConfig."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsekit._amct_messages import Field, outline, parse
from sparsekit.config import Override, PruneConfig
from sparsekit.errors import ConfigError
from sparsekit.pattern import PATTERN_2_4, Pattern
from sparsekit.reading import read_text

_log = logging.getLogger("sparsekit")

_PATTERNS = {0: PATTERN_2_4}  # by number of NOutOfMType: M4N2
_PRUNER = "n_out_of_m_pruner { l1_selective_prune { update_freq: 0 } }"
_NOT_TOML = "A config whose name does not end in .toml is read as AMCT's protobuf text."
_SKIP_LAYERS = ("skip_layers", "regular_prune_skip_layers")
_SKIP_TYPES = ("skip_layer_types", "regular_prune_skip_types")
_WITHOUT_EFFECT = ("batch_num", "quant_skip_layers", "quant_skip_types")
_UNSUPPORTED = {
    "filter_pruner": (
        "channel pruning (filter_pruner) is not supported",
        f"sparsekit does n:m sparsity: use {_PRUNER} instead.",
    ),
    "retrain_data_quant_config": (
        "quantization (retrain_data_quant_config) is not supported",
        "sparsekit does sparsity only: remove this block.",
    ),
    "retrain_weight_quant_config": (
        "quantization (retrain_weight_quant_config) is not supported",
        "sparsekit does sparsity only: remove this block.",
    ),
}


def read_amct_config(path: str | os.PathLike[str]) -> PruneConfig:
    """The config in an AMCT text file.

    Without a global ``prune_config`` only the layers and types with an override are pruned. Layer names and
    types are literal, as in AMCT.

    Args:
        path: the file.

    Raises:
        ConfigError: the file cannot be read or parsed, asks for channel pruning or quantization, or is
            incomplete; the message names the file and the line.
        MissingFileError: there is no such file.
    """
    source = os.fsdecode(path)
    text = read_text(Path(source), ConfigError)
    # Before the parser: a file with quantization gets this answer whatever its blocks hold.
    _refuse_unsupported(outline(text), source)
    message, root = parse(text, "AMCTRetrainConfig", source, ConfigError, _NOT_TOML)
    if not root.fields:
        raise ConfigError(
            "the config is empty",
            where=f"{source}:1",
            hint=f"A minimal config is prune_config {{ {_PRUNER} }}",
        )
    _warn_of_no_effect(root, source)
    config = PruneConfig(
        **_global_settings(message, root, source),
        skip_layers=tuple(_literals(message, root, _SKIP_LAYERS, source)),
        skip_types=tuple(_literals(message, root, _SKIP_TYPES, source)),
        override=tuple(_overrides(message, root, source)),
        source=source,
        places=dict(_places(message, root, source)),
    )
    if not config.prune and not config.override:
        _log.warning("%s: no prune_config, neither global nor in an override: no layer will be pruned", source)
    return config


def _refuse_unsupported(root: Field, source: str) -> None:
    for field in root.walk():
        if field.name in _UNSUPPORTED:
            found, hint = _UNSUPPORTED[field.name]
            raise ConfigError(found, where=f"{source}:{field.line}", hint=hint)


def _warn_of_no_effect(root: Field, source: str) -> None:
    for name in _WITHOUT_EFFECT:
        for field in root.named(name)[:1]:
            _log.warning("%s:%d: %s has no effect on sparsity and is ignored", source, field.line, name)


def _global_settings(message: Any, root: Field, source: str) -> dict[str, Any]:
    if not message.HasField("prune_config"):
        return {"prune": False}
    pattern, update_freq = _pruner(message.prune_config, f"{source}:{root.named('prune_config')[0].line}")
    return {"pattern": pattern, "update_freq": update_freq}


def _overrides(message: Any, root: Field, source: str) -> Iterator[Override]:
    kinds = (
        ("override_layer_configs", "layer_name", "layers"),
        ("override_layer_types", "layer_type", "types"),
    )
    for block, name_field, key in kinds:
        for entry, field in zip(getattr(message, block), root.named(block), strict=True):
            where = f"{source}:{field.line}"
            if not entry.HasField(name_field):
                raise ConfigError(f"{block} without {name_field}", where=where, expected=f'{name_field}: "..."')
            name = _literal(getattr(entry, name_field), f"{source}:{field.named(name_field)[0].line}")
            if not entry.HasField("prune_config"):
                expected = f"prune_config {{ {_PRUNER} }}"
                raise ConfigError(f"{block} for '{name}' changes nothing", where=where, expected=expected)
            where = f"{source}:{field.named('prune_config')[0].line}"
            pattern, update_freq = _pruner(entry.prune_config, where)
            # AMCT replaces the whole block, so that a field left out is AMCT's default, not the global value.
            names: dict[str, Any] = {key: (name,)}
            yield Override(**names, pattern=pattern, update_freq=update_freq, prune=True)


def _pruner(prune_config: Any, where: str) -> tuple[Pattern, int]:
    if not prune_config.HasField("n_out_of_m_pruner"):
        raise ConfigError("prune_config without a pruner", where=where, expected=_PRUNER)
    pruner = prune_config.n_out_of_m_pruner.l1_selective_prune  # its defaults where it is absent
    return _PATTERNS[pruner.n_out_of_m_type], pruner.update_freq


def _literals(message: Any, root: Field, names: tuple[str, ...], source: str) -> Iterator[str]:
    """The union of some lists of names, in order and without repetition."""
    seen = set()
    for name in names:
        for value, field in zip(getattr(message, name), root.named(name), strict=True):
            if value not in seen:
                seen.add(value)
                yield _literal(value, f"{source}:{field.line}")


def _places(message: Any, root: Field, source: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Where each layer name and op type stands: ((``layer`` or ``type``, name), "file:line: field")."""
    for kind, lists in (("layer", _SKIP_LAYERS), ("type", _SKIP_TYPES)):
        for name in lists:
            for value, field in zip(getattr(message, name), root.named(name), strict=True):
                yield (kind, value), f"{source}:{field.line}: {name}"
    for kind, block, name in (
        ("layer", "override_layer_configs", "layer_name"),
        ("type", "override_layer_types", "layer_type"),
    ):
        for entry, field in zip(getattr(message, block), root.named(block), strict=True):
            yield (kind, getattr(entry, name)), f"{source}:{field.named(name)[0].line}: {block}.{name}"


def _literal(name: str, where: str) -> str:
    """A name that means itself here too, where names are shell-style patterns."""
    if not name:
        raise ConfigError("an empty name", where=where)
    if any(character in name for character in "*?["):
        hint = "AMCT names are literal and TensorFlow's have no *, ? or [; a TOML config takes patterns."
        raise ConfigError(f"'{name}' is not the name of a layer or type", where=where, hint=hint)
    return name
