"""``python -m sparsekit.compat.amct_tensorflow SCRIPT.py [ARGS...]``: run a script that imports ``amct_tensorflow``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

_USAGE = """usage: python -m sparsekit.compat.amct_tensorflow SCRIPT.py [ARGS...]

Runs SCRIPT.py as python would, with `import amct_tensorflow` served by sparsekit."""


def main(arguments: list[str]) -> int:
    """Run the script; returns the exit status for a wrong call, else what the script ends with."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr if not arguments else sys.stdout)
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"{script}: there is no such script\n{_USAGE}", file=sys.stderr)
        return 2
    sys.argv = arguments
    if not getattr(sys.flags, "safe_path", False):  # python -P puts no folder first
        sys.path[0] = str(script.resolve().parent)
    # After the script's folder, which stays first, and before an installed AMCT.
    sys.path.insert(1, str(Path(__file__).parent / "served"))
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
