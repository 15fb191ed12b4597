"""The n:m pattern: the kernel against a slow oracle, numpy against TensorFlow, and its memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsekit.pattern
from sparsekit.errors import ConfigError, SparsekitError
from sparsekit.pattern import PATTERN_2_4, Pattern, check, keep_mask, keep_planes, ordering_key

Array = npt.NDArray[Any]

PATTERNS = [Pattern.parse(text) for text in ("2:4", "1:4", "4:8", "1:2", "3:5")]
FLOATS = [np.float32, np.float64, np.float16]
DENORMALS = {np.dtype(d): [np.finfo(d).smallest_subnormal * k for k in (1, 2, 3)] for d in FLOATS}
QUICK = settings(max_examples=300, deadline=None)


def oracle_mask(score: Array, axis: int, pattern: Pattern) -> Array:
    """Sort every group in plain Python."""
    mask = np.zeros(score.shape, bool)
    for line in lines(score.shape, axis):
        values = [score[index] for index in line]
        values = [abs(v) if isinstance(v, np.floating) else v for v in values]
        for start in range(0, len(line), pattern.m):
            members = range(start, min(start + pattern.m, len(line)))
            for i in sorted(members, key=lambda i: (-float(values[i]), i))[: pattern.n]:
                mask[line[i]] = True
    return mask


def oracle_counts(weight: Array, axis: int, m: int) -> list[int]:
    """The non-zeros of each group."""
    counts = []
    for line in lines(weight.shape, axis):
        for start in range(0, len(line), m):
            counts.append(sum(float(weight[index]) != 0 for index in line[start : start + m]))
    return counts


def lines(shape: tuple[int, ...], axis: int) -> list[list[tuple[int, ...]]]:
    """The index of every element, by line along ``axis``."""
    others = [range(n) if i != axis % len(shape) else [0] for i, n in enumerate(shape)]
    return [
        [tuple(k if i == axis % len(shape) else v for i, v in enumerate(at)) for k in range(shape[axis])]
        for at in itertools.product(*others)
    ]


def draw_values(generator: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: Any) -> Array:
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        return generator.integers(0 if dtype.kind == "u" else -3, 4, shape).astype(dtype)
    if kind == "ties":
        return generator.integers(-2, 3, shape).astype(dtype)
    if kind == "special":
        pool = np.array([0.0, -0.0, 1.0, -1.0, *DENORMALS[dtype]], dtype)
        return generator.choice(pool, shape) * generator.choice(np.array([1, -1], dtype), shape)
    return generator.standard_normal(shape).astype(dtype)


def lay_out(array: Array, layout: str) -> Array:
    """The same values with other strides."""
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "gaps":
        wide = np.full(tuple(2 * n for n in array.shape), 99, array.dtype)
        view = wide[(slice(None, None, 2),) * array.ndim]
        view[...] = array
        return view
    if layout == "reversed":
        return np.flip(np.flip(array).copy())
    if layout == "swapped":
        return np.moveaxis(np.moveaxis(array, 0, -1).copy(), -1, 0)
    return array


@st.composite
def scores(draw: st.DrawFn) -> Array:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([*FLOATS, np.int8, np.uint16, np.int64]))
    values = draw_values(generator, draw(st.sampled_from(["ties", "special", "normal"])), shape, dtype)
    return lay_out(values, draw(st.sampled_from(["plain", "fortran", "gaps", "reversed", "swapped"])))


# --- keep_mask against the oracle ------------------------------------------------------------------------


@QUICK
@given(scores(), st.sampled_from(PATTERNS), st.sampled_from([None, np.bool_, np.float32, np.float64]))
def test_keep_mask_equals_a_sort_of_every_group(score: Array, pattern: Pattern, out_dtype: Any) -> None:
    before = score.copy()
    for axis in range(-score.ndim, score.ndim):
        out = None if out_dtype is None else np.full(score.shape, 7).astype(out_dtype)
        mask = keep_mask(score, axis, pattern, out=out)
        assert mask.dtype == (out_dtype or np.bool_)
        assert out is None or mask is out
        np.testing.assert_array_equal(mask, oracle_mask(score, axis, pattern))
    np.testing.assert_array_equal(score, before)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["ties", "special", "normal"])
def test_thousands_of_groups_equal_a_sort(kind: str, dtype: Any) -> None:
    score = draw_values(np.random.default_rng(1), kind, (3, 1003, 4), dtype)
    for axis in range(3):
        np.testing.assert_array_equal(keep_mask(score, axis), oracle_mask(score, axis, PATTERN_2_4))


def test_every_order_and_tie_of_four() -> None:
    groups = np.array(list(itertools.product(range(4), repeat=4)), np.float32)
    expected = oracle_mask(groups, 1, PATTERN_2_4)
    np.testing.assert_array_equal(keep_mask(groups, 1), expected)
    np.testing.assert_array_equal(keep_mask(groups.T, 0), expected.T)
    np.testing.assert_array_equal(keep_mask(-groups.T.copy(), 0), expected.T)


def test_the_network_and_the_ranks_choose_alike() -> None:
    groups = np.array(list(itertools.product(range(4), repeat=4)), np.int32)
    ranked = sparsekit.pattern._keep_by_rank(list(groups.T), 2)
    np.testing.assert_array_equal(np.stack(keep_planes(list(groups.T), 2)), np.stack(ranked))


@pytest.mark.parametrize("shape", [(60_001, 5), (5, 60_001), (3, 41, 2003), (40, 2, 3, 1024), (300_003,), (100_001, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arrays_of_several_blocks(shape: tuple[int, ...], dtype: Any) -> None:
    score = draw_values(np.random.default_rng(2), "normal", shape, dtype)
    for axis in range(score.ndim):
        expected = argsort_mask(score, axis)
        np.testing.assert_array_equal(keep_mask(score, axis), expected)
        buffer = np.empty(shape, np.float32)
        np.testing.assert_array_equal(keep_mask(score, axis, out=buffer), expected)


def test_strided_arrays_of_several_blocks() -> None:
    plain = draw_values(np.random.default_rng(3), "normal", (33, 130, 70), np.float32)
    for order in itertools.permutations(range(3)):
        score = plain.transpose(order)[:, ::-1, 1:]
        for axis in range(3):
            np.testing.assert_array_equal(keep_mask(score, axis), argsort_mask(score, axis))
            assert check(score, axis) == check(score.copy(), axis)


def test_strided_arrays_far_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsekit.pattern, "_BLOCK_BYTES", 4096)
    plain = draw_values(np.random.default_rng(6), "normal", (9, 13, 11, 12), np.float32)
    for order in itertools.permutations(range(4)):
        score = plain.transpose(order)
        for axis in range(4):
            np.testing.assert_array_equal(keep_mask(score, axis), argsort_mask(score, axis))
            assert check(score, axis) == check(score.copy(), axis)


def argsort_mask(score: Array, axis: int) -> Array:
    """Fast enough for large arrays, and still another way."""
    moved = np.moveaxis(np.abs(score), axis, -1)
    padded = np.pad(moved, [(0, 0)] * (score.ndim - 1) + [(0, -moved.shape[-1] % 4)], constant_values=-1)
    groups = padded.reshape(-1, 4)
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, np.argsort(-groups, axis=1, kind="stable")[:, :2], True, axis=1)
    return np.moveaxis(mask.reshape(padded.shape)[..., : moved.shape[-1]], -1, axis)


# --- rules that callers rely on --------------------------------------------------------------------------


def test_zeros_keep_the_first_of_each_group() -> None:
    np.testing.assert_array_equal(keep_mask(np.zeros((1, 8), np.float32), 1), [[1, 1, 0, 0] * 2])
    np.testing.assert_array_equal(keep_mask(np.array([0.0, -0.0, -0.0, 0.0], np.float32), 0), [1, 1, 0, 0])


@pytest.mark.parametrize(("length", "kept"), [(1, [1]), (2, [1, 1]), (3, [0, 1, 1]), (6, [0, 0, 1, 1, 1, 1])])
def test_a_tail_loses_only_what_exceeds_n(length: int, kept: list[int]) -> None:
    score = np.arange(1, length + 1, dtype=np.float32)
    np.testing.assert_array_equal(keep_mask(score, 0), kept)
    np.testing.assert_array_equal(keep_mask(-score[::-1].astype(np.int16), 0), kept)  # signs count


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (3, 0, 5)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        assert keep_mask(np.empty(shape, np.float32), axis).shape == shape
        found = check(np.empty(shape, np.float32), axis)
        assert (found.groups, found.violations, found.density, found.finite) == (0, 0, 1.0, True)
        assert found.histogram == (0, 0, 0, 0, 0)


def test_denormals_and_non_finite_values_have_their_order() -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    np.testing.assert_array_equal(keep_mask(np.array([0, tiny, 0, -2 * tiny], np.float32), 0), [0, 1, 0, 1])
    np.testing.assert_array_equal(keep_mask(np.array([1, -np.nan, -np.inf, np.nan], np.float32), 0), [0, 1, 0, 1])


def test_other_dtypes_and_byte_orders() -> None:
    score = np.random.default_rng(4).standard_normal((6, 10)).astype(np.float32)
    np.testing.assert_array_equal(keep_mask(score.astype(">f4"), 0), keep_mask(score, 0))
    np.testing.assert_array_equal(keep_mask(score.tolist(), 1), keep_mask(score, 1))
    rounded = score.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(keep_mask(rounded, 0), keep_mask(rounded.astype(np.float32), 0))
    scaled = (np.abs(score) * 1000).astype(">i4")
    np.testing.assert_array_equal(keep_mask(scaled, 1), keep_mask(scaled.astype(np.float64), 1))


# --- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "key"), [("f2", np.int16), ("f4", np.int32), ("f8", np.int64), (">f4", np.int32)])
def test_ordering_key_orders_as_magnitudes_do(dtype: str, key: Any) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    keys = ordering_key(np.array([0, tiny, 2 * tiny, 1, 1.5, 60000, np.inf, np.nan], dtype))
    assert keys.dtype == key
    assert (np.diff(keys) > 0).all()
    np.testing.assert_array_equal(ordering_key(np.array([-0.0, -1, -np.inf], dtype)), keys[[0, 3, 6]])


def test_integers_are_their_own_key() -> None:
    for dtype in (np.int8, np.uint32, np.int64):
        score = np.array([3, 1, 2], dtype)
        assert ordering_key(score) is score


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_have_the_same_keys(dtype: str) -> None:
    import tensorflow as tf

    values = np.array([0, -0.0, 1e-7, -1, 2.5, np.inf, -np.inf, np.nan, 1e-40]).astype(np.dtype(dtype))
    for tensor in (tf.constant(values), tf.Variable(values)):
        found = ordering_key(tensor)
        np.testing.assert_array_equal(found.numpy(), ordering_key(values))
        assert found.numpy().dtype == ordering_key(values).dtype
    whole = tf.constant([3, -1])
    assert ordering_key(whole) is whole
    for refused in (tf.constant([True]), tf.constant([1j])):
        with pytest.raises(SparsekitError, match="expected float16"):
            ordering_key(refused)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_keep_planes_on_tensors_equals_numpy(pattern: Pattern, compiled: bool) -> None:
    import tensorflow as tf

    choose = tf.function(lambda x: keep_planes(tf.unstack(ordering_key(x)), pattern.n), jit_compile=compiled)
    generator = np.random.default_rng(5)
    for dtype in FLOATS:
        for kind in ("ties", "special", "normal"):
            score = draw_values(generator, kind, (pattern.m, 40, 7), dtype)
            expected = keep_planes(list(ordering_key(score)), pattern.n)
            np.testing.assert_array_equal(np.stack(expected), oracle_mask(score, 0, pattern))
            for plane, tensor in zip(expected, choose(score), strict=True):
                assert tensor.dtype == tf.bool
                np.testing.assert_array_equal(tensor.numpy(), plane)


def test_a_tail_of_planes_on_tensors() -> None:
    import tensorflow as tf

    score = np.array([[1, -5], [2, 5], [3, 4]], np.int32)
    for planes, expected in ((1, [[1, 1]]), (2, [[1, 1], [1, 1]]), (3, [[0, 0], [1, 1], [1, 1]])):
        found = keep_planes(tf.unstack(tf.constant(score[:planes])), 2)
        np.testing.assert_array_equal(np.stack([tensor.numpy() for tensor in found]), expected)
        np.testing.assert_array_equal(np.stack(keep_planes(list(score[:planes]), 2)), expected)


def test_numpy_use_does_not_import_tensorflow() -> None:
    code = (
        "import sys, numpy as np, sparsekit.pattern as p; a = np.ones((4, 4), 'f4');"
        "p.keep_mask(a, 0); p.ordering_key(a); p.check(a, 1); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- check -----------------------------------------------------------------------------------------------


@QUICK
@given(scores(), st.sampled_from(PATTERNS))
def test_check_counts_every_group(weight: Array, pattern: Pattern) -> None:
    for axis in range(-weight.ndim, weight.ndim):
        counts = oracle_counts(weight, axis, pattern.m)
        found = check(weight, axis, pattern)
        assert found.groups == len(counts)
        assert found.violations == sum(count > pattern.n for count in counts)
        assert found.histogram == tuple(counts.count(k) for k in range(pattern.m + 1))
        assert found.density == sum(counts) / weight.size
        assert found.finite


@QUICK
@given(scores(), st.sampled_from(PATTERNS))
def test_masked_weights_pass_the_check(weight: Array, pattern: Pattern) -> None:
    for axis in range(weight.ndim):
        assert check(weight * keep_mask(weight, axis, pattern), axis, pattern).violations == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float32", "int8", "bool", "complex64"])
def test_check_takes_any_numbers(dtype: str) -> None:
    weight = np.array([[1, 0, 1, 1], [0, 0, 1, 0]]).astype(np.dtype(dtype))
    found = check(weight, 1)
    assert (found.groups, found.violations, found.density, found.finite) == (2, 1, 0.5, True)
    assert found.histogram == (0, 1, 0, 1, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_finds_what_is_not_finite(bad: float) -> None:
    weight = np.zeros((500, 600), np.float32)
    weight[401, 599] = bad
    assert check(weight, 0) == check(weight, 0)
    assert not check(weight, 0).finite
    assert check(weight, 1).histogram == (500 * 150 - 1, 1, 0, 0, 0)


def test_check_counts_groups_of_256() -> None:
    assert check(np.ones((256, 3), np.float32), 0, Pattern(8, 256)).histogram[256] == 3


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_extra_memory_stays_near_the_result(axis: int, turned: bool) -> None:
    weight = np.ones((64, 256, 512), np.float32)
    if turned:
        weight = weight.transpose(1, 2, 0)
    keep_mask(weight[:2, :2, :2], axis)
    assert peak_bytes(lambda: keep_mask(weight, axis)) <= 0.35 * weight.nbytes
    assert peak_bytes(lambda: check(weight, axis)) <= 0.1 * weight.nbytes


def peak_bytes(run: Any) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- patterns and errors ---------------------------------------------------------------------------------


def test_patterns_read_and_print() -> None:
    assert Pattern.parse("2:4") == Pattern.parse(" 2 : 4 ") == PATTERN_2_4
    assert Pattern.parse(PATTERN_2_4) is PATTERN_2_4
    assert str(Pattern.parse("16:256")) == "16:256"
    assert len({PATTERN_2_4, Pattern(2, 4), Pattern(1, 4)}) == 2


@pytest.mark.parametrize(
    "bad", ["", "2", "2/4", "a:b", "2:4:8", "-1:4", "0:4", "4:4", "5:4", "2:257", "2.0:4", 24, None]
)
def test_bad_patterns_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r'expected n:m .*"2:4"') as caught:
        Pattern.parse(bad)
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize(("n", "m"), [(2.0, 4), (True, 4), (2, "4"), (0, 4), (4, 4), (1, 257)])
def test_patterns_hold_valid_integers_only(n: Any, m: Any) -> None:
    with pytest.raises(ConfigError):
        Pattern(n, m)


@pytest.mark.parametrize("call", [keep_mask, check])
def test_bad_axes_are_refused(call: Any) -> None:
    for axis in (2, -3):
        with pytest.raises(SparsekitError, match="expected -2 to 1 for an array of rank 2"):
            call(np.ones((4, 4), np.float32), axis)
    with pytest.raises(SparsekitError, match="rank 1 or more"):
        call(np.float32(1), 0)


def test_bad_dtypes_are_refused() -> None:
    for dtype in (np.bool_, np.complex64, np.longdouble, ml_dtypes.float8_e4m3fn):
        with pytest.raises(SparsekitError, match="expected float16"):
            keep_mask(np.zeros(4).astype(dtype), 0)
    for array in (np.array(["a"]), np.array([None]), np.zeros(2, [("a", "i4")])):
        with pytest.raises(SparsekitError, match="expected numbers"):
            check(array, 0)


def test_bad_buffers_are_refused() -> None:
    score = np.ones((4, 6), np.float32)
    frozen = np.empty((4, 6), bool)
    frozen.flags.writeable = False
    bad = [np.empty((4, 6), np.int32), np.empty((6, 4), bool), np.empty((6, 4), bool).T, frozen, score]
    for out in bad:
        with pytest.raises(SparsekitError, match=r"^out: "):
            keep_mask(score, 0, out=out)
    assert (score == 1).all()
