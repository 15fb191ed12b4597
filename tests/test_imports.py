"""What importing sparsekit does, and does not do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import sparsekit

HEAVY = ("tensorflow", "keras", "numpy", "google.protobuf", "rich", "click")


def python(code: str) -> str:
    """Run code in a fresh process; returns what it prints."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


REGISTERED = """
        from tensorflow.python.framework import ops
        print(ops._gradient_registry._registry.get("SparsekitMask") is not None)
        import sys
        print([type(f).__name__ for f in sys.meta_path if "TensorFlow" in type(f).__name__])
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import sparsekit",
        "import sparsekit.compat.amct_tensorflow",
        "from sparsekit.compat.amct_tensorflow.utils.log import LOGGER; LOGGER.push_error_message('x')",
        "import sparsekit.cli",
        "import sparsekit; dir(sparsekit); sparsekit.__version__; sparsekit.SparsekitError('x')",
    ],
)
def test_importing_brings_in_neither_tensorflow_nor_numpy(statement, tmp_path):
    heavy = HEAVY[:-1] if "cli" in statement else HEAVY
    code = f"""
        import os, sys
        os.chdir({str(tmp_path)!r})
        {statement}
        print([name for name in {heavy!r} if name in sys.modules])
    """
    assert python(code) == "[]\n"


def test_every_public_name_resolves():
    for name in sparsekit.__all__:
        assert getattr(sparsekit, name) is not None
        assert name in dir(sparsekit)
    assert sorted(sparsekit.__all__) == list(sparsekit.__all__)
    assert len(set(sparsekit.__all__)) == len(sparsekit.__all__)


def test_every_public_name_resolves_in_a_fresh_process_by_star():
    code = """
        before = set(globals())
        from sparsekit import *
        import sparsekit
        print(sorted(set(globals()) - before - {"before", "sparsekit"}) == sorted(sparsekit.__all__))
    """
    assert python(f"{code}\n{REGISTERED}") == "True\nTrue\n[]\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sparsekit' has no attribute 'prun'"):
        _ = sparsekit.prun
    with pytest.raises(ImportError):
        exec("from sparsekit import nothing")


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import sparsekit; from tensorflow.python.framework import ops",
        "import sparsekit.compat.amct_tensorflow; import tensorflow.compat.v1 as tf",
    ],
)
def test_the_gradient_is_registered_in_whatever_order(imports):
    """Other orders: above, and in test_state.py, which trains with it."""
    assert python(f"        {imports}\n{REGISTERED}") == "True\n[]\n"


def test_a_failed_import_of_tensorflow_is_reported_as_it_is(tmp_path):
    """No hook of ours hides why TensorFlow cannot be imported, or that it is not there."""
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import sparsekit
        try:
            import tensorflow
        except RuntimeError as error:
            print(error, "tensorflow" in sys.modules)
    """
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('no AVX')\n")
    assert python(code) == "no AVX False\n"


def test_a_tensorflow_that_is_not_there_is_module_not_found():
    code = """
        import sys
        sys.path = [p for p in sys.path if "site-packages" not in p]
        from importlib.machinery import ModuleSpec
        import importlib.util
        real = importlib.util.find_spec
        import sparsekit._on_tensorflow as hook
        hook.register_gradient()
        sys.path_importer_cache.clear()
        try:
            import tensorflow
        except ModuleNotFoundError as error:
            print(error)
    """
    # sparsekit's own package may live in site-packages or beside it: import it by its file, without its __init__.
    from sparsekit import _on_tensorflow

    code = code.replace(
        "import sparsekit._on_tensorflow as hook",
        f"spec = importlib.util.spec_from_file_location('hook', {_on_tensorflow.__file__!r})\n"
        "        hook = importlib.util.module_from_spec(spec); spec.loader.exec_module(hook)",
    )
    assert python(code) == "No module named 'tensorflow'\n"
