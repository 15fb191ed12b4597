"""Files that are made to do harm end in an error that names them, or in an honest answer; soon, with little memory."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from fuzz.fuzz_readers import FORMATS
from hostile_graphs import ATTACKS, FLOAT, Graph
from hypothesis import given, settings
from hypothesis import strategies as st
from isolated import VERBS, Isolation, Outcome
from tensorflow.lite.python import schema_py_generated as schema

import sparsekit

CORPUS = Path(__file__).parents[1] / "corpus"
READERS = ("plan", "report", "prune", "verify")
SECONDS = 15
"""What a verb may take of an attack; as these are sized, work that is quadratic in them takes longer."""

# Those that take long on a busy machine, although in proportion to their length.
LARGE = {
    "cast_chain",
    "concat_chain",
    "concat_of_many",
    "identity_chain",
    "large_bodies",
    "long_name",
    "long_op",
    "long_prefixes",
    "many_functions",
    "many_layers_many_readers",
    "many_readers",
    "matrix_products_as_a_shape",
    "one_weight_many_layers",
    "reshape_by_a_million_numbers",
    "reshape_chain",
}

# What has to be refused, and the words for it. The others may be answered: TensorFlow could run some of them.
REFUSED = {
    "one_value_for_a_terabyte": r"w: stands for \[1048576, 1048576\] values and stores few of them",
    "one_value_for_4_gigabytes": r"w: stands for \[32768, 32768\] values and stores few of them",
    "one_text_for_a_gigabyte": r"w: stands for \[16384, 16384\] values and stores few of them",
    "no_value_for_a_terabyte": r"w: stands for \[1048576, 1048576\] values and stores few of them",
    "many_of_one_value": r"w4: stands for \[4096, 4096\] values and stores few of them",
    "a_shape_beyond_64_bits": r"w: its value has the shape \[4294967296, 4294967296\]",
    "a_shape_that_wraps_to_1": "w: its value has the shape",
    "a_negative_shape": "w: its value has no definite shape",
    "a_negative_length": "w: its value has no definite shape",
    "a_rank_of_300": "w: its value has no definite shape",
    "content_too_short": "w: its value cannot be read",
    "content_too_long": "w: its value cannot be read",
    "content_of_no_whole_number": "w: its value cannot be read",
    "more_values_than_the_shape": "w: its value cannot be read",
    "text_declared_as_float": "w: holds values of dtype 7; expected 1, as it says",
    "integers_declared_as_float": "w: holds values of dtype 6; expected 1, as it says",
    "shape_is_text": "w: its attribute 'shape' is given as 's'; expected 'shape'",
    "concat_of_minus_one": "makes no sense",
    "large_bodies": "call[0-9]+: its functions call each other .* with more than 1,000,000 nodes in all",
    "long_prefixes": "its name or op has 1048576 characters; expected at most 4096",
    "long_op": "its name or op has 1048576 characters; expected at most 4096",
    "long_name": "its name or op has 1048576 characters; expected at most 4096",
    "many_layers_many_readers": "fc[0-9]+: the ops that read its weight are read by too many others",
    "deep_calls": "its functions call each other",
    "an_argument_that_nobody_passes": "call: passes 2 inputs to 'f'; expected 9",
    "an_argument_too_many": "call: passes 2 inputs to 'f'; expected 1",
    "an_index_that_is_no_number": "function 'f': returns 'fc:product:one' as 'r'",
    "an_index_of_5000_digits": "function 'f': returns 'fc:product:9+' as 'r'",
    "an_input_index_of_5000_digits": "fc: reads 'w:9+', which is no output",
    "an_input_of_a_function_that_is_no_output": "function 'f': fc: reads 'a1:nope:x', which is no output",
    "a_loop_whose_body_returns_too_little": "loop: its body 'body' returns 1 values; expected 2, as it takes",
    "two_functions_of_one_name": "function 'f': two functions have this name",
    "two_arguments_of_one_name": "function 'f': two arguments have one name",
    "an_equation_that_is_a_number": "e: its attribute 'equation' is given as 'i'; expected 's'",
    "a_transpose_that_is_text": "odd: its attribute 'transpose_b' is given as 's'; expected 'b'",
}


@pytest.fixture(scope="module")
def isolation() -> Iterator[Isolation]:
    with Isolation() as isolation:
        yield isolation


def ends_well(found: dict[str, Outcome], model: Path | str) -> None:
    """Every verb answered or refused; a refusal names the file."""
    for verb, outcome in found.items():
        assert outcome.fine, (verb, outcome)
        if outcome.end == "refused":
            assert str(model) in outcome.text or "holds no masks" in outcome.text, (verb, outcome)


def test_the_isolation_notices_what_it_is_for(isolation: Isolation, tmp_path: Path) -> None:
    """A limit of memory that no verb can keep, and one of time."""
    graph = Graph()
    graph.layer(graph.const("w", shape=[1 << 12, 1 << 13], tensor_content=b"", float_val=[1.0]))
    (tmp_path / "large.pb").write_bytes(graph.proto.SerializeToString())
    (outcome,) = isolation.run(tmp_path / "large.pb", ["verify"], memory=1 << 26).values()
    assert outcome.end == "refused" and "takes more memory than there is" in outcome.text
    (tmp_path / "many.pb").write_bytes(ATTACKS["one_weight_many_layers"]().SerializeToString())
    (outcome,) = isolation.run(tmp_path / "many.pb", ["report"], seconds=1).values()
    assert outcome.end == "hung"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in ATTACKS])
def test_attacks(name: str, isolation: Isolation, tmp_path: Path) -> None:
    model = tmp_path / "attack.pb"
    model.write_bytes(ATTACKS[name]().SerializeToString())
    # A report makes the plan, too; where the plan is refused, so does pruning.
    left_out = {"report", "plan"} if name in REFUSED else {"plan"}
    found = isolation.run(model, [v for v in VERBS if name not in LARGE or v not in left_out], seconds=SECONDS)
    ends_well(found, model)
    if name in REFUSED:
        for verb in ("prune", "verify"):
            assert found[verb].end == "refused", (verb, found[verb])
            assert re.search(REFUSED[name], found[verb].text), found[verb].text


def test_what_one_number_may_stand_for_is_answered_in_little_memory(isolation: Isolation, tmp_path: Path) -> None:
    """64 million weights that are all the same: no bomb yet."""
    graph = Graph()
    graph.layer(graph.const("w", shape=[1 << 13, 1 << 13], tensor_content=b"", float_val=[1.0]))
    (tmp_path / "same.pb").write_bytes(graph.proto.SerializeToString())
    found = isolation.run(tmp_path / "same.pb", ["verify"], memory=3 << 30)
    assert found["verify"].end == "answered" and "NOT sparse" in found["verify"].text


def test_a_tensor_that_is_a_part_of_many_weights_is_not_read_for_each(isolation: Isolation, tmp_path: Path) -> None:
    (tmp_path / "model.pb").write_bytes(ATTACKS["shared_parts"]().SerializeToString())
    found = isolation.run(tmp_path / "model.pb", ["report"])
    assert found["report"].end == "refused" and "big: is a part of too many weights" in found["report"].text


def test_large_constants_are_no_bombs() -> None:
    """What is stored in full may be as large as it likes."""
    graph = Graph()
    graph.layer(graph.const("w", np.ones((1 << 13, (1 << 13) + 4), np.int8), declared=6))
    assert [decision.shape for decision in sparsekit.plan(graph.proto).decisions] == [(8192, 8196)]


# Shape inference


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.endswith("_as_a_shape")])
def test_what_shapes_are_computed_from_is_not_run(name: str, isolation: Isolation, tmp_path: Path) -> None:
    (tmp_path / "model.pb").write_bytes(ATTACKS[name]().SerializeToString())
    found = isolation.run(tmp_path / "model.pb", ["report"], seconds=SECONDS)
    assert found["report"].end == "answered", found
    # Of very many layers the text is cut before that.
    assert "Multiply-adds: not known" in found["report"].text or name == "matrix_products_as_a_shape"


def test_a_shape_that_is_the_work_of_many_ops_is_not_known(isolation: Isolation, tmp_path: Path) -> None:
    """TensorFlow looks back through them by recursion: for ever, or until the stack is full."""
    chain, tree = Graph(), Graph()
    for graph in (chain, tree):
        graph.node("shape", "Shape", ["x"], T=FLOAT, out_type=3)
        graph.const("axis", np.int32(0))
    last = "shape"
    for i in range(30_000):
        last = chain.node(f"c{i}", "Cast", [last], SrcT=3, DstT=3)
    chain.node("data", "Reshape", ["x", last], T=FLOAT, Tshape=3)
    last = "shape"
    for i in range(40):
        last = tree.node(f"c{i}", "ConcatV2", [last, last, "axis"], N=2, T=3, Tidx=3)
    tree.node("data", "Reshape", ["x", last], T=FLOAT, Tshape=3)
    for name, graph in (("chain", chain), ("tree", tree)):
        graph.layer(graph.const("w"), x="data")
        model = tmp_path / f"{name}.pb"
        model.write_bytes(graph.proto.SerializeToString())
        ends_well(isolation.run(model, ["report"]), model)


# Places


def hostile_places(folder: Path) -> Iterator[str]:
    yield from ("/dev/zero", "/dev/stdin", "/dev/full", "/proc/self/mem")
    for suffix in (".pb", ".pbtxt", ".onnx", ".tflite"):
        os.mkfifo(folder / f"pipe{suffix}")
        yield str(folder / f"pipe{suffix}")
        (folder / f"zero{suffix}").symlink_to("/dev/zero")
        yield str(folder / f"zero{suffix}")
        (folder / f"folder{suffix}").mkdir()
        yield str(folder / f"folder{suffix}")
        (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
        yield str(folder / f"loop{suffix}")
        # 100 GB that take no room on the disk.
        with open(folder / f"sparse{suffix}", "wb") as file:
            file.truncate(100 << 30)
        yield str(folder / f"sparse{suffix}")


def test_pipes_devices_folders_and_files_beyond_all_measure_end_at_once(isolation: Isolation, tmp_path: Path) -> None:
    for place in hostile_places(tmp_path):
        for verb, outcome in isolation.run(Path(place), seconds=20).items():
            assert outcome.end == "refused", (place, verb, outcome)
            assert place in outcome.text


def test_the_command_line_ends_at_once_with_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pb")
    (tmp_path / "model.pb").write_bytes(Graph().proto.SerializeToString())
    # One process, since loading TensorFlow is most of the time.
    script = """
from sparsekit.cli import main
for arguments in (["verify", "pipe.pb"], ["verify", "model.pb", "--record", "/dev/zero"]):
    try:
        main(arguments)
    except SystemExit as end:
        print(end.code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]
    assert done.stderr.count("no regular file") == 2
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    module = tf.Module()
    module.w = tf.Variable(np.ones((8, 8), np.float32))
    module.serve = tf.function(lambda x: tf.matmul(x, module.w), input_signature=[tf.TensorSpec([None, 8])])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_files_of_a_saved_model_that_are_none(file: str, kind: str, copy: Path, isolation: Isolation) -> None:
    (copy / file).unlink()
    if kind == "pipe":
        os.mkfifo(copy / file)
    elif kind == "device":
        (copy / file).symlink_to("/dev/zero")
    else:
        (copy / file).mkdir()
    found = isolation.run(copy, READERS, seconds=20)
    ends_well(found, copy)
    assert {outcome.end for outcome in found.values()} == {"refused"}


@pytest.mark.parametrize("kind", ["a loop", "many ways", "a pipe", "a device", "a broken link"])
def test_links_in_a_saved_model_that_lead_to_no_end(kind: str, copy: Path, isolation: Isolation) -> None:
    """They are followed when it is copied."""
    assets = copy / "assets"
    assets.mkdir(exist_ok=True)
    if kind == "a loop":
        (assets / "again").symlink_to(copy)
    elif kind == "many ways":  # 2 ** 40 of them
        for i in range(40):
            (copy.parent / f"level{i}").mkdir()
            for name in ("left", "right"):
                (copy.parent / f"level{i}" / name).symlink_to(copy.parent / f"level{i + 1}")
        (copy.parent / "level40").mkdir()
        (assets / "down").symlink_to(copy.parent / "level0")
    elif kind == "a pipe":
        os.mkfifo(assets / "pipe")
    else:
        (assets / "zero").symlink_to("/dev/zero" if kind == "a device" else "nowhere")
    found = isolation.run(copy, ["prune"], seconds=20)
    assert found["prune"].end == "refused", found
    assert str(assets) in found["prune"].text or "level" in found["prune"].text


# Deployment formats


def test_names_of_a_tflite_file_that_share_their_bytes(isolation: Isolation, tmp_path: Path) -> None:
    """Many tensors may point at one long name."""
    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    subgraph = schema.SubGraphT()
    subgraph.inputs, subgraph.outputs, subgraph.operators, subgraph.tensors = [], [], [], []
    for i in range(20_000):
        tensor = schema.TensorT()
        tensor.name, tensor.shape = (b"n" * 60_000 if i == 0 else b"%04d" % (i % 10_000)), [1]
        subgraph.tensors.append(tensor)
    model.subgraphs = [subgraph]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    data = bytearray(builder.Output())
    long = data.index(struct.pack("<I", 60_000) + b"n" * 8)
    for found in re.finditer(rb"\x04\x00\x00\x00\d{4}\x00", bytes(data)):
        # The tables hold the distance to their name.
        target = found.start()
        for at in range(max(0, target - 200) & ~3, target, 4):
            if at + struct.unpack_from("<I", data, at)[0] == target and long > at:
                struct.pack_into("<I", data, at, long - at)
    (tmp_path / "model.tflite").write_bytes(bytes(data))
    outcome = isolation.run(tmp_path / "model.tflite", ["verify"])["verify"]
    assert outcome.fine, outcome


# Damage


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_models(kind: str, isolation: Isolation, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A few of what tests/fuzz/fuzz_readers.py tries by the thousand."""
    if kind == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed here: pip install 'sparsekit[onnx]'")

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 1 << 32))
    def damaged(seed: int) -> None:
        random = Random(seed)
        model = FORMATS[kind].write(tmp_path_factory.mktemp("damaged"), FORMATS[kind].damaged(random))
        ends_well(isolation.run(model, ["every"]), model)

    damaged()


# What the fuzzer found


def corpus() -> list[Path]:
    return sorted(path for folder in CORPUS.iterdir() if folder.is_dir() for path in folder.iterdir())


def test_the_corpus_stays_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert 0 < len(files) < 40
    assert all(path.stat().st_size < 20_000 for path in files)


@pytest.mark.parametrize("model", corpus(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once(model: Path, isolation: Isolation) -> None:
    ends_well(isolation.run(model), model)


def test_every_verb_is_tried() -> None:
    assert set(VERBS) == {"plan", "report", "prune", "strip", "verify"}
