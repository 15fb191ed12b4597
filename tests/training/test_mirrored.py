"""Keras' fit under MirroredStrategy trains the same sparse model on two devices as on one."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from clusters import ROOT, SECONDS

SCRIPT = Path(__file__).with_name("run_mirrored.py")
pytestmark = pytest.mark.slow


@functools.cache
def _found() -> dict[str, Any]:
    """All of it from one process: devices must be split before TensorFlow looks at them."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), folder],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            timeout=2 * SECONDS,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(Path(folder, "found.json").read_text())


def test_fit_gives_the_masks_and_weights_of_one_device() -> None:
    # After every step every copy of a weight, its mask, shadow and count held the same bits: the script looks.
    for case in ("sgd", "adam", "lamb"):
        found = _found()[case]
        assert found["same masks"], case
        assert found["flips"][0] == found["flips"][1], case
        assert found["difference"] < 1e-6, case
        assert found["sparsity"] == [[0.5] * 2] * 2
        assert found["verified"]
    assert _found()["adam"]["flips"][0][0] > 10
    assert _found()["sgd"]["plan"] == "Masking: in-place (SGD updates every weight by itself)."
    assert "Masking: project (Lamb is not known" in _found()["lamb"]["plan"]


def test_an_interrupted_fit_ends_with_the_very_weights_of_one_that_was_not() -> None:
    assert _found()["resumed"]


@pytest.mark.parametrize("where", ["step in replicas", "step outside"])
def test_step_in_a_loop(where: str) -> None:
    found = _found()[where]
    assert found["dropped"] == 0 and found["alike"] and found["flips"] > 5 and found["verified"]


def test_what_cannot_be_is_refused() -> None:
    central, forward, straight_through, keras_own = _found()["refusals"]
    assert "CentralStorageStrategy" in central and "take MirroredStrategy" in central
    assert "masking: 'forward'" in forward and 'expected masking "auto", "in-place" or "project"' in forward
    assert "gradient: 'ste'" in straight_through and 'expected "masked"' in straight_through
    assert "DataParallel, which does nothing on TensorFlow" in keras_own
