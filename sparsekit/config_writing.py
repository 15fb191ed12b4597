"""A config as TOML text, which `config_files` reads back."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import attrs

from sparsekit.config import Override, PruneConfig
from sparsekit.pattern import Pattern


def to_toml(config: PruneConfig) -> str:
    """The pattern, and every other key that does not have its default value."""
    lines = [f"pattern = {_value(config.pattern)}", *_said(config, but=("pattern", "override"))]
    for override in config.override:
        lines += ["", "[[override]]"]
        lines += _said(override)
    return "".join(f"{line}\n" for line in lines)


def _said(settings: PruneConfig | Override, but: Collection[str] = ()) -> list[str]:
    """A line for every key that does not have its default value."""
    # Not compared: where a config came from.
    keys = [field for field in attrs.fields(type(settings)) if field.eq and field.name not in but]
    values = ((field, getattr(settings, field.name)) for field in keys)
    return [f"{field.name} = {_value(value)}" for field, value in values if value != field.default]


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
