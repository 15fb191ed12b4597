"""Bundles copied without some tensors, and the keys of slices: TensorFlow wrote them, TensorFlow reads the copies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.artefact import bundle_copy
from sparsekit.artefact.bundle import Bundle, patch
from sparsekit.artefact.bundle_copy import copy_without
from sparsekit.artefact.slices import stored_key
from sparsekit.errors import ModelError, SaveError

WHOLE = np.arange(24 * 130, dtype=np.float32).reshape(24, 130)


def write(prefix: Path, tensors: dict[str, Any], slices: dict[str, str] | None = None) -> Bundle:
    """A bundle of tensors, and of slices of ``WHOLE`` under one name."""
    slices = slices or {}
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[*tensors, *["whole"] * len(slices)],
        shape_and_slices=[""] * len(tensors) + list(slices),
        tensors=[*tensors.values(), *map(part, slices)],
    )
    return Bundle.open(prefix)


def part(spec: str) -> Any:
    axes = [
        slice(None) if a == "-" else slice(int(a.split(",")[0]), sum(map(int, a.split(",")))) for a in axes_of(spec)
    ]
    return WHOLE[tuple(axes)]


def axes_of(spec: str) -> list[str]:
    return spec.split(" ")[-1].split(":")


def all_tensors(prefix: Path) -> dict[str, Any]:
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        np.testing.assert_array_equal(value, second[name])


NAMES = st.text(st.sampled_from("ab/é\x00_"), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.sampled_from([0, 1, 5, 200]), min_size=1, max_size=40), st.data(), st.integers(1, 300))
def test_tensorflow_finds_all_tensors_but_those_left_out(sizes, data, block):
    tensors: dict[str, Any] = {name: np.full(size, i, np.float64) for i, (name, size) in enumerate(sizes.items())}
    tensors["text"] = np.array(["", "é" * 300], object)
    left_out = data.draw(st.sets(st.sampled_from(sorted(sizes))))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(bundle_copy, "_BLOCK", block)
        bundle = write(Path(folder, "all"), tensors, {"24 130 0,10:-": "", "24 130 10,14:-": ""})
        copy_without(bundle, Path(folder, "some"), left_out)
        before, after = all_tensors(Path(folder, "all")), all_tensors(Path(folder, "some"))
        same(after, {name: value for name, value in before.items() if name not in left_out})
        copied = Bundle.open(Path(folder, "some"))
        lost = sum(bundle.entries[name].size for name in left_out)
        assert data_size(Path(folder, "some")) == data_size(Path(folder, "all")) - lost
        for key, entry in copied.entries.items():
            assert entry.crc32c == bundle.entries[key].crc32c


def data_size(prefix: Path) -> int:
    return Path(f"{prefix}.data-00000-of-00001").stat().st_size


def test_a_copy_with_all_tensors_has_the_same_data(tmp_path):
    bundle = write(tmp_path / "all", {f"layer_{i}/kernel": np.ones(i) for i in range(50)})
    copy_without(bundle, tmp_path / "copy", ())
    data = ".data-00000-of-00001"
    assert (tmp_path / f"all{data}").read_bytes() == (tmp_path / f"copy{data}").read_bytes()


def test_a_copy_can_be_patched(tmp_path):
    bundle = write(tmp_path / "all", {"a": np.ones(3), "b": np.ones(4), "c": np.ones(5)})
    copy_without(bundle, tmp_path / "copy", {"b"})
    patch(tmp_path / "copy", [("c", np.arange(5.0))])
    same(all_tensors(tmp_path / "copy"), {"a": np.ones(3), "c": np.arange(5.0)})


def test_data_files_keep_their_number(tmp_path):
    for name in "ab":
        write(tmp_path / name, {name: np.ones(4), f"{name}/mask": np.zeros(4)})
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / "a"), str(tmp_path / "b")], destination_prefix=str(tmp_path / "both")
    )
    bundle = Bundle.open(tmp_path / "both")
    assert bundle.shards == 2
    copy_without(bundle, tmp_path / "copy", {"a/mask", "b/mask"})
    same(all_tensors(tmp_path / "copy"), {"a": np.ones(4), "b": np.ones(4)})
    assert (tmp_path / "copy.data-00001-of-00002").stat().st_size == 32


def test_a_damaged_tensor_is_not_copied(tmp_path):
    bundle = write(tmp_path / "all", {"a": np.ones(3), "b": np.ones(4)})
    path = tmp_path / "all.data-00000-of-00001"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    with pytest.raises(ModelError, match="a: its bytes do not match their checksum"):
        copy_without(bundle, tmp_path / "copy", {"b"})


def test_where_nothing_can_be_written(tmp_path):
    bundle = write(tmp_path / "all", {"a": np.ones(3)})
    with pytest.raises(SaveError, match=r"nowhere/copy\.data-00000-of-00001: cannot be written"):
        copy_without(bundle, tmp_path / "nowhere" / "copy", ())


# Slices


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 23), st.integers(0, 129))
def test_the_key_of_a_slice_is_the_one_that_tensorflow_writes(data, row, column):
    def axis(start: int, size: int) -> str:
        length = data.draw(st.integers(1, size - start))
        return data.draw(st.sampled_from(["-", f"{start},{length}"]))

    spec = f"24 130 {axis(row, 24)}:{axis(column, 130)}"
    with tempfile.TemporaryDirectory() as folder:
        bundle = write(Path(folder, "b"), {}, {spec: ""})
        key = stored_key("whole", spec)
        assert key in bundle.entries
        np.testing.assert_array_equal(bundle.read(key), part(spec))


@pytest.mark.parametrize("start", [63, 64, 8191, 8192, 1 << 20, (1 << 20) - 1])
def test_long_axes_and_odd_names_too(tmp_path, start):
    size = start + 3
    for name in ("w", "a\0b", "ÿ/\xff"):
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / "b"),
            tensor_names=[name],
            shape_and_slices=[f"{size} {start},2"],
            tensors=[np.array([1, 2], np.float32)],
        )
        bundle = Bundle.open(tmp_path / "b")
        assert stored_key(name, f"{size} {start},2") in bundle.entries


@pytest.mark.parametrize(
    "spec", ["x", "4 6 0,2", "4 6 0,2:0,6:0,1", "4 6 0:0,6", "a b 0,1:0,1", " ", "4 6", "-1 6 0,1:-"]
)
def test_what_is_no_slice_has_no_key(spec):
    assert stored_key("w", spec) is None


def test_the_whole_tensor_is_stored_under_its_name(tmp_path):
    for spec in ("", "24 130 0,24:0,130", "24 130 -:-", "24 130 0,24:-"):
        assert stored_key("w", spec) == "w"
        if spec:
            assert "whole" in write(tmp_path / "b", {}, {spec: ""}).entries
            np.testing.assert_array_equal(Bundle.open(tmp_path / "b").read("whole"), WHOLE)
