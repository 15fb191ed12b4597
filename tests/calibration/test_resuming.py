"""Calibration that was stopped at any point goes on to the same bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrated_networks import LAYERS, network, samples, written
from click.testing import CliRunner
from small_graphs import run_script

import sparsekit
from sparsekit.calibration import resuming
from sparsekit.cli import main

ORDERS = ("sequential", "one-pass")
ALL = {"keep_dense": 0}  # tiny layers too


def bits(result: sparsekit.PruneResult) -> bytes:
    return result.graph_def.SerializeToString(deterministic=True)


def solved(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


class Stopped(BaseException):
    """As if the user pressed Ctrl-C."""


def stop_after(monkeypatch: pytest.MonkeyPatch, layers: int, error: type[BaseException] = Stopped) -> None:
    """Let calibration stop when so many layers are kept."""
    keep, kept = resuming.FinishedLayers.save, []

    def save(self: Any, layer: str, became: Any) -> None:
        keep(self, layer, became)
        kept.append(layer)
        if len(kept) == layers:
            raise error

    monkeypatch.setattr(resuming.FinishedLayers, "save", save)


@pytest.mark.parametrize("target_path", ["pruned", "dense"])
@pytest.mark.parametrize("order", ORDERS)
def test_stopped_after_any_layer_it_goes_on_to_the_same_bytes(
    order: str, target_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = {**ALL, "order": order, "target_path": target_path}
    whole = sparsekit.prune(network(), cfg, calibration=samples(100))
    for layers in range(1, len(LAYERS) + 1):
        folder = tmp_path / str(layers)
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, layers)
            sparsekit.prune(network(), cfg, calibration=samples(100), resume=folder)
        before = {path: path.stat().st_mtime_ns for path in solved(folder)}
        assert len(before) == layers
        result = sparsekit.prune(network(), cfg, calibration=samples(100), resume=folder)
        assert bits(result) == bits(whole)
        assert [a.error_after for a in result.accounts] == [a.error_after for a in whole.accounts]
        assert len(solved(folder)) == len(LAYERS)
        assert before == {path: path.stat().st_mtime_ns for path in before}  # they were not solved again


# One process that has TensorFlow loaded and forks for every run of the command.
_KILLED = """
    import os, random, shutil, sys, time
    from multiprocessing import get_context
    from pathlib import Path
    import tensorflow
    from sparsekit.cli import main

    def solved():
        return len(list(Path("kept").glob("*.npz")))

    def run(output, layers=None):
        command = ["prune", "dense.pb", "--calibration", "samples-*.npz", "--config", "config.toml"]
        command += ["--resume", "kept", "-o", output]
        process = get_context("fork").Process(target=main, args=(command,), kwargs={"standalone_mode": False})
        process.start()
        if layers is None:
            process.join(300)
            assert process.exitcode == 0, process.exitcode
            return
        while process.is_alive() and solved() < layers:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.join()

    for folder in sys.argv[2:]:
        os.chdir(Path(sys.argv[1], folder))
        run("whole.pb")
        shutil.rmtree("kept")
        for layers in (1, random.randint(2, 4)):
            run("never.pb", layers)
        assert solved() > 0
        run("resumed.pb")
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed for good, several times; moments are drawn anew in every run."""
    for order in ORDERS:
        (tmp_path / order).mkdir()
        written(tmp_path / order)
        (tmp_path / order / "config.toml").write_text(f'order = "{order}"\neffort = "high"\nkeep_dense = 0\n')
    run_script(_KILLED, tmp_path, *ORDERS)
    for order in ORDERS:
        assert (tmp_path / order / "resumed.pb").read_bytes() == (tmp_path / order / "whole.pb").read_bytes(), order


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("all.toml").write_text("keep_dense = 0\n")
    command = ["prune", "dense.pb", "--config", "all.toml", "--calibration", "samples-0.npz", "-o", "out.pb"]
    with monkeypatch.context() as patched:
        stop_after(patched, 2, KeyboardInterrupt)
        ended = CliRunner().invoke(main, [*command, "--resume", "kept"])
    assert ended.exit_code != 0 and not Path("out.pb").exists()
    assert "kept in kept: 2. The same command goes on from there." in ended.stderr
    ended = CliRunner().invoke(main, [*command, "--resume", "kept"])
    assert ended.exit_code == 0 and "remove it when you are done" in ended.stdout
    assert len(solved(Path("kept"))) == len(LAYERS)
    monkeypatch.setattr(sparsekit, "prune", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert "--resume FOLDER" in CliRunner().invoke(main, command).stderr


def differing_model() -> Any:
    graph_def = network()
    (node,) = [node for node in graph_def.node if node.name == "out/b"]
    content = bytearray(node.attr["value"].tensor.tensor_content)
    content[0] ^= 1
    node.attr["value"].tensor.tensor_content = bytes(content)
    return graph_def


@pytest.mark.parametrize(
    ("model", "cfg", "count", "named"),
    [
        (differing_model, {}, 40, "is of a run that differs: the model differs; expected"),
        (network, {"effort": "fast"}, 40, 'config key effort was "normal", is "fast"'),
        (network, {"skip_layers": ["fc"]}, 40, "config key skip_layers was .*; the plan differs"),
        (network, {"order": "one-pass"}, 40, 'config key order was "sequential", is "one-pass"'),
        (network, {}, 41, "is of a run that differs: the samples differ; expected"),
    ],
)
def test_the_folder_of_another_run_is_refused_and_what_differs_is_named(
    model: Any, cfg: dict[str, Any], count: int, named: str, tmp_path: Path
) -> None:
    sparsekit.prune(network(), ALL, calibration=samples(40), resume=tmp_path / "kept")
    before = {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    with pytest.raises(sparsekit.CalibrationError, match=named) as caught:
        sparsekit.prune(model(), {**ALL, **cfg}, calibration=samples(count), resume=tmp_path / "kept")
    assert caught.value.hint == "Name another folder to begin anew."
    assert before == {path: path.read_bytes() for path in (tmp_path / "kept").iterdir()}


def test_files_of_samples_are_told_apart_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    sparsekit.prune("dense.pb", ALL, calibration="samples-0.npz", resume="kept")
    os.utime("samples-0.npz")
    sparsekit.prune("dense.pb", ALL, calibration="samples-0.npz", resume="kept")
    changed = samples(300)
    changed[0, 0, 0, 0] += 1
    np.savez("samples-0.npz", x=changed)
    with pytest.raises(sparsekit.CalibrationError, match=r"file of samples 0 was x\.npy"):
        sparsekit.prune("dense.pb", ALL, calibration="samples-0.npz", resume="kept")
    with pytest.raises(
        sparsekit.CalibrationError, match=r"the samples was not there, is there; file of samples 0 was x"
    ):
        sparsekit.prune("dense.pb", ALL, calibration=changed, resume="kept")


def test_a_folder_with_other_files_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(sparsekit.CalibrationError, match="holds other files"):
        sparsekit.prune(network(), ALL, calibration=samples(40), resume=tmp_path)
    folder = tmp_path / "kept"
    result = sparsekit.prune(network(), ALL, calibration=samples(40), resume=folder)
    damaged = solved(folder)[0]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(sparsekit.CalibrationError, match=f"{damaged.name}: cannot be read .* Remove this file"):
        sparsekit.prune(network(), ALL, calibration=samples(40), resume=folder)
    damaged.unlink()
    assert bits(sparsekit.prune(network(), ALL, calibration=samples(40), resume=folder)) == bits(result)


def test_a_run_for_other_outputs_is_another_one(tmp_path: Path) -> None:
    """No bias is added behind an op that is asked for by its name: a layer that was solved for one does not fit."""
    inner = LAYERS[0]
    sparsekit.prune(network(), ALL, calibration=samples(40), resume=tmp_path / "kept", outputs=["out"])
    with pytest.raises(sparsekit.CalibrationError, match=f"the outputs was out, is out, {inner}"):
        sparsekit.prune(network(), ALL, calibration=samples(40), resume=tmp_path / "kept", outputs=["out", inner])


@pytest.mark.parametrize("content", ["[1]", "null", "3", "{", ""])
def test_a_folder_whose_run_cannot_be_read_is_refused(content: str, tmp_path: Path) -> None:
    sparsekit.prune(network(), ALL, calibration=samples(40), resume=tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(sparsekit.CalibrationError, match=r"run\.json: cannot be read") as caught:
        sparsekit.prune(network(), ALL, calibration=samples(40), resume=tmp_path)
    assert caught.value.hint == "Name another folder to begin anew."


@pytest.mark.parametrize("order", ORDERS)
def test_a_file_of_another_layer_and_one_of_other_bytes_are_refused(order: str, tmp_path: Path) -> None:
    cfg = {**ALL, "order": order}
    sparsekit.prune(network(), cfg, calibration=samples(40), resume=tmp_path)
    one, other = solved(tmp_path)[:2]
    whole = one.read_bytes()
    unknown_compression = bytearray(whole)
    unknown_compression[8] = 99
    unknown_compression[whole.index(b"PK\x01\x02") + 10] = 99
    with np.load(one) as arrays:
        found = dict(arrays)
    for content in (other.read_bytes(), bytes(unknown_compression), {**found, "weight": found["weight"] * np.nan}):
        if isinstance(content, dict):
            np.savez(one, **content)
        else:
            one.write_bytes(content)
        with pytest.raises(sparsekit.CalibrationError, match=f"{one.name}: cannot be read .* Remove this file"):
            sparsekit.prune(network(), cfg, calibration=samples(40), resume=tmp_path)
