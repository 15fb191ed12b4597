"""The whole contract for plugins: three hooks, found through the entry-point group ``sparsekit``.

A plugin is a module (or object) that an installed distribution names in that group and that implements any of
these hooks. Each is called once, when the registry is built: at the first ``plan``, ``prune``, ``strip`` or
``verify``, or at ``sparsekit plugins``. Keep the import light: TensorFlow belongs inside methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from sparsekit.criterion import Criterion
    from sparsekit.handler import OpHandler
    from sparsekit.target import TargetProfile

PROJECT = "sparsekit"
"""pluggy's project name, and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sparsekit_op_handlers() -> Iterable[OpHandler]:
    """The op handlers of this plugin, one per family of op types."""
    return ()


@hookspec
def sparsekit_targets() -> Iterable[TargetProfile]:
    """The target profiles of this plugin, one per family of devices."""
    return ()


@hookspec
def sparsekit_criteria() -> Iterable[Criterion]:
    """The criteria of this plugin: how a layer's mask is chosen."""
    return ()
