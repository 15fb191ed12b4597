"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tensorflow as tf

import sparsekit
from sparsekit.errors import SaveError
from sparsekit.writing import staged, write_whole


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def graph_def() -> tf.compat.v1.GraphDef:
    with tf.Graph().as_default() as graph:
        tf.constant([1.0, 2.0], name="c")
    return graph.as_graph_def()


def test_a_file_is_written_with_its_parent_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    assert write_whole(path, b"data") == path
    assert path.read_bytes() == b"data"
    assert names(path.parent) == ["file.bin"]


def test_save_gives_back_where_the_model_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = sparsekit.save(graph_def(), "out/model.pb")
    assert path.samefile("out/model.pb")
    assert tf.compat.v1.GraphDef.FromString(path.read_bytes()) == graph_def()


def test_a_file_is_replaced_and_a_hard_link_to_the_old_one_keeps_it(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    os.link(path, link)
    write_whole(path, b"new")
    assert (path.read_bytes(), link.read_bytes()) == (b"new", b"old")


def failing(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "write":
        # A disk that is full while the data goes out.
        real = Path.open

        def open_full(self: Path, mode: str = "r", *args: object, **more: object) -> object:
            file = real(self, mode, *args, **more)
            if "w" in mode:
                file = FullFile(file)
            return file

        monkeypatch.setattr(Path, "open", open_full)
    else:
        monkeypatch.setattr(os, where, fail)


class FullFile:
    def __init__(self, file: object) -> None:
        self.file = file

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["replace", "fsync", "write"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, where, existing):
    path = tmp_path / "model.pb"
    if existing:
        path.write_bytes(b"old")
    failing(monkeypatch, where)
    with pytest.raises(SaveError) as caught:
        sparsekit.save(graph_def(), path)
    monkeypatch.undo()
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device). Nothing was changed. Name a path in a folder that you "
        "may write to, on a disk with space left."
    )
    assert isinstance(caught.value, OSError)
    assert names(tmp_path) == (["model.pb"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


@pytest.mark.parametrize("where", ["replace", "fsync", "write"])
def test_a_failure_leaves_both_names_as_they_were(tmp_path, monkeypatch, where):
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_bytes(b"old")
    failing(monkeypatch, where)
    with pytest.raises(SaveError):
        write_whole(first, b"new", second)
    monkeypatch.undo()
    assert names(tmp_path) == ["second"]
    assert second.read_bytes() == b"old"


def test_what_fails_inside_the_block_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "record.txt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), staged(path, b"new"):
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert names(tmp_path) == ["record.txt"]
    assert path.read_bytes() == b"old"


@pytest.mark.slow
def test_a_process_killed_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = f"""
        import os
        from sparsekit.writing import staged
        with staged({str(path)!r}, b"new" * 1000):
            os.kill(os.getpid(), 9)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=60)
    assert ended.returncode == -9
    assert path.read_bytes() == b"old"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "out").mkdir()
    target, link = tmp_path / "store" / "model", tmp_path / "out" / "model"
    link.symlink_to("../store/model")
    for data in (b"first", b"second"):
        assert write_whole(link, data) == target
        assert link.is_symlink()
        assert target.read_bytes() == data
    assert (names(tmp_path / "store"), names(tmp_path / "out")) == (["model"], ["model"])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_what_the_umask_gives(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", b"")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_the_mode_of_a_file_that_is_replaced_stays(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(0o640)
    write_whole(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_second_name_is_the_same_file(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for data in (b"1", b"2"):
        write_whole(first, data, second)
        assert first.samefile(second)
        assert second.read_bytes() == data
    assert names(tmp_path) == ["first", "second"]


def test_a_second_name_is_a_copy_where_links_are_not_possible(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    first, second = tmp_path / "first", tmp_path / "second"
    write_whole(first, b"data", second)
    assert (first.read_bytes(), second.read_bytes()) == (b"data", b"data")
    assert not first.samefile(second)
    assert stat.S_IMODE(first.stat().st_mode) == stat.S_IMODE(second.stat().st_mode)
    assert names(tmp_path) == ["first", "second"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("folder", "Is a directory"),
        ("file/below", "Not a directory|File exists"),
        ("file/below/deeper", "Not a directory|File exists"),
        ("/proc/nothing/model.pb", "No such file or directory"),
        ("n" * 300, "File name too long"),
        ("nul\0", "[^)]*embedded null [^)]*"),
        ("pipe", "Not a regular file"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path, monkeypatch, path, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SaveError, match=rf"cannot be written \(({reason})\)\. Nothing was changed\.") as caught:
        sparsekit.save(graph_def(), path)
    assert caught.value.where == path
    assert names(tmp_path) == ["file", "folder", "pipe"]
    assert (tmp_path / "file").read_bytes() == b"old"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_model_above_two_gigabytes_is_refused_with_its_path(tmp_path):
    class TooLarge:
        def SerializeToString(self, deterministic: bool = False) -> bytes:
            from google.protobuf.message import EncodeError

            raise EncodeError("Failed to serialize proto")

    with pytest.raises(
        SaveError, match=r"model\.pb: cannot be serialized \(Failed .*\); expected a GraphDef below 2 GB"
    ):
        sparsekit.save(TooLarge(), tmp_path / "model.pb")
    assert names(tmp_path) == []


@pytest.mark.parametrize("model", [None, "model.pb", tf.Graph()])
def test_what_is_no_graph_def_is_refused(tmp_path, model):
    with pytest.raises(SaveError, match=rf"got {type(model).__name__}; expected a GraphDef"):
        sparsekit.save(model, tmp_path / "model.pb")
    assert names(tmp_path) == []
