"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparsekit.errors import SaveError


@contextlib.contextmanager
def staged(path: str | os.PathLike[str], data: bytes) -> Iterator[Path]:
    """Write ``data`` beside ``path``; it takes its place when the block ends without an error.

    Missing parent folders are made. A link is followed: what it points to is replaced.

    Raises:
        SaveError: it cannot be written there; whatever stood at ``path`` is untouched.
    """
    final = Path(path)
    temporary: Path | None = None
    try:
        with _explained(final):
            final = Path(os.path.realpath(path))
            if final.is_dir():
                raise IsADirectoryError(21, "Is a directory")
            final.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{final.name[:100]}.", suffix=".tmp", dir=final.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(_usual_mode(final))
        yield final
        with _explained(final):
            os.replace(temporary, final)
            temporary = None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` to ``path``, whole or not at all; returns where it lies.

    Raises:
        SaveError: see :func:`staged`.
    """
    with staged(path, data) as final:
        pass
    return final


def link_or_copy(existing: Path, path: Path) -> None:
    """Let ``path`` be a second name of ``existing``: a hard link, or a copy where links are not possible.

    Raises:
        SaveError: neither is possible; whatever stood at ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.link(existing, temporary)
        os.replace(temporary, path)
    except OSError:
        write_whole(path, existing.read_bytes())
    finally:
        # Renaming a link onto another link of the same file leaves both.
        temporary.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """The mode of the file that is replaced, or what the user's umask gives a new one."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveError(
            f"cannot be written ({reason})",
            where=str(path),
            hint="Nothing was changed. Name a path in a folder that you may write to, on a disk with space left.",
        ) from error
