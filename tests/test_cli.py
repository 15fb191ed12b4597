"""The sparsekit command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import sparsekit
from sparsekit.cli import main
from sparsekit.plugins import DISABLE_VARIABLE, default_registry


@pytest.fixture
def command(monkeypatch):
    """Run the command in this process: (exit status, output)."""
    monkeypatch.delenv(DISABLE_VARIABLE, raising=False)

    def run(*arguments: str) -> tuple[int, str]:
        ended = CliRunner().invoke(main, list(arguments))
        return ended.exit_code, ended.output

    return run


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_command(command, flag):
    status, output = command(flag)
    assert status == 0
    assert output.startswith("Usage: ")
    assert {"plugins", "targets", "demo"} <= set(re.findall(r"^  (\w+)  ", output, re.MULTILINE))


def test_the_version(command):
    assert command("--version") == (0, f"sparsekit, version {sparsekit.__version__}\n")


def test_plugins_lists_every_offer_with_its_distribution(command):
    status, output = command("plugins")
    assert status == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    assert ["op handler", "Conv2D", "sparsekit_ops.conv2d.Conv2D", "sparsekit", sparsekit.__version__] in rows
    assert [
        "criterion",
        "magnitude",
        "sparsekit_criteria.magnitude.Magnitude",
        "sparsekit",
        sparsekit.__version__,
    ] in rows
    registry = default_registry()
    listed = {row[1] for row in rows if len(row) > 3}
    assert listed >= {*registry.handlers, *registry.targets, *registry.criteria}


def test_targets_lists_every_profile_and_whether_it_gains(command):
    status, output = command("targets")
    assert status == 0
    rows = {parts[0]: parts for line in output.splitlines() if (parts := re.split(r"\s{2,}", line.strip()))}
    for profile in default_registry().profiles:
        assert rows[profile.name][1:3] == [profile.title, ", ".join(profile.patterns) if profile.gains else "no"]
        assert all(chip in output for chip in profile.chips)
    assert "SPARSEKIT_TARGET" in output


@pytest.mark.parametrize("name", ["plugin", "prunes", ""])
def test_an_unknown_command_is_refused_in_a_line(command, name):
    status, output = command(name)
    assert status == 2
    assert f"Error: No such command '{name}'." in output
    assert "Traceback" not in output


def test_no_command_shows_the_help(command):
    _, output = command()
    assert output.startswith("Usage: ")


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["targets"], ["plugins", "--help"], ["--version"]])
def test_tensorflow_is_not_imported(arguments):
    code = f"""
import sys
from sparsekit.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
bad = sorted(name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "keras"))
print("imported:", bad, file=sys.stderr)
"""
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "imported: []\n"


def test_the_installed_script_runs():
    script = Path(sys.executable).with_name("sparsekit")
    ended = subprocess.run([script, "targets"], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[0].split() == ["profile", "products", "gains", "from", "chips", "other", "names"]


def broken_plugin(folder: Path) -> None:
    (folder / "acme_broken.py").write_text("raise RuntimeError('no licence')\n")
    info = folder / "acme_broken-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[sparsekit]\nops = acme_broken\n")


@pytest.mark.parametrize("subcommand", ["plugins", "targets"])
def test_an_error_ends_in_one_line_and_the_way_out_works(tmp_path, subcommand):
    broken_plugin(tmp_path)
    code = f"from sparsekit.cli import main; main([{subcommand!r}])"
    ended = python(code, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "Error: plugin 'ops' (acme_broken) of distribution acme-broken 2.1: failed to import (RuntimeError: no licence)"
        ". Update or uninstall it, or leave it out with SPARSEKIT_DISABLE_PLUGINS=acme-broken:ops\n"
    )
    ended = python(code, PYTHONPATH=str(tmp_path), SPARSEKIT_DISABLE_PLUGINS="acme-broken:ops")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_override_is_shown(tmp_path):
    (tmp_path / "acme_ops.py").write_text(
        "from sparsekit import OpHandler, hookimpl\n"
        "class Mine(OpHandler):\n    op_types = ('MatMul',)\n"
        "@hookimpl\ndef sparsekit_op_handlers():\n    return [Mine()]\n"
    )
    info = tmp_path / "acme_ops-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-ops\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[sparsekit]\nops = acme_ops\n")
    ended = python("from sparsekit.cli import main; main(['plugins'])", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"MatMul +acme_ops\.Mine +acme-ops +2\.1 +overrides sparsekit\n", ended.stdout)


def test_no_demo_in_an_installation_without_it_is_said_in_a_line(command, monkeypatch, tmp_path):
    import sparsekit.cli

    monkeypatch.setattr(sparsekit.cli, "__file__", str(tmp_path / "sparsekit" / "cli.py"))
    assert command("demo") == (
        1,
        "Error: the demo is not part of this installation; run `make demo` in a checkout\n",
    )


@pytest.fixture
def frozen(tmp_path, monkeypatch):
    """A frozen model with one layer, dense.pb, in the working directory."""
    import numpy as np
    import tensorflow as tf

    import sparsekit

    monkeypatch.chdir(tmp_path)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8], name="x")
        tf.matmul(x, np.random.RandomState(0).randn(8, 4).astype("f"), name="fc")
    sparsekit.save(graph.as_graph_def(), "dense.pb")
    return tmp_path


def test_plan_prune_and_verify_a_file(command, frozen):
    status, output = command("plan", "dense.pb")
    assert status == 0 and "1 of 1 layers are pruned, 32 weights." in output
    assert command("verify", "dense.pb")[0] == 1
    status, output = command("prune", "dense.pb", "-o", "new/pruned.pb", "--record", "record.txt")
    assert status == 0 and "Saved as new/pruned.pb." in output
    status, output = command("verify", "new/pruned.pb", "--record", "record.txt")
    assert status == 0 and "Sparse: all 1 layers follow their pattern." in output


def test_json_is_all_there_is(command, frozen):
    status, output = command("plan", "dense.pb", "--json", "--target", "Ascend310B")
    plan = json.loads(output)
    assert status == 0 and plan["decisions"][0]["name"] == "fc" and plan["decisions"][0]["pattern"] == "2:4"
    assert plan["target"]["name"] == "atlas-200i-500-a2-inference"
    status, output = command("verify", "dense.pb", "--json")
    found = json.loads(output)
    assert status == 1 and found["status"] == "not sparse" and found["layers"][0]["violations"] == 8
    status, output = command("prune", "dense.pb", "-o", "pruned.pb", "--json")
    assert status == 0 and json.loads(output)["decisions"][0]["status"] == "prune"


def test_verify_says_when_it_could_not_tell(command, frozen):
    import tensorflow as tf

    import sparsekit

    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder(tf.float32, [1])
    sparsekit.save(graph.as_graph_def(), "nothing.pb")
    status, output = command("verify", "nothing.pb")
    assert status == 2 and output.startswith("Could not tell")
    (frozen / "garbage.pb").write_bytes(b"garbage")
    status, output = command("verify", "garbage.pb")
    assert status == 2 and "Error: garbage.pb: is not a binary GraphDef" in output
    assert command("verify", "missing.pb")[0] == 2


def test_config_and_outputs_are_passed_on(command, frozen):
    (frozen / "c.toml").write_text('pattern = "1:4"\n')
    status, output = command("prune", "dense.pb", "-o", "p.pb", "--config", "c.toml", "--outputs", "fc")
    assert status == 0 and "prune 1:4" in output
    assert command("verify", "p.pb", "--config", "c.toml")[0] == 0
    status, output = command("plan", "dense.pb", "--outputs", "fd")
    assert status == 2 and "there is no operation 'fd'" in output


def test_strip_a_masked_file(command, frozen):
    import tensorflow as tf

    import sparsekit

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), v1.get_variable("w", [8, 4]), name="fc")
        sparsekit.prune(graph, record="record.txt")
        session.run(v1.global_variables_initializer())
        sparsekit.save(v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["fc"]), "masked.pb")
    assert command("verify", "masked.pb")[0] == 1
    status, output = command("strip", "masked.pb", "--record", "record.txt", "-o", "pruned.pb")
    assert status == 0 and "Saved as pruned.pb." in output
    assert "Sparse: all 1 layers follow their pattern." in output
    assert command("verify", "pruned.pb")[0] == 0
    status, output = command("strip", "masked.pb", "-o", "again.pb", "--json", "--target", "310B")
    found = json.loads(output)
    assert status == 0 and found["status"] == "sparse" and found["layers"][0]["verdict"]["eligible"] is True


def test_a_target_judges_and_does_not_decide(command, frozen):
    status, output = command("verify", "dense.pb", "--target", "310B", "--json")
    assert status == 1
    verdict = json.loads(output)["layers"][0]["verdict"]
    assert verdict["eligible"] is True
    status, output = command("verify", "dense.pb", "--target", "310")
    assert status == 1 and "not eligible" in output
    assert command("verify", "dense.pb", "--target", "no such chip")[0] == 2


def test_report_writes_a_page_and_says_where(command, frozen):
    status, output = command("report", "dense.pb", "-o", "new/report.html")
    assert (status, output) == (0, "Saved as new/report.html.\n")
    page = (frozen / "new" / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "dense.pb" in page
    status, output = command("report", "dense.pb", "-o", "report.html", "--json")
    assert status == 0 and json.loads(output)["totals"]["weights"] == 32
    status, output = command("report", "missing.pb", "-o", "other.html")
    assert status == 2 and not (frozen / "other.html").exists()


@pytest.mark.parametrize("name", ["plan", "prune", "strip", "verify", "report"])
def test_every_verb_takes_the_same_options(command, name):
    _, output = command(name, "--help")
    assert {"--json", "--config", "--target", "--outputs"} <= set(re.findall(r"--[a-z]+", output))


def test_the_shell_completes_commands_and_options():
    def completed(words: str) -> list[str]:
        count = str(len(words.split()) - (not words.endswith(" ")))
        variables = {"_SPARSEKIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": count}
        script = Path(sys.executable).with_name("sparsekit")
        ended = subprocess.run(
            [script], env={**os.environ, **variables}, capture_output=True, text=True, timeout=120, check=False
        )
        return [line.partition(",")[2] for line in ended.stdout.splitlines()]

    assert completed("sparsekit ver") == ["verify"]
    assert "--record" in completed("sparsekit verify --r")


def test_progress_is_for_a_terminal_alone(command, frozen, monkeypatch):
    from sparsekit import progress

    bars = []
    monkeypatch.setattr("rich.progress.track", lambda items, what, **more: bars.append(what) or items)
    command("report", "dense.pb", "-o", "report.html")
    sparsekit.report("dense.pb")
    assert bars == []
    monkeypatch.setattr(progress, "_stderr_is_a_terminal", lambda: True)
    _, output = command("verify", "dense.pb", "--json")
    assert bars == ["Verifying"] and json.loads(output)["status"] == "not sparse"
    bars.clear()
    sparsekit.verify("dense.pb")
    assert bars == []
