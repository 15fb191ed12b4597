"""The n:m pattern: which weights of a group stay, and whether an array already follows the pattern.

A group is m consecutive weights along one axis. The n of largest magnitude stay; the lowest index wins ties.
An axis whose length m does not divide ends in a shorter group, as if zeros that are dropped first filled it.

Magnitudes are compared as integers (`ordering_key`), and `keep_planes` is the only place that decides: it
runs on numpy arrays and on TensorFlow tensors alike, so masks made in a graph and outside of it agree.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from types import EllipsisType
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.errors import ConfigError, SparsekitError

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = EllipsisType | tuple[slice, ...]

_EXPECTED_PATTERN = 'n:m with 1 <= n < m <= 256, for example "2:4"'
_PATTERN_TEXT = re.compile(r"\s*([0-9]{1,4})\s*:\s*([0-9]{1,4})\s*")

# The keys of one block and their temporaries stay in a core's L2 cache.
_BLOCK_BYTES = 3 << 17
# Arrays of up to this many elements are taken as they lie.
_SMALL = 1 << 11
# Below this length a run of neighbours costs more to start than strided reads along the groups do.
_SHORT_RUN = 8


@attrs.frozen
class Pattern:
    """At most ``n`` non-zeros among every ``m`` consecutive weights.

    Raises:
        ConfigError: not integers with 1 <= n < m <= 256.
    """

    n: int
    m: int

    def __attrs_post_init__(self) -> None:
        integers = all(isinstance(v, int) and not isinstance(v, bool) for v in (self.n, self.m))
        if not integers or not 1 <= self.n < self.m <= 256:
            raise ConfigError(f"{self.n!r}:{self.m!r}", where="pattern", expected=_EXPECTED_PATTERN)

    @classmethod
    def parse(cls, value: str | Pattern) -> Pattern:
        """The pattern that a text such as ``"2:4"`` (spaces allowed) names; a Pattern is returned as it is.

        Raises:
            ConfigError: anything else.
        """
        if isinstance(value, Pattern):
            return value
        match = _PATTERN_TEXT.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ConfigError(repr(value), where="pattern", expected=_EXPECTED_PATTERN)
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


PATTERN_2_4 = Pattern(2, 4)


@attrs.frozen
class GroupCheck:
    """How the groups of one array follow a pattern; made by `check`."""

    groups: int
    """Groups in all, a shorter one at the end of an axis included."""
    violations: int
    """Groups with more than n non-zeros."""
    density: float
    """Non-zeros / size; 1.0 for an empty array, from which nothing was removed."""
    finite: bool
    """Neither NaN nor infinity in the array."""
    histogram: tuple[int, ...]
    """Groups with 0, 1, ... m non-zeros: m + 1 numbers."""


def ordering_key(score: Any) -> Any:
    """The integers by whose order scores are compared: ``|score|``, exactly and totally ordered.

    They are a float's bits without the sign. So denormals count even where float arithmetic flushes them,
    -0.0 equals 0.0 and NaN is larger than infinity.

    Args:
        score: a numpy array or tf.Tensor of float16, bfloat16, float32, float64 or any integer dtype.

    Returns:
        int16, int32 or int64 of the same shape for floats; an integer ``score`` itself, signs included.

    Raises:
        SparsekitError: another dtype.
    """
    if _is_tensor(score):
        return _tensor_key(score)
    bits, mask = _key_bits(np.asarray(score))
    return bits if mask is None else np.bitwise_and(bits, mask)


def keep_planes(planes: Sequence[Any], n: int) -> list[Any]:
    """Choose the ``n`` largest of each group, of which ``planes[i]`` holds all the i-th members.

    Args:
        planes: the m key planes (see `ordering_key`): numpy arrays or tf.Tensors of one shape and integer
            dtype. A group cut short by the end of its axis is passed as the planes that it has.
        n: how many to keep.

    Returns:
        For each plane, which of its members stay: bool, of the same shape. Lowest index wins ties.
    """
    if len(planes) <= n:
        return [plane >= plane for plane in planes]  # all True, by an operator that both libraries have
    if (n, len(planes)) == (2, 4):
        return _keep_2_of_4(*planes)
    return _keep_by_rank(planes, n)


def keep_mask(score: npt.ArrayLike, axis: int, pattern: Pattern = PATTERN_2_4, out: Array | None = None) -> Array:
    """Mark the n largest ``|score|`` of every m consecutive along ``axis``. Lowest index wins ties.

    Args:
        score: at least one axis, any strides; float16, bfloat16, float32, float64 or integer. Integers are
            compared with their sign. Non-finite values are ordered too (NaN > inf): refuse them before.
        axis: the axis that groups run along; may be negative.
        pattern: n and m.
        out: where to write: bool, float32 or float64, C-contiguous, of ``score``'s shape, not its memory.

    Returns:
        ``out``, or a new bool array: True (1.0) where the score stays.

    Raises:
        SparsekitError: an axis out of range, a dtype without order, an ``out`` that does not fit.
    """
    score = np.asarray(score)
    axis = _normal_axis(axis, score.ndim)
    bits, mask = _key_bits(score)
    if out is None:
        out = np.empty(score.shape, np.bool_)
    else:
        _check_out(out, score)
    if 0 < score.size <= _SMALL and score.shape[axis] % pattern.m == 0 and score.flags.c_contiguous:
        _fill_small_mask(bits, mask, axis, pattern, out)
        return out
    for index, piece in _pieces(bits, axis):
        if index is ...:
            _fill_mask(piece, mask, axis, pattern, out)
        else:
            part = np.empty(piece.shape, out.dtype)
            _fill_mask(piece, mask, axis, pattern, part)
            out[index] = part
    return out


def check(weight: npt.ArrayLike, axis: int, pattern: Pattern = PATTERN_2_4) -> GroupCheck:
    """Count the non-zeros of every group along ``axis``. NaN and infinity are non-zeros, -0.0 is zero.

    Args:
        weight: at least one axis, any strides; bool, integer, float or complex, ml_dtypes' floats included.
        axis: the axis that groups run along; may be negative.
        pattern: n and m.

    Raises:
        SparsekitError: an axis out of range, or an array that does not hold numbers.
    """
    weight = np.asarray(weight)
    axis = _normal_axis(axis, weight.ndim)
    if weight.dtype.kind not in "biufc" and not _is_ml_float(weight.dtype):
        raise SparsekitError(f"dtype {weight.dtype}", where="weight", expected="numbers")
    zero = np.zeros((), weight.dtype)
    histogram = np.zeros(pattern.m + 1, np.int64)
    finite = True
    for _, piece in _pieces(weight, axis):
        for planes in _group_planes(piece, axis, pattern.m):
            for block in _blocks(planes.shape, planes.itemsize):
                values = planes[block]
                finite = finite and bool(np.isfinite(values).all())
                histogram += _count_groups(values != zero, pattern.m)
    nonzeros = int(histogram @ np.arange(pattern.m + 1))
    return GroupCheck(
        groups=int(histogram.sum()),
        violations=int(histogram[pattern.n + 1 :].sum()),
        density=nonzeros / weight.size if weight.size else 1.0,
        finite=finite,
        histogram=tuple(histogram.tolist()),
    )


# --- choosing, for numpy and TensorFlow alike ------------------------------------------------------------


def _keep_2_of_4(a0: Any, a1: Any, a2: Any, a3: Any) -> list[Any]:
    """Two pairs: a pair keeps both if its low beats the other's high, one (its high) if neither does."""
    c01 = a0 >= a1
    c23 = a2 >= a3
    high01, low01 = _sorted_pair(a0, a1)
    high23, low23 = _sorted_pair(a2, a3)
    both01 = low01 >= high23
    both23 = low23 > high01
    return [
        both01 | (c01 & ~both23),
        both01 | ~(c01 | both23),
        both23 | (c23 & ~both01),
        both23 | ~(c23 | both01),
    ]


def _keep_by_rank(planes: Sequence[Any], n: int) -> list[Any]:
    """Rank = how many others come first; i comes before j > i if key_i >= key_j, so ties favour i."""
    m = len(planes)
    ranks: list[Any] = [_count(plane < plane) for plane in planes]  # zeros; m <= 256, so uint8 holds every rank
    for j in range(m):
        for i in range(j):
            first = planes[i] >= planes[j]
            ranks[j] = ranks[j] + _count(first)
            ranks[i] = ranks[i] + _count(~first)
    return [rank < n for rank in ranks]


def _sorted_pair(a: Any, b: Any) -> tuple[Any, Any]:
    if isinstance(a, np.ndarray):
        return np.maximum(a, b), np.minimum(a, b)
    import tensorflow as tf

    return tf.maximum(a, b), tf.minimum(a, b)


def _count(condition: Any) -> Any:
    if isinstance(condition, np.ndarray):
        return condition.view(np.uint8)
    import tensorflow as tf

    return tf.cast(condition, tf.uint8)


# --- keys ------------------------------------------------------------------------------------------------


def _is_tensor(value: Any) -> bool:
    """Without importing TensorFlow: where it is not loaded, nothing is a tensor."""
    tensorflow = None if isinstance(value, np.ndarray) else sys.modules.get("tensorflow")
    return tensorflow is not None and bool(tensorflow.is_tensor(value))


def _tensor_key(score: Any) -> Any:
    import tensorflow as tf

    if score.dtype.is_integer:
        return score
    bits = {2: tf.int16, 4: tf.int32, 8: tf.int64}.get(score.dtype.size)
    if bits is None or not score.dtype.is_floating:
        raise _no_order(score.dtype.name)
    return tf.bitwise.bitwise_and(tf.bitcast(score, bits), tf.constant(bits.max, bits))


def _key_bits(score: Array) -> tuple[Array, np.signedinteger[Any] | None]:
    """``score`` viewed as integers, and the mask that makes keys of them (None: they are)."""
    bits, mask = _key_type(score.dtype)
    return (score if mask is None else score.view(bits)), mask


@functools.cache
def _key_type(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.signedinteger[Any] | None]:
    if dtype.kind in "iu":
        return dtype, None
    if (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or dtype.name == "bfloat16":
        bits = np.dtype(f"i{dtype.itemsize}")
        return (bits if dtype.isnative else bits.newbyteorder()), bits.type(np.iinfo(bits).max)
    raise _no_order(str(dtype))


def _no_order(name: str) -> SparsekitError:
    return SparsekitError(f"dtype {name}", where="score", expected="float16, bfloat16, float32, float64 or integer")


def _is_ml_float(dtype: np.dtype[Any]) -> bool:
    """ml_dtypes' floats are opaque to numpy (kind V) but have a type of their own, which structs do not."""
    return dtype.kind == "V" and dtype.type is not np.void


# --- walking an array by groups --------------------------------------------------------------------------


def _normal_axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        expected = f"{-ndim} to {ndim - 1} for an array of rank {ndim}" if ndim else "an array of rank 1 or more"
        raise SparsekitError(f"axis {axis}", where="axis", expected=expected)
    return axis % ndim


def _check_out(out: Array, score: Array) -> None:
    expected = f"a C-contiguous, writeable bool, float32 or float64 array of shape {score.shape}"
    if out.dtype not in (np.bool_, np.float32, np.float64) or out.shape != score.shape:
        raise SparsekitError(f"{out.dtype} of shape {out.shape}", where="out", expected=expected)
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise SparsekitError("an array with gaps or read-only", where="out", expected=expected)
    if np.may_share_memory(out, score):
        raise SparsekitError("memory shared with the score", where="out", expected="memory of its own")


def _fill_mask(bits: Array, mask: np.signedinteger[Any] | None, axis: int, pattern: Pattern, out: Array) -> None:
    scratch = np.empty(min(bits.size, _BLOCK_BYTES // bits.itemsize), bits.dtype.newbyteorder("="))
    sources, targets = _group_planes(bits, axis, pattern.m), _group_planes(out, axis, pattern.m)
    for source, target in zip(sources, targets, strict=True):
        for block in _blocks(source.shape, source.itemsize):
            values, result = source[block], target[block]
            keys = scratch[: values.size].reshape(values.shape)
            np.copyto(keys, values)
            if mask is not None:
                np.bitwise_and(keys, mask, out=keys)
            # numpy casts along strides slowly: floats are cast from bools that lie in the same order.
            bools = result if out.dtype == np.bool_ else np.empty_like(result, np.bool_)
            for plane, keep in zip(bools, keep_planes(list(keys), pattern.n), strict=True):
                np.copyto(plane, keep)
            if bools is not result:
                np.copyto(result, bools)


def _fill_small_mask(bits: Array, mask: np.signedinteger[Any] | None, axis: int, pattern: Pattern, out: Array) -> None:
    """`_fill_mask` where it would take longer to find out how to go through the array than to do it."""
    shape = bits.shape
    groups = (math.prod(shape[:axis]), shape[axis] // pattern.m, pattern.m, math.prod(shape[axis + 1 :]))
    keys, result = bits.reshape(groups), out.reshape(groups)
    if mask is not None:
        keys = keys & mask
    for member, keep in enumerate(keep_planes([keys[:, :, i] for i in range(pattern.m)], pattern.n)):
        result[:, :, member] = keep


def _pieces(array: Array, axis: int) -> Iterator[tuple[Index, Array]]:
    """``array`` as parts that reshape to (before, axis, after) in place, each with its index.

    Most arrays are one part as they are. Others are cut up and copied bit by bit, never as a whole.
    """
    if array.size == 0:
        return
    if _is_one_run(array, 0, axis) and _is_one_run(array, axis + 1, array.ndim):
        yield ..., array
        return
    longest = max((i for i in range(array.ndim) if i != axis), key=lambda i: array.shape[i])
    step = max(1, _BLOCK_BYTES * array.shape[longest] // array.nbytes)
    for start in range(0, array.shape[longest], step):
        cut = tuple(slice(start, start + step) if i == longest else slice(None) for i in range(array.ndim))
        part = array[cut]
        if part.nbytes <= _BLOCK_BYTES:
            yield cut, np.ascontiguousarray(part)
            continue
        for index, piece in _pieces(part, axis):
            inner = (slice(None),) * array.ndim if index is ... else index
            yield tuple(cut[i] if i == longest else inner[i] for i in range(array.ndim)), piece


def _is_one_run(array: Array, first: int, stop: int) -> bool:
    """Whether the axes from ``first`` up to ``stop`` merge into one without a copy."""
    pairs = zip(array.shape[first:stop], array.strides[first:stop], strict=True)
    longer = [(length, stride) for length, stride in pairs if length != 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(longer))


def _group_planes(array: Array, axis: int, m: int) -> list[Array]:
    """Views (members, ..., ..., ...) of the full groups and of the shorter last ones, where there are any."""
    before, length, after = (
        math.prod(array.shape[:axis]),
        array.shape[axis],
        math.prod(array.shape[axis + 1 :]),
    )
    whole = array.reshape(before, length, after)
    full = length - length % m
    parts = [whole[:, :full].reshape(before, full // m, m, after), whole[:, None, full:]]
    # The longest run of lanes goes last, where numpy's inner loops run.
    return [
        part.transpose((2, 0, 3, 1) if after < min(_SHORT_RUN, part.shape[1]) else (2, 0, 1, 3))
        for part in parts
        if part.size
    ]


def _blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Cut every axis but the first so that a block holds about `_BLOCK_BYTES`."""
    room = max(1, _BLOCK_BYTES // (itemsize * shape[0]))
    cuts: list[list[slice]] = []
    for length in reversed(shape[1:]):
        step = min(length, room)
        room //= step
        cuts.append([slice(start, start + step) for start in range(0, length, step)])
    for block in product(*reversed(cuts)):
        yield (slice(None), *block)


def _count_groups(nonzero: Array, m: int) -> npt.NDArray[np.int64]:
    """How many groups have 0 ... m members set, given their planes (members, ...)."""
    counts = np.zeros(nonzero.shape[1:], np.uint16)
    for plane in nonzero:
        counts += plane
    return np.bincount(counts.ravel(), minlength=m + 1)
