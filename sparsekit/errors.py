"""What can go wrong, as exceptions that carry the facts and make their own sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparsekitError(Exception):
    """Base of every error raised on purpose.

    The message reads ``where: found; expected ... . hint``. The parts stay available as attributes.

    Args:
        found: what was found.
        where: the layer, ``file:line``, plugin or argument that it was found in.
        expected: what was expected instead.
        hint: what to do next, as a sentence.
    """

    def __init__(self, found: str, *, where: str = "", expected: str = "", hint: str = "") -> None:
        self.found = found
        self.where = where
        self.expected = expected
        self.hint = hint
        super().__init__(found)

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}" if self.where else self.found
        if self.expected:
            text += f"; expected {self.expected}"
        if not self.hint:
            return text
        return f"{text}{'' if text.endswith(('.', '?', '!')) else '.'} {self.hint}"


class ConfigError(SparsekitError):
    """A config (dict, TOML, AMCT text) that cannot be used; nothing was changed."""


class CalibrationError(SparsekitError):
    """Calibration samples that cannot be used; nothing was changed."""


class RecordError(SparsekitError):
    """A record file that cannot be read or that does not match its model."""


class GraphError(SparsekitError):
    """A graph that cannot be pruned as asked; nothing was changed."""


class ModelError(SparsekitError):
    """A model (GraphDef, .pb) that cannot be read, stripped or verified."""


class MissingFileError(SparsekitError, FileNotFoundError):
    """A file that is not there."""

    __str__ = SparsekitError.__str__


class SaveError(SparsekitError, OSError):
    """A file that could not be written; whatever stood at its path before still does."""

    __str__ = SparsekitError.__str__


class PluginError(SparsekitError):
    """A plugin that fails to load, contradicts another one or breaks its contract."""


class TargetError(SparsekitError):
    """A target name that no profile answers to."""


class UnsupportedTargetError(TargetError):
    """The target has no gain from the pattern, and ``strict_target=True`` was given."""


class UnsupportedTargetWarning(UserWarning):
    """The target has no gain from the pattern; pruning goes on."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the names closest to ``name``, or "" where none is close.

    Args:
        name: the unknown name.
        known: the names that would have been accepted.

    Returns:
        For example ``"Did you mean 'conv1/kernel'?"``.
    """
    choices = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(choices), n=3, cutoff=0.5)
    if not close:
        return ""
    return "Did you mean " + " or ".join(f"'{choices[key]}'" for key in close) + "?"
