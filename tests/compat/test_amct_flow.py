"""AMCT's calls in one process: what scripts rely on, the config, the log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import sparsekit.compat.amct_tensorflow as amct
from sparsekit import ConfigError, GraphError, RecordError, SaveError, UnsupportedTargetWarning
from sparsekit.compat.amct_tensorflow.utils.log import LOGGER

v1 = tf.compat.v1

DEFAULT = "prune_config { n_out_of_m_pruner { l1_selective_prune { } } }"
BOTH_KINDS = pytest.mark.parametrize("resource", [False, True], ids=["ref", "resource"])


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """The log goes under the working directory; and levels are as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEKIT_TARGET", raising=False)
    monkeypatch.setattr(LOGGER._file, "_failed", False)
    yield
    amct.set_logging_level()


def network(resource: bool = True) -> tuple[tf.Tensor, tf.Tensor]:
    """conv1 [3, 3, 3, 8], conv2 [3, 3, 8, 12], fc [12, 6]."""
    with v1.variable_scope("net", use_resource=resource):
        x = v1.placeholder(tf.float32, [None, 6, 6, 3], name="x")
        h = tf.nn.relu(tf.nn.conv2d(x, v1.get_variable("w1", [3, 3, 3, 8]), 1, "SAME", name="conv1"))
        h = tf.nn.relu(tf.nn.conv2d(h, v1.get_variable("w2", [3, 3, 8, 12]), 2, "SAME", name="conv2"))
        h = tf.matmul(tf.reduce_mean(h, [1, 2]), v1.get_variable("w3", [12, 6]), name="fc")
    return x, tf.identity(h, name="logits")


WEIGHTS = {"net/conv1": ("net/w1", 2), "net/conv2": ("net/w2", 2), "net/fc": ("net/w3", 0)}


def config(text: str = DEFAULT, name: str = "retrain.cfg") -> str:
    Path(name).write_text(text)
    return f"./{name}"


def create(graph: tf.Graph, text: str = DEFAULT, outputs: object = ("logits",), record: str = "record.txt") -> None:
    assert amct.create_prune_retrain_model(graph, outputs, record, config(text)) is None


def trainer(y: tf.Tensor) -> tf.Operation:
    return v1.train.RMSPropOptimizer(1e-2).minimize(tf.reduce_mean(tf.square(y - 1.0)))


def images(count: int = 4) -> np.ndarray:
    return np.random.RandomState(0).randn(count, 6, 6, 3).astype(np.float32)


def freeze(session: v1.Session, *outputs: str) -> v1.GraphDef:
    names = list(outputs) or ["logits"]
    return v1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), names)


def forward(graph_def: v1.GraphDef, x: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
        with v1.Session() as session:
            return session.run("logits:0", {"net/x:0": x})


def read(path: str) -> v1.GraphDef:
    return v1.GraphDef.FromString(Path(path).read_bytes())


def weights(graph_def: v1.GraphDef) -> dict[str, np.ndarray]:
    return {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in graph_def.node if n.op == "Const"}


def masked(graph: tf.Graph) -> set[str]:
    """The layers of WEIGHTS that a mask was given to."""
    names = {operation.name for operation in graph.get_operations()}
    return {layer for layer in WEIGHTS if f"{layer}/sparsekit/masked" in names}


def settings(graph: tf.Graph, layer: str) -> dict[str, object]:
    return json.loads(graph.get_operation_by_name(f"{layer}/sparsekit/masked").get_attr("_sparsekit"))


def recorded(path: str = "record.txt") -> list[str]:
    return re.findall(r'^    name: "(.*)"$', Path(path).read_text(), re.MULTILINE)


def log() -> str:
    return Path("amct_log", "amct_tensorflow.log").read_text()


def states(graph: tf.Graph, session: v1.Session) -> dict[str, np.ndarray]:
    new = [v for v in graph.get_collection("variables") if "/sparsekit/" in v.name]
    return dict(zip([v.name for v in new], session.run(new), strict=True))


def two_of_four(weight: np.ndarray, axis: int) -> np.ndarray:
    """The documented mask, group by group: 2 of every 4 along the axis stay; of a shorter last group, 2 too."""
    rows = np.moveaxis(weight, axis, -1)
    mask = np.zeros(rows.shape, bool)
    for position in np.ndindex(rows.shape[:-1]):
        for start in range(0, rows.shape[-1], 4):
            mask[(*position, start + np.argsort(-np.abs(rows[position][start : start + 4]), kind="stable")[:2])] = True
    return np.moveaxis(mask, -1, axis)


# 1, 3, 15: the edit


@BOTH_KINDS
def test_the_graph_is_edited_in_place_and_only_the_weight_inputs_are_rewired(resource):
    with tf.Graph().as_default() as graph:
        network(resource)
        losses = [tf.nn.l2_loss(v) for v in v1.trainable_variables()]
        before = {node.name: node for node in graph.as_graph_def().node}
        trainable = v1.trainable_variables()
        create(graph)
        after = {node.name: node for node in graph.as_graph_def().node}

    for name, node in before.items():
        expected = v1.NodeDef.FromString(node.SerializeToString())
        if name in WEIGHTS:
            expected.input[1] = f"{name}/sparsekit/masked"
        assert after[name] == expected
    added = set(after) - set(before)
    assert added
    assert all(re.match(r"(net/(conv1|conv2|fc)/)?sparsekit/", name) for name in added)
    # An L2 loss goes on reading the dense weight.
    for loss, variable in zip(losses, trainable, strict=True):
        assert "sparsekit" not in loss.op.inputs[0].name
        assert loss.op.inputs[0].name.startswith(variable.op.name) or loss.op.inputs[0].op.type == "ReadVariableOp"


@BOTH_KINDS
def test_new_variables_are_global_not_trainable_and_named_alike_in_both_graphs(resource):
    names = []
    for _ in ("training", "inference"):
        with tf.Graph().as_default() as graph:
            _, y = network(resource)
            before = {key: list(graph.get_collection(key)) for key in graph.get_all_collection_keys()}
            create(graph)
            new = [v for v in v1.global_variables() if v not in before["variables"]]
            for key in graph.get_all_collection_keys():
                assert key == "variables" or graph.get_collection(key) == before[key]
            if not names:
                trainer(y)
            names.append({(v.name, v.dtype.base_dtype, tuple(v.shape)) for v in new})
            assert all(not v.trainable for v in new)
    assert names[0] == names[1]
    assert len(names[0]) == 2 * len(WEIGHTS)


# 2, 10, 11: savers


@BOTH_KINDS
def test_a_saver_made_before_the_edit_restores_the_dense_checkpoint_and_the_mask_is_chosen_from_it(resource):
    with tf.Graph().as_default(), v1.Session() as session:
        network(resource)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, "./dense")
        dense = dict(zip(("net/w1", "net/w2", "net/w3"), session.run(v1.trainable_variables()), strict=True))
    with tf.Graph().as_default() as graph:
        x, y = network(resource)
        saver = v1.train.Saver()
        create(graph)
        train = trainer(y)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            saver.restore(session, "./dense")
            session.run(train, {x: images()})
            for layer, (variable, axis) in WEIGHTS.items():
                mask = states(graph, session)[f"{layer}/sparsekit/mask:0"]
                np.testing.assert_array_equal(mask, two_of_four(dense[variable], axis))


# 4: the refresh happens inside the graph


@BOTH_KINDS
@pytest.mark.parametrize(("update_freq", "chosen_at"), [(0, {0}), (1, {0, 1, 2, 3, 4}), (2, {0, 2, 4}), (3, {0, 3})])
def test_masks_are_chosen_again_every_so_many_batches_and_never_by_an_evaluation(resource, update_freq, chosen_at):
    text = f"prune_config {{ n_out_of_m_pruner {{ l1_selective_prune {{ update_freq: {update_freq} }} }} }}"
    with tf.Graph().as_default() as graph:
        x, y = network(resource)
        create(graph, text)
        train = v1.train.GradientDescentOptimizer(0.0).minimize(tf.reduce_sum(y))
        weight = graph.get_collection("trainable_variables")[2]
        new_value = v1.placeholder(tf.float32, weight.shape)
        assign = v1.assign(weight, new_value)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            rng = np.random.RandomState(1)
            mask = None
            for batch in range(5):
                value = rng.randn(*weight.shape).astype(np.float32)
                session.run(assign, {new_value: value})
                before = states(graph, session)
                for _ in range(2):
                    session.run(y, {x: images()})
                for name, state in states(graph, session).items():
                    np.testing.assert_array_equal(state, before[name])
                session.run(train, {x: images()})
                if batch in chosen_at:
                    groups = np.abs(value).reshape(3, 4, 6)
                    mask = (groups >= np.sort(groups, axis=1)[:, 2:3]).reshape(12, 6)
                state = states(graph, session)
                np.testing.assert_array_equal(state["net/fc/sparsekit/mask:0"], mask)
                assert state["net/fc/sparsekit/batch:0"] == batch + 1


# 5, 13: the masked graph is plain TensorFlow


@pytest.mark.slow
def test_the_masked_graph_runs_in_a_process_that_has_no_sparsekit():
    for kind, resource in (("ref", False), ("resource", True)):
        with tf.Graph().as_default() as graph:
            x, y = network(resource)
            create(graph)
            train = trainer(y)
            with v1.Session() as session:
                session.run(v1.global_variables_initializer())
                session.run(train, {x: images()})
                Path(f"{kind}.pb").write_bytes(freeze(session).SerializeToString())
                np.savez(f"{kind}.npz", x=images(), y=session.run(y, {x: images()}))
    script = """
        import sys
        import numpy as np, tensorflow as tf
        for kind in ("ref", "resource"):
            data = np.load(f"{kind}.npz")
            with tf.Graph().as_default():
                tf.import_graph_def(tf.compat.v1.GraphDef.FromString(open(f"{kind}.pb", "rb").read()), name="")
                with tf.compat.v1.Session() as session:
                    assert (session.run("logits:0", {"net/x:0": data["x"]}) == data["y"]).all()
        assert not [name for name in sys.modules if name.startswith("sparsekit")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)


@BOTH_KINDS
def test_the_masked_graph_is_small_and_trains_on_after_export_and_import(resource):
    from tensorflow.python.framework import op_def_registry

    with tf.Graph().as_default() as graph:
        _, y = network(resource)
        create(graph)
        graph_def = graph.as_graph_def()
        assert not graph_def.library.function
        assert all(op_def_registry.get(node.op) is not None for node in graph_def.node)
        assert max(node.ByteSize() for node in graph_def.node if "/sparsekit/" in node.name) < 400
        tf.identity(y, name="y")
        v1.train.Saver()
        v1.train.export_meta_graph("./model.meta")
    with tf.Graph().as_default() as graph:
        v1.train.import_meta_graph("./model.meta")
        train = trainer(graph.get_tensor_by_name("logits:0"))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(2):
                session.run(train, {"net/x:0": images()})
            state = states(graph, session)
        assert [int(value) for name, value in state.items() if "batch" in name] == [2, 2, 2]
        assert [value.mean() for name, value in state.items() if "fc/sparsekit/mask" in name] == [0.5]


# 6, 9: arguments


@pytest.mark.parametrize(
    "spelled",
    [
        lambda graph: ["logits"],
        lambda graph: ("logits:0",),
        lambda graph: "logits",
        lambda graph: "logits:0",
        lambda graph: [graph.get_tensor_by_name("logits:0")],
        lambda graph: graph.get_tensor_by_name("logits:0"),
        lambda graph: [graph.get_operation_by_name("logits")],
        lambda graph: graph.get_operation_by_name("logits"),
        lambda graph: [b"logits", "net/fc:0"],
    ],
    ids=["name", "name:0", "str", "str:0", "tensor", "one tensor", "operation", "one operation", "bytes and name:0"],
)
def test_outputs_may_be_names_tensors_or_operations(spelled: Callable[[tf.Graph], object]):
    with tf.Graph().as_default() as graph:
        network()
        create(graph, outputs=spelled(graph))
        assert masked(graph) == set(WEIGHTS)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            Path("masked.pb").write_bytes(freeze(session).SerializeToString())
        amct.save_prune_retrain_model("masked.pb", spelled(graph), "record.txt", "./out/model")
        assert Path("out/model_pruned.pb").is_file()


def test_only_what_lies_behind_the_outputs_is_masked():
    with tf.Graph().as_default() as graph:
        network()
        create(graph, outputs=["net/conv2"])
        assert masked(graph) == {"net/conv1", "net/conv2"}


def test_paths_may_be_path_objects_and_calls_by_keyword():
    with tf.Graph().as_default() as graph, v1.Session() as session:
        network()
        create_call = {"graph": graph, "outputs": ["logits"], "record_file": Path("a/b/record.txt")}
        amct.create_prune_retrain_model(**create_call, config_defination=Path(config()))
        session.run(v1.global_variables_initializer())
        Path("masked.pb").write_bytes(freeze(session).SerializeToString())
        amct.save_prune_retrain_model(
            pb_model=Path("masked.pb"),
            outputs=["logits"],
            record_file=Path("a/b/record.txt"),
            save_path=Path("c/d/model"),
        )
    assert sorted(os.listdir("c/d")) == ["model_pruned.pb", "model_quantized.pb"]


@pytest.mark.parametrize("missing", ["outputs", "record_file", "config_defination"])
@pytest.mark.parametrize("value", [None, ""])
def test_an_argument_that_is_missing_is_named(missing, value):
    with tf.Graph().as_default() as graph:
        network()
        before = graph.as_graph_def()
        arguments = {"outputs": ["logits"], "record_file": "record.txt", "config_defination": config(), missing: value}
        with pytest.raises(ConfigError, match=f"^{missing}: is required; expected "):
            amct.create_prune_retrain_model(graph, **arguments)
        assert graph.as_graph_def() == before
        assert not Path("record.txt").exists()
    assert f"{missing}: is required" in log()


@pytest.mark.parametrize("missing", ["pb_model", "outputs", "record_file", "save_path"])
def test_an_argument_of_saving_that_is_missing_is_named(missing):
    arguments = {"pb_model": "m.pb", "outputs": ["y"], "record_file": "r.txt", "save_path": "out/m", missing: None}
    with pytest.raises(ConfigError, match=f"^{missing}: is required; expected "):
        amct.save_prune_retrain_model(**arguments)
    assert not Path("out").exists()


# 7: what counts as a weight


def test_weights_that_change_at_run_time_are_left_alone_with_a_sentence():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        fed = v1.placeholder(tf.float32, [8, 8], name="fed")
        drawn = tf.random.normal([8, 8], name="drawn")
        iterator = v1.data.make_one_shot_iterator(tf.data.Dataset.from_tensors(np.ones((8, 8), np.float32)).repeat())
        variable = v1.get_variable("w", [8, 8])
        h = tf.matmul(x, fed, name="by_placeholder")
        h = tf.matmul(h, drawn, name="by_random")
        h = tf.matmul(h, iterator.get_next(), name="by_iterator")
        h = tf.matmul(h, variable, name="by_variable")
        h = tf.matmul(h, tf.constant(np.eye(8, dtype=np.float32)), name="by_constant")
        tf.identity(tf.identity(h), name="logits")
        create(graph)
    assert recorded() == ["by_variable", "by_constant"]
    said = log()
    for layer, cause in (("placeholder", "Placeholder 'fed'"), ("random", "Random"), ("iterator", "terator")):
        assert re.search(rf"INFO.*skip: by_{layer}: .*{cause}.*changes at run time", said)


# 12: twice in one process, on different graphs


def test_two_graphs_one_record_path_and_no_memory_between_them():
    v1.reset_default_graph()
    with tf.Graph().as_default() as first:
        network()
        create(first)
        assert recorded() == list(WEIGHTS)
    with tf.Graph().as_default() as second:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        tf.identity(tf.matmul(x, v1.get_variable("w", [8, 4]), name="net/fc"), name="logits")
        create(second)
        assert recorded() == ["net/fc"]
        assert second.get_tensor_by_name("net/fc/sparsekit/masked:0").shape == [8, 4]
    assert Path("record.txt").read_text().count("prune_record") == 1


def test_saving_leaves_the_default_graph_alone_finalized_or_not():
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x, y = network()
        create(graph)
        session.run(v1.global_variables_initializer())
        masked_def = freeze(session)
        Path("masked.pb").write_bytes(masked_def.SerializeToString())
        graph.finalize()
        before = graph.as_graph_def()
        assert amct.save_prune_retrain_model("masked.pb", ["logits"], "record.txt", "./out/model") is None
        assert graph.as_graph_def() == before
        expected = session.run(y, {x: images()})
    np.testing.assert_array_equal(forward(read("out/model_pruned.pb"), images()), expected)
    np.testing.assert_array_equal(forward(masked_def, images()), expected)


# 14 and the config


def test_the_first_convolution_of_three_channels_keeps_two():
    with tf.Graph().as_default() as graph, v1.Session() as session:
        network()
        create(graph)
        session.run(v1.global_variables_initializer())
        dense = session.run(v1.trainable_variables()[0])
        Path("masked.pb").write_bytes(freeze(session).SerializeToString())
    amct.save_prune_retrain_model("masked.pb", ["logits"], "record.txt", "./model")
    kept = weights(read("model_pruned.pb"))["net/w1"]
    smallest = np.abs(dense).argmin(axis=2)
    expected = dense.copy()
    np.put_along_axis(expected, smallest[:, :, None], 0, axis=2)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
    "text",
    [
        "prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: 0 } } }",
        "prune_config: { n_out_of_m_pruner: { l1_selective_prune: { } } }",
        "prune_config { n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: 0 } } } # by number",
        "prune_config { n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: M4N2 } } }",
        "prune_config { n_out_of_m_pruner { } }",
    ],
)
def test_the_type_may_be_absent(text):
    with tf.Graph().as_default() as graph:
        network()
        create(graph, text)
        for layer, (_, axis) in WEIGHTS.items():
            assert settings(graph, layer) == {
                "pattern": "2:4",
                "axis": axis,
                "update_freq": 0,
                "criterion": "magnitude",
            }


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ('skip_layers: "net/conv1"', {"net/conv2", "net/fc"}),
        ('regular_prune_skip_layers: "net/conv1"\nregular_prune_skip_layers: "net/fc"', {"net/conv2"}),
        ('skip_layers: "net/conv1"\nregular_prune_skip_layers: "net/fc"', {"net/conv2"}),
        ('skip_layer_types: "Conv2D"', {"net/fc"}),
        ('regular_prune_skip_types: "MatMul"', {"net/conv1", "net/conv2"}),
        ('skip_layer_types: "MatMul"\nregular_prune_skip_layers: "net/conv2"', {"net/conv1"}),
        ('quant_skip_layers: "net/conv1"\nquant_skip_types: "MatMul"', set(WEIGHTS)),
    ],
)
def test_skip_lists(lines, left):
    with tf.Graph().as_default() as graph:
        network()
        create(graph, f"{DEFAULT}\n{lines}")
        assert masked(graph) == left
    assert set(recorded()) == left
    for layer in set(WEIGHTS) - left:
        assert re.search(rf"skip: {layer}: the config leaves it out \(skip_", log())


def test_a_layers_override_wins_over_its_types_which_wins_over_the_global_setting():
    pruner = "prune_config {{ n_out_of_m_pruner {{ l1_selective_prune {{ update_freq: {} }} }} }}"
    with tf.Graph().as_default() as graph:
        network()
        create(
            graph,
            f"""
            override_layer_configs {{ layer_name: "net/conv2" {pruner.format(30)} }}
            override_layer_types {{ layer_type: "Conv2D" {pruner.format(20)} }}
            {pruner.format(10)}
            """,
        )
        assert {layer: settings(graph, layer)["update_freq"] for layer in WEIGHTS} == {
            "net/conv1": 20,
            "net/conv2": 30,
            "net/fc": 10,
        }


def test_without_a_global_pruner_only_overrides_prune():
    with tf.Graph().as_default() as graph:
        network()
        create(graph, f'override_layer_types {{ layer_type: "MatMul" {DEFAULT} }}')
        assert masked(graph) == {"net/fc"}


def test_a_skip_list_wins_over_an_override_of_the_layer():
    with tf.Graph().as_default() as graph:
        network()
        create(
            graph,
            f'{DEFAULT} skip_layers: "net/fc" override_layer_configs {{ layer_name: "net/fc" {DEFAULT} }}',
        )
        assert masked(graph) == {"net/conv1", "net/conv2"}


# Nothing to prune


@pytest.mark.parametrize("why", ["skipped", "no layers"])
def test_a_flow_that_prunes_nothing_says_so_and_ends_with_a_saved_model(why):
    with tf.Graph().as_default() as graph, v1.Session() as session:
        if why == "skipped":
            x, y = network()
            text = f'{DEFAULT} skip_layer_types: "Conv2D" skip_layer_types: "MatMul"'
        else:
            x = v1.placeholder(tf.float32, [None, 6, 6, 3], name="net/x")
            y = tf.identity(x * v1.get_variable("scale", [3]), name="logits")
            text = DEFAULT
        create(graph, text)
        assert not masked(graph)
        session.run(v1.global_variables_initializer())
        frozen = freeze(session)
        expected = session.run(y, {x: images()})
    Path("masked.pb").write_bytes(frozen.SerializeToString())
    said = "Nothing is pruned" if why == "skipped" else "There is nothing to prune"
    assert re.search(rf" - WARNING - .*{said}", log())
    assert amct.save_prune_retrain_model("masked.pb", ["logits"], "record.txt", "./out/model") is None
    assert re.search(r" - WARNING - .*The record names no layer: the model is saved as it is, dense", log())
    for name in ("pruned", "quantized"):
        np.testing.assert_array_equal(forward(read(f"out/model_{name}.pb"), images()), expected)


# Saving


@pytest.fixture
def frozen() -> str:
    """A masked pb of the inference graph beside its record."""
    with tf.Graph().as_default() as graph, v1.Session() as session:
        network()
        create(graph)
        session.run(v1.global_variables_initializer())
        Path("masked.pb").write_bytes(freeze(session).SerializeToString())
    return "masked.pb"


def test_both_names_are_one_file_and_a_second_save_replaces_both(frozen):
    for _ in range(2):
        amct.save_prune_retrain_model(frozen, ["logits"], "record.txt", "./out/model")
        assert sorted(os.listdir("out")) == ["model_pruned.pb", "model_quantized.pb"]
        assert os.path.samefile("out/model_pruned.pb", "out/model_quantized.pb")


def test_where_links_are_not_possible_the_older_name_is_a_copy(frozen, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    amct.save_prune_retrain_model(frozen, ["logits"], "record.txt", "./out/model")
    assert sorted(os.listdir("out")) == ["model_pruned.pb", "model_quantized.pb"]
    assert Path("out/model_pruned.pb").read_bytes() == Path("out/model_quantized.pb").read_bytes()
    assert not os.path.samefile("out/model_pruned.pb", "out/model_quantized.pb")


@pytest.mark.parametrize("prefix", ["out/a_pruned.pb", "out/model.v1", "model", "out/" + "m" * 240])
def test_any_file_name_prefix_gives_both_names(frozen, prefix):
    amct.save_prune_retrain_model(frozen, ["logits"], "record.txt", prefix)
    assert Path(f"{prefix}_pruned.pb").is_file()
    assert os.path.samefile(f"{prefix}_pruned.pb", f"{prefix}_quantized.pb")


def test_a_link_at_the_pruned_name_is_followed_and_the_older_name_still_lies_beside_it(frozen):
    os.makedirs("store")
    os.makedirs("out")
    os.symlink("../store/current.pb", "out/model_pruned.pb")
    amct.save_prune_retrain_model(frozen, ["logits"], "record.txt", "./out/model")
    assert os.path.islink("out/model_pruned.pb")
    assert Path("out/model_quantized.pb").read_bytes() == Path("store/current.pb").read_bytes()


@pytest.mark.parametrize("save_path", ["out/", "./", ".", "/"])
def test_a_save_path_without_a_prefix_is_refused(frozen, save_path):
    with pytest.raises(ConfigError, match=r"save_path: .* ends in a folder; expected a file-name prefix"):
        amct.save_prune_retrain_model(frozen, ["logits"], "record.txt", save_path)
    assert sorted(os.listdir(".")) == ["amct_log", "masked.pb", "record.txt", "retrain.cfg"]


@pytest.mark.parametrize("taken", ["model_pruned.pb", "model_quantized.pb"])
def test_where_one_name_cannot_be_written_neither_is(frozen, taken):
    Path("out", taken).mkdir(parents=True)
    with pytest.raises(SaveError, match=rf"{taken}: cannot be written \(Is a directory\)"):
        amct.save_prune_retrain_model(frozen, ["logits"], "record.txt", "./out/model")
    assert os.listdir("out") == [taken]


def test_a_model_of_another_graph_than_the_record_is_refused_and_nothing_written(frozen):
    text = Path("record.txt").read_text()
    Path("record.txt").write_text(text.replace("net/fc", "net/fd"))
    with pytest.raises(RecordError, match=r"record\.txt: names the layer 'net/fd'.*Did you mean 'net/fc'"):
        amct.save_prune_retrain_model(frozen, ["logits"], "record.txt", "./out/model")
    assert not Path("out").exists()
    assert re.search(r" - ERROR - \[AMCT\]:\[save_prune_retrain_model\]: record\.txt: names the layer", log())


def test_an_output_that_is_not_in_the_model_is_refused(frozen):
    with pytest.raises(GraphError, match=r"outputs: there is no operation 'logit'.*Did you mean 'logits'\?"):
        amct.save_prune_retrain_model(frozen, ["logit"], "record.txt", "./out/model")
    assert not Path("out").exists()


# The log


LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (DEBUG|INFO|WARNING|ERROR) - \[AMCT\]:\[(\w+)\]: (.*)$")


def test_a_line_is_as_amct_writes_it(capsys):
    LOGGER.push_info_message("100% of 2:4", module_name="resnet")
    LOGGER.push_warning_message("w")
    LOGGER.push_error_message(ValueError("e"), "m")
    LOGGER.push_debug_message("not shown by default")
    lines = log().splitlines()
    assert [LINE.fullmatch(line).groups() for line in lines] == [
        ("INFO", "resnet", "100% of 2:4"),
        ("WARNING", "AMCT", "w"),
        ("ERROR", "m", "e"),
    ]
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("print_level", "save_level", "on_screen", "in_file"),
    [
        ("info", "info", "iwe", "iwe"),
        ("DEBUG", "Error", "diwe", "e"),
        ("Warning", "debug", "we", "diwe"),
        ("ERROR", "WARNING", "e", "we"),
    ],
)
def test_levels_in_any_case(capsys, print_level, save_level, on_screen, in_file):
    assert amct.set_logging_level(print_level, save_level=save_level) is None
    LOGGER.push_debug_message("d")
    LOGGER.push_info_message("i")
    LOGGER.push_warning_message("w")
    LOGGER.push_error_message("e")
    assert "".join(line[-1] for line in capsys.readouterr().err.splitlines()) == on_screen
    assert "".join(line[-1] for line in log().splitlines()) == in_file


@pytest.mark.parametrize("argument", ["print_level", "save_level"])
@pytest.mark.parametrize("level", ["inof", "", None, 10])
def test_a_wrong_level_is_refused_and_the_old_levels_stay(capsys, argument, level):
    amct.set_logging_level("error", "error")
    with pytest.raises(ConfigError, match=rf"^{argument}: unknown level .*expected one of debug, info, warning, error"):
        amct.set_logging_level(**{"print_level": "debug", "save_level": "debug", argument: level})
    LOGGER.push_info_message("i")
    assert capsys.readouterr().err == ""
    assert not Path("amct_log").exists()


def test_a_wrong_level_offers_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'info'"):
        amct.set_logging_level("inof")


def test_the_log_file_lies_under_the_working_directory_of_the_moment(tmp_path, monkeypatch):
    LOGGER.push_info_message("here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    LOGGER.push_info_message("there")
    assert [path.read_text().split(": ")[-1] for path in sorted(tmp_path.rglob("*.log"))] == ["here\n", "there\n"]


def test_a_log_that_cannot_be_written_is_said_once_and_stops_nothing(capsys):
    Path("amct_log").write_text("in the way")
    with tf.Graph().as_default() as graph:
        network()
        create(graph)
        assert masked(graph) == set(WEIGHTS)
    said = capsys.readouterr().err
    assert said.count("amct_log/amct_tensorflow.log cannot be written") == 1
    assert "prune: net/fc" in said
    assert Path("amct_log").read_text() == "in the way"


def test_a_log_survives_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    LOGGER.push_info_message("on")


def test_a_log_survives_names_that_are_no_utf8():
    amct.set_logging_level(print_level="error")
    LOGGER.push_info_message("./caf\udce9/record.txt")
    assert "record.txt" in log()


def test_what_sparsekit_itself_says_during_a_call_is_in_the_log_and_its_logger_is_as_before(monkeypatch):
    import logging

    logger = logging.getLogger("sparsekit")
    monkeypatch.setattr(logger, "propagate", True)
    before = (logger.level, True, list(logger.handlers))
    with tf.Graph().as_default() as graph:
        network()
        create(graph, f"batch_num: 3\n{DEFAULT}")
    assert re.search(r"WARNING - \[AMCT\]:\[config_amct\]: retrain\.cfg:1: batch_num has no effect", log())
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_product_without_a_gain_is_warned_of_and_pruned_all_the_same(monkeypatch):
    from sparsekit import UnsupportedTargetWarning

    monkeypatch.setenv("SPARSEKIT_TARGET", "Ascend 310P")
    with tf.Graph().as_default() as graph:
        network()
        with pytest.warns(UnsupportedTargetWarning, match="gains nothing from 2:4"):
            create(graph)
        assert masked(graph) == set(WEIGHTS)


def test_an_unsupported_product_is_warned_of_at_the_users_line_and_in_the_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEKIT_TARGET", "Ascend310P")
    (tmp_path / "cfg").write_text("prune_config { n_out_of_m_pruner { l1_selective_prune { } } }")
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8])
        tf.matmul(x, tf.compat.v1.get_variable("w", [8, 8]), name="y")
        with pytest.warns(UnsupportedTargetWarning) as caught:
            amct.create_prune_retrain_model(graph, ["y"], "record", "cfg")
    assert [warning.filename for warning in caught if "310P" in str(warning.message)] == [__file__]
    log = Path("amct_log/amct_tensorflow.log").read_text()
    assert re.search(r"WARNING - \[AMCT\]:\[create_prune_retrain_model\]: .*310P", log)
