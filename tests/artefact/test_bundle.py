"""The tensor bundle: real ones read and patched, damaged and hostile ones refused."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from bounded import bounded
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import tensor_bundle_pb2

from sparsekit.artefact import bundle as module
from sparsekit.artefact.bundle import Bundle, Entry, patch
from sparsekit.errors import MissingFileError, ModelError, SaveError

Array = npt.NDArray[Any]
Record = tuple[bytes, bytes]


def write(prefix: Path, tensors: dict[str, Any]) -> Path:
    """A bundle as TensorFlow writes it."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    values = [tf.constant(value) for value in tensors.values()]
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=list(tensors), shape_and_slices=[""] * len(values), tensors=values
    )
    return prefix


def read_by_tensorflow(prefix: Path) -> dict[str, Any]:
    reader = tf.train.load_checkpoint(str(prefix))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}


def index_of(prefix: Path) -> Path:
    return Path(f"{prefix}.index")


def data_of(prefix: Path, shard: int = 0, shards: int = 1) -> Path:
    return Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


SMALL = {"a/kernel": normal(4, 8), "b": normal(3), "c": np.float32(2.5), "d/kernel": normal(8, 4), "e": np.int64([7])}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "v" / "variables", SMALL)


# Reading


NUMBERS = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
NUMBERS += ("uint64", "bool", "complex64", "complex128", "float8_e5m2", "int4")


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_reads_what_tensorflow_wrote(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    value = (np.arange(np.prod(shape)) % 7).reshape(shape).astype(tf.as_dtype(dtype).as_numpy_dtype)
    bundle = Bundle.open(write(tmp_path / "b", {"x": value}))
    read = bundle.read("x")
    assert bundle.entries["x"].dtype == dtype and read.dtype == value.dtype and read.shape == shape
    assert read.tobytes() == value.tobytes()


def test_reads_strings(tmp_path: Path) -> None:
    long = b"x" * 300_000
    bundle = Bundle.open(write(tmp_path / "b", {"empty": b"", "long": long, "two": [b"a", b"b"]} | {"n": 1.0}))
    assert bundle.read_string("empty") == b"" and bundle.read_string("long") == long
    for key in ("two", "n"):
        with pytest.raises(ModelError, match="is not one string"):
            bundle.read_string(key)


def test_an_index_of_many_blocks(tmp_path: Path) -> None:
    tensors = {f"{i}{'/layer' * 20}": np.float32([i]) for i in range(5_000)}
    bundle = Bundle.open(write(tmp_path / "b", tensors))
    assert len({record.block.offset for record in bundle._index.records.values()}) > 1
    assert {key: bundle.read(key).tolist() for key in bundle.entries} == {k: v.tolist() for k, v in tensors.items()}
    patch(bundle.prefix, [(key, -value) for key, value in tensors.items()])
    assert {k: v.tolist() for k, v in read_by_tensorflow(bundle.prefix).items()} == {
        k: [-v[0]] for k, v in tensors.items()
    }


def test_several_data_files(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", {"a": normal(3, 3)}), write(tmp_path / "two", {"b": normal(5)})
    both = tmp_path / "both"
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=[str(one), str(two)], destination_prefix=str(both))
    before = [data_of(both, shard, 2).read_bytes() for shard in (0, 1)]
    bundle = patch(both, [("b", normal(5, seed=1))])
    assert bundle.shards == 2 and {entry.shard for entry in bundle.entries.values()} == {0, 1}
    read = read_by_tensorflow(both)
    assert (read["a"] == normal(3, 3)).all() and (read["b"] == normal(5, seed=1)).all()
    changed = [data_of(both, shard, 2).read_bytes() != was for shard, was in enumerate(before)]
    assert changed.count(True) == 1


def test_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    megabytes = 16
    big = {name: normal(megabytes << 18) for name in "abc"}
    prefix = write(tmp_path / "b", big)
    del big
    tracemalloc.start()
    bundle = Bundle.open(prefix)
    for key in "abc":
        bundle.read(key)
    assert bundle.equal("a", "b") and bundle.equal("b", "c")
    patch(prefix, ((key, bundle.read(key)) for key in "abc"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.3 * megabytes * 2**20  # the value that is written and the next one being read


def test_equal(tmp_path: Path) -> None:
    x = normal(4, 4)
    bundle = Bundle.open(write(tmp_path / "b", {"x": x, "same": x, "shape": x.reshape(2, 8), "other": -x}))
    assert bundle.equal("x", "same")
    assert not bundle.equal("x", "shape") and not bundle.equal("x", "other")


# Patching


def test_patching_changes_the_values_and_the_checksums_alone(small: Path) -> None:
    index, data = index_of(small).read_bytes(), data_of(small).read_bytes()
    new = {"a/kernel": normal(4, 8, seed=1), "c": np.float32(-0.0)}
    before, after = Bundle.open(small), patch(small, new.items())
    for key, value in (SMALL | new).items():
        assert after.read(key).tobytes() == np.asarray(value).tobytes()
        assert read_by_tensorflow(small)[key].tobytes() == np.asarray(value).tobytes()

    written = {i for key in new for e in [before.entries[key]] for i in range(e.offset, e.offset + e.size)}
    now = data_of(small).read_bytes()
    assert len(now) == len(data)
    assert {i for i, (a, b) in enumerate(zip(data, now, strict=True)) if a != b} <= written
    now = index_of(small).read_bytes()
    assert len(now) == len(index)
    # Four bytes in either entry, four behind the block that holds both.
    assert sum(a != b for a, b in zip(index, now, strict=True)) <= 4 * 3


def test_patching_a_key_twice_keeps_the_last_value(small: Path) -> None:
    patch(small, [("b", np.float32([1, 2, 3])), ("b", np.float32([4, 5, 6]))])
    assert read_by_tensorflow(small)["b"].tolist() == [4, 5, 6]


def test_patching_nothing_changes_nothing(small: Path) -> None:
    index = index_of(small).read_bytes()
    patch(small, [])
    assert index_of(small).read_bytes() == index


def test_values_may_be_views(small: Path) -> None:
    patch(small, [("a/kernel", normal(8, 4).T), ("d/kernel", np.broadcast_to(np.float32(3), (8, 4)))])
    read = read_by_tensorflow(small)
    assert (read["a/kernel"] == normal(8, 4).T).all() and (read["d/kernel"] == 3).all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("b", np.zeros(4, np.float32), r"b: its new value is float32 \[4\]; expected float32 \[3\]"),
        ("b", np.zeros(3, np.float64), r"b: its new value is float64 \[3\]; expected float32 \[3\]"),
        ("b", np.zeros(3, ">f4"), "its new value is >f4"),
        ("bb", np.zeros(3, np.float32), "has no entry 'bb'. Did you mean 'b'?"),
    ],
)
def test_refuses_values_that_do_not_fit(small: Path, key: str, value: Array, message: str) -> None:
    index, data = index_of(small).read_bytes(), data_of(small).read_bytes()
    with pytest.raises(ModelError, match=message):
        patch(small, [(key, value)])
    assert (index_of(small).read_bytes(), data_of(small).read_bytes()) == (index, data)


def test_a_full_disk(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match=r"variables.index: cannot be written \(No space left on device\)"):
        patch(small, [])


def value_with_checksum_zero() -> Array:
    """The four bytes whose masked checksum is 0. A checksum is affine in the bits that it is taken of."""
    unmasked = (0 - 0xA282EAD8) & 0xFFFFFFFF
    wanted = (unmasked << 15 | unmasked >> 17) & 0xFFFFFFFF
    zero = google_crc32c.value(bytes(4))
    basis: dict[int, tuple[int, int]] = {}
    for bit in range(32):
        effect, bits = google_crc32c.value(struct.pack("<I", 1 << bit)) ^ zero, 1 << bit
        for top, (other, other_bits) in sorted(basis.items(), reverse=True):
            if effect >> top & 1:
                effect, bits = effect ^ other, bits ^ other_bits
        basis[effect.bit_length() - 1] = (effect, bits)
    rest, solution = wanted ^ zero, 0
    for top, (effect, bits) in sorted(basis.items(), reverse=True):
        if rest >> top & 1:
            rest, solution = rest ^ effect, solution ^ bits
    return np.array([solution], np.uint32)


def test_a_checksum_of_zero(tmp_path: Path) -> None:
    """TensorFlow leaves a zero field out, so that an entry with one has no room for another."""
    zero, one = value_with_checksum_zero(), np.array([1], np.uint32)
    prefix = write(tmp_path / "b", {"x": zero, "y": one})
    bundle = Bundle.open(prefix)
    assert bundle.entries["x"].crc32c == 0 and (bundle.read("x") == zero).all()
    with pytest.raises(ModelError, match="x: its entry has no room for a checksum"):
        patch(prefix, [("x", one)])

    prefix = write(tmp_path / "c", {"x": zero, "y": one})
    bundle = patch(prefix, [("y", zero)])
    assert bundle.entries["y"].crc32c == 0
    assert (bundle.read("y") == zero).all() and (read_by_tensorflow(prefix)["y"] == zero).all()
    patch(prefix, [("y", one)])
    assert (read_by_tensorflow(prefix)["y"] == one).all()


# Refusals. Tables are built here by hand, so that every checksum is right but one thing is wrong.


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def sealed(contents: bytes, kind: int = 0) -> bytes:
    """A block with its trailer."""
    return contents + bytes([kind]) + struct.pack("<I", masked(contents + bytes([kind])))


def block(records: Sequence[Record], restarts: Sequence[int] = (0,)) -> bytes:
    written = b"".join(varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in records)
    return written + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(*contents: bytes, separators: Sequence[bytes] = (b"~",), handles: Sequence[tuple[int, int]] = ()) -> bytes:
    """An index file of these data blocks."""
    file, found = b"", []
    for one in contents:
        found.append((len(file), len(one)))
        file += sealed(one)
    meta = (len(file), len(block([])))
    file += sealed(block([]))
    pointers = [(s, varint(a) + varint(b)) for s, (a, b) in zip(separators, handles or found, strict=True)]
    index = block(pointers)
    footer = b"".join(varint(n) for n in (*meta, len(file), len(index)))
    return file + sealed(index) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def header(**changes: Any) -> Record:
    fields = {"num_shards": 1, "version": {"producer": 1}} | changes
    return b"", tensor_bundle_pb2.BundleHeaderProto(**fields).SerializeToString()


def entry(key: bytes = b"x", **changes: Any) -> Record:
    """Four floats at the beginning of the data file."""
    fields: dict[str, Any] = {"dtype": 1, "shape": {"dim": [{"size": 4}]}, "size": 16, "crc32c": masked(bytes(16))}
    return key, tensor_bundle_pb2.BundleEntryProto(**(fields | changes)).SerializeToString()


def placed(folder: Path, index: bytes, data: bytes = bytes(32)) -> Path:
    (folder / "variables.index").write_bytes(index)
    (folder / "variables.data-00000-of-00001").write_bytes(data)
    return folder / "variables"


def test_the_tables_made_here_are_good(tmp_path: Path) -> None:
    two = table(block([header(), entry(b"a")]), block([entry(b"b", offset=16)]), separators=(b"a", b"b"))
    prefix = placed(tmp_path, two)
    assert list(Bundle.open(prefix).entries) == ["a", "b"]
    assert {key: value.tolist() for key, value in read_by_tensorflow(prefix).items()} == {
        "a": [0.0] * 4,
        "b": [0.0] * 4,
    }


def one_block(*records: Record) -> bytes:
    return table(block([header(), *records]))


GOOD = one_block(entry())
BAD_TABLES = {
    "empty": (b"", "is not the index of a tensor bundle"),
    "text": (b"variables " * 20, "is not the index of a tensor bundle"),
    "magic": (GOOD[:-1] + b"\0", "is not the index of a tensor bundle"),
    "cut off at the end": (GOOD[:-9], "is not the index of a tensor bundle"),
    "cut off at the beginning": (GOOD[9:], "the block at byte .* behind the end|do not match|lie on one another"),
    "footer alone": (GOOD[-48:], "lie on one another|behind the end"),
    "footer without end": (GOOD[:-48] + b"\xff" * 40 + GOOD[-8:], "the number at byte .* does not end"),
    "index block behind the end": (
        GOOD[:-48] + (varint(0) + varint(8) + varint(1 << 63) + varint(1 << 62)).ljust(40, b"\0") + GOOD[-8:],
        "lie on one another",
    ),
    "block checksum": (bytes([GOOD[0] ^ 1]) + GOOD[1:], "the block at byte 0: its bytes do not match their checksum"),
    "compressed": (
        GOOD.replace(sealed(block([header(), entry()])), sealed(block([header(), entry()]), kind=1)),
        r"the block at byte 0: is compressed \(kind 1\)",
    ),
    "no records": (table(block([])), "restart points are wrong"),
    "no restarts": (table(block([header(), entry()], restarts=())), "has 0 restart points"),
    "too many restarts": (table(bytes(8) + b"\xff\xff\xff\xff"), "has 4294967295 restart points"),
    "a restart elsewhere": (table(block([header(), entry()], restarts=(0, 5))), "restart points are wrong"),
    "restarts out of order": (table(block([header(), entry()], restarts=(0, 0))), "restart points are not in order"),
    "a block of three bytes": (table(b"abc"), "has 0 restart points"),
    "a record too long": (table(b"\0\0\xff\xff\xff\x0f" + block([])), "the record at byte 0 does not fit"),
    "a shared prefix of nothing": (table(b"\x05\0\0" + block([])), "the record at byte 0 does not fit"),
    "a length without end": (table(b"\xff" * 12 + block([])), "the number at byte 0 does not end"),
    "a length above 64 bits": (table(b"\xff" * 9 + b"\x7f" + block([])), "the number at byte 0 does not end"),
    "a handle with a tail": (table(block([header()]), separators=(b"~",), handles=[(0, 2**70)]), "does not end"),
    "a handle to itself": (table(block([header()]), handles=[(len(GOOD) - 70, 20)]), "lie on one another"),
    "a handle far away": (table(block([header()]), handles=[(2**60, 2**60)]), "lie on one another"),
    "one block twice": (
        table(block([header()]), block([entry()]), separators=(b"", b"x"), handles=[(0, len(block([header()])))] * 2),
        "lie on one another",
    ),
    "a separator too low": (table(block([header(), entry()]), separators=(b"a",)), "blocks are not in order"),
    "a separator too high": (
        table(block([header(), entry(b"a")]), block([entry(b"b")]), separators=(b"c", b"d")),
        "blocks are not in order",
    ),
    "one key twice": (one_block(entry(), entry(offset=16)), "x: its keys are not in order, each once|each once: x"),
    "keys out of order": (one_block(entry(b"b"), entry(b"a", offset=16)), "its keys are not in order, each once"),
    "keys that read alike": (one_block(entry(b"\\xff"), entry(b"\xff", offset=16)), "blocks are not in order|alike"),
    "no header": (table(block([entry()])), "has no header"),
    "a header of something else": (table(block([(b"", b"\xff\xff"), entry()])), "has no header"),
    "big-endian": (table(block([header(endianness=1), entry()])), "is big-endian; expected a little-endian bundle"),
    "a version to come": (table(block([header(version={"min_consumer": 2}), entry()])), "asks for version 2"),
    "a version that is bad": (table(block([header(version={"bad_consumers": [1]}), entry()])), "asks for version"),
    "no data files": (table(block([header(num_shards=0), entry()])), "has 0 data files"),
    "negative data files": (table(block([header(num_shards=-1), entry()])), "has -1 data files"),
    "an entry of something else": (one_block((b"x", b"\xff\xff")), "x: its entry cannot be read"),
    "no dtype": (one_block(entry(dtype=0)), "x: has data type 0"),
    "an unknown dtype": (one_block(entry(dtype=99)), "x: has data type 99"),
    "a reference": (one_block(entry(dtype=101)), "x: has data type 101"),
    "unknown rank": (one_block(entry(shape={"unknown_rank": True})), "x: has no definite shape"),
    "a negative dimension": (one_block(entry(shape={"dim": [{"size": -4}]})), "x: has no definite shape"),
    "a rank of 255": (one_block(entry(shape={"dim": [{"size": 1}] * 255})), "x: has no definite shape"),
    "a shape that overflows": (
        one_block(entry(shape={"dim": [{"size": 2**62}, {"size": 4}, {"size": 4}]})),
        "x: is 16 bytes long; expected 295147905179352825856",
    ),
    "a size that does not match": (one_block(entry(size=12)), r"x: is 12 bytes long; expected 16 for float32 \[4\]"),
    "a negative size": (one_block(entry(size=-16)), "x: is -16 bytes long"),
    "a negative offset": (one_block(entry(offset=-16)), "x: lies at byte -16 and is 16 long, in a data file of 32"),
    "an offset behind the end": (
        one_block(entry(offset=17)),
        "x: lies at byte 17 and is 16 long, in a data file of 32",
    ),
    "an offset that overflows": (one_block(entry(offset=2**63 - 1)), "x: lies at byte 9223372036854775807"),
    "a data file too many": (one_block(entry(shard_id=1)), "x: lies in data file 1 of 1"),
    "a negative data file": (one_block(entry(shard_id=-1)), "x: lies in data file -1 of 1"),
    "tensors on one another": (one_block(entry(b"a"), entry(b"b", offset=12)), "b: lies on the bytes of another"),
    "one tensor twice": (one_block(entry(b"a"), entry(b"b")), "b: lies on the bytes of another"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_refuses(tmp_path: Path, name: str) -> None:
    index, message = BAD_TABLES[name]
    with pytest.raises(ModelError, match=message) as caught:
        Bundle.open(placed(tmp_path, index))
    assert "variables.index" in str(caught.value)


def test_refuses_to_read_what_is_no_whole_array(tmp_path: Path) -> None:
    sliced = entry(b"s", slices=[{"extent": [{"start": 0, "length": 2}]}], size=0)
    bundle = Bundle.open(placed(tmp_path, one_block(entry(b"r", dtype=20), sliced, entry(b"v", dtype=21, offset=16))))
    for key, message in {"s": "in 1 slices", "r": "is a resource", "v": "is a variant"}.items():
        with pytest.raises(ModelError, match=f"variables.index: {key}: .*{message}"):
            bundle.read(key)
        with pytest.raises(ModelError, match=message):
            patch(bundle.prefix, [(key, np.zeros(4, np.float32))])


def test_a_partitioned_variable_is_known_as_one(tmp_path: Path) -> None:
    x = normal(4, 6)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "b"),
        tensor_names=["x", "x", "y"],
        shape_and_slices=["4 6 0,2:-", "4 6 2,2:-", ""],
        tensors=[x[:2], x[2:], x],
    )
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.entries["x"].slices == 2 and bundle.entries["x"].shape == (4, 6)
    with pytest.raises(ModelError, match=r"b.index: x: is stored in 2 slices \(a partitioned variable\)"):
        bundle.read("x")
    patch(tmp_path / "b", [("y", -x)])
    read = read_by_tensorflow(tmp_path / "b")
    assert (read["x"] == x).all() and (read["y"] == -x).all()


def test_a_rank_that_numpy_does_not_have(tmp_path: Path) -> None:
    bundle = Bundle.open(placed(tmp_path, one_block(entry(shape={"dim": [{"size": 4}] + [{"size": 1}] * 99}))))
    with pytest.raises(ModelError, match="x: cannot be made an array"):
        bundle.read("x")


def test_damaged_data(small: Path) -> None:
    data = bytearray(data_of(small).read_bytes())
    at = Bundle.open(small).entries["b"].offset
    data[at] ^= 1
    data_of(small).write_bytes(data)
    bundle = Bundle.open(small)
    with pytest.raises(ModelError, match="data-00000-of-00001: b: its bytes do not match their checksum"):
        bundle.read("b")
    assert (bundle.read("a/kernel") == SMALL["a/kernel"]).all()
    data_of(small).write_bytes(data[:at])
    with pytest.raises(ModelError, match="ends before its tensor does"):
        bundle.read("b")
    with pytest.raises(ModelError, match=f"in a data file of {at}"):
        Bundle.open(small)


@pytest.mark.parametrize("lost", ["variables.index", "variables.data-00000-of-00001"])
def test_missing_files(small: Path, lost: str) -> None:
    (small.parent / lost).unlink()
    with pytest.raises(MissingFileError, match=lost):
        Bundle.open(small)


def test_a_data_file_that_disappears(small: Path) -> None:
    bundle = Bundle.open(small)
    data_of(small).unlink()
    with pytest.raises(MissingFileError, match="data-00000-of-00001"):
        bundle.read("b")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "variables.index").mkdir()
    with pytest.raises(ModelError, match=r"variables.index: is a folder; expected a file"):
        Bundle.open(tmp_path / "variables")
    with pytest.raises(ModelError, match="cannot be read"):
        Bundle.open(tmp_path / "a\0b")


def test_keys_that_share_more_than_the_file_holds(tmp_path: Path) -> None:
    """Half a megabyte of records that would expand to 50 GB of keys."""
    key = b"k" * 250_000
    first = varint(0) + varint(len(key)) + varint(0) + key
    rest = b"".join(varint(len(key) + i) + b"\x01\x00" + b"k" for i in range(50_000))
    prefix = placed(tmp_path, table(first + rest + struct.pack("<2I", 0, 1)))
    with pytest.raises(ModelError, match=r"the record at byte .* does not fit"), bounded(100_000, megabytes=20):
        Bundle.open(prefix)


def test_an_index_that_is_too_long(tmp_path: Path) -> None:
    prefix = placed(tmp_path, GOOD)
    os.truncate(index_of(prefix), 1 << 40)
    with pytest.raises(ModelError, match=f"is {1 << 40} bytes long; expected at most"):
        Bundle.open(prefix)


def test_many_entries_in_bounded_time(tmp_path: Path) -> None:
    count = 50_000
    records = [entry(f"k{i:06d}".encode(), shape={"dim": [{"size": 0}]}, size=0) for i in range(count)]
    prefix = placed(tmp_path, one_block(*records))
    with bounded(count * 100):
        assert len(Bundle.open(prefix).entries) == count


# Fuzzing


FUZZ = settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def damages(draw: st.DrawFn, length: int) -> list[tuple[str, int, int]]:
    """What to do to a file: (kind, place, amount)."""
    kinds = st.sampled_from(("flip", "set", "cut", "drop", "double", "zero"))
    one = st.tuples(kinds, st.integers(0, length - 1), st.integers(0, 255))
    return draw(st.lists(one, min_size=1, max_size=4))


def damaged(data: bytes, what: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, at, amount in what:
        if at >= len(out):
            continue
        if kind == "flip":
            out[at] ^= 1 << amount % 8
        elif kind == "set":
            out[at] = amount
        elif kind == "cut":
            del out[at:]
        elif kind == "drop":
            del out[at : at + amount]
        elif kind == "double":
            out[at:at] = out[at : at + amount]
        else:
            out[at : at + amount] = bytes(len(out[at : at + amount]))
    return bytes(out)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    prefix = write(tmp_path_factory.mktemp("fuzz") / "variables", SMALL | {"text": b"some text"})
    return index_of(prefix).read_bytes(), data_of(prefix).read_bytes()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("room")


def everything(prefix: Path) -> Iterator[tuple[Entry, Any]]:
    """What is read of a bundle that may be damaged."""
    try:
        bundle = Bundle.open(prefix)
    except (ModelError, MissingFileError):
        return
    for key, found in bundle.entries.items():
        try:
            yield found, bundle.read_string(key) if found.dtype == "string" else bundle.read(key)
        except (ModelError, MissingFileError):
            continue


@FUZZ
@given(damages(700), damages(400), st.sampled_from(("index", "data", "both")))
@example([("cut", 0, 0)], [], "index")
@example([("set", 300, 0)], [("cut", 0, 0)], "both")
def test_damaged_bytes_are_refused_or_harmless(
    original: tuple[bytes, bytes], room: Path, index: Any, data: Any, which: str
) -> None:
    prefix = placed(
        room,
        damaged(original[0], index) if which != "data" else original[0],
        damaged(original[1], data) if which != "index" else original[1],
    )
    known = SMALL | {"text": b"some text"}
    for found, value in everything(prefix):
        if isinstance(value, bytes):
            assert value == known[found.key]
        else:
            assert value.tobytes() == np.asarray(known[found.key]).tobytes()


@FUZZ
@given(damages(len(GOOD)), st.integers(0, 60))
@example([("set", 0, 1)], 0)
@example([("double", 1, 200)], 3)
@example([("drop", 30, 9)], 30)
def test_damage_under_good_checksums_is_refused_or_read(room: Path, what: Any, offset: int) -> None:
    """The records themselves are damaged, so that the checks behind the checksums have to hold."""
    records = [
        header(),
        entry(b"kernel"),
        entry(b"s", dtype=7, shape={}, offset=16, size=9),
        entry(b"z", offset=offset),
    ]
    data = bytes(range(64))
    prefix = placed(room, table(damaged(block(records), what), separators=(b"\xff" * 9,)), data)
    for found, value in everything(prefix):
        assert 0 <= found.offset <= found.offset + found.size <= len(data)
        if not isinstance(value, bytes):
            assert value.tobytes() == data[found.offset : found.offset + found.size]
            assert value.shape == found.shape and masked(value.tobytes()) == found.crc32c


@FUZZ
@given(damages(len(GOOD)))
def test_patching_damaged_copies_raises_what_it_says(original: tuple[bytes, bytes], room: Path, what: Any) -> None:
    prefix = placed(room, damaged(original[0], what), original[1])
    new = normal(4, 8, seed=9)
    try:
        bundle = patch(prefix, [("a/kernel", new)])
    except (ModelError, MissingFileError):
        return
    assert (bundle.read("a/kernel") == new).all()


def test_copies_keep_the_original(small: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small.parent, tmp_path / "copy")) / "variables"
    patch(copy, [("b", np.float32([1, 2, 3]))])
    assert {k: v.tolist() for k, v in read_by_tensorflow(small).items()} == {
        k: np.asarray(v).tolist() for k, v in SMALL.items()
    }
    assert module.numpy_dtype("bfloat16").itemsize == 2
