"""A config as TOML text, which `config_files` reads back."""

from __future__ import annotations

import json
from typing import Any

import attrs

from sparsekit.config import Override, PruneConfig
from sparsekit.pattern import Pattern


def to_toml(config: PruneConfig) -> str:
    """The pattern, and every other key that does not have its default value."""
    lines = [f"pattern = {_value(config.pattern)}"]
    for field in _keys(PruneConfig):
        value = getattr(config, field.name)
        if field.name not in ("pattern", "override") and value != field.default:
            lines.append(f"{field.name} = {_value(value)}")
    for override in config.override:
        said = {field.name: getattr(override, field.name) for field in _keys(Override)}
        lines += ["", "[[override]]"]
        lines += [f"{key} = {_value(value)}" for key, value in said.items() if value not in (None, ())]
    return "".join(f"{line}\n" for line in lines)


def _keys(cls: type) -> list[attrs.Attribute[Any]]:
    return [field for field in attrs.fields(cls) if field.eq]  # not compared: where a config came from


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        if len(value) < 2:
            return f"[{''.join(map(_value, value))}]"
        return "[\n" + "".join(f"    {_value(item)},\n" for item in value) + "]"
    # JSON's escapes are TOML's, but for the one character that JSON leaves.
    text = str(value) if isinstance(value, Pattern) else value
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
