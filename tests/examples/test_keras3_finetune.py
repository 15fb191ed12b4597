"""Fine-tuning gives back what pruning took, and all that is written is sparse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sparsekit

EXAMPLE = Path(__file__).parents[2] / "examples" / "keras3_finetune"


@pytest.mark.slow
def test_the_example_does_what_its_readme_says(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "keras3_finetune.py"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Masking: in-place (Adam updates every weight by itself)." in done.stdout
    assert "sparsity: 0.5000" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("True")
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith("%")]
    dense, control, one_shot, fine_tuned = (float(row[-1].rstrip("%")) for row in rows)
    assert one_shot < dense - 5
    assert fine_tuned > max(one_shot + 5, control - 4)
    assert sparsekit.verify(tmp_path / "exported").ok
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "model.keras").is_file()
    assert list((tmp_path / "logs").iterdir())
