"""Two workers hold the same masks all the way, and what they leave is sparse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sparsekit

EXAMPLE = Path(__file__).parents[2] / "examples" / "multi_worker"


@pytest.mark.slow
def test_the_example_does_what_its_readme_says(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "multi_worker.py"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Masking: in-place (Adam updates every weight by itself)." in done.stdout
    lines = [line.rsplit(maxsplit=1) for line in done.stdout.splitlines()[-6:]]
    dense, one_shot, fine_tuned, choices, same, sparse = (value for _, value in lines)
    assert float(one_shot.rstrip("%")) < float(fine_tuned.rstrip("%")) - 3
    assert float(fine_tuned.rstrip("%")) > float(dense.rstrip("%")) - 3
    assert int(choices) >= 3
    assert (same, sparse) == ("True", "True")
    assert sparsekit.verify(tmp_path / "exported").ok
