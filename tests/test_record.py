"""The record file: written as AMCT does, read back with a line for whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.errors import MissingFileError, RecordError, SparsekitError
from sparsekit.pattern import PATTERN_2_4, Pattern
from sparsekit.record import LayerRecord, Record, read_record

# AMCT's form.
AMCT = """\
prune_record {
  selective_prune {
    name: "conv1"
    attr {
      name: "mask_shape"
      type: INTS
      ints: 3
      ints: 3
      ints: 3
      ints: 32
    }
  }
}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "record.txt"
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def read(tmp_path):
    return lambda text: read_record(write(tmp_path, text))


@pytest.fixture
def refusal(tmp_path):
    """The message for a text, with the file's path cut to its name."""

    def of(text: str) -> str:
        with pytest.raises(RecordError) as caught:
            read_record(write(tmp_path, text))
        return str(caught.value).replace(f"{tmp_path}/", "")

    return of


def test_a_record_reads_and_writes_amcts_form(tmp_path):
    path = write(tmp_path, AMCT)
    record = read_record(str(path))
    assert record == Record((LayerRecord("conv1", (3, 3, 3, 32)),))
    assert record.source == str(path)
    assert record.to_text() == AMCT


def test_the_pattern_is_written_only_where_it_is_not_2_4():
    text = Record([LayerRecord("a", [8, 4], Pattern(1, 4)), LayerRecord("b", (8, 4))]).to_text()
    assert 'attr {\n      name: "pattern"\n      type: STRING\n      s: "1:4"\n    }' in text
    assert text.count("pattern") == 1
    assert text.count("prune_record") == 2


def test_a_record_of_no_layer_is_told_from_an_empty_file(read, refusal):
    text = Record(()).to_text()
    assert text == "# No layer is pruned.\n"
    assert read(text) == Record(())
    for broken in ("", "\n", text[:10], "# something else\n"):
        assert refusal(broken).startswith("record.txt:1: the record is empty")


def test_text_that_is_not_ascii_is_written_as_it_is(read):
    record = Record([LayerRecord('卷积/"1"\\\n', (4, 4))])
    assert "卷积" in record.to_text()
    assert read(record.to_text()) == record


def test_quantization_records_beside_ours_are_passed_over(read):
    quantization = (
        'record { key: "conv1" value { scale_d: 0.1 offset_d: -1 scale_w: [0.1, 0.2] skip_fusion: true\n'
        ' dst_type: "INT8" deep { er: 1 } } unknown < > }\n'
    )
    assert read(quantization + AMCT) == read(AMCT + quantization) == read(AMCT)


def test_other_attributes_are_passed_over(read):
    other = 'attr { name: "more" type: FLOATS floats: [0.5] } attr { name: "mask_shape"'
    assert read(AMCT.replace('attr {\n      name: "mask_shape"', other)) == read(AMCT)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("}\n}\n", "}\n", 'record.txt:12: not valid protobuf text: Expected "}"'),
        ("type: INTS", "type INTS", 'record.txt:6: not valid protobuf text: Expected ":"'),
        ("type: INTS", "zzzz: INTS", "record.txt:6: attr has no field 'zzzz'. The fields are name, type"),
        (
            "selective_prune",
            "selective_prun",
            "record.txt:2: prune_record has no field 'selective_prun'. Did you mean",
        ),
        ('name: "conv1"', "", "record.txt:2: selective_prune without a name"),
        ('"conv1"', '""', "record.txt:2: selective_prune without a name"),
        ("mask_shape", "shape", "record.txt:2: the layer 'conv1' has no mask_shape"),
        ("type: INTS", "type: INT", "record.txt:4: mask_shape is of type INT; expected INTS"),
        ("type: INTS", "", "record.txt:4: mask_shape is of type UNDEFINED; expected INTS"),
        (
            "type: INTS",
            "type: TENSOR",
            "record.txt:6: unknown value TENSOR; expected UNDEFINED or FLOAT or INT",
        ),
        ("ints: 32", "ints: 0", "record.txt:4: mask_shape [3, 3, 3, 0]; expected one or more positive"),
        ("ints: 32", "ints: -1", "record.txt:4: mask_shape [3, 3, 3, -1]; expected"),
        ("ints: 3", "floats: 3", "record.txt:4: mask_shape []; expected"),
        (
            "attr {",
            'attr { name: "pattern" type: INT s: "1:4" } attr {',
            "record.txt:4: pattern is of type INT; expected STRING",
        ),
        (
            "attr {",
            'attr { name: "pattern" type: STRING s: "4:2" } attr {',
            "record.txt:4: 4:2; expected n:m",
        ),
        (
            "attr {",
            'attr { name: "mask_shape" } attr {',
            "record.txt:4: the attribute 'mask_shape' of 'conv1' stands",
        ),
        (
            "selective_prune",
            "producer",
            "record.txt:2: a record of channel sparsity (producer), which is not supp",
        ),
        (
            "selective_prune",
            "consumer",
            "record.txt:2: a record of channel sparsity (consumer), which is not supp",
        ),
        (
            "prune_record {",
            "prune_record { }\nprune_record {",
            "record.txt:1: a prune_record without selective_prune",
        ),
        ("}\n}\n", "}\n}\n" + AMCT, "record.txt:14: the layer 'conv1' is recorded twice"),
    ],
)
def test_what_is_wrong_is_refused_at_its_line(refusal, old, new, message):
    assert AMCT.count(old)
    assert refusal(AMCT.replace(old, new)).startswith(message)


def test_a_missing_record_is_one(tmp_path):
    with pytest.raises(MissingFileError, match="no such file"):
        read_record(tmp_path / "none.txt")


def test_what_is_no_text_file_is_refused(tmp_path):
    with pytest.raises(RecordError, match="this is a folder"):
        read_record(tmp_path)
    path = tmp_path / "record.txt"
    path.write_bytes(b"\n\xff")
    with pytest.raises(RecordError, match=r"record\.txt:2: the byte 0xff is not UTF-8"):
        read_record(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("", (4,)),
        (3, (4,)),
        ("\ud800", (4,)),
        ("a", ()),
        ("a", (0,)),
        ("a", (4, -1)),
        ("a", (True,)),
        ("a", (2**63,)),
    ],
)
def test_a_layer_that_cannot_be_written_is_refused(name, shape):
    with pytest.raises(RecordError):
        LayerRecord(name, shape)


def test_a_layer_is_recorded_once():
    with pytest.raises(RecordError, match="a: the layer is recorded twice"):
        Record([LayerRecord("a", (4,)), LayerRecord("a", (8,))])


def test_nesting_beyond_the_interpreter_is_refused(refusal):
    assert "recursion" in refusal("record { " + "a { " * 5000)


layers = st.builds(
    LayerRecord,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=5),
    st.just(PATTERN_2_4) | st.builds(lambda n, more: Pattern(n, n + more), st.integers(1, 128), st.integers(1, 128)),
)
records = st.builds(Record, st.lists(layers, unique_by=lambda layer: layer.name, max_size=4))


@given(records)
def test_a_record_survives_the_way_through_its_text(tmp_path_factory, record):
    assert read_record(write(tmp_path_factory.mktemp("record"), record.to_text())) == record


@given(
    record=records,
    data=st.data(),
    junk=st.binary(max_size=8) | st.sampled_from([b"}", b"{", b'"', b": 1", b"["]),
)
def test_a_damaged_record_raises_nothing_else(tmp_path_factory, record, data, junk):
    raw = record.to_text().encode()
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (raw[:cut] + junk, raw[:cut] + junk + raw[cut:]):
        path = tmp_path_factory.mktemp("damaged") / "record.txt"
        path.write_bytes(damaged)
        try:
            read_record(path)
        except SparsekitError as error:
            assert str(path) in str(error)


@given(records.filter(lambda record: record.layers), st.data())
def test_a_cut_record_is_never_taken_for_a_whole_one_of_less_layers(tmp_path_factory, record, data):
    text = record.to_text().rstrip()
    cut = data.draw(st.integers(0, len(text) - 1))
    folder = tmp_path_factory.mktemp("cut")
    try:
        kept = read_record(write(folder, text[:cut])).layers
    except SparsekitError:
        return
    assert kept == record.layers[: len(kept)] and len(kept) < len(record.layers)
