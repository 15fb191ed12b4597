"""Makes the masks' gradient known to TensorFlow, as soon as TensorFlow is there.

A MetaGraph that was pruned in one process and is imported in another needs the gradient by name when the user builds
the optimizer. ``import sparsekit`` must be enough for that, before or after TensorFlow, without importing it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType


def register_gradient() -> None:
    """Register the gradient now if TensorFlow is loaded, else right after it will be."""
    if hasattr(sys.modules.get("tensorflow"), "RegisterGradient"):
        importlib.import_module("sparsekit.gradient")
    elif not any(isinstance(finder, _AfterTensorFlow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTensorFlow())


class _AfterTensorFlow(importlib.abc.MetaPathFinder):
    """Finds TensorFlow the usual way, once, and lets its loader register the gradient when it is done."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            _register_after(spec.loader)
        return spec


def _register_after(loader: importlib.abc.Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        importlib.import_module("sparsekit.gradient")

    loader.exec_module = exec_module  # type: ignore[method-assign]
