"""``python -m sparsekit.compat.amct_tensorflow SCRIPT.py [ARGS...]``: run a script that imports ``amct_tensorflow``."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_NAME = "amct_tensorflow"
_HOME = "sparsekit.compat.amct_tensorflow"
_USAGE = f"""usage: python -m {_HOME} SCRIPT.py [ARGS...]

Runs SCRIPT.py as python would, with `import {_NAME}` served by sparsekit."""


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves ``amct_tensorflow`` and what is below it with this package's very modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _NAME and not name.startswith(f"{_NAME}."):
            return None
        home = _HOME + name.removeprefix(_NAME)
        if importlib.util.find_spec(home) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=home)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(_HOME + spec.name.removeprefix(_NAME))
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # Already executed under its own name; the import system has just put the alias's spec on it.
        module.__spec__ = self._spec


def main(arguments: list[str]) -> int:
    """Run the script; returns the exit status for a wrong call, else what the script ends with."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr if not arguments else sys.stdout)
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"{script}: there is no such script\n{_USAGE}", file=sys.stderr)
        return 2
    sys.meta_path.insert(0, _Alias())
    sys.argv = arguments
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
