"""Files that a user named: text, and models, of which nobody knows what they are."""

from __future__ import annotations

import os
import reprlib
import stat
from pathlib import Path

from sparsekit.errors import MissingFileError, ModelError, SparsekitError

_MOST_TEXT = 1 << 26  # far more than the record of a model with 100,000 layers
_MOST_PROTO = (1 << 31) - 1
"""What protobuf can read."""


def source_of(model: object) -> str:
    """How messages call a model: by its path, where it has one."""
    return os.fsdecode(model) if isinstance(model, (str, os.PathLike)) else "the graph"


def read_text(path: Path, error: type[SparsekitError]) -> str:
    """The text of a regular file: a pipe or a device might never end.

    Args:
        path: the file.
        error: the class to raise when the file cannot be read.

    Raises:
        MissingFileError: there is no such file.
        SparsekitError: of class ``error``: a folder, a file that may not be read, or one that is not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise error("this is no regular file", where=str(path), expected="a text file")
        if status.st_size > _MOST_TEXT:
            raise error(f"this is {status.st_size:,} bytes long", where=str(path), expected="a text file")
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError("there is no such file", where=str(path)) from None
    except IsADirectoryError:
        raise error("this is a folder", where=str(path), expected="a text file") from None
    except (OSError, ValueError) as reason:  # ValueError: a NUL or a lone surrogate in the path
        text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise error(f"cannot be read: {text}", where=reprlib.repr(str(path))) from reason
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = raw.count(b"\n", 0, reason.start) + 1
        found = f"the byte 0x{raw[reason.start]:02x} is not UTF-8"
        raise error(found, where=f"{path}:{line}", hint="Save the file as UTF-8 text.") from reason


def read_proto(path: str | os.PathLike[str], expected: str, hint: str = "") -> bytes:
    """The bytes of a file of a model that protobuf parses; see `read_whole`.

    Raises:
        MissingFileError: there is no such file.
        ModelError: as `read_whole`; also a file that is longer than protobuf can read.
    """
    source = os.fsdecode(path)
    size = size_of(source, expected, hint)
    if size > _MOST_PROTO:
        raise ModelError(f"is {size:,} bytes long", where=source, expected=f"{expected}, below 2 GB")
    return _content(source, expected)


def read_whole(path: str | os.PathLike[str], expected: str, hint: str = "") -> bytes:
    """The bytes of a regular file of a model: a pipe or a device might never end.

    Args:
        path: the file.
        expected: what it should have been, for messages.
        hint: the next step where it is something else.

    Raises:
        MissingFileError: there is no such file.
        ModelError: a folder, a device, an empty file, or one that may not be read.
    """
    source = os.fsdecode(path)
    size_of(source, expected, hint)
    return _content(source, expected)


def _content(source: str, expected: str) -> bytes:
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=source, expected=expected) from error
    except MemoryError as error:
        raise ModelError("is larger than the memory that is left", where=source, expected=expected) from error
    if not data:
        raise ModelError("is empty", where=source, expected=expected, hint="Write it again: it may have been cut off.")
    return data


def size_of(source: str, expected: str, hint: str = "") -> int:
    """How many bytes a regular file has.

    Raises:
        MissingFileError: there is no such file.
        ModelError: it is no regular file.
    """
    try:
        status = os.stat(source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError("there is no such file", where=source, expected=expected) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"cannot be read ({reason})", where=repr(source), expected=expected) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise ModelError(f"is {kind}", where=source, expected=expected, hint=hint)
    return status.st_size
