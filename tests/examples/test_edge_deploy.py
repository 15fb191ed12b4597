"""The way to an NPU's compiler halves the multiply-adds along the right axis, and along no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edge_example import EXAMPLE, edge_deploy

import sparsekit

ACCELERATOR = "ethos-u85-256"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edge")


@pytest.fixture(scope="module")
def networks(output: Path) -> dict[str, edge_deploy.Deployed]:
    return {found.network: found for found in edge_deploy.deploy(output, ACCELERATOR, edge_deploy.find_vela())}


def _ratio(networks: dict[str, edge_deploy.Deployed], network: str) -> float:
    return networks[network].estimate.multiply_adds / networks[edge_deploy.DENSE].estimate.multiply_adds


def test_vela_expects_half_the_multiply_adds_for_the_pruned_network(networks: dict[str, edge_deploy.Deployed]) -> None:
    assert 0.45 <= _ratio(networks, edge_deploy.PRUNED) <= 0.60
    assert networks[edge_deploy.PRUNED].estimate.cycles < networks[edge_deploy.DENSE].estimate.cycles


def test_as_many_zeros_along_the_wrong_axis_are_worth_nothing(networks: dict[str, edge_deploy.Deployed]) -> None:
    assert _ratio(networks, edge_deploy.WRONG_AXIS) == 1.0
    densities = [
        [layer.density for layer in networks[network].verification.layers if "logits" not in layer.name]
        for network in (edge_deploy.PRUNED, edge_deploy.WRONG_AXIS)
    ]
    np.testing.assert_allclose(*densities, atol=0.02)


def test_the_verification_of_the_file_tells_them_apart(networks: dict[str, edge_deploy.Deployed]) -> None:
    status = {name: network.verification.status for name, network in networks.items()}
    assert status == {
        edge_deploy.DENSE: "not sparse",
        edge_deploy.PRUNED: "sparse",
        edge_deploy.WRONG_AXIS: "not sparse",
    }
    operators = [layer.op_type for layer in networks[edge_deploy.PRUNED].verification.layers]
    assert operators == ["CONV_2D", "CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "FULLY_CONNECTED"]


def test_the_networks_have_learnt_something(networks: dict[str, edge_deploy.Deployed]) -> None:
    assert networks[edge_deploy.DENSE].accuracy > 0.95
    assert networks[edge_deploy.PRUNED].accuracy > 0.80


def test_what_is_printed_says_whose_estimate_it_is(networks: dict[str, edge_deploy.Deployed]) -> None:
    printed = edge_deploy.table(list(networks.values()))
    assert re.search(r"Arm's estimate by Vela 5\.2\.\d+ for ethos-u85-256, not a measurement on a device\.$", printed)
    for row, (name, found) in zip(printed.splitlines()[2:5], networks.items(), strict=True):
        assert row.split("  ")[0].strip() == name
        assert f"{100 * found.accuracy:.1f}" in row and f"{found.estimate.cycles:,}" in row


def test_the_plan_expects_what_vela_finds(networks: dict[str, edge_deploy.Deployed], output: Path) -> None:
    plan = sparsekit.plan(output / "dense", target=ACCELERATOR)
    assert [str(layer.verdict) for layer in plan.pruned] == ["eligible if met at conversion: Weights must be int8"] * 4
    assert "first_1/convolution: axis-too-short" in edge_deploy.verdicts(plan)


def test_a_target_without_a_gain_is_warned_of_and_vela_agrees(
    networks: dict[str, edge_deploy.Deployed], output: Path
) -> None:
    with pytest.warns(sparsekit.UnsupportedTargetWarning, match="Ethos-U65"):
        sparsekit.prune(output / "dense", target="ethos-u65-256")
    found = {
        network: edge_deploy.estimate(networks[network].path, "ethos-u65-256", edge_deploy.find_vela()).multiply_adds
        for network in (edge_deploy.DENSE, edge_deploy.PRUNED)
    }
    assert found[edge_deploy.DENSE] == found[edge_deploy.PRUNED]


@pytest.mark.slow
def test_the_script_runs_for_another_accelerator(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "edge_deploy.py"), "--accelerator", "ethos-u65-256", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'ethos-u65-256' (Arm Ethos-U65) gains nothing from 2:4 sparsity" in done.stderr
    assert "conv_1/convolution: not eligible: Its multipliers do not skip zeros" in done.stdout
    assert len(re.findall(r"sparse +5,991,680 +1\.00 ", done.stdout)) == 3
    assert "for ethos-u65-256, not a measurement on a device." in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "estimate by Vela" in page and "5,991,680" in page


def test_a_file_that_vela_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(SystemExit, match=r"(?s)broken\.tflite --accelerator-config ethos-u85-256.*Error"):
        edge_deploy.estimate(tmp_path / "broken.tflite", ACCELERATOR, edge_deploy.find_vela())


def test_without_vela_the_example_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(edge_deploy.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"pip install 'ethos-u-vela==5\.2\.\*'"):
        edge_deploy.find_vela()


def test_the_readme_shows_the_rows_that_are_printed(networks: dict[str, edge_deploy.Deployed]) -> None:
    """Accuracies and cycles may differ from machine to machine; multiply-adds may not."""
    rows = re.findall(
        r"^\| ([^|]+) \| [\d.]+ \| ([^|]+) \| ([\d,]+) \| ([\d.]+) ", (EXAMPLE / "README.md").read_text(), re.M
    )
    assert rows == [
        (name, found.verification.status, f"{found.estimate.multiply_adds:,}", f"{_ratio(networks, name):.2f}")
        for name, found in networks.items()
    ]
