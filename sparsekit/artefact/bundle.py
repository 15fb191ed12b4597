"""TensorFlow's tensor bundle (``variables.index`` and ``variables.data-*``): read without trust, patched in place.

The index is an uncompressed sorted-string table: blocks of prefix-compressed keys, each block followed by its kind and
a masked crc32c, then an index of blocks, then a footer. A value is a BundleEntryProto: where in which shard a tensor
lies, and its masked crc32c as a fixed32. So new values of the old size change no length anywhere: the tensor's bytes,
four bytes in its entry and four behind the block are all that is written.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import attrs
import google_crc32c
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorflow.core.protobuf import tensor_bundle_pb2

from sparsekit.errors import MissingFileError, ModelError, SaveError, near_matches
from sparsekit.reading import size_of

Array: TypeAlias = NDArray[Any]

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FOOTER = 48  # two block handles, padding, the magic number
_TRAILER = 5  # the block's kind and its checksum
_VERSION = 1  # the bundle format that is read and kept here
_MAX_RANK = 254  # TensorFlow's own limit
_REF_TYPES = 100  # data types above this are references, which no file holds
_UNREADABLE = ("string", "resource", "variant")
_CHUNK = 1 << 20
# Half a million variables fit; a hostile index of this size still parses in bounded memory.
_MAX_INDEX = 32 << 20
# Sixteen keys share prefixes before one is written out in full, so expanding them cannot take more than this many
# times the file.
_MAX_KEY_EXPANSION = 16
_DAMAGED = "The variables are damaged or were cut off; write the model again."


@attrs.frozen
class Entry:
    """Where one tensor of a bundle lies.

    Attributes:
        key: its name in the bundle.
        dtype: its data type, by name.
        shape: its shape.
        shard: number of the data file.
        offset, size: in bytes, in the data file.
        crc32c: masked checksum of its bytes.
        slices: how many slices it is stored in under other keys; 0 where it is stored whole.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: int = 0

    @property
    def is_array(self) -> bool:
        """Numbers, stored whole: what :meth:`Bundle.read` reads."""
        return not self.slices and self.dtype not in _UNREADABLE


@attrs.frozen(eq=False)
class Bundle:
    """A tensor bundle whose index holds together and fits its data files.

    Attributes:
        prefix: path of its files, without ``.index`` and ``.data-...``.
        shards: how many data files it says it has.
        entries: what it holds, by key.
    """

    prefix: Path
    shards: int
    entries: Mapping[str, Entry]
    _index: _Index = attrs.field(repr=False)

    @classmethod
    def open(cls, prefix: str | os.PathLike[str]) -> Bundle:
        """Read and check the index. Tensors are read later, one at a time.

        Args:
            prefix: path of the bundle's files, without ``.index`` and ``.data-...``.

        Raises:
            MissingFileError: its index or a data file is not there.
            ModelError: it does not hold together, or is of a kind that is not read here; the message names the file.
        """
        prefix = Path(prefix)
        index = _Index.read(Path(f"{prefix}.index"))
        shards = _shard_count(index)
        entries = {}
        for record in index.records.values():
            if not record.key:
                continue
            entry = _entry(record, index.source)
            entries[entry.key] = entry
        bundle = cls(prefix, shards, entries, index)
        bundle._check_ranges()
        return bundle

    def read(self, key: str) -> Array:
        """The tensor of that key, its checksum verified.

        Raises:
            MissingFileError: its data file is gone.
            ModelError: there is none, it is sliced, no array of numbers, or its bytes do not match its checksum.
        """
        entry = self.array_entry(key)
        data = np.empty(entry.size, np.uint8)
        filled = 0
        for chunk in self._chunks(entry):
            data[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
            filled += len(chunk)
        try:
            return data.view(numpy_dtype(entry.dtype)).reshape(entry.shape)
        except ValueError as error:  # a rank that numpy does not have
            raise ModelError(f"cannot be made an array ({error})", where=f"{self._index.source}: {key}") from error

    def read_string(self, key: str) -> bytes:
        """The one string that is stored under ``key``.

        Raises:
            MissingFileError: its data file is gone.
            ModelError: there is none, it is no single string, or its bytes do not match its checksums.
        """
        entry = self._entry(key)
        if entry.dtype != "string" or entry.shape or entry.slices:
            raise ModelError("is not one string", where=f"{self._index.source}: {key}")
        with self._shard(entry) as (file, source):
            file.seek(entry.offset)
            data = file.read(entry.size)
        # The length as a varint, its masked checksum, the bytes. Both checksums take the length as a fixed number.
        length, start = _varint(data, 0, f"{source}: {key}")
        text = data[start + 4 :]
        fixed = struct.pack("<I" if length < 1 << 32 else "<Q", length)
        check = struct.pack("<I", masked_checksum(google_crc32c.value(fixed)))
        whole = google_crc32c.extend(google_crc32c.value(fixed + check), text)
        if length != len(text) or data[start : start + 4] != check or masked_checksum(whole) != entry.crc32c:
            raise ModelError("its bytes do not match their checksum", where=f"{source}: {key}", hint=_DAMAGED)
        return text

    def equal(self, key: str, other: str) -> bool:
        """Whether two tensors are of one type and shape and have the same bytes, their checksums verified.

        Raises:
            MissingFileError, ModelError: see :meth:`read`.
        """
        first, second = self.array_entry(key), self.array_entry(other)
        if attrs.evolve(first, key="", shard=0, offset=0) != attrs.evolve(second, key="", shard=0, offset=0):
            return False
        return all(a == b for a, b in zip(self._chunks(first), self._chunks(second), strict=True))

    def raw(self, key: str) -> Iterator[bytes]:
        """The bytes of what is no array (strings), as they are stored, piece by piece. They are not checked.

        Raises:
            MissingFileError: its data file is gone.
            ModelError: there is none, or its data file was cut off.
        """
        return self._pieces(self._entry(key))

    def array_entry(self, key: str) -> Entry:
        """The entry of a tensor that :meth:`read` and :func:`patch` accept.

        Raises:
            ModelError: there is none, it is sliced or no array of numbers.
        """
        entry = self._entry(key)
        if entry.slices:
            raise ModelError(
                f"is stored in {entry.slices} slices (a partitioned variable)",
                where=f"{self._index.source}: {key}",
                expected="a tensor stored whole",
            )
        if entry.dtype in _UNREADABLE:
            raise ModelError(f"is a {entry.dtype}", where=f"{self._index.source}: {key}", expected="an array")
        return entry

    def shard_path(self, entry: Entry) -> Path:
        """The data file that an entry lies in."""
        return data_file(self.prefix, entry.shard, self.shards)

    def records(self) -> list[tuple[str, bytes, bytes]]:
        """The index as it is stored, in order: (key as text, key, value); the first one is the header, with key ""."""
        return [(key, record.key, record.value) for key, record in self._index.records.items()]

    def stored_bytes(self, entry: Entry) -> Iterator[bytes]:
        """What lies in the data file for an entry, piece by piece; the checksum of an array is verified at the end.

        Raises:
            MissingFileError, ModelError: it cannot be read, or is damaged.
        """
        return self._chunks(entry, verified=entry.dtype not in _UNREADABLE)

    def _entry(self, key: str) -> Entry:
        entry = self.entries.get(key)
        if entry is None:
            raise ModelError(
                f"has no entry '{key}'", where=self._index.source, hint=near_matches(key, list(self.entries)[:1_000])
            )
        return entry

    def _check_ranges(self) -> None:
        """Every tensor lies in a data file that is there, and none lies on another."""
        stored = sorted(
            (entry for entry in self.entries.values() if not entry.slices), key=lambda e: (e.shard, e.offset, e.size)
        )
        lengths: dict[int, int] = {}
        ends: dict[int, int] = {}
        for entry in stored:
            where = f"{self._index.source}: {entry.key}"
            if not 0 <= entry.shard < self.shards:
                raise ModelError(f"lies in data file {entry.shard} of {self.shards}", where=where, hint=_DAMAGED)
            if entry.shard not in lengths:
                lengths[entry.shard] = _length(self.shard_path(entry))
            if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > lengths[entry.shard]:
                raise ModelError(
                    f"lies at byte {entry.offset} and is {entry.size} long, in a data file of {lengths[entry.shard]}",
                    where=where,
                    hint=_DAMAGED,
                )
            if entry.size and entry.offset < ends.get(entry.shard, 0):
                raise ModelError("lies on the bytes of another tensor", where=where, hint=_DAMAGED)
            ends[entry.shard] = max(ends.get(entry.shard, 0), entry.offset + entry.size)

    def _chunks(self, entry: Entry, verified: bool = True) -> Iterator[bytes]:
        """A tensor's bytes, piece by piece; the checksum is verified at the end."""
        crc = 0
        for chunk in self._pieces(entry):
            crc = google_crc32c.extend(crc, chunk)
            yield chunk
        if verified and masked_checksum(crc) != entry.crc32c:
            where = f"{self.shard_path(entry)}: {entry.key}"
            raise ModelError("its bytes do not match their checksum", where=where, hint=_DAMAGED)

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        left = entry.size
        with self._shard(entry) as (file, source):
            file.seek(entry.offset)
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise ModelError("ends before its tensor does", where=f"{source}: {entry.key}", hint=_DAMAGED)
                left -= len(chunk)
                yield chunk

    @contextlib.contextmanager
    def _shard(self, entry: Entry) -> Iterator[tuple[BinaryIO, str]]:
        path = self.shard_path(entry)
        with _readable(path), path.open("rb") as file:
            yield file, str(path)


def patch(prefix: str | os.PathLike[str], values: Iterable[tuple[str, Array]]) -> Bundle:
    """Give tensors of a bundle new values, in place: work on a copy. Every file keeps its length.

    If it fails, or the process dies, tensors may be written whose checksums in the index are still the old ones:
    throw the copy away.

    Args:
        prefix: path of the copy's files, without ``.index`` and ``.data-...``.
        values: keys and new values, of the type and shape that is stored; taken and written one at a time.

    Returns:
        The bundle as it is now.

    Raises:
        MissingFileError: a file of the bundle is not there.
        ModelError: the bundle does not hold together, a key is not in it, is sliced or no array of numbers, or its
            new value has another type or shape.
        SaveError: a file cannot be written.
    """
    bundle = Bundle.open(prefix)
    index = bundle._index
    written = set()
    for key, value in values:
        entry = bundle.array_entry(key)
        _check_value(value, entry, index.source)
        path = bundle.shard_path(entry)
        crc = _overwrite(path, entry.offset, value)
        index.set_crc(key, masked_checksum(crc))
        written.add(path)
    with writable(index.path), index.path.open("r+b") as file:
        file.write(index.sealed())
    for path in (*sorted(written), index.path):
        with writable(path), path.open("rb") as file:
            os.fsync(file.fileno())
    return Bundle.open(prefix)


def data_file(prefix: str | os.PathLike[str], shard: int, shards: int) -> Path:
    """Where a bundle keeps its data: file number ``shard`` of ``shards``."""
    return Path(f"{os.fspath(prefix)}.data-{shard:05d}-of-{shards:05d}")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of a stored array."""
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


def _check_value(value: Array, entry: Entry, source: str) -> None:
    expected = numpy_dtype(entry.dtype)
    if value.dtype != expected or value.shape != entry.shape:
        raise ModelError(
            f"its new value is {value.dtype} {list(value.shape)}",
            where=f"{source}: {entry.key}",
            expected=f"{expected} {list(entry.shape)}",
        )


def _overwrite(path: Path, offset: int, value: Array) -> int:
    """Write an array's bytes; returns their checksum."""
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    with writable(path), path.open("r+b") as file:
        file.seek(offset)
        file.write(data.data)
    return _checksum(data)


# The table


@attrs.frozen(eq=False)
class _Block:
    """Where a block lies in the index file, without its trailer."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size + _TRAILER


@attrs.frozen(eq=False)
class _Record:
    """A key and its value, and the block and the place in the file where the value lies."""

    key: bytes
    value: bytes
    block: _Block
    start: int


@attrs.frozen(eq=False)
class _Index:
    """The index file: its bytes and what they say.

    Attributes:
        path: the file.
        data: its bytes; changed by :meth:`set_crc`.
        records: its records by key; the header's key is "".
    """

    path: Path
    data: bytearray
    records: dict[str, _Record]
    _touched: set[_Block] = attrs.field(factory=set)

    @property
    def source(self) -> str:
        return str(self.path)

    @classmethod
    def read(cls, path: Path) -> _Index:
        length = _length(path)
        if length > _MAX_INDEX:
            raise ModelError(f"is {length} bytes long", where=str(path), expected=f"at most {_MAX_INDEX}")
        with _readable(path):
            data = path.read_bytes()
        return cls(path, bytearray(data), _table(data, str(path)))

    def set_crc(self, key: str, crc: int) -> None:
        """Put another checksum into an entry.

        Raises:
            ModelError: the entry is not laid out as TensorFlow writes it.
        """
        record = self.records[key]
        proto, reparsed = _parsed(record, self.source), tensor_bundle_pb2.BundleEntryProto()
        # The checksum is the last field that TensorFlow writes. It leaves it out where it is 0 (one in 4 billion);
        # then there is no room for another. A new 0 is written out, which readers accept.
        end = record.start + len(record.value)
        tail = struct.pack("<BI", 0x35, proto.crc32c)
        patched = record.value[:-4] + struct.pack("<I", crc)
        proto.crc32c = crc
        if not record.value.endswith(tail) or not _parses(reparsed, patched) or reparsed != proto:
            raise ModelError("its entry has no room for a checksum", where=f"{self.source}: {key}")
        self.data[end - 4 : end] = patched[-4:]
        self.records[key] = attrs.evolve(record, value=patched)
        self._touched.add(record.block)

    def sealed(self) -> bytes:
        """The file's bytes, with the checksums of the changed blocks made right."""
        for block in self._touched:
            kind_end = block.offset + block.size + 1
            crc = masked_checksum(google_crc32c.value(bytes(self.data[block.offset : kind_end])))
            self.data[kind_end : kind_end + 4] = struct.pack("<I", crc)
        return bytes(self.data)


def _table(data: bytes, source: str) -> dict[str, _Record]:
    """Every record of the table by its key as text. Keys are checked to be in order, each once, where a search for
    them would look."""
    records: dict[str, _Record] = {}
    before: bytes | None = None
    end = 0
    for handle in _records(data, _index_block(data, source), source):
        block = _handle(handle, end, source)
        end = block.end
        found = _records(data, block, source)
        if before is not None and found[0].key <= before:
            raise ModelError("its blocks are not in order", where=f"{source}: {key_text(handle.key)}", hint=_DAMAGED)
        before = handle.key
        if found[-1].key > before:
            raise ModelError("its blocks are not in order", where=f"{source}: {key_text(handle.key)}", hint=_DAMAGED)
        for record in found:
            key = key_text(record.key)
            if key in records:
                raise ModelError("two keys read alike", where=f"{source}: {key}")
            records[key] = record
    return records


def _index_block(data: bytes, source: str) -> _Block:
    """The block that lists the others, as the footer says."""
    footer = len(data) - FOOTER
    if footer < 0 or not data.endswith(MAGIC):
        raise ModelError("is not the index of a tensor bundle", where=source, hint=_DAMAGED)
    meta, at = _block_at(data, footer, source)
    index, _ = _block_at(data, at, source)
    if meta.end > index.offset or index.end > footer:
        raise ModelError("its blocks lie on one another", where=source, hint=_DAMAGED)
    return index


def _handle(record: _Record, floor: int, source: str) -> _Block:
    """The block that a record of the index block points to: behind the one before, in front of the index block."""
    block, length = _block_at(record.value, 0, source)
    if length != len(record.value) or block.offset < floor or block.end > record.block.offset:
        raise ModelError("its blocks lie on one another", where=f"{source}: {key_text(record.key)}", hint=_DAMAGED)
    return block


def _block_at(data: bytes, at: int, source: str) -> tuple[_Block, int]:
    offset, at = _varint(data, at, source)
    size, at = _varint(data, at, source)
    return _Block(offset, size), at


def _records(data: bytes, block: _Block, source: str) -> list[_Record]:
    """The records of a block, in order, each key once. There is at least one."""
    where = f"{source}: the block at byte {block.offset}"
    contents = _contents(data, block, where)
    restarts = _restarts(contents, where)
    end = len(contents) - 4 * (len(restarts) + 1)
    records: list[_Record] = []
    whole = set()
    key, at, budget = b"", 0, _MAX_KEY_EXPANSION * len(contents)
    while at < end:
        begin = at
        shared, at = _varint(contents, at, where)
        fresh, at = _varint(contents, at, where)
        length, at = _varint(contents, at, where)
        stop = at + fresh + length
        budget -= shared + fresh
        if shared > len(key) or stop > end or budget < 0:
            raise ModelError(f"the record at byte {begin} does not fit", where=where, hint=_DAMAGED)
        previous, key = key, key[:shared] + contents[at : at + fresh]
        if records and key <= previous:
            raise ModelError("its keys are not in order, each once", where=f"{where}: {key_text(key)}", hint=_DAMAGED)
        if not shared:
            whole.add(begin)
        records.append(_Record(key, contents[at + fresh : stop], block, block.offset + at + fresh))
        at = stop
    if not records or restarts[0] != 0 or any(restart not in whole for restart in restarts):
        raise ModelError("its restart points are wrong", where=where, hint=_DAMAGED)
    return records


def _contents(data: bytes, block: _Block, where: str) -> bytes:
    """A block's bytes, its kind and checksum verified."""
    if block.end > len(data):
        raise ModelError(f"is {block.size} bytes long, behind the end of the file", where=where, hint=_DAMAGED)
    contents = bytes(data[block.offset : block.offset + block.size])
    kind, crc = struct.unpack_from("<BI", data, block.offset + block.size)
    if masked_checksum(google_crc32c.extend(google_crc32c.value(contents), bytes([kind]))) != crc:
        raise ModelError("its bytes do not match their checksum", where=where, hint=_DAMAGED)
    if kind:
        raise ModelError(f"is compressed (kind {kind})", where=where, expected="a block as TensorFlow writes it")
    return contents


def _restarts(contents: bytes, where: str) -> tuple[int, ...]:
    """Where the block says that keys are written in full."""
    count = struct.unpack_from("<I", contents, len(contents) - 4)[0] if len(contents) >= 4 else 0
    start = len(contents) - 4 * (count + 1)
    if not count or start < 0:
        raise ModelError(f"has {count} restart points", where=where, hint=_DAMAGED)
    restarts = struct.unpack_from(f"<{count}I", contents, start)
    if any(a >= b for a, b in itertools.pairwise(restarts)):
        raise ModelError("its restart points are not in order", where=where, hint=_DAMAGED)
    return restarts


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    """A number of up to 64 bits, and the place behind it."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + shift + 1
    raise ModelError(f"the number at byte {at} does not end", where=where, hint=_DAMAGED)


# What the values say


def _shard_count(index: _Index) -> int:
    """How many data files the header says there are."""
    record = index.records.get("")
    header = tensor_bundle_pb2.BundleHeaderProto()
    if record is None or not _parses(header, record.value):
        raise ModelError("has no header", where=index.source, hint=_DAMAGED)
    if header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
        raise ModelError("is big-endian", where=index.source, expected="a little-endian bundle")
    version = header.version
    if version.producer < 0 or version.min_consumer > _VERSION or _VERSION in version.bad_consumers:
        raise ModelError(
            f"asks for version {version.min_consumer} of the format", where=index.source, expected=f"{_VERSION}"
        )
    if header.num_shards < 1:
        raise ModelError(f"has {header.num_shards} data files", where=index.source, hint=_DAMAGED)
    return header.num_shards


def _parsed(record: _Record, source: str) -> Any:
    proto = tensor_bundle_pb2.BundleEntryProto()
    if not _parses(proto, record.value):
        raise ModelError("its entry cannot be read", where=f"{source}: {key_text(record.key)}", hint=_DAMAGED)
    return proto


def _entry(record: _Record, source: str) -> Entry:
    """What a record says, its size checked against its type and shape."""
    proto = _parsed(record, source)
    key = key_text(record.key)
    entry = Entry(
        key=key,
        dtype=_dtype_name(proto.dtype, f"{source}: {key}"),
        shape=_shape(proto.shape, f"{source}: {key}"),
        shard=proto.shard_id,
        offset=proto.offset,
        size=proto.size,
        crc32c=proto.crc32c,
        slices=len(proto.slices),
    )
    if entry.slices or entry.dtype in _UNREADABLE:
        return entry
    expected = math.prod(entry.shape) * numpy_dtype(entry.dtype).itemsize
    if entry.size != expected:
        raise ModelError(
            f"is {entry.size} bytes long",
            where=f"{source}: {key}",
            expected=f"{expected} for {entry.dtype} {list(entry.shape)}",
            hint=_DAMAGED,
        )
    return entry


def _dtype_name(number: int, where: str) -> str:
    with contextlib.suppress(TypeError):
        if 0 < number <= _REF_TYPES:
            return str(tf.as_dtype(number).name)
    raise ModelError(f"has data type {number}", where=where, hint=_DAMAGED)


def _shape(proto: Any, where: str) -> tuple[int, ...]:
    if proto.unknown_rank or len(proto.dim) > _MAX_RANK or any(dim.size < 0 for dim in proto.dim):
        raise ModelError("has no definite shape", where=where, hint=_DAMAGED)
    return tuple(dim.size for dim in proto.dim)


def _parses(proto: Any, data: bytes) -> bool:
    try:
        proto.ParseFromString(data)
    except DecodeError:
        return False
    return True


def key_text(key: bytes) -> str:
    """A stored key as text; the keys of slices are no UTF-8."""
    return key.decode("utf-8", "backslashreplace")


# Checksums and files


def _checksum(data: Array) -> int:
    """The crc32c of an array of bytes."""
    crc = 0
    for start in range(0, len(data), _CHUNK):
        crc = google_crc32c.extend(crc, data[start : start + _CHUNK].tobytes())
    return crc


def masked_checksum(crc: int) -> int:
    """A crc32c as it is stored, so that checksums of bytes that hold checksums stay good ones."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _length(path: Path) -> int:
    return size_of(str(path), "a file of the variables")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError("there is no such file", where=str(path), hint=_DAMAGED) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"cannot be read ({reason})", where=repr(str(path))) from error


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(f"cannot be written ({error.strerror or error})", where=str(path)) from error
