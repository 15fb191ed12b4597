"""The example examples/edge_deploy/edge_deploy.py as a module for tests.

They need Arm's compiler Vela (the extra ``test-edge``): without it they fail, they are not skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "edge_deploy"
sys.path.insert(0, str(EXAMPLE))

import edge_deploy  # noqa: E402

__all__ = ["EXAMPLE", "edge_deploy"]
