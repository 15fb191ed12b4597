"""The command leaves the old model or the new one, whatever happens to it, and never touches its input."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from models_at_rest import files
from small_graphs import run_script

import sparsekit
from sparsekit.cli import main

v1 = tf.compat.v1

WIDTH = 400  # 640,000 bytes of weights: two models do not fit on a disk of one mebibyte


def make_pb(path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, WIDTH], name="x")
        tf.matmul(x, np.random.RandomState(0).randn(WIDTH, WIDTH).astype("f"), name="fc")
    sparsekit.save(graph.as_graph_def(), path)


def make_pbtxt(path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        tf.matmul(x, np.random.RandomState(0).randn(8, 8).astype("f"), name="fc")
    sparsekit.save(graph.as_graph_def(), path)


def make_folder(path: Path) -> None:
    module = tf.Module()
    module.w = tf.Variable(np.random.RandomState(0).randn(WIDTH, WIDTH).astype("f"))
    module.serve = tf.function(lambda x: x @ module.w, input_signature=[tf.TensorSpec([None, WIDTH])])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})


MAKERS: dict[str, Callable[[Path], None]] = {"m.pb": make_pb, "m.pbtxt": make_pbtxt, "m": make_folder}


def contents(path: Path) -> dict[str, bytes] | None:
    """What lies at a path, None if nothing does."""
    if path.is_dir():
        return files(path)
    return {"": path.read_bytes()} if path.exists() else None


def times(path: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in (path, *path.rglob("*"))}


def command(*arguments: Any) -> tuple[int, str]:
    ended = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return ended.exit_code, ended.output


# OUT is IN


@pytest.mark.parametrize("name", MAKERS)
def test_the_input_is_not_modified(tmp_path, name):
    MAKERS[name](tmp_path / name)
    before = contents(tmp_path / name), times(tmp_path / name)
    assert command("prune", tmp_path / name, "-o", tmp_path / "out" / name)[0] == 0
    assert (contents(tmp_path / name), times(tmp_path / name)) == before
    assert sparsekit.diff(tmp_path / name, tmp_path / "out" / name).only_weights


@pytest.mark.parametrize("through", ["its own name", "links", "one link"])
@pytest.mark.parametrize("name", MAKERS)
def test_out_may_be_in(tmp_path, name, through):
    """Also by another name for it; then the link stays and what it points to is replaced."""
    place = tmp_path / "store" / name
    place.parent.mkdir()
    MAKERS[name](place)
    old = contents(place)
    assert command("prune", place, "-o", tmp_path / "new" / name)[0] == 0
    link = tmp_path / name
    link.symlink_to(Path("store", name))
    source, target = {"its own name": (place, place), "links": (link, link), "one link": (place, link)}[through]
    if place.is_file():
        os.link(place, tmp_path / "second name")
    assert command("prune", source, "-o", target)[0] == 0
    assert link.is_symlink() and os.listdir(place.parent) == [name]
    assert contents(place) == contents(tmp_path / "new" / name) != old
    assert sparsekit.verify(target).ok
    if place.is_file():
        assert contents(tmp_path / "second name") == old


# Killed

KILLED = """
    import itertools, json, os, resource, shutil, signal, sys
    from pathlib import Path
    from sparsekit.cli import main

    CHANGING = {"open", "write", "close", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "remove", "link",
                "chmod", "utime", "setxattr", "sendfile", "truncate"}

    def contents(path):
        if path.is_dir():
            return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
        return path.read_bytes() if path.exists() else None

    def forked(work):
        # How a child ends that does it: a signal, or a status as text.
        child = os.fork()
        if not child:
            status = 1
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                work()
                status = 0
            finally:
                sys.setprofile(None)
                os._exit(status)
        return how(os.waitpid(child, 0)[1])

    def how(status):
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"

    def killed(model, target, pristine):
        def restore():
            for path in target.parent.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if pristine.is_dir():
                shutil.copytree(pristine, model)
            else:
                shutil.copy(pristine, model)

        def prune():
            main(["prune", str(model), "-o", str(target)], standalone_mode=False)

        def state():
            found = contents(target)
            strays = [p.name for p in target.parent.iterdir() if p not in (model, target)]
            if model != target and contents(model) != source or any(not n.startswith(".sparsekit.") for n in strays):
                return "broken"
            return "old" if found == old else "new" if found == new else "broken"

        def at_every_point():
            # Before every call that may change a file, before and after every function that writes. Where writing
            # begins, a child is forked for every point.
            seen, point, states = -1, None, []
            def children():
                for point in itertools.count():
                    child = os.fork()
                    if not child:
                        return point
                    end = how(os.waitpid(child, 0)[1])
                    states.append((state(), end))
                    if end != signal.SIGKILL:
                        told.write_text(json.dumps(states))
                        os._exit(0)
                    restore()
            def look(frame, event, function):
                nonlocal seen, point
                ours = frame.f_code.co_filename.endswith("sparsekit/writing.py")
                if point is None and ours:
                    point = children()
                seen += point is not None and (
                    function.__name__ in CHANGING if event == "c_call" else ours and event != "c_return"
                )
                if seen == point:
                    os.kill(os.getpid(), signal.SIGKILL)
            sys.setprofile(look)
            prune()

        def where_a_file_grows_to(size):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            prune()

        restore()
        old, source = contents(target), contents(model)
        assert forked(prune) == "exit 0"
        new = contents(target)
        restore()
        told = pristine.with_name("told")
        assert forked(at_every_point) == "exit 0"
        writes = []
        for part in range(10):
            restore()
            end = forked(lambda: where_a_file_grows_to(64_000 * part))
            writes.append((state(), end))
        return json.loads(told.read_text()), writes

    main(["plan", sys.argv[3]], standalone_mode=False)  # loads what every child would load
    print(json.dumps([killed(*paths) for paths in zip(*[map(Path, sys.argv[1:])] * 3)]))
"""


@pytest.mark.slow
def test_a_kill_at_any_point_leaves_the_old_model_or_the_new(tmp_path):
    cases = []
    for name, out in itertools.product(("m.pb", "m"), ("over its input", "elsewhere")):
        pristine, folder = tmp_path / out / name, tmp_path / f"work {name} {out}"
        pristine.parent.mkdir(exist_ok=True)
        folder.mkdir()
        MAKERS[name](pristine)
        cases.append((folder / name, folder / (name if out == "over its input" else "out"), pristine))
    printed = run_script(KILLED, *itertools.chain(*cases))
    for (_, target, _), (calls, writes) in zip(cases, json.loads(printed.splitlines()[-1]), strict=True):
        states = [state for state, _ in calls]
        assert calls[-1] == ["new", "exit 0"], target
        assert {signal for _, signal in calls[:-1]} == {int(signal.SIGKILL)}, target
        # First the old one, from some point on the new one.
        assert states == sorted(states, key=["old", "new", "broken"].index) and "broken" not in states, target
        assert states.count("old") > 20 and states.count("new") > 2, target
        # In the middle of a write.
        assert [tuple(found) for found in writes] == [("old", int(signal.SIGXFSZ))] * len(writes), target


# A full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"NOT TESTED on a disk that is really full: mounting one needs root ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("out", ["over its input", "over another", "new"])
@pytest.mark.parametrize("name", ["m.pb", "m"])
def test_a_full_disk_is_said_and_leaves_no_half_model(tmp_path, disk, name, out):
    source, target = tmp_path / name, disk / name
    MAKERS[name](source)
    if out == "over its input":
        source = shutil.move(source, target)
    elif out == "over another":
        shutil.move(source, target)
        MAKERS[name](source)
    else:
        (disk / "full").write_bytes(bytes(700_000))
    before = contents(target), sorted(os.listdir(disk)), contents(source)
    status, output = command("prune", source, "-o", target)
    assert status == 2
    assert output == (
        f"Error: {target}: cannot be written (No space left on device). Nothing was changed. Name a path in a folder "
        "that you may write to, on a disk with space left.\n"
    )
    assert (contents(target), sorted(os.listdir(disk)), contents(source)) == before


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 300,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["m.pb", "m"])
def test_a_limit_in_the_middle_of_a_file_is_said_and_leaves_no_half_model(tmp_path, request, name):
    MAKERS[name](tmp_path / name)
    before = contents(tmp_path / name)
    request.getfixturevalue("small_files")
    for target in (name, "new"):
        with pytest.raises(sparsekit.SaveError, match=rf"{target}: cannot be written \({os.strerror(errno.EFBIG)}\)"):
            sparsekit.prune(tmp_path / name).save(tmp_path / target)
    assert os.listdir(tmp_path) == [name] and contents(tmp_path / name) == before
