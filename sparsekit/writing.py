"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sparsekit.errors import SaveError, SparsekitError


@contextlib.contextmanager
def staged(path: str | os.PathLike[str], data: bytes, second: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Write ``data`` beside ``path``; it takes its place when the block ends without an error.

    Missing parent folders are made. A link is followed: what it points to is replaced.

    Args:
        path: where the file goes.
        data: what it holds.
        second: another name for the same file: a hard link, or a copy where links are not possible.

    Yields:
        Where the file will lie.

    Raises:
        SaveError: it cannot be written there; whatever stood at ``path`` and ``second`` is untouched.
    """
    with contextlib.ExitStack() as temporaries:
        with _explained(path):
            final = _destination(path)
            temporary = temporaries.enter_context(_temporary(final))
            _fill(temporary, data, final)
        moves = [(temporary, final)]
        if second is not None:
            with _explained(second):
                other_final = _destination(second)
                other = temporaries.enter_context(_temporary(other_final))
                try:
                    other.unlink()
                    os.link(temporary, other)
                except OSError:
                    _fill(other, data, other_final)
            moves.append((other, other_final))
        yield final
        for written, place in moves:
            with _explained(place):
                os.replace(written, place)


@contextlib.contextmanager
def staged_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside ``path`` to be filled; it takes its place when the block ends without an error.

    Missing parent folders are made. What stood at ``path`` is exchanged for it in one step and then removed.

    Raises:
        SaveError: it cannot be written there; whatever stood at ``path`` is untouched.
    """
    with _explained(path):
        final = Path(os.path.realpath(path))
        if final.exists() and not final.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "Not a folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".sparsekit.", suffix=".tmp", dir=final.parent))
        temporary.chmod(_usual_mode(final) | 0o111 if not final.exists() else final.stat().st_mode & 0o777)
    try:
        with _explained(path):
            yield temporary
        with _explained(path):
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            if final.exists():
                _exchange(temporary, final)
            else:
                os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_folder(
    source: str | os.PathLike[str], target: str | os.PathLike[str], is_left_out: Callable[[Path], bool]
) -> None:
    """Copy what lies in a folder into another one. Links are followed, since the copy may be written to.

    Args:
        source, target: the folders.
        is_left_out: asked for every file of ``source``.

    Raises:
        OSError: the first thing that goes wrong. (``shutil.copytree`` goes on, and raises a list without reasons.)
    """

    def fail(error: OSError) -> None:
        raise error

    # Bottom-up, since a folder that may not be written to gets its mode when all lies in it.
    for folder, _, names in os.walk(source, topdown=False, onerror=fail, followlinks=True):
        place = Path(target, os.path.relpath(folder, source))
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not is_left_out(Path(folder, name)):
                shutil.copy2(Path(folder, name), place / name)
        shutil.copystat(folder, place)


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step where the system can, in two where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_working_directory, exchange = -100, 2
    if hasattr(libc, "renameat2"):
        names = (at_working_directory, os.fsencode(new), at_working_directory, os.fsencode(old))
        if libc.renameat2(*names, exchange) == 0:
            return
    aside = new.with_name(f"{new.name}.old")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


def write_whole(path: str | os.PathLike[str], data: bytes, second: str | os.PathLike[str] | None = None) -> Path:
    """Write ``data`` to ``path``, whole or not at all; returns where it lies.

    Raises:
        SaveError: see :func:`staged`.
    """
    with staged(path, data, second) as final:
        pass
    return final


def _destination(path: str | os.PathLike[str]) -> Path:
    """Where ``path`` leads, with its folder made."""
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if final.exists() and not final.is_file():
        # Renaming a file onto /dev/null would replace the device.
        raise OSError(errno.EINVAL, "Not a regular file")
    final.parent.mkdir(parents=True, exist_ok=True)
    return final


@contextlib.contextmanager
def _temporary(final: Path) -> Iterator[Path]:
    """An empty file in the folder of ``final``; it is gone afterwards, if it was not moved."""
    handle, name = tempfile.mkstemp(prefix=".sparsekit.", suffix=".tmp", dir=final.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _fill(temporary: Path, data: bytes, final: Path) -> None:
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(_usual_mode(final))


def _usual_mode(path: Path) -> int:
    """The mode of the file that is replaced, or what the user's umask gives a new one."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except SparsekitError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise SaveError(
            f"cannot be written ({reason})",
            where=os.fsdecode(path),
            hint="Nothing was changed. Name a path in a folder that you may write to, on a disk with space left.",
        ) from error
