"""Samples in .npz files: which files, and the batches in them, each of which can be read alone."""

from __future__ import annotations

import glob
import os
import zipfile
import zlib
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.errors import CalibrationError, MissingFileError

Array: TypeAlias = npt.NDArray[Any]

_EXPECTED = "an .npz file with an array for every input"


def npz_paths(source: Any) -> list[str] | None:
    """The files that ``source`` names: a path, a pattern with ``*`` (in the order of their names), or a list of both.

    None where it names no files but holds samples.

    Raises:
        MissingFileError: a pattern that fits no file.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if os.path.exists(path) or not glob.has_magic(path):
            return [path]
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise MissingFileError("no file fits this pattern", where=path, expected=".npz files with samples")
        return found
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        return [path for item in source for path in npz_paths(item) or ()]
    return None


def read_npz(path: str) -> dict[str, Array]:
    """The arrays of a file by name.

    Raises:
        MissingFileError, CalibrationError: it is not there, or no .npz with arrays of numbers or text.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise CalibrationError("holds a single array", where=path, expected=_EXPECTED)
        with arrays:
            return {name: arrays[name] for name in arrays.files}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError("there is no such file", where=path, expected=_EXPECTED) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(f"cannot be read ({error})", where=path, expected=_EXPECTED) from error


def checksums(path: str) -> str:
    """A line that tells a file's content from another one's: the checksums that it has of its arrays.

    Raises:
        MissingFileError, CalibrationError: it is not there, or no .npz.
    """
    with _members(path) as archive:
        members = sorted((item.filename, item.file_size, item.CRC) for item in archive.infolist())
    return ", ".join(f"{name} {size} bytes crc {crc:08x}" for name, size, crc in members)


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's arrays, by their names. The arrays are not read.

    Raises:
        MissingFileError, CalibrationError: it is not there, or no .npz with arrays of numbers or text.
    """
    found = {}
    with _members(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                try:
                    version = np.lib.format.read_magic(member)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    found[name.removesuffix(".npy")] = read.get(version, np.lib.format.read_array_header_2_0)(member)[0]
                except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise CalibrationError(f"cannot be read ({error})", where=path, expected=_EXPECTED) from error
    return found


def _members(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError("there is no such file", where=path, expected=_EXPECTED) from error
    except (OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"cannot be read ({error})", where=path, expected=_EXPECTED) from error


@attrs.frozen
class FileBatch:
    """A batch that lies in a file.

    Attributes:
        path: of the file.
        start, stop: its samples there.
        fold: the half of the samples that it belongs to.
    """

    path: str
    start: int
    stop: int
    fold: int

    @property
    def samples(self) -> int:
        return self.stop - self.start
