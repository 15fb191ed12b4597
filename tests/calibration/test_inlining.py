"""Functions inlined: the same outputs bit for bit, the same effects in the same order, and what is inside to fetch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from small_graphs import settings_of
from tensorflow.core.protobuf import saved_model_pb2

import sparsekit
from sparsekit.calibration.inlining import inlined
from sparsekit.errors import ModelError
from sparsekit.graph.node import ProtoGraph

Array = npt.NDArray[Any]
v1 = tf.compat.v1


def _values(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _graph(build: Callable[[], Any]) -> Any:
    with tf.Graph().as_default() as graph:
        build()
    return graph


def _graph_def(build: Callable[[], Any]) -> Any:
    return _graph(build).as_graph_def()


def _run(graph_def: Any, fetches: Any, feeds: Any = None, before: Iterable[str] = (), times: int = 1) -> list[Any]:
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        for name in before:
            session.run(name)
        return [session.run(fetches, feeds) for _ in range(times)]


def _ops(graph_def: Any) -> set[str]:
    return {node.op for node in graph_def.node}


def _check_same(
    graph_def: Any, fetches: list[str], feeds: Any = None, before: Iterable[str] = (), times: int = 2
) -> Any:
    """The inlined graph, if it gives what the original gives."""
    given = graph_def.SerializeToString(deterministic=True)
    flat = inlined(ProtoGraph(graph_def))
    assert graph_def.SerializeToString(deterministic=True) == given
    assert not _ops(flat) & {"PartitionedCall", "StatefulPartitionedCall"}
    wanted = _run(graph_def, fetches, feeds, before, times)
    found = _run(flat, fetches, feeds, before, times)
    for expected, value in zip(wanted, found, strict=True):
        for name, left, right in zip(fetches, expected, value, strict=True):
            if left is None:
                assert right is None
                continue
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), name
    return flat


def _data(node: Any) -> str:
    """The tensor that is a node's first input."""
    first: str = node.input[0]
    return first if ":" in first else f"{first}:0"


def _layer(name: str, weight: Array) -> Any:
    """A function with a layer in it."""

    @tf.function(autograph=False)
    def layer(x: Any) -> Any:
        return tf.nn.relu(tf.matmul(x, weight, name=name))

    return layer


def test_calls_within_calls_and_what_is_inside() -> None:
    w1, w2, x = _values(8, 6), _values(6, 4), _values(5, 8)

    def build() -> None:
        inner, second = _layer("inner", w1), _layer("second", w2)

        @tf.function(autograph=False)
        def outer(x: Any) -> Any:
            y = inner(x)
            return second(y), y, x

        data = v1.placeholder(tf.float32, [None, 8], name="x")
        a, b, c = outer(data)
        tf.add(tf.reduce_sum(a), tf.reduce_sum(inner(c)), name="all")
        tf.identity(b, name="b")

    graph_def = _graph_def(build)
    names = [node.name for node in graph_def.node if node.op.endswith("PartitionedCall")]
    flat = _check_same(graph_def, ["all:0", "b:0", *(f"{name}:0" for name in names)], {"x:0": x})
    planned = {use for layer in sparsekit.plan(graph_def).decisions for use in layer.uses}
    products = [node.name for node in flat.node if node.op == "MatMul"]
    assert len(products) == 3 and set(products) == planned
    second = next(name for name in products if name.endswith("second"))
    data = next(_data(node) for node in flat.node if node.name == second)
    (value,) = _run(flat, data, {"x:0": x})
    np.testing.assert_allclose(value, np.maximum(x @ w1, 0), rtol=1e-5, atol=1e-5)


def test_outputs_in_lists_are_told_apart() -> None:
    """Several of ParseExample's outputs are lists: the third output of its definition is no third tensor."""
    features = {
        "a": tf.io.VarLenFeature(tf.int64),
        "b": tf.io.VarLenFeature(tf.float32),
        "c": tf.io.FixedLenFeature([2], tf.float32),
    }

    def build() -> None:
        @tf.function(autograph=False)
        def parse(serialized: Any) -> Any:
            parsed = tf.io.parse_example(serialized, features)
            return parsed["b"].values, parsed["c"], parsed["a"].values

        for name, value in zip("bca", parse(v1.placeholder(tf.string, [None], name="x")), strict=True):
            tf.identity(value, name=name)

    example = tf.train.Example()
    example.features.feature["a"].int64_list.value.extend([1, 2, 3])
    example.features.feature["b"].float_list.value.extend([0.5])
    example.features.feature["c"].float_list.value.extend([7, 8])
    _check_same(_graph_def(build), ["a:0", "b:0", "c:0"], {"x:0": [example.SerializeToString()]})


# --- effects ---------------------------------------------------------------------------------------------


def _counter() -> tuple[Any, Any]:
    """A variable, and a function that counts in it and returns the new count."""
    counter = tf.Variable(0.0, name="counter")

    @tf.function(autograph=False)
    def count(step: Any) -> Any:
        counter.assign_add(step)
        return counter.read_value()

    tf.group(counter.initializer, name="init")
    return counter, count


@pytest.mark.usefixtures("resource_kind")
def test_effects_keep_their_order() -> None:
    def build() -> None:
        counter, count = _counter()
        first = count(1.0)
        with tf.control_dependencies([first]):
            second = count(10.0)
        # Waits for the call alone, whose results it does not read.
        with tf.control_dependencies([second.op]):
            tf.identity(counter.read_value(), name="after")
        tf.identity(first, name="first")
        tf.identity(second, name="second")

    graph_def = _graph_def(build)
    flat = _check_same(graph_def, ["first:0", "second:0", "after:0"], before=["init"], times=3)
    assert [list(values) for values in _run(flat, ["first:0", "after:0"], before=["init"], times=2)] == [
        [1, 11],
        [12, 22],
    ]


@pytest.mark.usefixtures("resource_kind")
def test_an_effect_waits_for_arguments_that_it_does_not_use() -> None:
    """The call reads the variable once its argument is there, which is slow to come and changes the variable."""

    def build() -> None:
        counter, _ = _counter()

        @tf.function(autograph=False)
        def read(unused: Any) -> Any:
            return counter.read_value()

        slow = tf.py_function(lambda: time.sleep(0.2) or 5.0, [], tf.float32)
        with tf.control_dependencies([counter.assign(slow)]):
            tf.identity(read(tf.identity(slow)), name="read")

    graph = _graph(build)  # which holds its Python function
    flat = inlined(ProtoGraph(graph.as_graph_def()))
    assert _run(flat, "read:0", before=["init"]) == [5.0]


@pytest.mark.usefixtures("resource_kind")
def test_who_waits_for_a_call_waits_for_what_it_waits_for() -> None:
    def build() -> None:
        counter, _ = _counter()

        @tf.function(autograph=False)
        def double(x: Any) -> Any:
            return x + x

        one = tf.constant(1.0)
        slow = tf.py_function(lambda: time.sleep(0.2) or 5.0, [], tf.float32)
        with tf.control_dependencies([counter.assign(slow)]):
            doubled = double(one)
        with tf.control_dependencies([doubled]):
            tf.identity(counter.read_value(), name="seen")

    graph = _graph(build)  # which holds its Python function
    flat = inlined(ProtoGraph(graph.as_graph_def()))
    assert _run(flat, "seen:0", before=["init"]) == [5.0]


@pytest.mark.usefixtures("resource_kind")
@pytest.mark.parametrize("named", [True, False], ids=["control outputs", "as old functions are"])
def test_effects_happen_though_nobody_reads_the_results(named: bool) -> None:
    def build() -> None:
        counter, count = _counter()

        @tf.function(autograph=False)
        def only_counts() -> None:
            count(2.0)

        only_counts()
        tf.identity(counter.read_value(), name="value")

    graph_def = _graph_def(build)
    (call,) = (node.name for node in graph_def.node if node.op == "StatefulPartitionedCall")
    for function in graph_def.library.function:
        if not named:
            function.control_ret.clear()
            del function.signature.control_output[:]
    for tested in (graph_def, inlined(ProtoGraph(graph_def))):
        with tf.Graph().as_default(), v1.Session() as session:
            tf.import_graph_def(tested, name="")
            session.run("init")
            session.run(call)
            assert session.run("value:0") == 2.0


@pytest.mark.parametrize("taken", [True, False])
def test_a_call_in_a_branch_that_is_not_taken_does_nothing(taken: bool) -> None:
    def build() -> None:
        counter, count = _counter()
        branch = v1.placeholder(tf.bool, [], name="branch")
        tf.identity(v1.cond(branch, lambda: count(1.0), lambda: tf.constant(-1.0)), name="result")
        tf.identity(counter.read_value(), name="value")

    with settings_of("resource", "v1"):
        graph_def = _graph_def(build)
        assert "Merge" in _ops(graph_def)
        flat = _check_same(graph_def, ["result:0"], {"branch:0": taken}, before=["init"])
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(flat, name="")
        session.run("init")
        session.run("result:0", {"branch:0": taken})
        assert session.run("value:0") == float(taken)


def test_a_call_in_a_loop_runs_in_the_loop() -> None:
    """Its constants too, which have no inputs that would tell."""

    def build() -> None:
        _, count = _counter()

        @tf.function(autograph=False)
        def double(x: Any) -> Any:
            return x * tf.constant(2.0) + tf.constant(1.0), tf.constant(3.0)

        def body(i: Any, x: Any) -> Any:
            doubled, constant = double(x)
            return i + 1, doubled + constant + count(x)

        _, x = v1.while_loop(lambda i, x: i < 5, body, [0, v1.placeholder(tf.float32, [], name="x")])
        tf.identity(x, name="result")

    with settings_of("resource", "v1"):
        graph_def = _graph_def(build)
        assert "Enter" in _ops(graph_def)
        _check_same(graph_def, ["result:0"], {"x:0": 0.5}, before=["init"])


def test_v1_control_flow_inside_a_function() -> None:
    """As a TF1 graph that TF2 wraps and saves has it."""
    weight = _values(4, 4)

    def counter() -> Any:
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="shared_counter")

    def count(step: float) -> Any:
        return tf.raw_ops.AssignAddVariableOp(resource=counter(), value=step)

    def build_inside() -> None:
        def body(i: Any, y: Any) -> Any:
            with tf.control_dependencies([count(1.0)]):
                return i + 1, tf.matmul(y, weight)

        def positive() -> Any:
            with tf.control_dependencies([count(100.0)]):
                return looped + 1.0

        x = v1.placeholder(tf.float32, [2, 4], name="x")
        _, looped = v1.while_loop(lambda i, y: i < 3, body, [0, x])
        tf.identity(v1.cond(tf.reduce_sum(x) > 0, positive, lambda: looped - 1.0), name="result")

    def build() -> None:
        def run(x: Any) -> Any:
            return tf.import_graph_def(inside, {"x": x}, ["result:0"], name="inside")[0]

        wrapped = v1.wrap_function(run, [tf.TensorSpec([2, 4])])
        tf.identity(wrapped(v1.placeholder(tf.float32, [2, 4], name="x")), name="result")
        tf.raw_ops.AssignVariableOp(resource=counter(), value=0.0, name="init")
        tf.raw_ops.ReadVariableOp(resource=counter(), dtype=tf.float32, name="value")

    with settings_of("resource", "v1"):
        inside = _graph_def(build_inside)
        graph_def = _graph_def(build)
    assert {"Enter", "Switch"} <= {node.op for f in graph_def.library.function for node in f.node_def}
    for sign, counted in ((1, 103), (-1, 3)):
        feeds = {"x:0": np.full([2, 4], sign, np.float32)}
        flat = _check_same(graph_def, ["result:0"], feeds, before=["init"])
        for tested in (graph_def, flat):
            with tf.Graph().as_default(), v1.Session() as session:
                tf.import_graph_def(tested, name="")
                session.run("init")
                session.run("result:0", feeds)
                assert session.run("value:0") == counted


# --- what stays, and what is refused -----------------------------------------------------------------------


@pytest.mark.usefixtures("resource_kind")
def test_loops_and_conditionals_stay_with_their_functions() -> None:
    layer_weight = _values(4, 4)

    def build() -> None:
        layer = _layer("fc", layer_weight)

        @tf.function(autograph=False)
        def outer(x: Any) -> Any:
            _, y = tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, layer(y)), [0, x])
            return tf.cond(tf.reduce_sum(y) > 0, lambda: layer(y), lambda: y)

        tf.identity(outer(v1.placeholder(tf.float32, [None, 4], name="x")), name="result")

    graph_def = _graph_def(build)
    flat = _check_same(graph_def, ["result:0"], {"x:0": _values(3, 4)})
    assert _ops(flat) & {"While", "StatelessWhile"} and _ops(flat) & {"If", "StatelessIf"}
    assert flat.library == graph_def.library


def test_attributes_and_places_that_a_function_gives_its_ops() -> None:
    """A function with an attribute of its own, a colocation, a control input on an argument."""

    def build() -> None:
        @tf.function(autograph=False)
        def function(x: Any, y: Any) -> Any:
            with tf.control_dependencies([y]):
                one = tf.identity(x, name="one")
            with v1.colocate_with(one.op):
                return tf.identity(one * 2.0, name="two")

        tf.identity(function(tf.constant(3.0), tf.constant(4.0)), name="result")

    graph_def = _graph_def(build)
    (function,) = graph_def.library.function
    function.signature.attr.add(name="T", type="type")
    for node in function.node_def:
        if node.name == "one":
            node.attr["T"].Clear()
            node.attr["T"].placeholder = "T"
            node.input.append("^y")
    (call,) = (node for node in graph_def.node if node.op == "PartitionedCall")
    call.attr["f"].func.attr["T"].type = tf.float32.as_datatype_enum
    flat = _check_same(graph_def, ["result:0"])
    nodes = {node.name.removeprefix(f"{call.name}/"): node for node in flat.node}
    assert nodes["one"].attr["T"].type == tf.float32.as_datatype_enum
    assert nodes["two"].attr["_class"].list.s == [f"loc:@{call.name}/one".encode()]


def test_a_name_that_is_taken_is_refused() -> None:
    def build() -> None:
        tf.identity(_layer("fc", _values(4, 4))(tf.ones([2, 4])), name="result")

    graph_def = _graph_def(build)
    (call,) = (node.name for node in graph_def.node if node.op == "PartitionedCall")
    graph_def.node.add(name=f"{call}/fc", op="NoOp")
    with pytest.raises(ModelError, match=f"^{call}/fc: a node inside a function and another node have this name"):
        inlined(ProtoGraph(graph_def))


# --- a Keras model -----------------------------------------------------------------------------------------


def _keras_model() -> Any:
    keras.utils.set_random_seed(1)
    image = keras.Input([8, 8, 8], name="image")
    words = keras.Input([5, 6], name="words")
    x = keras.layers.Conv2D(8, 3, groups=2, activation="relu")(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2DTranspose(4, 3, 2, padding="same")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    y = keras.layers.LSTM(8)(keras.layers.MultiHeadAttention(2, 4)(words, words))
    return keras.Model([image, words], keras.layers.Dense(3)(keras.layers.Concatenate()([x, y])))


def _restored(graph_def: Any, meta_graph: Any, folder: Path, fetches: list[str], feeds: Any) -> list[Any]:
    """What a session gives that restores the variables as a loader of SavedModels does."""
    saver = meta_graph.saver_def
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        session.run(saver.restore_op_name, {saver.filename_tensor_name: str(folder / "variables" / "variables")})
        return session.run(fetches, feeds)


def test_a_keras_export(tmp_path: Path) -> None:
    _keras_model().export(tmp_path / "model", verbose=False)
    saved_model = saved_model_pb2.SavedModel.FromString((tmp_path / "model" / "saved_model.pb").read_bytes())
    (meta_graph,) = saved_model.meta_graphs
    signature = meta_graph.signature_def["serving_default"]
    feeds = {
        info.name: _values(3, *(dim.size for dim in info.tensor_shape.dim[1:])) for info in signature.inputs.values()
    }
    outputs = [info.name for info in signature.outputs.values()]
    graph_def = meta_graph.graph_def
    flat = inlined(ProtoGraph(graph_def))
    (wanted,) = _restored(graph_def, meta_graph, tmp_path / "model", outputs, feeds)
    (found,) = _restored(flat, meta_graph, tmp_path / "model", outputs, feeds)
    # To rounding: TensorFlow may fuse other ops where they are not in functions.
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert wanted.shape == (3, 3)
    # Every layer that the plan prunes is there under the name that the plan has for it, but for those in loops.
    plan = sparsekit.plan(tmp_path / "model")
    names = {node.name for node in flat.node}
    uses = {use for layer in plan.decisions if layer.pruned for use in layer.uses}
    assert {use for use in uses if use not in names} == {use for use in uses if "/while" in use}
    served = outputs[0].partition(":")[0]
    (conv,) = (n for n in flat.node if n.op == "Conv2D" and n.name in uses and n.name.startswith(f"{served}/"))
    (data,) = _restored(flat, meta_graph, tmp_path / "model", [_data(conv)], feeds)
    assert data.tobytes() == next(value for value in feeds.values() if value.ndim == 4).tobytes()
