"""Under which key a bundle stores one part of a partitioned variable.

A saver writes a part with a shape and slice such as ``"8 6 0,8:0,3"``: the shape of the whole, then for each axis
where the part starts and how long it is (``-``: all of it). A part that is not the whole gets a key of its own, in
TensorFlow's ordered code: a zero, the name, the rank, then start and length of each axis. The layout of these numbers
is that of ``tensorflow/core/lib/strings/ordered_code.h``, the order that of ``saved_tensor_slice_util.h``.
"""

from __future__ import annotations

import re

from sparsekit.artefact.bundle import key_text

_AXIS = re.compile(r"(\d+),(\d+)")


def stored_key(name: str, shape_and_slice: str) -> str | None:
    """The key of the tensor that a saver wrote, or reads, under ``name``.

    Args:
        name: the tensor's name.
        shape_and_slice: "" for the whole tensor, else as above.

    Returns:
        The key as :class:`~sparsekit.artefact.bundle.Bundle` lists it; None where the slice is none.
    """
    if not shape_and_slice:
        return name
    *sizes, axes = shape_and_slice.split(" ")
    extents = [_extent(axis) for axis in axes.split(":")]
    known = [extent for extent in extents if extent is not None]
    if len(known) < len(extents) or len(known) != len(sizes) or not all(size.isdecimal() for size in sizes):
        return None
    if all(extent in (_ALL, (0, int(size))) for extent, size in zip(known, sizes, strict=True)):
        return name
    key = _unsigned(0) + _string(name.encode()) + _unsigned(len(known))
    for start, length in known:
        key += _signed(start) + _signed(length)
    return key_text(key)


_ALL = (0, -1)


def _extent(text: str) -> tuple[int, int] | None:
    found = _AXIS.fullmatch(text)
    if found:
        return int(found[1]), int(found[2])
    return _ALL if text == "-" else None


def _unsigned(value: int) -> bytes:
    length = (value.bit_length() + 7) // 8
    return bytes([length]) + value.to_bytes(length, "big")


def _string(value: bytes) -> bytes:
    escaped = b"".join({0x00: b"\x00\xff", 0xFF: b"\xff\x00"}.get(byte, bytes([byte])) for byte in value)
    return escaped + b"\x00\x01"


def _signed(value: int) -> bytes:
    """As many leading ones as there are bytes, then a zero, then the number; all bits turned where it is negative."""
    magnitude = ~value if value < 0 else value
    length = magnitude.bit_length() // 7 + 1
    header = (1 << length) - 1 << (7 * length)
    code = (header | magnitude).to_bytes(length, "big")
    return bytes(byte ^ 0xFF for byte in code) if value < 0 else code
