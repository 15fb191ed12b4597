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
        importlib.import_module("sparsekit.live.gradient")
    elif not any(isinstance(finder, _AfterTensorFlow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTensorFlow())


class _AfterTensorFlow(importlib.abc.MetaPathFinder):
    """Finds TensorFlow the usual way and lets its loader register the gradient when it is done.

    It stays until then: others may ask whether there is a TensorFlow without loading it.
    """

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader: importlib.abc.Loader) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            importlib.import_module("sparsekit.live.gradient")

        loader.exec_module = exec_module  # type: ignore[method-assign]
