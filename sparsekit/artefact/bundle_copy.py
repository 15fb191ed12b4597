"""A tensor bundle copied without some of its tensors.

The bytes of the others are copied as they are, so their checksums hold; the data files close up, and the index is
written anew: blocks of sorted keys, each with the part that it shares with the key before left out, then an index of
the blocks and a footer (the layout that :mod:`sparsekit.artefact.bundle` reads).
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import google_crc32c
from tensorflow.core.protobuf import tensor_bundle_pb2

from sparsekit.artefact.bundle import FOOTER, MAGIC, Bundle, data_file, masked_checksum, writable

_Record: TypeAlias = tuple[bytes, bytes]

_BLOCK = 256 << 10  # what TensorFlow's own writer fills before it begins another
_RESTART = 16  # keys that share prefixes before one is written in full


def copy_without(bundle: Bundle, prefix: str | os.PathLike[str], keys: Collection[str]) -> None:
    """Write a bundle again elsewhere, without the tensors of ``keys``. One piece of a tensor is in memory at a time.

    Args:
        bundle: what is copied.
        prefix: path of the new files, without ``.index`` and ``.data-...``; their folder exists.
        keys: stored whole, not in slices.

    Raises:
        MissingFileError, ModelError: a tensor cannot be read, or is damaged.
        SaveError: a file cannot be written. Throw away what was written of it.
    """
    offsets = _copy_data(bundle, prefix, keys)
    records = []
    for text, key, value in bundle.records():
        if text in keys:
            continue
        records.append((key, value if text not in offsets else _moved(value, offsets[text])))
    index = Path(f"{os.fspath(prefix)}.index")
    with writable(index):
        index.write_bytes(_table(records))


def _copy_data(bundle: Bundle, prefix: str | os.PathLike[str], keys: Collection[str]) -> dict[str, int]:
    """Write the data files; returns where each tensor lies now."""
    stored = sorted((e for e in bundle.entries.values() if not e.slices), key=lambda e: (e.shard, e.offset, e.size))
    offsets: dict[str, int] = {}
    for shard, entries in itertools.groupby(stored, lambda entry: entry.shard):
        path = data_file(prefix, shard, bundle.shards)
        with writable(path), path.open("wb") as file:
            for entry in entries:
                if entry.key in keys:
                    continue
                offsets[entry.key] = file.tell()
                for chunk in bundle.stored_bytes(entry):
                    file.write(chunk)
    return offsets


def _moved(value: bytes, offset: int) -> bytes:
    proto = tensor_bundle_pb2.BundleEntryProto.FromString(value)
    proto.offset = offset
    return proto.SerializeToString(deterministic=True)


def _table(records: Iterable[_Record]) -> bytes:
    data = bytearray()

    def append(block: bytes) -> bytes:
        """Write a block and its trailer; returns where it lies, as the index of blocks says it."""
        handle = _varint(len(data)) + _varint(len(block))
        kind = b"\0"
        data.extend(block + kind + struct.pack("<I", masked_checksum(google_crc32c.value(block + kind))))
        return handle

    handles = [(keys[-1][0], append(_block(keys, _RESTART))) for keys in _blocks(records)]
    meta = append(_block([], _RESTART))
    index = append(_block(handles, 1))
    return bytes(data) + (meta + index).ljust(FOOTER - len(MAGIC), b"\0") + MAGIC


def _blocks(records: Iterable[_Record]) -> Iterator[list[_Record]]:
    block: list[_Record] = []
    size = 0
    for key, value in records:
        block.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _block(records: list[_Record], interval: int) -> bytes:
    data = bytearray()
    restarts = []
    before = b""
    for number, (key, value) in enumerate(records):
        shared = 0
        if number % interval:
            shared = _common(before, key)
        else:
            restarts.append(len(data))
        data += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return bytes(data) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _common(before: bytes, key: bytes) -> int:
    """How many bytes two keys begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(before, key, strict=False)) if a != b), min(len(before), len(key)))


def _varint(value: int) -> bytes:
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
