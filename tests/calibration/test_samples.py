"""Samples from whatever users have: the same batches every time, and an error that names what does not fit."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.calibration.samples import ModelInput, Samples, file_batches
from sparsekit.errors import CalibrationError, MissingFileError

Array = npt.NDArray[Any]

X = ModelInput("x", "float32", (None, 4))
IDS = ModelInput("scope/ids", "int32", (None,))
SWITCH = ModelInput("training", "bool", (), required=False)


@attrs.frozen
class Placeholder:
    """What a feed_dict has for keys, as far as its name goes."""

    name: str


def _x(samples: int = 3, start: int = 0) -> Array:
    return np.arange(start, start + 4 * samples, dtype=np.float32).reshape(samples, 4)


def _ids(samples: int = 3) -> Array:
    return np.arange(samples, dtype=np.int32)


def _feeds(samples: Samples) -> list[dict[str, Array]]:
    return [dict(batch.feeds) for batch in samples]


def _same(left: list[dict[str, Array]], right: list[dict[str, Array]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(left, right, strict=True)
    )


# --- what samples may be ---------------------------------------------------------------------------------

BATCHES = [{"x": _x(), "scope/ids": _ids()}, {"x": _x(2, 50), "scope/ids": _ids(2)}]


@pytest.mark.parametrize(
    "source",
    [
        BATCHES,
        [{"x:0": batch["x"], "scope/ids:0": batch["scope/ids"]} for batch in BATCHES],
        [{Placeholder("x:0"): batch["x"], "scope/ids": batch["scope/ids"]} for batch in BATCHES],
        [(batch["x"], batch["scope/ids"]) for batch in BATCHES],
        [[batch["x"].tolist(), batch["scope/ids"].tolist()] for batch in BATCHES],
        (dict(batch) for batch in BATCHES),
        iter(BATCHES),
        {"x:0": np.concatenate([_x(), _x(2, 50)]), "scope/ids": np.concatenate([_ids(), _ids(2)])},
    ],
    ids=["dicts", "names with :0", "placeholders", "tuples", "lists", "generator", "iterator", "whole arrays"],
)
def test_batches_of_every_form_are_the_same(source: Any) -> None:
    samples = Samples(source, [X, IDS], batch_size=3)
    assert _same(_feeds(samples), BATCHES)
    assert _same(_feeds(samples), BATCHES)
    assert (len(samples), samples.count) == (2, 5)
    assert [batch.samples for batch in samples] == [3, 2]


@pytest.mark.parametrize("source", [[_x(), _x(2, 50)], [(_x(),), (_x(2, 50),)], np.concatenate([_x(), _x(2, 50)])])
def test_a_model_with_one_input_takes_bare_arrays(source: Any) -> None:
    assert _same(_feeds(Samples(source, [X], batch_size=3)), [{"x": _x()}, {"x": _x(2, 50)}])


@pytest.mark.parametrize("form", [tf.constant, tf.Variable, np.ascontiguousarray])
@pytest.mark.parametrize("whole", [True, False])
def test_a_tensor_is_an_array(form: Any, whole: bool) -> None:
    array = np.concatenate([_x(), _x(2, 50)])
    wanted = [{"x": _x(), "scope/ids": _ids()}, {"x": _x(2, 50), "scope/ids": _ids(2)}]
    if whole:
        source: Any = {"x": form(array), "scope/ids": form(np.concatenate([_ids(), _ids(2)]))}
    else:
        source = [{name: form(value) for name, value in batch.items()} for batch in wanted]
    assert _same(_feeds(Samples(source, [X, IDS], batch_size=3)), wanted)
    assert _same(_feeds(Samples(form(array), [X], batch_size=3)), [{"x": _x()}, {"x": _x(2, 50)}])


def test_a_tensor_of_a_graph_is_none() -> None:
    with tf.Graph().as_default():
        for source in (tf.ones([4, 4]), [tf.ones([4, 4])]):
            with pytest.raises(CalibrationError, match=r"input 'x': .*Tensor is no array \("):
                Samples(source, [X])


def test_a_file_of_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", **{"x:0": _x(7), "scope/ids": _ids(7)})
    for path in (tmp_path / "samples.npz", str(tmp_path / "samples.npz")):
        samples = Samples(path, [X, IDS], batch_size=3)
        assert [batch.samples for batch in samples] == [3, 3, 1]
        assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in samples]), _x(7))
        assert np.array_equal(np.concatenate([batch.feeds["scope/ids"] for batch in samples]), _ids(7))


def test_an_array_without_a_name_in_a_file_is_for_the_one_input(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, _x(3))
    for name, inputs in (("x", [X]), ("x", [X, SWITCH]), ("arr_0", [attrs.evolve(X, name="arr_0")])):
        feeds = _feeds(Samples(path, inputs))
        assert np.array_equal(np.concatenate([feed[name] for feed in feeds]), _x(3))
    with pytest.raises(CalibrationError, match="holds 1 array; expected one for each of 2 inputs"):
        Samples(path, [X, IDS])
    np.savez(path, _x(7), _ids(7))  # which is which would be a guess
    with pytest.raises(CalibrationError, match="'arr_0', which is no input"):
        Samples(path, [X, IDS])


def test_a_dataset_that_shuffles_is_read_once() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(_x(64)).shuffle(64).batch(8)
    samples = Samples(dataset, [X])
    first = _feeds(samples)
    assert _same(first, _feeds(samples))
    seen = np.concatenate([feeds["x"] for feeds in first])
    assert np.array_equal(seen[np.argsort(seen[:, 0])], _x(64))


@pytest.mark.parametrize("names", [True, False])
def test_a_dataset_of_several_inputs(names: bool) -> None:
    arrays = {"x": _x(6), "scope/ids": _ids(6)} if names else (_x(6), _ids(6))
    samples = Samples(tf.data.Dataset.from_tensor_slices(arrays).batch(4), [X, IDS])
    assert [batch.samples for batch in samples] == [4, 2]
    assert np.array_equal(next(iter(samples)).feeds["scope/ids"], _ids(4))


def test_a_switch_is_the_same_for_all_samples() -> None:
    samples = Samples({"x": _x(5), "training": False}, [X, SWITCH], batch_size=2)
    assert [batch.feeds["training"].shape for batch in samples] == [()] * 3
    assert [batch.samples for batch in samples] == [2, 2, 1]
    assert "training" not in next(iter(Samples([_x()], [X, SWITCH]))).feeds
    assert next(iter(Samples([(_x(), True)], [X, SWITCH]))).feeds["training"]


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("float32", np.float64),
        ("float32", np.uint8),
        ("float16", np.float32),
        (ml_dtypes.bfloat16, np.float32),
        ("float32", ml_dtypes.bfloat16),
        ("int32", np.int64),
        ("uint8", np.int64),
        ("complex64", np.float32),
    ],
)
def test_numbers_are_converted_to_the_input_s_dtype(dtype: Any, given: Any) -> None:
    (batch,) = Samples([np.ones([1, 4], given)], [ModelInput("x", dtype, (None, 4))])
    assert batch.feeds["x"].dtype == np.dtype(dtype) and (batch.feeds["x"] == np.ones([1, 4], dtype)).all()


def test_strings_stay_strings() -> None:
    (batch,) = Samples([np.array([b"a", b"bc"], object)[:1]], [ModelInput("text", object, (None,))])
    assert batch.feeds["text"].tolist() == [b"a"]


def test_infinity_is_a_value_like_others() -> None:
    """Attention masks are made of it."""
    (batch,) = Samples([np.full([1, 4], -np.inf)], [X])
    assert np.isneginf(batch.feeds["x"]).all()


# --- what is kept, and where -----------------------------------------------------------------------------


def test_a_generator_may_fill_one_array_again_and_again() -> None:
    def batches() -> Iterator[Array]:
        buffer = np.empty([2, 4], np.float32)
        for number in range(3):
            buffer[:] = number
            yield buffer

    samples = Samples(batches(), [X])
    assert [batch.feeds["x"][0, 0] for batch in samples] == [0, 1, 2]


def test_arrays_of_a_list_are_not_copied() -> None:
    array = _x()
    (first, second) = Samples([array], [X])
    assert np.shares_memory(first.feeds["x"], array) and np.shares_memory(second.feeds["x"], array)


@pytest.mark.parametrize("limit", [0, 40, 100, 1 << 30])
def test_past_the_limit_of_memory_batches_come_from_a_file(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: files.append(make(**options)) or files[-1])
    wanted = [{"x": _x(start=number)} for number in range(4)]  # 48 bytes each
    samples = Samples(iter(wanted), [X], memory_limit=limit)
    assert _same(_feeds(samples), wanted)
    # Two readers at once, out of step.
    ahead, behind = iter(samples), iter(samples)
    assert np.array_equal(next(ahead).feeds["x"], wanted[0]["x"])
    assert np.array_equal(next(ahead).feeds["x"], wanted[1]["x"])
    assert np.array_equal(next(behind).feeds["x"], wanted[0]["x"])
    assert np.array_equal(next(ahead).feeds["x"], wanted[2]["x"])
    in_file = 4 - min(4, limit // 48)
    assert len(files) == (in_file > 0)
    if files:
        assert os.fstat(files[0].fileno()).st_size == in_file * (128 + 48)


def test_strings_and_switches_survive_the_file() -> None:
    inputs = [ModelInput("text", object, (None,)), ModelInput("training", "bool", ())]
    batches = [(np.array([b"a", "b\0c"], object), True), (np.array([b"d"], object), False)]
    found = [batch.feeds for batch in Samples(iter(batches), inputs, memory_limit=0)]
    assert [feeds["text"].tolist() for feeds in found] == [[b"a", "b\0c"], [b"d"]]
    assert [bool(feeds["training"]) for feeds in found] == [True, False]


def test_a_generator_without_end_stops_where_there_is_no_more_room() -> None:
    """Here files may have 100 kB."""
    code = (
        "import itertools, resource, numpy as np\n"
        "from sparsekit.calibration.samples import ModelInput, Samples\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "endless = (np.ones([64, 4], 'f') for _ in itertools.count())\n"
        "Samples(endless, [ModelInput('x', 'float32', (None, 4))], memory_limit=0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert re.search(r"CalibrationError: samples: cannot be kept in .* after \d+ batches .*islice", ended.stderr)
    assert "ignored" not in ended.stderr


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_the_file_is_deleted(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if how == "closed":
        with Samples(iter([_x()]), [X], memory_limit=0):
            pass
    else:
        samples = Samples(iter([_x()]), [X], memory_limit=0)
        del samples
        gc.collect()
    assert not list(tmp_path.iterdir())
    if open_before is not None:
        assert len(os.listdir("/proc/self/fd")) == open_before


# --- halves ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_every_sample_is_in_one_half_and_whole_batches_are(lengths: list[int]) -> None:
    samples = Samples([_x(length) for length in lengths], [X])
    halves = samples.halves
    assert halves.shape == (samples.count,) == (sum(lengths),)
    assert [int(fold) for batch in samples for fold in [batch.fold] * batch.samples] == halves.tolist()
    sums = np.bincount(halves, minlength=2)
    assert abs(int(sums[0] - sums[1])) <= max(lengths)
    if sum(lengths) > 1:
        assert sums.all()


def test_batches_of_one_size_alternate() -> None:
    assert [batch.fold for batch in Samples([_x()] * 5, [X])] == [0, 1, 0, 1, 0]


def test_a_single_batch_is_cut_in_two_where_the_model_allows() -> None:
    samples = Samples(iter([{"x": _x(5), "training": True}]), [X, SWITCH], memory_limit=0)
    assert samples.halves.tolist() == [0, 0, 0, 1, 1]
    assert [len(batch.feeds["x"]) for batch in samples] == [3, 2]
    assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in samples]), _x(5))
    assert [batch.feeds["training"].shape for batch in samples] == [(), ()]
    assert Samples([_x(5)], [ModelInput("x", "float32", (5, 4))]).halves.tolist() == [0] * 5
    assert Samples([_x(1)], [X]).halves.tolist() == [0]


def test_arrays_are_cut_as_a_model_that_takes_a_fixed_number_needs_it(tmp_path: Path) -> None:
    fixed = [ModelInput("x", "float32", (2, 4))]
    np.savez(tmp_path / "x.npz", x=_x(6))
    for source in (_x(6), {"x": _x(6)}, tmp_path / "x.npz"):
        samples = Samples(source, fixed)
        assert [len(batch.feeds["x"]) for batch in samples] == [2, 2, 2] and samples.halves.tolist() == [
            0,
            0,
            1,
            1,
            0,
            0,
        ]
    assert [(b.start, b.stop) for b in file_batches([str(tmp_path / "x.npz")], fixed)] == [(0, 2), (2, 4), (4, 6)]
    with pytest.raises(CalibrationError, match=r"batch 3, input 'x': shape \[1, 4\]; .*\[2, 4\].*a multiple of that"):
        Samples(_x(7), fixed)
    # Nobody knows what a default that is not fed is for.
    default = ModelInput("mean", "float32", (3,), required=False)
    assert [batch.samples for batch in Samples({"x": _x(6)}, [default, *fixed])] == [2, 2, 2]


# --- what does not fit -----------------------------------------------------------------------------------

_NAN = np.where(np.arange(12).reshape(3, 4) == 6, np.nan, _x())

BAD: dict[str, tuple[Any, str]] = {
    "nothing": (None, "samples: got NoneType; expected an iterable of batches"),
    "bytes": (b"samples.npz", "samples: got bytes; expected an iterable of batches"),
    "empty list": ([], "samples: is empty; expected at least one batch"),
    "empty generator": (iter(()), "samples: is empty"),
    "no samples": ([(_x(), _ids()), (_x(0), _ids(0))], "batch 1: holds no samples"),
    "whole arrays without samples": ({"x": _x(0), "scope/ids": _ids(0)}, "samples: is empty"),
    "unknown name": (
        [{"x": _x(), "scope/id": _ids()}],
        r"batch 0: has an array for 'scope/id', which is no input of the model; expected names of 'x' "
        r"\(float32\[\?, 4\]\), 'scope/ids' \(int32\[\?\]\). Did you mean 'scope/ids'\?",
    ),
    "twice": ([{"x": _x(), "x:0": _x(), "scope/ids": _ids()}], "batch 0: has two arrays for 'x'"),
    "missing": ([BATCHES[0], {"x": _x()}], r"batch 1: has no array for 'scope/ids' \(int32\[\?\]\)"),
    "labels too": (
        [(_x(), _ids(), _ids())],
        "batch 0: holds 3 arrays; expected one for each of 2 inputs: .*Labels are not needed: leave them out",
    ),
    "one of two": ([_x()], "batch 0: holds 1 array; expected one for each of 2 inputs"),
    "one array": (_x(), "samples: is one array; expected a dict of arrays: 'x'"),
    "dtype": ([(_x(), _x()[:, 0])], r"batch 0, input 'scope/ids': dtype float32; expected 'scope/ids' \(int32\[\?\]\)"),
    "raw bytes": ([(np.zeros((3, 4), "V2"), _ids())], r"batch 0, input 'x': dtype \|V2; expected 'x' \(float32"),
    "strings": ([(np.array([["a"] * 4]), _ids(1))], "batch 0, input 'x': dtype <U1; expected 'x'"),
    "objects": ([([[1, 2, 3, None]], _ids(1))], "batch 0, input 'x': dtype object"),
    "ragged": ([([[1.0], [1.0, 2.0]], _ids(2))], "batch 0, input 'x': list is no array .*expected arrays of numbers"),
    "too large": ([(_x(1), np.array([1 << 40]))], "batch 0, input 'scope/ids': values that int32 cannot hold"),
    "too large a float": ([(np.full([1, 4], 1e300), _ids(1))], "batch 0, input 'x': values too large for float32"),
    "rank": (
        [(_x(), _ids()), (_x()[0], _ids(1))],
        r"batch 1, input 'x': rank 1, shape \[4\]; expected 'x' \(float32\[\?, 4\]\). The first axis",
    ),
    "length": ([(_x()[:, :3], _ids())], r"batch 0, input 'x': shape \[3, 3\]; expected 'x' \(float32\[\?, 4\]\)"),
    "different numbers": (
        [(_x(3), _ids(2))],
        "batch 0: its arrays hold different numbers of samples: 'x' 3, 'scope/ids' 2; expected as many",
    ),
    "whole arrays of different numbers": (
        {"x": _x(4), "scope/ids": _ids(5)},
        "samples: its arrays hold different numbers of samples: 'x' 4, 'scope/ids' 5",
    ),
    "NaN": (
        [(_x(), _ids()), (_NAN, _ids())],
        r"batch 1, input 'x': NaN in 1 of 12 elements, the first at \[1, 2\]; expected numbers",
    ),
    "NaN in whole arrays": ({"x": np.concatenate([_x(), _NAN]), "scope/ids": _ids(6)}, "batch 1, input 'x': NaN in 1"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_told(source: Any, message: str) -> None:
    with pytest.raises(CalibrationError) as told:
        Samples(source, [X, IDS], batch_size=3)
    assert_matches(message, str(told.value))


def assert_matches(message: str, found: str) -> None:
    assert re.match(message, found), f"{found!r} is not what was expected: {message!r}"


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing, text, single, pickled, wrong = (tmp_path / name for name in ("a.npz", "b.npz", "c.npz", "d.npz", "e.npz"))
    text.write_text("x")
    with single.open("wb") as file:
        np.save(file, _x())
    np.savez(pickled, x=np.array([None]))
    np.savez(wrong, x=_x()[:, :3])
    with pytest.raises(MissingFileError, match=f"{missing}: there is no such file"):
        Samples(missing, [X])
    with pytest.raises(CalibrationError, match=f"{text}: cannot be read"):
        Samples(text, [X])
    with pytest.raises(CalibrationError, match=f"{tmp_path}: cannot be read"):
        Samples(tmp_path, [X])
    with pytest.raises(CalibrationError, match=f"{single}: holds a single array; expected an .npz file"):
        Samples(single, [X])
    with pytest.raises(CalibrationError, match=f"{pickled}: cannot be read"):
        Samples(pickled, [X])
    with pytest.raises(CalibrationError, match=rf"{wrong}, batch 0, input 'x': shape \[3, 3\]"):
        Samples(wrong, [X])


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, x=_x(100))
    for size in (10, 200, len(whole.read_bytes()) - 30):
        cut = tmp_path / "cut.npz"
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(CalibrationError, match=r"cut\.npz: cannot be read"):
            Samples(cut, [X])


def test_a_dataset_without_end_or_eager_execution_is_refused() -> None:
    dataset = tf.data.Dataset.from_tensor_slices(_x(8)).batch(2)
    with pytest.raises(CalibrationError, match=r"is a tf\.data\.Dataset without end"):
        Samples(dataset.repeat(), [X])
    with tf.Graph().as_default(), pytest.raises(CalibrationError, match="where eager execution is off"):
        Samples(dataset, [X])


def test_where_a_dataset_fails_is_told() -> None:
    def decoded(x: Array) -> Array:
        if x[0, 0] == 16:
            raise RuntimeError("broken jpeg")
        return x

    def read() -> Iterator[Array]:
        yield _x()
        raise OSError("disk is gone")

    dataset = tf.data.Dataset.from_tensor_slices(_x(8)).batch(2)
    failing = dataset.map(lambda x: tf.numpy_function(decoded, [x], tf.float32))
    with pytest.raises(CalibrationError) as told:
        Samples(failing, [X])
    assert_matches(
        r"batch 2: the tf\.data\.Dataset fails \(.*RuntimeError: broken jpeg\)\. .*ignore_errors", str(told.value)
    )
    assert "\n" not in str(told.value) and isinstance(told.value.__cause__, tf.errors.OpError)
    assert [len(batch.feeds["x"]) for batch in Samples(failing.ignore_errors(), [X])] == [2, 2, 2]
    with pytest.raises(CalibrationError, match=r"batch 1: .* \(.*Tensor had Inf"):
        Samples(dataset.map(lambda x: tf.debugging.check_numerics(1 / (8 - x), "")), [X])
    with pytest.raises(CalibrationError, match=r"batch 1: .* \(.*OSError: disk is gone"):
        Samples(tf.data.Dataset.from_generator(read, output_signature=tf.TensorSpec([None, 4])), [X])
    with pytest.raises(OSError, match=r"^disk is gone$"):
        Samples(read(), [X])


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_batch_has_a_whole_number_of_samples(size: Any) -> None:
    with pytest.raises(CalibrationError, match=r"batch_size: .* expected a positive integer"):
        Samples([_x()], [X], batch_size=size)


def test_tensorflow_is_not_imported_for_arrays() -> None:
    code = (
        "import sys, numpy as np\n"
        "from sparsekit.calibration.samples import ModelInput, Samples\n"
        "assert len(Samples([np.ones([2, 4])], [ModelInput('x', 'float32', (None, 4))])) == 2\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
