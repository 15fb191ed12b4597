"""The example of a plugin, as its author would have it: built, installed from wheels, used, tested, and documented."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "third_party_plugin"
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((EXAMPLE / "README.md").read_text())


def _blocks(*languages: str) -> list[object]:
    found = [(path, text) for language, path, text in BLOCKS if language in languages]
    return [pytest.param(path, text, id=f"{path or text.splitlines()[0]}-{i}") for i, (path, text) in enumerate(found)]


@attrs.frozen
class Environment:
    """A fresh environment with both wheels in it.

    Attributes:
        folder: of the environment.
        wheel: sparsekit's wheel.
    """

    folder: Path
    wheel: Path

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """The standard output of a command that finds the environment's programs first."""
        # Nothing of the running environment may lead back to the checkout.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SPARSEKIT_", "PYTEST"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{inherited['PATH']}"
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env={**inherited, "PATH": path, **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, script: str) -> str:
        return self.run("python", "-c", script)


def _pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    done = subprocess.run([sys.executable, "-m", "pip", *quiet, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Both wheels in an environment of their own. TensorFlow and the rest are lent by the running one.

    They are lent by a .pth file. It adds folders at the end of the path and does not read the .pth files in them, so
    that an editable sparsekit of the running environment cannot be imported there.
    """
    wheels = tmp_path_factory.mktemp("wheels")
    folder = tmp_path_factory.mktemp("fresh") / "environment"
    build = ("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
    _pip(*build, str(ROOT), str(EXAMPLE))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    _pip("--python", python, "install", "--no-index", "--no-deps", *map(str, wheels.glob("*.whl")))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    lent = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site_packages / "lent.pth").write_text("\n".join(lent))
    (wheel,) = wheels.glob("sparsekit-*.whl")
    return Environment(folder, wheel)


@pytest.mark.parametrize(("path", "text"), _blocks("python", "toml"))
def test_the_readme_shows_what_the_files_hold(path: str, text: str) -> None:
    assert text in (EXAMPLE / path).read_text()


def test_the_readme_has_no_other_blocks() -> None:
    assert {(language, bool(path)) for language, path, _ in BLOCKS} == {
        ("python", True),
        ("toml", True),
        ("console", False),
    }
    fences = re.findall(r"^ *(```|~~~)", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(BLOCKS)


def test_the_handler_is_as_short_as_promised() -> None:
    assert len((EXAMPLE / "src/sparsekit_example_plugin/sparse_matmul.py").read_text().splitlines()) <= 30


@pytest.mark.slow
@pytest.mark.parametrize(("path", "text"), _blocks("console"))
def test_the_readme_shows_what_commands_print(path: str, text: str, fresh: Environment) -> None:
    for shown in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = shown.splitlines()
        printed = iter([line.rstrip() for line in fresh.run("sh", "-c", command).splitlines()])
        for line in (line for line in expected if line != "..."):
            assert _comes(line, printed), f"`{command}` does not print, or not in this place: {line}"


def _comes(line: str, printed: Iterator[str]) -> bool:
    return line.split() in (other.split() for other in printed)


@pytest.mark.slow
def test_the_wheel_holds_types_and_plugins(fresh: Environment) -> None:
    names = set(zipfile.ZipFile(fresh.wheel).namelist())
    assert "sparsekit/py.typed" in names
    plugins = {path.relative_to(ROOT / "plugins").as_posix() for path in (ROOT / "plugins").rglob("*.py")}
    assert plugins <= names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "sparsekit",
        *(path.split("/")[0] for path in plugins),
    }


@pytest.mark.slow
def test_the_wheels_are_what_runs(fresh: Environment) -> None:
    printed = fresh.python(
        "import sparsekit, sparsekit_ops, sparsekit_targets, sparsekit_criteria, sparsekit_example_plugin as example\n"
        "for module in (sparsekit, sparsekit_ops, sparsekit_targets, sparsekit_criteria, example):\n"
        "    print(module.__file__)\n"
        "from importlib.metadata import entry_points\n"
        "for entry_point in entry_points(group='sparsekit'):\n"
        "    print(entry_point.dist.locate_file(''))\n"
    ).splitlines()
    assert len(printed) >= 9
    assert [path for path in printed if not Path(path).is_relative_to(fresh.folder)] == []


@pytest.mark.slow
def test_every_plugin_is_listed_once_and_without_tensorflow(fresh: Environment) -> None:
    rows = [re.split(r"\s{2,}", line.strip()) for line in fresh.run("sparsekit", "plugins").splitlines()[2:]]
    names = [(kind, name) for kind, name, *_ in rows]
    assert len(set(names)) == len(names)
    assert {name for _, name, _, distribution, *_ in rows if distribution == "sparsekit-example-plugin"} == {
        "SparseMatMul",
        "acme-edge-1",
        "acme-edge-2",
        "positive",
    }
    loaded = fresh.python(
        "import sys; from sparsekit.plugins import default_registry; default_registry(); print(*sys.modules)"
    )
    assert "tensorflow" not in loaded.split()


@pytest.mark.slow
def test_prune_uses_the_handler_and_warns_of_the_target(fresh: Environment) -> None:
    script = """
import warnings
import sparsekit
import tensorflow as tf

graph = tf.Graph()
with graph.as_default():
    data = tf.compat.v1.placeholder(tf.float32, [None, 8])
    weight = tf.compat.v1.get_variable("weight", [8, 4])
    tf.raw_ops.SparseMatMul(a=data, b=weight, name="fc")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = sparsekit.prune(graph, target="ae 100")
for layer in result.plan.pruned:
    print(layer.name, layer.op_type, layer.axis)
for warning in caught:
    if issubclass(warning.category, sparsekit.UnsupportedTargetWarning):
        print(warning.message)
"""
    assert fresh.python(script).splitlines() == [
        "fc SparseMatMul 0",
        "argument `target`: 'ae 100' (Acme Edge 1) gains nothing from 2:4 sparsity: Its multipliers run at the same "
        "speed whatever the weights are. Products of Acme that gain: Acme Edge 2. Pruning goes on.",
    ]


@pytest.mark.slow
def test_a_plugin_that_is_switched_off_is_gone(fresh: Environment) -> None:
    for name in ("sparsekit-example-plugin", "sparsekit_example_plugin:example"):
        printed = fresh.run("sparsekit", "plugins", SPARSEKIT_DISABLE_PLUGINS=name)
        assert "magnitude" in printed
        assert "example" not in printed


@pytest.mark.slow
def test_the_examples_own_tests_pass(fresh: Environment, tmp_path: Path) -> None:
    # A copy without src/: what is tested is what is installed.
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    printed = fresh.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert re.search(r"\d+ passed", printed)
    assert not re.search(r"failed|error|skipped", printed)
