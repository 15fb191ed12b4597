"""What differs between two models: each change is reported, where it is, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from models_at_rest import frozen, in_functions, keras_export, module_export, tf1_export
from small_graphs import bits

import sparsekit
from sparsekit.artefact.bundle import Bundle, patch
from sparsekit.artefact.comparing import compare_arrays
from sparsekit.cli import main

v1 = tf.compat.v1


def copy(graph_def: Any) -> Any:
    copied = type(graph_def)()
    copied.CopyFrom(graph_def)
    return copied


def node(graph_def: Any, name: str) -> Any:
    return next(node for node in graph_def.node if node.name == name)


def set_value(node: Any, value: np.ndarray) -> None:
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def structure(difference: sparsekit.Difference) -> list[tuple[str, str, str, str]]:
    return sorted((change.where, change.kind, change.name, change.status) for change in difference.structure)


# Frozen graphs


def test_a_pruned_graph_differs_in_its_weights_and_every_one_is_counted():
    graph_def = frozen()
    result = sparsekit.prune(graph_def)
    difference = sparsekit.diff(graph_def, result.graph_def)
    assert difference.only_weights and not difference.identical
    assert {change.name for change in difference.values} == {d.weight for d in result.plan.pruned}
    for change in difference.values:
        old, new = (tf.make_ndarray(node(g, change.name).attr["value"].tensor) for g in (graph_def, result.graph_def))
        assert (change.where, change.dtype, change.shape, change.size) == ("graph", "float32", old.shape, old.size)
        assert change.changed == change.became_zero == (old != new).sum()
        assert (change.zeros_before, change.zeros_after) == ((old == 0).sum(), (new == 0).sum())
        assert change.largest == np.abs(old - new).max()
        assert change.only_zeros and change.zero_signs == 0
    assert difference.summary() == (
        "Only weights changed: 4 tensors, 268 of 555 values became zero; structure is identical."
    )
    assert str(difference).count("only zeros were written") == 4


def test_nothing_differs_between_a_model_and_itself(tmp_path):
    graph_def = in_functions()
    for name in ("a.pb", "a.pbtxt"):
        sparsekit.save(graph_def, tmp_path / name)
    for a, b in ((graph_def, graph_def), (tmp_path / "a.pb", tmp_path / "a.pbtxt"), (graph_def, tmp_path / "a.pb")):
        difference = sparsekit.diff(a, b)
        assert difference == sparsekit.Difference()
        assert difference.identical and not difference.only_weights
        assert str(difference) == "Nothing differs."


def test_weights_in_functions_are_named_with_their_function():
    graph_def = in_functions()
    difference = sparsekit.diff(graph_def, sparsekit.prune(graph_def).graph_def)
    assert difference.only_weights
    wheres = Counter(change.where for change in difference.values)
    (function,) = [where for where in wheres if where.startswith("function '__inference_inside")]
    assert wheres == {"graph": 3, function: 1}


def test_pruning_keeps_every_field_of_a_graph():
    graph_def = frozen()
    graph_def.version = 7
    if "debug_info" in graph_def.DESCRIPTOR.fields_by_name:  # not in every TensorFlow
        graph_def.debug_info.files.append("model.py")
    assert sparsekit.diff(graph_def, sparsekit.prune(graph_def).graph_def).only_weights


def constants(*values: Any) -> Any:
    graph_def = v1.GraphDef()
    for index, value in enumerate(values):
        constant = graph_def.node.add(name=f"c{index}", op="Const")
        constant.attr["dtype"].type = tf.as_dtype(value.dtype if value.dtype != object else tf.string).as_datatype_enum
        set_value(constant, value)
    return graph_def


def test_bits_are_compared():
    a = np.array([np.nan, -0.0, 0.0, 1.0, -0.0, np.inf], "f")
    b = np.array([np.nan, 0.0, -0.0, 0.0, -0.0, np.inf], "f")
    (change,) = sparsekit.diff(constants(a), constants(b)).values
    assert (change.changed, change.became_zero, change.zero_signs) == (3, 1, 2)
    assert (change.zeros_before, change.zeros_after, change.largest) == (3, 4, 1.0)
    assert change.only_zeros
    difference = sparsekit.diff(constants(a[:3]), constants(b[:3]))
    assert "2 zeros changed their sign" in str(difference)
    assert difference.summary() == (
        "Only weights changed: 1 tensor, 2 of 3 values changed, 0 of them became zero, 2 zeros changed their sign; "
        "structure is identical."
    )
    assert sparsekit.diff(constants(a), constants(a)).identical
    other_nan = a.copy()
    other_nan.view("u4")[0] += 1
    (change,) = sparsekit.diff(constants(a), constants(other_nan)).values
    assert change.changed == 1 and np.isnan(change.largest) and not change.only_zeros


def test_a_change_that_is_no_zero_is_not_called_one():
    a = np.array([1, 2, 3, 0], "f")
    (change,) = sparsekit.diff(constants(a), constants(np.array([1, 0, 2.5, 0], "f"))).values
    assert (change.changed, change.became_zero, change.largest, change.only_zeros) == (2, 1, 2.0, False)
    (change,) = sparsekit.diff(constants(a), constants(np.array([1, 2, 3, 4], "f"))).values
    assert (change.changed, change.became_zero, change.largest, change.only_zeros) == (1, 0, 4.0, False)


def test_values_that_are_no_weights_are_not_called_weights():
    difference = sparsekit.diff(constants(np.array([2, 3])), constants(np.array([3, 2])))
    assert not difference.only_weights and difference.summary().startswith("Only values changed: 1 tensor, 2 of 2")
    texts = np.array([b"a", b"bc"], object), np.array([b"a", b""], object)
    (change,) = sparsekit.diff(*map(constants, texts)).values
    assert (change.dtype, change.changed, change.size, change.largest) == ("string", 1, 2, None)


def test_how_a_constant_is_encoded_does_not_count():
    a = constants(np.ones(8, "f"))
    b = copy(a)
    tensor = b.node[0].attr["value"].tensor
    tensor.ClearField("tensor_content")
    tensor.float_val.append(1.0)
    difference = sparsekit.diff(a, b)
    assert difference.identical
    assert difference.notes == ("1 constant is encoded in another way, with the same values.",)


def test_the_order_of_nodes_does_not_count():
    a, b = constants(np.ones(8, "f"), np.ones(3)), constants(np.ones(8, "f"), np.ones(3))
    last = copy(b).node[0]
    del b.node[0]
    b.node.append(last)
    difference = sparsekit.diff(a, b)
    assert difference.identical and difference.notes == ("The nodes are in another order (graph).",)


EDITS: dict[str, tuple[Callable[[Any], Any], list[tuple[str, str, str, str]], str]] = {
    "op": (
        lambda g: setattr(node(g, "out"), "op", "Snapshot"),
        [("graph", "node", "out", "changed")],
        "op: 'Identity'",
    ),
    "device": (
        lambda g: setattr(node(g, "out"), "device", "/CPU:0"),
        [("graph", "node", "out", "changed")],
        "device: ",
    ),
    "input": (
        lambda g: node(g, "out").input.__setitem__(0, "x"),
        [("graph", "node", "out", "changed")],
        "input[0]: 'while/Identity_3' -> 'x'",
    ),
    "control": (
        lambda g: node(g, "out").input.append("^x"),
        [("graph", "node", "out", "changed")],
        "input: ['while/Identity_3'] -> ['while/Identity_3', '^x']",
    ),
    "attribute": (
        lambda g: setattr(node(g, "out").attr["T"], "type", 2),
        [("graph", "node", "out", "changed")],
        "attr 'T': type: DT_FLOAT -> type: DT_DOUBLE",
    ),
    "new attribute": (
        lambda g: setattr(node(g, "out").attr["_mine"], "b", True),
        [("graph", "node", "out", "changed")],
        "attr '_mine': none -> b: true",
    ),
    "shape": (
        lambda g: set_value(node(g, "Const"), np.ones([8, 9], "f")),
        [("graph", "node", "Const", "changed")],
        "attr 'value': float32 [8, 8] -> float32 [8, 9]",
    ),
    "dtype": (
        lambda g: (
            set_value(node(g, "Const"), np.ones([8, 8])),
            setattr(node(g, "Const").attr["dtype"], "type", tf.float64.as_datatype_enum),
        ),
        [("graph", "node", "Const", "changed")],
        "attr 'value': float32 [8, 8] -> float64 [8, 8]",
    ),
    "debug info": (
        lambda g: node(g, "x").experimental_debug_info.original_node_names.append("y"),
        [("graph", "node", "x", "changed")],
        "experimental_debug_info.original_node_names: [] -> ['y']",
    ),
    "node": (lambda g: g.node.add(name="new", op="NoOp"), [("graph", "node", "new", "only in B")], ""),
    "versions": (
        lambda g: setattr(g.versions, "producer", 1),
        [("graph", "graph", "", "changed")],
        "versions.producer: ",
    ),
    "function": (
        lambda g: setattr(g.library.function.add().signature, "name", "f"),
        [("graph", "function", "f", "only in B")],
        "",
    ),
    "gradient": (
        lambda g: g.library.gradient.add(function_name="f", gradient_func="g"),
        [("graph", "library", "", "changed")],
        "gradient: [] -> ",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_structure_is_the_one_thing_reported(edit):
    change, expected, detail = EDITS[edit]
    a = in_functions()
    b = copy(a)
    change(b)
    difference = sparsekit.diff(a, b)
    assert structure(difference) == expected and not difference.values and not difference.notes
    assert detail in "; ".join(difference.structure[0].details)
    assert difference.summary() == "Structure differs in 1 place."
    (back,) = sparsekit.diff(b, a).structure
    assert back.status == expected[0][3].replace("in B", "in A")


def test_edits_inside_a_function_are_named_with_it():
    a = in_functions()
    b = copy(a)
    (function,) = [f for f in b.library.function if f.signature.name.startswith("__inference_inside")]
    inner = next(node for node in function.node_def if node.op == "MatMul")
    inner.attr["transpose_b"].b = True
    function.signature.input_arg[0].name = "renamed"
    inner.input[0] = "renamed"
    function.attr["_mine"].i = 3
    name = function.signature.name
    assert structure(sparsekit.diff(a, b)) == [
        (f"function '{name}'", "node", "own", "changed"),
        ("graph", "function", name, "changed"),
    ]
    details = {change.kind: change.details for change in sparsekit.diff(a, b).structure}
    assert details["function"] == ("signature.input_arg[0].name: 'x' -> 'renamed'", "attr['_mine']: none -> i: 3")
    assert details["node"] == (
        "input[0]: 'x' -> 'renamed'",
        "attr 'transpose_b': b: false -> b: true",
    )


def test_what_is_too_long_to_be_shown_is_compared_to_its_end():
    a = frozen()
    node(a, "out").attr["_mine"].s = b"a" * 500
    b = copy(a)
    node(b, "out").attr["_mine"].s = b"a" * 499 + b"b"
    (change,) = sparsekit.diff(a, b).structure
    assert len(change.details[0]) < 200


# Random edits


@st.composite
def edited_graphs(draw: st.DrawFn) -> tuple[Any, Any, list[tuple[str, str]], dict[str, np.ndarray]]:
    """A graph of constants and their sums, edited: (before, after, structural changes, values of changed constants)."""
    count = draw(st.integers(1, 5))
    random = np.random.RandomState(draw(st.integers(0, 9)))
    a = constants(*(random.randint(-1, 2, [3, 4]).astype("f") for _ in range(count)))
    for index in range(count):
        add = a.node.add(name=f"sum{index}", op="AddV2", input=[f"c{index}", f"c{(index + 1) % count}"])
        add.attr["T"].type = 1
    b = copy(a)
    changed, values = set(), {}
    for index in draw(st.sets(st.integers(0, count - 1))):
        kind = draw(st.sampled_from(["value", "op", "device", "attr", "input", "remove", "rename"]))
        target = node(b, f"sum{index}")
        if kind == "value":
            value = tf.make_ndarray(node(b, f"c{index}").attr["value"].tensor).copy()
            at = draw(st.tuples(st.integers(0, 2), st.integers(0, 3)))
            new = draw(st.sampled_from([0.0, -0.0, 2.5, np.nan]))
            if bits(np.float32(new)) == bits(value[at]):
                continue
            value[at] = new
            values[f"c{index}"] = value
            set_value(node(b, f"c{index}"), value)
        elif kind == "remove":
            b.node.remove(target)
            changed.add((target.name, "only in A"))
        elif kind == "rename":
            changed |= {(target.name, "only in A"), (f"new{index}", "only in B")}
            target.name = f"new{index}"
        else:
            changed.add((target.name, "changed"))
            if kind == "op":
                target.op = "Mul"
            elif kind == "device":
                target.device = "/job:a"
            elif kind == "attr":
                target.attr["T"].type = 2
            else:
                target.input[0] += ":1"
    return a, b, sorted(changed), values


@settings(max_examples=150, deadline=None)
@given(edited_graphs())
def test_random_edits_are_reported_and_nothing_else(edited):
    a, b, changed, values = edited
    difference = sparsekit.diff(a, b)
    assert sorted((change.name, change.status) for change in difference.structure) == changed
    assert {change.name for change in difference.values} == set(values)
    for change in difference.values:
        old = tf.make_ndarray(node(a, change.name).attr["value"].tensor)
        ((was, now),) = [(o, n) for o, n in zip(old.flat, values[change.name].flat, strict=True) if bits(o) != bits(n)]
        assert (change.changed, change.became_zero) == (1, int(now == 0 and was != 0))
        assert change.only_zeros == (now == 0)
        np.testing.assert_equal(change.largest, float(abs(now - was)))
    assert difference.identical == (not changed and not values)
    assert difference.only_weights == (not changed and bool(values))
    assert sparsekit.diff(a, a).identical


NUMBERS = ["bool", "i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]
SMALL = {"bfloat16": ml_dtypes.bfloat16, "float8_e5m2": ml_dtypes.float8_e5m2, "int4": ml_dtypes.int4}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_counts_are_those_of_plain_python(data):
    dtype = np.dtype(data.draw(st.sampled_from(NUMBERS)))
    elements = arrays_of.from_dtype(dtype) | st.sampled_from([0, 1]).map(dtype.type)
    old, new = (data.draw(arrays_of.arrays(dtype, 4, elements=elements)) for _ in range(2))
    found = compare_arrays(old, new, where="", name="", dtype="")
    pairs = [(o, n) for o, n in zip(old, new, strict=True) if bits(o) != bits(n)]
    assert found.changed == len(pairs)
    assert found.became_zero == sum(bool(o != 0 and n == 0) for o, n in pairs)
    assert found.zero_signs == sum(bool(o == 0 and n == 0) for o, n in pairs)
    assert (found.zeros_before, found.zeros_after) == ((old == 0).sum(), (new == 0).sum())
    with np.errstate(all="ignore"):
        moved = [n.item() - o.item() for o, n in pairs]
        changes = [float(np.abs(m) if isinstance(m, complex) else abs(m)) for m in moved]
    expected = np.nan if any(map(np.isnan, changes)) else max(changes, default=0.0)
    np.testing.assert_allclose(found.largest, expected, rtol=1e-14)


@pytest.mark.parametrize("name", SMALL)
def test_small_types_are_numbers(name):
    old, new = np.array([1, 2, 0, 3], SMALL[name]), np.array([1, 0, 2, 3], SMALL[name])
    found = compare_arrays(old, new, where="w", name="n", dtype=name)
    assert (found.changed, found.became_zero, found.zeros_before, found.largest) == (2, 1, 1, 2.0)


def test_quantized_types_are_numbers():
    dtype = tf.qint8.as_numpy_dtype
    old, new = (np.array([(v,) for v in values], dtype) for values in ([1, 2, -128], [1, 0, 127]))
    found = compare_arrays(old, new, where="w", name="n", dtype="qint8")
    assert (found.changed, found.became_zero, found.zeros_after, found.largest) == (2, 1, 1, 255.0)


def test_large_arrays_are_counted_in_parts():
    old = np.ones((3, 1 << 19), "f")
    new = old.copy()
    new[0, 5:7] = [0, 5]
    new[2, -1] = 3
    found = compare_arrays(old, new, where="", name="", dtype="")
    assert (found.changed, found.became_zero, found.zeros_after, found.largest) == (3, 1, 1, 4.0)


def test_changes_of_integers_are_exact_and_do_not_overflow():
    for dtype, pair, largest in (("i8", (-(2**63), 2**63 - 1), 2.0**64), ("u8", (2**63, 2**63 + 1), 1.0)):
        for values in (pair, pair[::-1]):
            old, new = (np.array([value], dtype) for value in values)
            assert compare_arrays(old, new, where="", name="", dtype="").largest == largest


# SavedModels


def test_both_copies_of_a_keras_kernel_are_listed(tmp_path):
    keras_export(tmp_path / "a")
    sparsekit.prune(tmp_path / "a").save(tmp_path / "b")
    difference = sparsekit.diff(tmp_path / "a", tmp_path / "b")
    assert difference.only_weights and len(difference.values) == 10
    shapes = Counter(change.shape for change in difference.values)
    assert shapes == dict.fromkeys([(3, 3, 3, 8), (2, 2, 6, 8), (3, 6, 4), (4, 12), (12, 5)], 2)
    bundles = [Bundle.open(tmp_path / name / "variables" / "variables") for name in "ab"]
    for change in difference.values:
        old, new = (bundle.read(change.name) for bundle in bundles)
        assert change.where == "variables" and change.became_zero == (old != new).sum() and change.only_zeros
    assert difference.notes == ("Only A has a fingerprint; loaders do without.",)


def test_a_tf1_saved_model_is_compared_by_checkpoint_key(tmp_path):
    tf1_export(tmp_path / "a")
    sparsekit.prune(tmp_path / "a").save(tmp_path / "b")
    difference = sparsekit.diff(tmp_path / "a", tmp_path / "b")
    assert difference.only_weights
    assert [(change.name, change.became_zero) for change in difference.values] == [("k", 72), ("w", 20)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a SavedModel with an asset and string tensors, and a copy of it."""

    class Net(tf.Module):
        def __init__(self) -> None:
            self.w = tf.Variable(np.random.RandomState(0).randn(8, 8).astype("f"))
            self.names = tf.Variable(["cat", "dog"])
            (tmp_path / "vocabulary.txt").write_text("cat\ndog\n")
            self.vocabulary = tf.saved_model.Asset(str(tmp_path / "vocabulary.txt"))

        @tf.function(input_signature=[tf.TensorSpec([None, 8])])
        def serve(self, x: Any) -> Any:
            return {"y": x @ self.w, "names": self.names + ""}

    net = Net()
    tf.saved_model.save(net, str(tmp_path / "a"), signatures={"serve": net.serve, "also": net.serve})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def edit_proto(folder: Path, change: Callable[[Any], Any]) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    change(proto)
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())


def rename_signature(proto: Any) -> None:
    signatures = proto.meta_graphs[0].signature_def
    signatures["new"].CopyFrom(signatures["also"])
    del signatures["also"]


def replace_string(folder: Path) -> None:
    bundle = Bundle.open(folder / "variables" / "variables")
    (entry,) = [entry for key, entry in bundle.entries.items() if key.startswith("names")]
    path = bundle.shard_path(entry)
    data = path.read_bytes()
    at = data.index(b"catdog", entry.offset)
    path.write_bytes(data[:at] + b"cowdog" + data[at + 6 :])


FOLDER_EDITS: dict[str, tuple[Callable[[Path], Any], list[tuple[str, str, str, str]], str]] = {
    "asset changed": (
        lambda b: (b / "assets" / "vocabulary.txt").write_text("cow\ndog\n"),
        [("folder", "file", "assets/vocabulary.txt", "changed")],
        "8 bytes -> 8 others",
    ),
    "asset longer": (
        lambda b: (b / "assets" / "vocabulary.txt").write_text("cat\ndog\ncow\n"),
        [("folder", "file", "assets/vocabulary.txt", "changed")],
        "8 bytes -> 12 others",
    ),
    "asset gone": (
        lambda b: (b / "assets" / "vocabulary.txt").unlink(),
        [("folder", "file", "assets/vocabulary.txt", "only in A")],
        "",
    ),
    "file added": (
        lambda b: (b / "variables" / "notes").write_text(""),
        [("folder", "file", "variables/notes", "only in B")],
        "",
    ),
    "signature": (
        lambda b: edit_proto(b, rename_signature),
        [
            ("meta graph", "signature", "also", "only in A"),
            ("meta graph", "signature", "new", "only in B"),
        ],
        "",
    ),
    "method": (
        lambda b: edit_proto(b, lambda p: setattr(p.meta_graphs[0].signature_def["also"], "method_name", "m")),
        [("meta graph", "signature", "also", "changed")],
        "method_name: 'tensorflow/serving/predict' -> 'm'",
    ),
    "tags": (
        lambda b: edit_proto(b, lambda p: p.meta_graphs[0].meta_info_def.tags.append("gpu")),
        [
            ("folder", "meta graph", "['gpu', 'serve']", "only in B"),
            ("folder", "meta graph", "['serve']", "only in A"),
        ],
        "",
    ),
    "saver": (
        lambda b: edit_proto(b, lambda p: setattr(p.meta_graphs[0].saver_def, "max_to_keep", 3)),
        [("meta graph", "meta graph", "", "changed")],
        "saver_def.max_to_keep: 0 -> 3",
    ),
    "object": (
        lambda b: edit_proto(b, lambda p: setattr(p.meta_graphs[0].object_graph_def.nodes[1].variable, "name", "v")),
        [("meta graph", "meta graph", "", "changed")],
        "object_graph_def.nodes[1].variable.name: 'Variable' -> 'v'",
    ),
    "node": (
        lambda b: edit_proto(b, lambda p: p.meta_graphs[0].graph_def.node.add(name="new", op="NoOp")),
        [("graph", "node", "new", "only in B")],
        "",
    ),
    "schema": (
        lambda b: edit_proto(b, lambda p: setattr(p, "saved_model_schema_version", 9)),
        [("folder", "SavedModel", "", "changed")],
        "saved_model_schema_version: 1 -> 9",
    ),
    "strings": (replace_string, [("variables", "variable", "names/.ATTRIBUTES/VARIABLE_VALUE", "changed")], "string"),
}


@pytest.mark.parametrize("edit", FOLDER_EDITS)
def test_an_edit_of_a_folder_is_the_one_thing_reported(pair, edit):
    a, b = pair
    assert sparsekit.diff(a, b) == sparsekit.Difference()
    change, expected, detail = FOLDER_EDITS[edit]
    change(b)
    difference = sparsekit.diff(a, b)
    assert structure(difference) == expected
    assert not difference.values and not difference.notes and not difference.identical
    assert detail in "; ".join(difference.structure[0].details)


def test_values_of_variables_and_constants_of_a_folder(pair):
    a, b = pair
    value = Bundle.open(a / "variables" / "variables").read("w/.ATTRIBUTES/VARIABLE_VALUE").copy()
    value[0, 0] += 1
    patch(b / "variables" / "variables", [("w/.ATTRIBUTES/VARIABLE_VALUE", value)])
    difference = sparsekit.diff(a, b)
    (change,) = difference.values
    assert (change.where, change.shape, change.changed, change.became_zero) == ("variables", (8, 8), 1, 0)
    assert change.largest == pytest.approx(1, rel=1e-6)
    assert difference.only_weights


def test_variables_that_one_model_alone_has(pair, tmp_path):
    a, b = pair
    module_export(tmp_path / "other")
    difference = sparsekit.diff(a, tmp_path / "other")
    variables = {(c.name.partition("/")[0], c.status) for c in difference.structure if c.where == "variables"}
    assert variables >= {("w", "only in A"), ("names", "only in A"), ("a", "only in B"), ("b", "only in B")}
    shutil.rmtree(b / "variables")
    names = {c.name for c in sparsekit.diff(a, b).structure}
    assert names == set(Bundle.open(a / "variables" / "variables").entries)


def test_a_stored_tensor_of_another_shape_or_dtype(tmp_path):
    for name, value in (("a", np.ones((4, 4), "f")), ("b", np.ones((4, 5), "f")), ("c", np.ones((4, 4)))):
        module = tf.Module()
        module.v = tf.Variable(value)
        tf.saved_model.save(module, str(tmp_path / name))
    for other, found in (("b", "float32 [4, 5]"), ("c", "float64 [4, 4]")):
        (change,) = [c for c in sparsekit.diff(tmp_path / "a", tmp_path / other).structure if c.where == "variables"]
        assert (change.kind, change.name) == ("variable", "v/.ATTRIBUTES/VARIABLE_VALUE")
        assert change.details == (f"float32 [4, 4] -> {found}",)


def test_a_file_that_was_empty(pair):
    a, b = pair
    (a / "assets" / "more").touch()
    (b / "assets" / "more").write_text("x")
    for first, second in ((a, b), (b, a)):
        (change,) = sparsekit.diff(first, second).structure
        assert (change.name, change.status) == ("assets/more", "changed")


def test_fingerprints_differ_without_alarm(pair):
    a, b = pair
    (b / "fingerprint.pb").write_bytes(b"another")
    difference = sparsekit.diff(a, b)
    assert difference.identical
    assert str(difference).startswith("Nothing differs. The fingerprints differ, as they do")


def test_every_meta_graph_is_compared_with_its_tags(tmp_path):
    for name, kernel in (("a", 0), ("b", 1)):
        builder = v1.saved_model.Builder(str(tmp_path / name))
        with tf.Graph().as_default(), v1.Session() as session:
            with v1.variable_scope("", use_resource=False):
                v1.get_variable("w", [4, 4], initializer=v1.ones_initializer())
            session.run(v1.global_variables_initializer())
            builder.add_meta_graph_and_variables(session, ["serve"])
        with tf.Graph().as_default(), v1.Session():
            tf.constant(np.full([2, 2], kernel, "f"), name="k")
            builder.add_meta_graph(["train"])
        builder.save()
    difference = sparsekit.diff(tmp_path / "a", tmp_path / "b")
    ((where, name),) = [(change.where, change.name) for change in difference.values]
    assert (where, name) == ("['train']: graph", "k") and difference.only_weights


def test_a_link_that_leads_back_ends(pair):
    a, b = pair
    (b / "assets" / "loop").symlink_to(b)
    (b / "assets" / "pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(b / "assets" / "pipe")
    assert sparsekit.diff(a, b).identical


# Deployed files


def tflite(folder: Path, kernel: np.ndarray, bias: np.ndarray) -> Path:
    @tf.function(input_signature=[tf.TensorSpec([1, 8])])
    def net(x: Any) -> Any:
        return tf.matmul(x, kernel) + bias

    converter = tf.lite.TFLiteConverter.from_concrete_functions([net.get_concrete_function()])
    path = folder / f"{len(os.listdir(folder))}.tflite"
    path.write_bytes(converter.convert())
    return path


def test_of_tflite_files_the_weights_of_layers_are_compared(tmp_path):
    kernel = np.random.RandomState(0).randn(8, 8).astype("f")
    pruned = kernel.copy()
    pruned[0] = 0
    a = tflite(tmp_path, kernel, np.zeros(8, "f"))
    b = tflite(tmp_path, pruned, np.zeros(8, "f"))
    other_bias = tflite(tmp_path, kernel, np.ones(8, "f"))
    (change,) = sparsekit.diff(a, b).values
    assert (change.where, change.dtype, change.changed, change.only_zeros) == ("file", "float32", 8, True)
    difference = sparsekit.diff(a, b)
    assert not difference.whole and not difference.only_weights and not difference.identical
    assert str(difference).endswith(
        "Weights changed: 1 tensor, 8 of 64 values became zero. Only the weights of layers were compared."
    )
    difference = sparsekit.diff(a, other_bias)
    assert structure(difference) == [("file", "bytes", "", "changed")] and not difference.values
    difference = sparsekit.diff(a, a)
    assert difference.identical and str(difference) == "Nothing differs."


# Errors


def test_models_of_two_kinds_are_not_compared(tmp_path):
    module_export(tmp_path / "m")
    sparsekit.save(frozen(), tmp_path / "f.pb")
    with pytest.raises(
        sparsekit.ModelError, match=r"one is a SavedModel, the other a GraphDef; expected two GraphDefs"
    ):
        sparsekit.diff(tmp_path / "m", tmp_path / "f.pb")
    deployed = tflite(tmp_path, np.ones((8, 8), "f"), np.ones(8, "f"))
    with pytest.raises(sparsekit.ModelError, match=r"tflite, the graph: one is a \.tflite file, the other a GraphDef"):
        sparsekit.diff(deployed, frozen())


def test_what_cannot_be_read_is_the_usual_error(tmp_path):
    good = frozen()
    (tmp_path / "garbage.pb").write_bytes(b"garbage")
    with pytest.raises(sparsekit.ModelError, match=r"garbage\.pb: is not a binary GraphDef"):
        sparsekit.diff(good, tmp_path / "garbage.pb")
    with pytest.raises(sparsekit.MissingFileError):
        sparsekit.diff(tmp_path / "nothing.pb", good)
    with pytest.raises(sparsekit.ModelError, match="model: got Graph; expected a GraphDef"):
        sparsekit.diff(good, tf.Graph())
    broken = copy(good)
    node(broken, "conv/filter").attr["value"].tensor.tensor_content = b"short"
    with pytest.raises(sparsekit.ModelError, match="graph: conv/filter: its value cannot be read"):
        sparsekit.diff(good, broken)


def test_damaged_variables_are_an_error_and_no_difference(pair):
    a, b = pair
    data = b / "variables" / "variables.data-00000-of-00001"
    entry = Bundle.open(b / "variables" / "variables").entries["w/.ATTRIBUTES/VARIABLE_VALUE"]
    damaged = bytearray(data.read_bytes())
    damaged[entry.offset] ^= 1
    data.write_bytes(damaged)
    with pytest.raises(sparsekit.ModelError, match="do not match their checksum"):
        sparsekit.diff(a, b)
    data.unlink()
    with pytest.raises(sparsekit.MissingFileError):
        sparsekit.diff(a, b)


# The command


def command(*arguments: Any) -> tuple[int, str]:
    ended = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return ended.exit_code, ended.output


def test_the_command_says_0_1_or_2(tmp_path):
    graph_def = frozen()
    a, b = tmp_path / "a.pb", tmp_path / "b.pb"
    sparsekit.save(graph_def, a)
    assert command("prune", a, "-o", b)[0] == 0
    assert command("diff", a, a) == (0, "Nothing differs.\n")
    status, output = command("diff", a, b)
    assert status == 1
    assert output == f"{sparsekit.diff(a, b)}\n"
    status, output = command("diff", a, tmp_path / "missing.pb")
    assert status == 2 and output.startswith("Error: ") and "missing.pb: there is no such file" in output
    assert command("diff", a)[0] == 2
    _, output = command("diff", "--help")
    assert "Exit status: 0 nothing, 1 something, 2 could not tell." in " ".join(output.split())


def test_the_command_gives_json_and_nothing_else(tmp_path):
    graph_def = constants(np.array([1, np.nan], "f"))
    sparsekit.save(graph_def, tmp_path / "a.pb")
    set_value(graph_def.node[0], np.array([np.nan, 1], "f"))
    graph_def.node.add(name="new", op="NoOp")
    sparsekit.save(graph_def, tmp_path / "b.pb")
    status, output = command("diff", tmp_path / "a.pb", tmp_path / "b.pb", "--json")
    found = json.loads(output)
    assert status == 1 and not found["identical"] and not found["only_weights"]
    assert found["summary"].startswith("Structure differs in 1 place; values changed: 1 tensor")
    assert found["structure"] == [
        {"where": "graph", "kind": "node", "name": "new", "status": "only in B", "details": []}
    ]
    assert (found["values"][0]["changed"], found["values"][0]["largest"]) == (2, None)
