"""Two arrays compared bit by bit, two messages compared field by field."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
from google.protobuf import text_format
from google.protobuf.message import Message
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

# Values that are looked at together: what is computed about them stays small beside the arrays.
_CHUNK = 1 << 20
_LONGEST_TEXT = 60
_LARGEST_SHOWN = 1_000


@attrs.frozen
class ValueChange:
    """A constant or stored tensor whose values changed; dtype and shape did not.

    Attributes:
        where: what holds it: "graph", "function 'f'", "variables".
        name: the constant, or the key in the variables.
        dtype, shape: as it is stored.
        size: how many values it has.
        changed: those whose bits differ; NaN is NaN of the same bits, and -0.0 is not 0.0.
        became_zero: of these, the ones that are zero in B and were not in A.
        zero_signs: of these, zeros that changed their sign alone.
        zeros_before, zeros_after: zeros of either sign in A and B.
        largest: the largest absolute change; NaN where a NaN came or went, None where the values are no numbers.
    """

    where: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    changed: int = 0
    became_zero: int = 0
    zero_signs: int = 0
    zeros_before: int = 0
    zeros_after: int = 0
    largest: float | None = None

    @property
    def only_zeros(self) -> bool:
        """Every changed value is zero in B; the others are what they were, bit for bit."""
        return self.changed == self.became_zero + self.zero_signs


def compare_arrays(before: Array, after: Array, *, where: str, name: str, dtype: str) -> ValueChange:
    """Compare two arrays of one dtype and shape: numbers of any kind, or bytes objects.

    Args:
        before, after: the arrays.
        where, name, dtype: as in :class:`ValueChange`.
    """
    found = ValueChange(where, name, dtype, before.shape, before.size)
    before, after = before.reshape(-1), after.reshape(-1)
    if before.dtype == object:
        return attrs.evolve(found, changed=int(np.count_nonzero(before != after)))
    found = attrs.evolve(found, largest=0.0)
    for start in range(0, before.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        found = _added(found, before[part], after[part])
    return found


def _added(found: ValueChange, before: Array, after: Array) -> ValueChange:
    """With another part of the two arrays counted in."""
    changed = (_words(before) != _words(after)).any(axis=1)
    old, new = _numbers(before), _numbers(after)
    was_zero, is_zero = old == 0, new == 0
    largest = _largest(old[changed], new[changed])
    assert found.largest is not None
    return attrs.evolve(
        found,
        changed=found.changed + int(np.count_nonzero(changed)),
        became_zero=found.became_zero + int(np.count_nonzero(~was_zero & is_zero)),
        zero_signs=found.zero_signs + int(np.count_nonzero(changed & was_zero & is_zero)),
        zeros_before=found.zeros_before + int(np.count_nonzero(was_zero)),
        zeros_after=found.zeros_after + int(np.count_nonzero(is_zero)),
        largest=largest if math.isnan(largest) else max(found.largest, largest),
    )


def _words(array: Array) -> NDArray[np.unsignedinteger[Any]]:
    """An array's bits: a row of unsigned numbers for every value."""
    word = min(array.itemsize, 8)
    return array.view(f"u{word}").reshape(array.size, array.itemsize // word)


def _numbers(array: Array) -> Array:
    """An array as numpy can calculate with it."""
    if array.dtype.names:  # a quantized type of TensorFlow's: one integer in a record
        return array[array.dtype.names[0]]
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float64)


def _largest(old: Array, new: Array) -> float:
    """The largest absolute change, 0.0 without any."""
    if not old.size:
        return 0.0
    if old.dtype.kind in "iu":
        # As unsigned numbers of the same width the difference is exact where it would overflow.
        unsigned = f"u{old.itemsize}"
        return float((np.maximum(old, new).view(unsigned) - np.minimum(old, new).view(unsigned)).max())
    wide = np.complex128 if old.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.abs(new.astype(wide) - old.astype(wide)).max())


def differing_fields(before: Any, after: Any, but: tuple[str, ...] = ()) -> Iterator[str]:
    """What two messages of one type say differently, each as "field: before -> after".

    Fields within fields are named "outer.inner", entries "field[0]", entries of a map "field['key']".

    Args:
        before, after: the messages.
        but: names of fields to pass over.
    """
    for field in before.DESCRIPTOR.fields:
        if field.name not in but:
            yield from _differing(field.name, getattr(before, field.name), getattr(after, field.name))


def _differing(name: str, before: Any, after: Any) -> Iterator[str]:
    if encoded(before) == encoded(after):
        return
    inner: Iterator[str] = iter(())
    if isinstance(before, Message):
        inner = (f"{name}.{text}" for text in differing_fields(before, after))
    elif isinstance(before, Mapping):
        inner = _differing_items(name, before, after, sorted({*before, *after}))
    elif isinstance(before, Sequence) and not isinstance(before, (str, bytes)) and len(before) == len(after):
        inner = _differing_items(name, dict(enumerate(before)), dict(enumerate(after)), range(len(before)))
    found = list(inner)
    # Of a field that is set without a content, and of lists of two lengths, the whole is shown.
    yield from found or [f"{name}: {brief(before)} -> {brief(after)}"]


def _differing_items(
    name: str, before: Mapping[Any, Any], after: Mapping[Any, Any], keys: Iterable[Any]
) -> Iterator[str]:
    for key in keys:
        old, new = before.get(key), after.get(key)
        if old is None or new is None:
            yield f"{name}[{key!r}]: {brief(old)} -> {brief(new)}"
        else:
            yield from _differing(f"{name}[{key!r}]", old, new)


def encoded(value: Any) -> Any:
    """What a field holds, in a form that is equal for equal bits."""
    if isinstance(value, Message):
        return value.SerializeToString(deterministic=True)
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, (str, bytes, int)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: encoded(value[key]) for key in value}
    return [encoded(item) for item in value]


def brief(value: Any) -> str:
    """What a field holds, for people, shortened."""
    if value is None:
        return "none"
    if isinstance(value, Message):
        size = value.ByteSize()
        text = text_format.MessageToString(value, as_one_line=True) if size <= _LARGEST_SHOWN else f"{size:,} bytes"
    elif isinstance(value, (str, bytes, int, float)):
        text = repr(value)
    else:
        text = f"[{', '.join(brief(item) for item in value[:8])}{', ...' if len(value) > 8 else ''}]"
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
