"""Models at rest that reviewers built to be misread."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import settings_of

import sparsekit

v1 = tf.compat.v1


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(*shape).astype("f")


def sparse(*shape: int) -> np.ndarray:
    value = weight(*shape, seed=1)
    value[::4] = value[1::4] = 0
    return value


@pytest.mark.parametrize("dense_first", [True, False])
def test_layers_of_one_name_in_two_branches_are_told_apart(tmp_path, dense_first):
    a, b = (weight(8, 8), sparse(8, 8)) if dense_first else (sparse(8, 8), weight(8, 8))
    with settings_of("resource", "v2"), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        p = v1.placeholder(tf.bool, [], name="p")
        a, b = tf.constant(a), tf.constant(b)
        tf.identity(tf.cond(p, lambda: tf.matmul(x, a, name="fc"), lambda: tf.matmul(x, b, name="fc")), name="out")
    verification = sparsekit.verify(graph.as_graph_def())
    assert verification.status == "not sparse"
    found = {layer.name.split("/")[1]: layer.ok for layer in verification.layers}
    assert found == {"then_branch": not dense_first, "else_branch": dense_first}
    result = sparsekit.prune(graph.as_graph_def(), record=tmp_path / "record")
    assert sparsekit.verify(result.graph_def, record=tmp_path / "record").ok
    skipped = sparsekit.plan(graph.as_graph_def(), {"skip_layers": ["*/then_branch/*"]})
    assert [d.status for d in skipped.decisions] == ["skip", "prune"]


class Net(tf.Module):
    """A layer, a low-rank update of it, and a constant put together from two."""

    def __init__(self) -> None:
        self.kernel = tf.Variable(weight(8, 8))
        self.low, self.high = tf.Variable(weight(8, 4)), tf.Variable(weight(4, 8))
        self.last = tf.Variable(weight(16, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 8])])
    def serve(self, x: Any) -> Any:
        x = tf.matmul(x, self.kernel + tf.matmul(self.low, self.high, name="update"), name="lora")
        x = tf.matmul(x, tf.concat([tf.constant(weight(8, 8)), tf.constant(weight(8, 8, seed=2))], 1), name="constants")
        return tf.matmul(x, self.last, name="last")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = Net()
    tf.saved_model.save(net, str(tmp_path / "m"), signatures={"serving_default": net.serve})
    return tmp_path / "m"


def test_a_product_of_two_variables_is_no_layer(saved):
    reasons = {d.name.rpartition("/")[2]: d.reason for d in sparsekit.plan(saved).decisions}
    assert reasons["update"] == "product-of-weights"
    assert reasons["lora"] in ("weight-computed", "weight-dynamic")
    assert reasons["last"] == reasons["constants"] == "eligible"


def test_the_factors_of_a_low_rank_update_are_no_layer_when_frozen_either() -> None:
    def build(x: Any) -> None:
        update = tf.matmul(weight(16, 4), weight(4, 8), name="update")
        tf.matmul(x, weight(16, 8) + update, name="lora")

    with tf.Graph().as_default() as graph:
        build(tf.compat.v1.placeholder(tf.float32, [None, 16]))
    assert {d.name: d.reason for d in sparsekit.plan(graph.as_graph_def()).decisions} == {
        "update": "product-of-weights",
        "lora": "weight-computed",
    }
    with tf.Graph().as_default() as graph:
        tf.matmul(weight(16, 4), weight(4, 8), name="update")
    (decision,) = sparsekit.plan(graph.as_graph_def()).decisions
    assert decision.pruned, "without inputs a constant may be the data"


def test_constants_and_variables_are_saved_together(saved, tmp_path):
    sparsekit.prune(saved, record=tmp_path / "record").save(tmp_path / "out")
    verification = sparsekit.verify(tmp_path / "out", record=tmp_path / "record")
    assert verification.ok and len(verification.layers) == 2


def test_the_input_is_never_inside_what_is_replaced_nor_the_other_way_round(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "models")
    shutil.copytree(saved, tmp_path / "models" / "1")
    for source, target in (("models/1", "models"), ("m", "m/out")):
        with pytest.raises(sparsekit.SaveError, match="lies inside the model that is pruned"):
            sparsekit.prune(tmp_path / source).save(tmp_path / target)
    with pytest.raises(sparsekit.SaveError, match=r"holds something else than a SavedModel \(1\)"):
        sparsekit.prune(saved).save(tmp_path / "models")
    assert sorted(os.listdir(tmp_path / "models")) == sorted([*os.listdir(saved), "1"])


def test_linked_folders_are_copied(saved, tmp_path):
    shutil.move(saved / "variables", tmp_path / "elsewhere")
    (saved / "variables").symlink_to(tmp_path / "elsewhere")
    before = {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    sparsekit.prune(saved).save(tmp_path / "out")
    assert sparsekit.verify(tmp_path / "out", cfg={"skip_layers": ["*/update"]}).ok
    assert {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()} == before


def test_a_weight_that_is_not_finite_is_refused_before_anything_is_written(saved, tmp_path):
    from sparsekit.artefact.bundle import Bundle, patch

    bundle = Bundle.open(saved / "variables" / "variables")
    key = next(key for key, entry in bundle.entries.items() if entry.shape == (16, 4))
    patch(bundle.prefix, [(key, np.full((16, 4), np.nan, "f"))])
    with pytest.raises(sparsekit.ModelError, match="last: 64 of 64 values"):
        sparsekit.prune(saved, record=tmp_path / "record")
    assert not (tmp_path / "record").exists()


def test_an_einsum_that_sums_a_label_of_the_weight_alone_is_no_layer():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 8])
        tf.raw_ops.Einsum(inputs=[x, weight(8, 4, 3)], equation="bk,knz->bn", name="fc")
    (decision,) = sparsekit.plan(graph.as_graph_def()).decisions
    assert decision.reason == "einsum-contraction"


def with_functions(*calls: tuple[str, list[str]]) -> Any:
    """A graph that calls the first of some functions, each of which calls others."""
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.float32, [2, 2], name="x")
    graph_def = graph.as_graph_def()
    call = graph_def.node.add(name="call", op="PartitionedCall", input=["x"])
    call.attr["f"].func.name = calls[0][0]
    for attr in ("Tin", "Tout"):
        call.attr[attr].list.type.append(1)
    for name, called in calls:
        function = graph_def.library.function.add()
        function.signature.name = name
        function.signature.input_arg.add(name="a", type=1)
        function.signature.output_arg.add(name="r", type=1)
        previous = "a"
        for index, other in enumerate(called):
            node = function.node_def.add()
            node.CopyFrom(call)
            node.name, node.input[0] = f"n{index}", previous
            node.attr["f"].func.name = other
            previous = f"n{index}:output:0"
        function.ret["r"] = previous
    return graph_def


def test_functions_that_call_themselves_or_multiply_end_in_an_error():
    endless = with_functions(("f", ["f"]))
    multiplying = with_functions(*((f"f{i}", [f"f{i + 1}"] * 2) for i in range(40)), ("f40", []))
    for graph_def in (endless, multiplying):
        for verb in (sparsekit.plan, sparsekit.prune, sparsekit.verify):
            with pytest.raises(sparsekit.ModelError, match="functions call each other"):
                verb(graph_def)


def test_function_bodies_that_do_not_hold_together_are_refused():
    def broken(change: Any) -> Any:
        graph_def = with_functions(("f", ["g"]), ("g", []))
        change(graph_def.library.function[0])
        return graph_def

    changes = {
        "returns 'nope:output:0'": lambda f: f.ret.update({"r": "nope:output:0"}),
        "returns ''": lambda f: f.ret.clear(),
        "reads 'nope', which is not in the function": lambda f: f.node_def[0].input.__setitem__(0, "nope"),
        "depends on itself": lambda f: f.node_def[0].input.__setitem__(0, "n0:output:0"),
        "two nodes have this name": lambda f: f.node_def.add().CopyFrom(f.node_def[0]),
        "with 0 inputs": lambda f: f.node_def[0].input.pop(),
    }
    for says, change in changes.items():
        with pytest.raises(sparsekit.ModelError, match=says):
            sparsekit.verify(broken(change))


@pytest.mark.parametrize("permutation", [1, ["a", "b"], [0, 7, 9], [0.5, 1.5]])
def test_a_layout_that_makes_no_sense_is_a_damaged_model(permutation):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        tf.matmul(x, tf.transpose(tf.constant(weight(8, 8)), name="t"), name="fc")
    graph_def = graph.as_graph_def()
    node = next(node for node in graph_def.node if node.name == "t/perm")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(permutation))
    node.attr["dtype"].type = node.attr["value"].tensor.dtype
    try:
        plan = sparsekit.plan(graph_def)
    except sparsekit.ModelError as error:
        assert error.where == "fc"
    else:
        assert plan.decisions[0].reason == "layout-unknown"
