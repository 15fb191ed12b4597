"""What a deployed file (.tflite, .onnx) says about its weights, in a form that `sparsekit.pattern.check` can judge.

The readers, `sparsekit.artefact.tflite` and `sparsekit.artefact.onnx_model`, find the operators that contract over
input channels and trace each weight to where it is stored. What they share is here: the layer they report, the
weight while it is traced, and the bytes behind it, none of which is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import attrs
import ml_dtypes
import numpy as np
import numpy.typing as npt

from sparsekit.errors import ModelError

Array: TypeAlias = npt.NDArray[Any]

MAX_HOPS = 64
"""Operators between a weight and its use that a reader follows; real files have a handful."""

NO_CHANNEL_AXIS = "depthwise: one input channel per output, so there is no input-channel axis to prune"
COMPUTED_FROM_INPUTS = "its kernel is computed from the model's inputs: the file holds no weights for it"

# A weight's element takes 2 bits or more, and is looked at in one way or two.
_ELEMENTS_PER_BYTE = 64

# numpy refuses arrays of a higher rank (64 since numpy 2).
_MAX_RANK = 32
_LARGEST_SIZE = 1 << 62

# Bits per element of what is stored more than one to a byte, low bits first (TensorFlow Lite's UnpackDenseInt4IntoInt8,
# onnx.proto at int32_data): all such types are integers here.
_PACKED = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4}
_PLAIN = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


@attrs.frozen(eq=False)
class DeployedLayer:
    """An operator of a deployed file that contracts over input channels, and its weight as the operator sees it.

    Attributes:
        name: the name that a user recognises, unique in the file.
        op_type: the operator's type as the format names it.
        location: where it is in the file, for example "subgraph 0, operator 12".
        shape: of what `values` returns; None where it is not known. It differs from the stored shape where the file
            reshapes the weight before its use, and for grouped transposed convolutions (ONNX), whose groups of
            channels come first: [groups, inputs / groups, outputs / groups, ...].
        axis: the axis of ``shape`` that the operator contracts over (input channels); None if there is none.
        dtype: as stored, for example "int8"; "" where it is not known.
        dtype_is_final: the device gets the weights in this type.
        obstacle: why the weights could not be read: nothing is known about them. "" if they can be.
        exempt: why no pattern can be expected of this operator (depthwise, a kernel that is data). "" otherwise.
        note: worth knowing, no obstacle; for example a zero point that is not 0.
    """

    name: str
    op_type: str
    location: str
    shape: tuple[int, ...] | None = None
    axis: int | None = None
    dtype: str = ""
    obstacle: str = ""
    exempt: str = ""
    note: str = ""
    dtype_is_final: bool = True
    _read: Callable[[], Array] | None = attrs.field(default=None, alias="read", repr=False)

    @property
    def readable(self) -> bool:
        """`values` can be called, and `axis` is the axis to check them along."""
        return self._read is not None

    def values(self) -> Array:
        """The weights as numbers, zero points subtracted: zero means zero. One layer is in memory at a time.

        They are not scaled: the pattern does not depend on it.

        Raises:
            ModelError: they cannot be read (see `obstacle` and `exempt`), or the file changed since.
        """
        if self._read is None:
            raise ModelError(self.obstacle or self.exempt, where=f"{self.name} ({self.location})")
        return self._read()


@attrs.frozen(eq=False)
class Weight:
    """A weight while it is traced: where it is stored and what happens to it before its use.

    Attributes:
        where: file and tensor, for messages.
        name: the stored tensor's name.
        key: equal for two weights that are one stored tensor, seen the same way.
        dtype: as stored.
        shape: of what ``read`` returns.
        read: gives the values.
        note: see `DeployedLayer`.
    """

    where: str
    name: str
    key: tuple[Hashable, ...]
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]
    note: str = ""

    def reshaped(self, shape: Sequence[int]) -> Weight:
        """The same values in another shape.

        Raises:
            ModelError: a shape of another size.
        """
        new = checked_shape(shape, self.where)
        if math.prod(new) != math.prod(self.shape):
            raise ModelError(f"of shape {list(self.shape)} is reshaped to {list(new)}", where=self.where)
        return self._seen(("reshape", new), new, lambda values: values.reshape(new))

    def transposed(self, order: Sequence[int]) -> Weight:
        """The axes in another order, as `numpy.transpose` takes it.

        Raises:
            ModelError: no order of the axes.
        """
        axes = tuple(int(axis) for axis in order)
        if sorted(axes) != list(range(len(self.shape))):
            raise ModelError(f"of rank {len(self.shape)} is transposed by {list(axes)[:8]}", where=self.where)
        shape = tuple(self.shape[axis] for axis in axes)
        return self._seen(("transpose", axes), shape, lambda values: values.transpose(axes))

    def less_zero_point(self, zero_point: Array, axis: int = 0, block: int = 0) -> Weight:
        """The values minus a quantized tensor's zero points, so that zero means zero.

        Args:
            zero_point: integers: one; one per index of ``axis``; or of the weight's rank, each length 1, the weight's
                own or, along ``axis``, the number of blocks.
            axis: may be negative.
            block: how many neighbours along ``axis`` share a zero point; 0 if there are no blocks.

        Raises:
            ModelError: they do not fit the weight.
        """
        if not zero_point.any():
            return self
        if zero_point.dtype.kind not in "iu":
            raise ModelError(f"has zero points of type {zero_point.dtype}", where=self.where, expected="integers")
        low, high = int(zero_point.min()), int(zero_point.max())
        limits = np.iinfo(self._integers())
        if not limits.min <= low <= high <= limits.max:
            raise ModelError(f"has a zero point of {high if high > limits.max else low}", where=self.where)
        grid = self._zero_point_grid(zero_point, axis, block)
        # A step wider than the stored integers, whose differences need one bit more.
        wide = np.int16 if limits.max < 1 << 8 else np.int32 if limits.max < 1 << 16 else np.int64
        change = ("zero point", grid.shape, grid.tobytes())
        weight = self._seen(
            change, self.shape, lambda values: values.astype(wide) - _spread(grid, values.shape, block).astype(wide)
        )
        return attrs.evolve(weight, note=f"zero is stored as {low}" + (f" to {high}" if high > low else ""))

    def _integers(self) -> Any:
        if self.dtype in _PACKED:
            return np.uint8 if self.dtype.startswith("u") else np.int8
        if self.dtype.startswith(("int", "uint")):
            return np.dtype(self.dtype)
        raise ModelError(f"is {self.dtype} and has zero points", where=self.where, expected="integers")

    def _zero_point_grid(self, zero_point: Array, axis: int, block: int) -> Array:
        """The zero points as an array of the weight's rank."""
        rank = len(self.shape)
        grid = zero_point
        if grid.size == 1:
            return grid.reshape((1,) * rank)
        if grid.ndim == 1 and -rank <= axis < rank:
            lengths = [1] * rank
            lengths[axis] = grid.size
            grid = grid.reshape(lengths)
        allowed = [{1, length} for length in self.shape]
        if block > 0 and -rank <= axis < rank:
            allowed[axis].add(-(-self.shape[axis] // block))
        if grid.ndim != rank or any(n not in fits for n, fits in zip(grid.shape, allowed, strict=True)):
            shapes = f"{list(zero_point.shape)} for a weight of shape {list(self.shape)}"
            raise ModelError(f"has zero points of shape {shapes}", where=self.where)
        return grid

    def _seen(self, change: Hashable, shape: tuple[int, ...], step: Callable[[Array], Array]) -> Weight:
        before = self.read
        return attrs.evolve(self, key=(*self.key, change), shape=shape, read=lambda: step(before()))


def _spread(grid: Array, shape: tuple[int, ...], block: int) -> Array:
    """``grid`` with every block of neighbours that shares a zero point written out; lengths of 1 stay."""
    for axis, (blocks, length) in enumerate(zip(grid.shape, shape, strict=True)):
        if 1 < blocks < length:
            grid = grid.take(np.arange(length) // block, axis)
    return grid


def uniquely_named(layers: Iterable[DeployedLayer]) -> list[DeployedLayer]:
    """The layers, where a name that came before gets "#2", "#3" ... appended."""
    counts: dict[str, int] = {}
    taken: set[str] = set()
    unique = []
    for layer in layers:
        name = layer.name
        while name in taken:
            counts[layer.name] = counts.get(layer.name, 1) + 1
            name = f"{layer.name}#{counts[layer.name]}"
        taken.add(name)
        unique.append(layer if name == layer.name else attrs.evolve(layer, name=name))
    return unique


class Allowance:
    """Keeps work in proportion to the file: a damaged one may name the same bytes over and over.

    Args:
        stored: bytes that the model takes, other files of it included.
        where: the file, for messages.
    """

    def __init__(self, stored: int, where: str) -> None:
        self._left = stored * _ELEMENTS_PER_BYTE
        self._where = where

    def spend(self, shape: tuple[int, ...]) -> None:
        """Count a weight that is going to be looked at.

        Raises:
            ModelError: there were more than the file can hold.
        """
        self._left -= math.prod(shape)
        if self._left < 0:
            raise ModelError("names the same weights over and over", where=self._where, hint="The file is damaged.")


# --- bytes, which nobody vouches for ---------------------------------------------------------------------


def checked_shape(dims: Iterable[int], where: str) -> tuple[int, ...]:
    """A shape that an array can have.

    Raises:
        ModelError: a negative length, too many axes, or more elements than 64 bits count.
    """
    shape = tuple(int(dim) for dim in dims)
    if len(shape) > _MAX_RANK:
        raise ModelError(f"has {len(shape)} axes", where=where, expected=f"at most {_MAX_RANK}")
    if any(dim < 0 for dim in shape):
        raise ModelError(f"has the shape {list(shape)}", where=where, expected="a weight's lengths to be known")
    # numpy multiplies the lengths that are not 0, also where one is.
    if math.prod(dim for dim in shape if dim) > _LARGEST_SIZE:
        raise ModelError(f"has the shape {list(shape)}", where=where, expected="a shape that memory can hold")
    return shape


def stored_size(dtype: str, shape: tuple[int, ...]) -> int | None:
    """How many bytes a tensor takes in a file; None for a dtype that cannot be read."""
    count = math.prod(shape)
    if dtype in _PACKED:
        return -(-count * _PACKED[dtype] // 8)
    element = _element(dtype)
    return None if element is None else count * element.itemsize


def decode(data: Any, dtype: str, shape: tuple[int, ...], where: str) -> Array:
    """A tensor from its bytes, little-endian; integers of 2 and 4 bits are unpacked into (u)int8.

    Args:
        data: bytes or a view of them; the array is a view too where nothing is packed.
        dtype: by name, as numpy and ml_dtypes have it.
        shape: checked already, see `checked_shape`.
        where: file and tensor, for messages.

    Raises:
        ModelError: another number of bytes than the shape asks for, or a dtype that cannot be read.
    """
    expected = stored_size(dtype, shape)
    if expected is None:
        raise ModelError(f"holds {dtype}", where=where, expected="a type that numpy can hold")
    if len(data) != expected:
        raise ModelError(
            f"holds {len(data)} bytes", where=where, expected=f"{expected} for {dtype} of shape {list(shape)}"
        )
    if dtype in _PACKED:
        return _unpack(np.frombuffer(data, np.uint8), dtype, math.prod(shape)).reshape(shape)
    return np.frombuffer(data, _element(dtype)).reshape(shape)


def _element(dtype: str) -> np.dtype[Any] | None:
    if dtype in _PLAIN:
        return np.dtype(dtype).newbyteorder("<")
    return np.dtype(getattr(ml_dtypes, dtype)) if dtype in _ML_FLOATS else None


def _unpack(data: npt.NDArray[np.uint8], dtype: str, count: int) -> Array:
    bits = _PACKED[dtype]
    parts = [(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    values = np.stack(parts, axis=-1).reshape(-1)[:count]
    if dtype.startswith("u"):
        return values
    sign = 1 << (bits - 1)
    return (values ^ sign).astype(np.int8) - np.int8(sign)
