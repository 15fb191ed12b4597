"""Calibration as an Apache Beam pipeline: the bytes are those of one process."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calibrated_networks import LAYERS, samples, written
from models_at_rest import files

import sparsekit
from sparsekit.artefact.model import open_model
from sparsekit.calibration.resuming import FinishedLayers

REQUIRED = "SPARSEKIT_REQUIRE_BEAM"
"""Environment variable: where it is set, a missing Apache Beam fails these tests."""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None and not os.environ.get(REQUIRED),
    reason="Apache Beam is not installed here: pip install 'sparsekit[beam]' (.ci/run does, in an environment apart)",
)

# The mode is named: left to itself, DirectRunner looks for another runner that is a download.
IN_MEMORY = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]
TWO_PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
README = (Path(__file__).parents[2] / "README.md").read_text()
# What is compared is every layer, tiny ones too.
ALL = {"keep_dense": 0}
ONE_PASS = {"order": "one-pass", **ALL}
KEPT = ["fc", "out"]  # of the network, by default


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bits(result: sparsekit.PruneResult) -> bytes:
    return result.graph_def.SerializeToString(deterministic=True)


def sparsekit_command(*arguments: str) -> str:
    """What the command writes to standard error."""
    command = [sys.executable, "-c", "from sparsekit.cli import main; main()", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.slow
def test_the_readme_s_two_processes_write_the_bytes_of_one(folder: Path) -> None:
    (line,) = [line for line in README.splitlines() if "--runner DirectRunner" in line]
    program, *arguments = shlex.split(line)
    assert program == "sparsekit" and arguments[-2:] == TWO_PROCESSES
    Path("samples").mkdir()
    for number in range(2):
        os.rename(f"samples-{number}.npz", f"samples/{number}.npz")
    os.rename("dense.pb", "model.pb")
    said = sparsekit_command(*arguments)
    assert said.count("Python sdk harness starting.") == 2
    Path("one-pass.toml").write_text('order = "one-pass"\n')
    sparsekit_command(
        *["prune", "model.pb", "-o", "one.pb", "--calibration", "samples/*.npz", "--config", "one-pass.toml"]
    )
    assert Path("pruned.pb").read_bytes() == Path("one.pb").read_bytes()
    assert sparsekit.verify("pruned.pb", cfg={"skip_layers": KEPT}).ok
    assert FinishedLayers("shared").count() == len(LAYERS) - len(KEPT)


def test_a_saved_model_too(folder: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([keras.Input((6, 6, 8)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(6)])
    model.export(folder / "model", verbose=False)
    (name,) = open_model("model").inputs
    np.savez("renamed.npz", **{name: samples(300)})
    sparsekit.prune("model", ONE_PASS, calibration="renamed.npz").save("one")
    sparsekit.prune("model", ALL, calibration="renamed.npz", beam=IN_MEMORY).save("beam")
    assert files(folder / "one") == files(folder / "beam")
    assert sparsekit.verify("beam").ok


def test_what_one_process_began_a_pipeline_ends(folder: Path) -> None:
    whole = sparsekit.prune("dense.pb", ONE_PASS, calibration="samples-*.npz", resume="kept")
    for path in sorted(Path("kept").glob("*.npz"))[:2]:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("kept").glob("*.npz")}
    result = sparsekit.prune("dense.pb", ALL, calibration="samples-*.npz", resume="kept", beam=IN_MEMORY)
    assert bits(result) == bits(whole)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert FinishedLayers("kept").count() == len(LAYERS)


def test_an_error_on_a_worker_is_told_in_its_own_words(folder: Path) -> None:
    broken = samples(300)
    broken[40, 0, 0, 0] = np.nan
    np.savez("samples-1.npz", x=broken)
    with pytest.raises(sparsekit.CalibrationError, match=r"samples-1\.npz, samples 32 to 63, input 'x': NaN in 1 of"):
        sparsekit.prune("dense.pb", ALL, calibration="samples-*.npz", beam=IN_MEMORY)


def test_what_workers_could_not_see_is_refused(folder: Path) -> None:
    with pytest.raises(sparsekit.CalibrationError, match="samples in memory; expected files"):
        sparsekit.prune("dense.pb", calibration=samples(40), beam=IN_MEMORY)
    graph_def = sparsekit.prune("dense.pb").graph_def
    with pytest.raises(sparsekit.CalibrationError, match="a model in memory; expected files"):
        sparsekit.prune(graph_def, calibration="samples-0.npz", beam=IN_MEMORY)
    with pytest.raises(sparsekit.CalibrationError, match="FlinkRunner without a folder for solved layers"):
        sparsekit.prune("dense.pb", calibration="samples-0.npz", beam=["--runner=FlinkRunner"])
