"""``import amct_tensorflow`` where this folder is on ``sys.path``: sparsekit's very modules under AMCT's names.

A folder rather than a hook of the import system, since processes that a script spawns inherit ``sys.path``.
"""

from __future__ import annotations

import importlib
import sys

for _below in ("", ".utils", ".utils.log"):
    sys.modules[f"amct_tensorflow{_below}"] = importlib.import_module(f"sparsekit.compat.amct_tensorflow{_below}")
