"""Text files that a user named."""

from __future__ import annotations

import reprlib
from pathlib import Path

from sparsekit.errors import MissingFileError, SparsekitError


def read_text(path: Path, error: type[SparsekitError]) -> str:
    """The text of a file that a user named.

    Args:
        path: the file.
        error: the class to raise when the file cannot be read.

    Raises:
        MissingFileError: there is no such file.
        SparsekitError: of class ``error``: a folder, a file that may not be read, or one that is not UTF-8.
    """
    try:
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
