"""Every snippet of the README does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekit.config import PruneConfig, _keys
from sparsekit.config_files import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found, language
    return found


def test_no_snippet_is_in_a_language_that_nobody_runs():
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"python", "sh", "toml"}


@pytest.mark.slow
def test_python_snippets_run_one_after_the_other_and_the_first_gives_a_sparse_model(tmp_path):
    check = "assert sparsekit.verify('result/pruned.pb', record='record.txt').ok\nassert plan.decisions[0].pruned\n"
    script = tmp_path / "readme.py"
    script.write_text("\n".join([*blocks("python"), check]))
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 layers are pruned, 640 weights." in done.stdout
    assert "Sparse: all 1 layers follow their pattern." in done.stdout
    assert "Atlas 200I/500 A2 inference products - eligible if met at conversion: Weights must be int8" in done.stdout


def test_the_toml_snippet_is_a_config_with_every_key(tmp_path):
    (tmp_path / "config.toml").write_text(blocks("toml")[0])
    config = load_config(tmp_path / "config.toml")
    assert config.override[1].types == ("MatMul",)
    for key in _keys(PruneConfig):
        assert re.search(rf"^(\[\[)?{key}\b", blocks("toml")[0], re.MULTILINE), key


@pytest.mark.slow
def test_shell_snippets_run(tmp_path):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (tmp_path / "train.py").write_text("import sys, amct_tensorflow as amct\nprint(sys.argv[1:], amct.__name__)\n")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in "".join(blocks("sh")).splitlines():
        command = shlex.split(line, comments=True)
        if command[0] == "make":
            assert command[1] in targets
            continue
        if "--runner" in command:  # tests/calibration/test_pipeline.py runs it, where Apache Beam is
            continue
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout


def test_every_reason_code_is_explained():
    sources = [*(ROOT / "sparsekit").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    text = "".join(source.read_text() for source in sources)
    codes = set(re.findall(r'Untraceable\(\s*"([a-z-]+)"', text))
    codes |= set(re.findall(r'return \(?\s*"([a-z]+(?:-[a-z]+)+)",', text))
    codes |= set(re.findall(r'reason="([a-z-]+)"', text))
    assert {"transpose-a", "weight-dynamic", "axis-too-short", "shared-weight-conflict"} <= codes
    for code in codes - {"my-reason"}:
        assert f"`{code}`" in README, code


def test_the_engine_names_no_op_and_no_device():
    for source in (ROOT / "sparsekit").rglob("*.py"):
        # A reader of another file format names that format's operators: there is nobody else to know them.
        if "compat" in source.parts or source.name in ("tflite.py", "onnx_model.py"):
            continue
        code = re.sub(r'""".*?"""', "", source.read_text(), flags=re.DOTALL)
        code = re.sub(r"#.*", "", code)
        assert not re.search(r"Conv2D|MatMul|Atlas|Ascend", code), source
