"""From a retrained masked graph, exported as a SavedModel, to the pruned SavedModel."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from small_graphs import settings_of, values, variable
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.training.saver import BaseSaverBuilder

import sparsekit
from sparsekit.artefact.bundle import Bundle, patch
from sparsekit.errors import ModelError, RecordError, SaveError, SparsekitError

v1 = tf.compat.v1

CFG = {
    "override": [
        {"layers": ["net/often"], "update_freq": 2},
        {"layers": ["net/narrow"], "pattern": "1:4"},
    ]
}
LAYERS = {f"net/{layer}": f"net/w_{layer}" for layer in ("conv", "parts", "often", "narrow", "twice")}
LAYERS["net/loop/turn"] = "net/w_turn"
KINDS = [("ref", "v1"), ("resource", "v1"), ("ref", "v2"), ("resource", "v2")]
X = values([3, 4, 4, 8], 7)


def network() -> None:
    """Conv2D, a partitioned variable, a layer of each config, one weight read by two layers, a loop; x -> y."""
    x = v1.placeholder(tf.float32, [None, 4, 4, 8], name="x")
    with v1.variable_scope("net", regularizer=lambda w: tf.nn.l2_loss(w, name="decay")):
        h = tf.nn.relu(tf.nn.conv2d(x, variable("w_conv", [3, 3, 8, 6], 1), 1, "SAME", name="conv"))
        h = tf.reduce_mean(h, [1, 2]) + variable("b_conv", [6], 8)
        # With an initializer of its own for each part.
        parts = v1.get_variable("w_parts", [6, 8], partitioner=v1.fixed_size_partitioner(2, axis=1))
        h = tf.nn.tanh(tf.matmul(h, tf.convert_to_tensor(parts), name="parts"))
        h = tf.nn.tanh(tf.matmul(h, variable("w_often", [8, 8], 2), name="often"))
        h = tf.nn.tanh(tf.matmul(h, variable("w_narrow", [8, 8], 3), name="narrow"))
        twice = variable("w_twice", [8, 8], 4)
        h = tf.nn.tanh(tf.matmul(tf.nn.tanh(tf.matmul(h, twice, name="twice")), twice, name="again"))
        turn = tf.identity(variable("w_turn", [8, 8], 5))
        h = tf.while_loop(
            lambda i, _: i < 2, lambda i, s: (i + 1, tf.tanh(tf.matmul(s, turn, name="turn"))), [0, h], name="loop"
        )[1]
    tf.identity(h, name="y")


Exporter = Callable[[Any, str], None]


def simple_save(session: Any, folder: str) -> None:
    x, y = (session.graph.get_tensor_by_name(name) for name in ("x:0", "y:0"))
    v1.saved_model.simple_save(session, folder, {"x": x}, {"y": y})


def build(session: Any, folder: str) -> None:
    """All that a Builder offers: several signatures, an asset, an initialisation op, a tag more."""
    x, y = (session.graph.get_tensor_by_name(name) for name in ("x:0", "y:0"))
    asset = Path(folder).with_name("words")
    asset.write_text("one\ntwo\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(str(asset), tf.string, 0, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER), -1
    )
    word = v1.placeholder(tf.string, [None], name="word")
    define = v1.saved_model.predict_signature_def
    builder = v1.saved_model.Builder(folder)
    builder.add_meta_graph_and_variables(
        session,
        ["serve", "cpu"],
        {"serving_default": define({"x": x}, {"y": y}), "look_up": define({"w": word}, {"n": table.lookup(word)})},
        assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
        main_op=v1.tables_initializer(),
        strip_default_attrs=True,
    )
    builder.save()


@attrs.frozen(eq=False)
class Flow:
    """A masked network that was trained, and its checkpoint.

    Attributes:
        folder: holds record.txt, and what is exported.
        weights: the values of all variables of the checkpoint, masks too, by name.
    """

    folder: Path
    variables: str
    control_flow: str
    weights: dict[str, np.ndarray]

    def export(
        self,
        name: str,
        exporter: Exporter = simple_save,
        masked: bool = True,
        before: Callable[[], object] = lambda: None,
    ) -> Path:
        """The inference graph, restored and exported; without masks: the dense one with the same values.

        Args:
            before: builds more, before the graph is pruned.
        """
        folder = self.folder / name
        with settings_of(self.variables, self.control_flow), tf.Graph().as_default() as graph:
            network()
            before()
            if masked:
                sparsekit.prune(graph, CFG, outputs=["y"])
            v1.global_variables_initializer()
            v1.report_uninitialized_variables(name="report").mark_used()
            # A script restores with a saver of its own, here one with an op for each variable; an export adds another.
            saver = v1.train.Saver(reshape=True, builder=BaseSaverBuilder())
            with v1.Session(graph=graph) as session:
                saver.restore(session, str(self.folder / "checkpoint" / "model"))
                exporter(session, str(folder))
        return folder


def trained(folder: Path, variables: str, control_flow: str, batches: int = 3) -> Flow:
    with settings_of(variables, control_flow), tf.Graph().as_default() as graph:
        v1.set_random_seed(1)
        network()
        sparsekit.prune(graph, CFG, outputs=["y"], record=folder / "record.txt")
        loss = tf.reduce_mean(tf.square(graph.get_tensor_by_name("y:0") - 1.0))
        train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
        with v1.Session(graph=graph) as session:
            session.run(v1.global_variables_initializer())
            for _ in range(batches):
                session.run(train, {"x:0": X})
            path = v1.train.Saver().save(session, str(folder / "checkpoint" / "model"))
    return Flow(folder, variables, control_flow, tensors(path))


def tensors(prefix: Any) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def stored(folder: Path) -> dict[str, np.ndarray]:
    return tensors(folder / "variables" / "variables")


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def flow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return trained(tmp_path_factory.mktemp("flow"), *request.param)


@pytest.fixture(scope="module")
def one_flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """One kind is enough where the kind does not matter."""
    return trained(tmp_path_factory.mktemp("one"), "resource", "v2")


@pytest.fixture(scope="module")
def exported(one_flow: Flow) -> Path:
    return one_flow.export("masked", build)


def by_session(folder: Path, tags: list[str]) -> np.ndarray:
    with tf.Graph().as_default(), v1.Session() as session:
        meta_graph = v1.saved_model.load(session, tags, str(folder))
        signature = meta_graph.signature_def["serving_default"]
        return session.run(signature.outputs["y"].name, {signature.inputs["x"].name: X})


def by_objects(folder: Path, tags: list[str]) -> np.ndarray:
    return tf.saved_model.load(str(folder), tags).signatures["serving_default"](x=tf.constant(X))["y"].numpy()


def proto(folder: Path) -> Any:
    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def meta(folder: Path) -> Any:
    (meta_graph,) = proto(folder).meta_graphs
    return meta_graph


def rewrite(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a SavedModel with a changed MetaGraph."""
    shutil.copytree(source, target)
    saved = proto(source)
    change(saved.meta_graphs[0])
    (target / "saved_model.pb").write_bytes(saved.SerializeToString())
    return target


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPORTERS = {simple_save: ["serve"], build: ["serve", "cpu"]}


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda exporter: exporter.__name__)
def test_the_pruned_saved_model_is_the_dense_one_with_zeros_in_its_weights(flow, exporter, tmp_path):
    tags = EXPORTERS[exporter]
    name = exporter.__name__
    masked, dense = flow.export(f"masked_{name}", exporter), flow.export(f"dense_{name}", exporter, masked=False)
    before = files(masked)
    pruned = sparsekit.save(sparsekit.strip(masked, record=flow.folder / "record.txt"), tmp_path / "pruned")
    assert files(masked) == before and pruned == tmp_path / "pruned"

    # The same outputs through both loaders.
    for load in (by_session, by_objects):
        np.testing.assert_array_equal(load(pruned, tags), load(masked, tags))
    assert np.abs(by_session(pruned, tags) - by_session(dense, tags)).max() > 1e-3

    # Verified, by the record too.
    found = sparsekit.verify(pruned, record=flow.folder / "record.txt")
    assert found.ok and {layer.name for layer in found.layers} == LAYERS.keys() and found.status == "sparse"
    assert sparsekit.verify(masked).status == "not sparse"

    # Variables: those of the dense model, and the pruned ones hold zeros where the stored masks do.
    kept = stored(pruned)
    assert kept.keys() == stored(dense).keys() == {name for name in flow.weights if is_kept(name)}
    masks = {weight: flow.weights[f"{layer}/sparsekit/mask"] for layer, weight in LAYERS.items()}
    for name, value in kept.items():
        expected = np.where(masks.get(name, 1) != 0, flow.weights[name], np.float32(0))
        assert value.tobytes() == expected.tobytes(), name

    # Everything else as in the dense model, but for the numbers of the savers' ops.
    old, new = meta(dense), meta(pruned)
    assert graph_but_savers(new) == graph_but_savers(old)
    assert saved_names(new) == saved_names(old)
    assert saver_ops(new) == saver_ops(old)
    for node in new.graph_def.node:
        if node.op == "RestoreV2":
            assert len(node.attr["_output_shapes"].list.shape) == len(node.attr["dtypes"].list.type)
    assert new.signature_def == old.signature_def and new.asset_file_def == old.asset_file_def
    assert new.meta_info_def.tags == old.meta_info_def.tags
    assert new.graph_def.library == meta(masked).graph_def.library
    assert listed_ops(new) == listed_ops(old)
    assert new.saver_def.restore_op_name == meta(masked).saver_def.restore_op_name
    assert {name: entries(new, name) for name in new.collection_def} == {
        name: entries(old, name) for name in old.collection_def
    }
    assert files(pruned).keys() == before.keys() - {"fingerprint.pb"}
    data = "variables/variables.data-00000-of-00001"
    assert len(files(pruned)[data]) == len(files(dense)[data])


def is_kept(name: str) -> bool:
    return "/sparsekit/" not in name and "Momentum" not in name


def graph_but_savers(meta_graph: Any) -> dict[str, str]:
    """The nodes, but for those of savers, whose names are numbered, and of the report on uninitialized variables."""
    nodes = {node.name: str(node) for node in meta_graph.graph_def.node}
    # Every graph gives its functions and tables names of its own.
    nodes |= {name: re.sub(r'_\w+?_\d+"|hash_table_.*"', '_#"', nodes[name]) for name in nodes if name in OWN_NAMES}
    return {name: text for name, text in nodes.items() if not name.startswith(("save", "report"))}


def listed_ops(meta_graph: Any) -> set[str]:
    """The ops that it says it uses; exporters forget some of those in functions."""
    in_functions = {node.op for function in meta_graph.graph_def.library.function for node in function.node_def}
    return {op.name for op in meta_graph.meta_info_def.stripped_op_list.op} - in_functions


OWN_NAMES = ("net/loop", "hash_table")


def saver_ops(meta_graph: Any) -> list[str]:
    return sorted(node.op for node in meta_graph.graph_def.node if node.name.startswith("save"))


def saved_names(meta_graph: Any) -> dict[str, Any]:
    """What the lists of the savers say."""
    constants = {node.name: node for node in meta_graph.graph_def.node if node.op == "Const"}
    lists = [constants[name] for name in constants if name.endswith(("tensor_names", "shape_and_slices"))]
    # Restored one by one, each list is numbered like the op that it belongs to.
    return sorted(
        (node.attr["_output_shapes"].SerializeToString(), tuple(tf.make_ndarray(node.attr["value"].tensor)))
        for node in lists
    )


def entries(meta_graph: Any, name: str) -> list[Any]:
    collection = meta_graph.collection_def[name]
    found = getattr(collection, collection.WhichOneof("kind")).value
    return list(found) if collection.WhichOneof("kind") != "any_list" else [str(value) for value in found]


def test_no_file_of_it_speaks_of_masks(one_flow, tmp_path):
    def plain(session: Any, folder: str) -> None:
        graph_def = session.graph.as_graph_def()
        # The report keeps the names of its list; what is not there is never reported (see below).
        assert any(node.name.startswith("report") for node in graph_def.node)
        simple_save(session, folder)

    masked = one_flow.export("plain", plain)
    pruned = sparsekit.save(sparsekit.strip(masked), tmp_path / "pruned")
    assert any(b"sparsekit" in data for data in files(masked).values())
    meta_graph = meta(pruned)
    speaking = [node.name for node in meta_graph.graph_def.node if b"sparsekit" in node.SerializeToString()]
    assert speaking == ["report/Const"]
    del meta_graph.graph_def.node[:]
    assert b"sparsekit" not in meta_graph.SerializeToString()
    assert not any(b"sparsekit" in data for name, data in files(pruned).items() if name.startswith("variables"))


def test_the_savers_and_initializers_that_are_left_work(flow, tmp_path):
    masked = flow.export("masked_for_savers", simple_save)
    pruned = sparsekit.save(sparsekit.strip(masked), tmp_path / "pruned")
    names = {name for name in flow.weights if is_kept(name)}
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(meta(pruned))
        reported = {name.decode().partition("/part_")[0] for name in session.run("report/boolean_mask/GatherV2:0")}
        assert reported == names
        session.run("init")
        assert session.run("report/boolean_mask/GatherV2:0").size == 0
    with tf.Graph().as_default(), v1.Session() as session:
        meta_graph = v1.saved_model.load(session, ["serve"], str(pruned))
        assert {v.name.partition(":")[0].partition("/part_")[0] for v in v1.global_variables()} == names
        # Save with the exported saver, initialize anew, restore with the script's own.
        os.mkdir(tmp_path / "again")
        path = str(tmp_path / "again" / "model")
        saver = meta_graph.saver_def
        session.run(saver.save_tensor_name, {saver.filename_tensor_name: path})
        saved = tensors(path)
        assert saved.keys() == names
        for name, value in stored(pruned).items():
            np.testing.assert_array_equal(saved[name], value)
        expected = session.run("y:0", {"x:0": X})
        session.run("init")
        assert not np.array_equal(session.run("y:0", {"x:0": X}), expected)
        session.run("save/restore_all", {"save/Const:0": path})
        np.testing.assert_array_equal(session.run("y:0", {"x:0": X}), expected)


def test_a_saver_that_restores_one_variable_after_the_other_goes_on_to(exported, tmp_path):
    """As those of TensorFlow 1 did when they were told to."""

    def assigns(meta_graph: Any) -> list[Any]:
        return [node for node in meta_graph.graph_def.node if re.match("save_1/AssignVariableOp", node.name)]

    def in_order(meta_graph: Any) -> None:
        for before, after in itertools.pairwise(assigns(meta_graph)):
            after.input.append(f"^{before.name}")

    masked = rewrite(exported, tmp_path / "m", in_order)
    pruned = sparsekit.save(sparsekit.strip(masked), tmp_path / "pruned")
    left = assigns(meta(pruned))
    assert len(assigns(meta(masked))) == 20 and len(left) == 8
    assert [node.input[2:] for node in left] == [[], *([f"^{node.name}"] for node in left[:-1])]
    np.testing.assert_array_equal(by_session(pruned, ["serve", "cpu"]), by_session(exported, ["serve", "cpu"]))


def test_values_that_were_assigned_by_hand(flow, tmp_path):
    """Each assignment leaves ops behind, those of masks read them."""

    def assigned(session: Any, folder: str) -> None:
        for v in v1.global_variables():
            session.run(v.assign(session.run(v)))
        simple_save(session, folder)

    masked = flow.export("by_hand", assigned)
    pruned = sparsekit.save(sparsekit.strip(masked), tmp_path / "pruned")
    np.testing.assert_array_equal(by_session(pruned, ["serve"]), by_session(masked, ["serve"]))
    assert not any("sparsekit" in text for node in meta(pruned).graph_def.node for text in (node.name, *node.input))


def test_a_saver_with_a_part_for_each_device(tmp_path):
    config = v1.ConfigProto(device_count={"CPU": 2})
    with settings_of("resource", "v2"), tf.Graph().as_default() as graph, v1.Session(config=config) as session:
        y = v1.placeholder(tf.float32, [None, 8], name="x")
        for number in range(2):
            with tf.device(f"/cpu:{number}"):
                y = tf.matmul(y, variable(f"w_{number}", [8, 8], number), name=f"layer_{number}")
        tf.identity(y, name="y")
        sparsekit.prune(graph, outputs=["y"])
        session.run(v1.global_variables_initializer())
        expected = session.run("y:0", {"x:0": X[0, 0]})
        simple_save(session, str(tmp_path / "masked"))
    masked = tmp_path / "masked"
    assert sorted(node.op for node in meta(masked).graph_def.node).count("SaveV2") == 2
    pruned = sparsekit.save(sparsekit.strip(masked), tmp_path / "pruned")
    assert stored(pruned).keys() == {"w_0", "w_1"} and files(pruned).keys() == files(masked).keys()
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        v1.saved_model.load(session, ["serve"], str(pruned))
        np.testing.assert_array_equal(session.run("y:0", {"x:0": X[0, 0]}), expected)


def test_nothing_stays_beside_what_is_gone(exported, tmp_path):
    def place(meta_graph: Any) -> None:
        nodes = {node.name: node for node in meta_graph.graph_def.node}
        nodes["y"].attr["_class"].list.s[:] = [b"loc:@net/often/sparsekit/mask"]
        nodes["x"].attr["_class"].list.s[:] = [b"loc:@net/often/sparsekit/mask", b"loc:@net/b_conv"]

    pruned = sparsekit.save(sparsekit.strip(rewrite(exported, tmp_path / "m", place)), tmp_path / "pruned")
    nodes = {node.name: node for node in meta(pruned).graph_def.node}
    assert "_class" not in nodes["y"].attr and nodes["x"].attr["_class"].list.s == [b"loc:@net/b_conv"]
    np.testing.assert_array_equal(by_session(pruned, ["serve", "cpu"]), by_session(exported, ["serve", "cpu"]))


def test_a_model_that_was_never_trained_keeps_what_it_would_choose(tmp_path):
    flow = trained(tmp_path, "ref", "v1", batches=0)
    masked = flow.export("masked")
    pruned = sparsekit.save(sparsekit.strip(masked), tmp_path / "pruned")
    np.testing.assert_array_equal(by_session(pruned, ["serve"]), by_session(masked, ["serve"]))
    assert sparsekit.verify(pruned, cfg=CFG).ok


def test_constants_are_folded_in_the_graph_and_their_masks_leave_the_variables(tmp_path):
    weight = values([8, 4], 1)
    with settings_of("resource", "v2"), tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        y = tf.identity(tf.matmul(x, tf.constant(weight), name="fc") + variable("b", [4]), name="y")
        sparsekit.prune(y.graph, outputs=["y"])
        session.run(v1.global_variables_initializer())
        simple_save(session, str(tmp_path / "masked"))
    pruned = sparsekit.save(sparsekit.strip(tmp_path / "masked"), tmp_path / "pruned")
    assert stored(pruned).keys() == {"b"} and sparsekit.verify(pruned).ok


@pytest.mark.parametrize("name", ["pruned", "masked"])
def test_the_command_takes_folders_and_text(one_flow, exported, tmp_path, monkeypatch, name):
    """OUT may be IN."""
    from click.testing import CliRunner

    from sparsekit.cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "masked")
    record = str(one_flow.folder / "record.txt")
    ended = CliRunner().invoke(main, ["strip", "masked", "--record", record, "-o", name])
    assert ended.exit_code == 0 and f"Saved as {name}." in ended.output
    assert sparsekit.verify(name, record=record).ok
    np.testing.assert_array_equal(by_session(Path(name), ["serve", "cpu"]), by_session(exported, ["serve", "cpu"]))
    assert sorted(os.listdir()) == sorted({"masked", name})


def test_text_comes_out_as_text(one_flow, exported, tmp_path):
    def as_text(folder: Path) -> Path:
        rewrite(exported, folder, lambda _: None)
        text = text_format.MessageToString(proto(folder))
        (folder / "saved_model.pb").unlink()
        (folder / "saved_model.pbtxt").write_text(text)
        return folder

    pruned = sparsekit.save(sparsekit.strip(as_text(tmp_path / "masked")), tmp_path / "pruned")
    assert (pruned / "saved_model.pbtxt").exists() and not (pruned / "saved_model.pb").exists()
    np.testing.assert_array_equal(by_session(pruned, ["serve", "cpu"]), by_session(exported, ["serve", "cpu"]))
    # A frozen graph as text, too.
    with tf.Graph().as_default() as graph, v1.Session() as session:
        v1.saved_model.load(session, ["serve", "cpu"], str(exported))
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])
    path = sparsekit.save(frozen, tmp_path / "masked.pbtxt")
    assert sparsekit.strip(path) == sparsekit.strip(frozen)


# Refused


def refused(error: type[SparsekitError], says: str, model: Path, **more: Any) -> None:
    """Nothing is written and nothing is changed."""
    before = files(model)
    target = model.with_name("refused")
    with pytest.raises(error, match=says):
        sparsekit.save(sparsekit.strip(model, **more), target)
    assert files(model) == before
    assert not target.exists() and not [name for name in os.listdir(model.parent) if name.startswith(".sparsekit")]


def test_a_record_of_another_graph(one_flow, exported, tmp_path):
    record = (one_flow.folder / "record.txt").read_text()
    path = tmp_path / "record.txt"
    path.write_text(record.replace("net/often", "net/seldom"))
    refused(RecordError, "names the layer 'net/seldom', which has no mask in the graph", exported, record=path)
    path.write_text(record[: record.index("prune_record", 20)])
    refused(RecordError, "does not name net/.*, which the graph masks", exported, record=path)


def test_a_model_without_masks(exported, tmp_path):
    pruned = sparsekit.save(sparsekit.strip(exported), tmp_path / "pruned")
    refused(ModelError, "pruned: holds no masks; expected a frozen graph or SavedModel", pruned)


def test_masks_in_the_objects_and_functions_of_tensorflow_2(exported, tmp_path):
    loaded = tf.saved_model.load(str(exported), ["serve", "cpu"])
    tf.saved_model.save(
        loaded,
        str(tmp_path / "m"),
        loaded.signatures["serving_default"],
        tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    refused(ModelError, "m: holds no masks but in its function '.*', where they cannot be taken out", tmp_path / "m")
    with_objects = rewrite(exported, tmp_path / "o", lambda m: m.object_graph_def.nodes.add())
    refused(ModelError, "o: is a SavedModel of TensorFlow 2.*TF1 style.*convert_variables_to_constants", with_objects)


def test_a_training_graph(tmp_path):
    with settings_of("resource", "v2"), tf.Graph().as_default() as graph, v1.Session() as session:
        network()
        sparsekit.prune(graph, CFG, outputs=["y"])
        v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(graph.get_tensor_by_name("y:0")))
        session.run(v1.global_variables_initializer())
        simple_save(session, str(tmp_path / "m"))
    says = "gradients/.* reads .*, an op of the mask; expected .* or export it without its training ops"
    refused(ModelError, says.replace(" reads", ": reads"), tmp_path / "m")


def test_several_graphs(one_flow):
    def two(session: Any, folder: str) -> None:
        builder = v1.saved_model.Builder(folder)
        builder.add_meta_graph_and_variables(session, ["gpu"])
        builder.add_meta_graph(["serve"])
        builder.save()

    refused(ModelError, r"holds several graphs \(\['gpu'\] and \['serve'\]\)", one_flow.export("two", two), outputs="y")


def test_a_model_without_signatures_needs_outputs(one_flow, tmp_path):
    def bare(session: Any, folder: str) -> None:
        builder = v1.saved_model.Builder(folder)
        builder.add_meta_graph_and_variables(session, ["serve"])
        builder.save()

    masked = one_flow.export("bare", bare)
    refused(ModelError, r"has no signature.*outputs=\[\.\.\.\]", masked)
    assert sparsekit.verify(sparsekit.save(sparsekit.strip(masked, outputs="y"), tmp_path / "p")).ok


def returning(name: str) -> Exporter:
    def exporter(session: Any, folder: str) -> None:
        x, y = (session.graph.get_tensor_by_name(name) for name in ("x:0", f"{name}:0"))
        v1.saved_model.simple_save(session, folder, {"x": x}, {"y": y})

    return exporter


def test_a_dense_weight_that_is_served_too(flow):
    """A loss that no signature returns reads zeros (above); what one returns must not change."""

    def before() -> None:
        weight = next(v for v in v1.global_variables() if v.op.name == "net/w_often")
        tf.identity(
            tf.nn.l2_loss(weight) + tf.reduce_sum(v1.get_default_graph().get_tensor_by_name("y:0")), name="total"
        )

    masked = flow.export("dense_too", returning("total"), before=before)
    refused(ModelError, "net/often: its weight 'net/w_often' is read without the mask too, by '.*L2Loss'", masked)


def test_a_mask_that_is_served(one_flow):
    masked = one_flow.export("mask_served", returning("net/often/sparsekit/masked"))
    refused(ModelError, "names 'net/often/sparsekit/masked', an op of the mask", masked, outputs="y")


def test_masks_that_are_not_restored_as_stored(one_flow):
    def initialized_again(session: Any, folder: str) -> None:
        x, y = (session.graph.get_tensor_by_name(name) for name in ("x:0", "y:0"))
        signature = {"serving_default": v1.saved_model.predict_signature_def({"x": x}, {"y": y})}
        builder = v1.saved_model.Builder(folder)
        with session.graph.as_default():
            masks = [v for v in v1.global_variables() if "sparsekit" in v.name]
            op = v1.variables_initializer(masks, "masks_again")
        builder.add_meta_graph_and_variables(session, ["serve"], signature, main_op=op)
        builder.save()

    masked = one_flow.export("again", initialized_again)
    says = "net/.*/sparsekit/.* is stored is not certain: the initialisation op 'masks_again' assigns it"
    refused(ModelError, says, masked)


def with_value(exported: Path, target: Path, key: str, change: Callable[[np.ndarray], None]) -> Path:
    rewrite(exported, target, lambda _: None)
    prefix = target / "variables" / "variables"
    value = Bundle.open(prefix).read(key).copy()
    change(value)
    patch(prefix, [(key, value)])
    return target


def test_weights_that_are_not_finite_and_masks_that_are_none(exported, tmp_path):
    def set_first(value: float) -> Callable[[np.ndarray], None]:
        def change(array: np.ndarray) -> None:
            array[:4] = value

        return change

    nan = with_value(exported, tmp_path / "nan", "net/w_often", set_first(np.nan))
    refused(ModelError, "net/often: 32 of 64 values of its weight 'net/w_often' are NaN", nan)
    full = with_value(exported, tmp_path / "full", "net/often/sparsekit/mask", set_first(1))
    refused(ModelError, "net/often: its stored mask is no 2:4 mask along axis 0", full)


def test_a_tensor_that_is_damaged(exported, tmp_path):
    """Another one than a weight: it is read when the model is saved."""
    target = rewrite(exported, tmp_path / "m", lambda _: None)
    bundle = Bundle.open(target / "variables" / "variables")
    entry = bundle.entries["net/b_conv"]
    path = bundle.shard_path(entry)
    data = bytearray(path.read_bytes())
    data[entry.offset] ^= 1
    path.write_bytes(data)
    refused(ModelError, "net/b_conv: its bytes do not match their checksum", target)


def test_a_model_that_was_removed_before_the_pruned_one_was_saved(exported, tmp_path):
    target = rewrite(exported, tmp_path / "m", lambda _: None)
    pruned = sparsekit.strip(target)
    shutil.rmtree(target)
    with pytest.raises((SaveError, sparsekit.MissingFileError)):
        sparsekit.save(pruned, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def damages() -> Iterator[tuple[str, Callable[[Any], None]]]:
    mask = "net/often/sparsekit/mask"

    def spy(meta_graph: Any) -> None:
        node = meta_graph.graph_def.node.add(name="spy", op="VariableShape", input=[mask])
        node.attr["out_type"].type = 3

    def waiting(meta_graph: Any) -> None:
        meta_graph.graph_def.node.add(name="spy", op="NoOp", input=["^net/often/sparsekit/masked", "^y"])

    def collected(meta_graph: Any) -> None:
        meta_graph.collection_def["mine"].bytes_list.value.append(f"a context of {mask}".encode())

    def names_computed(meta_graph: Any) -> None:
        nodes = {node.name: node for node in meta_graph.graph_def.node}
        lists = nodes["save_1/RestoreV2/tensor_names"]
        through = meta_graph.graph_def.node.add(name="through", op="Identity", input=[lists.name])
        through.attr["T"].type = 7
        nodes["save_1/SaveV2"].input[1] = "through"

    def names_shared(meta_graph: Any) -> None:
        nodes = {node.name: node for node in meta_graph.graph_def.node}
        nodes["save_1/SaveV2"].input[1] = "save_1/RestoreV2/tensor_names"

    def shared_key(meta_graph: Any) -> None:
        restore_narrow_from(b"net/w_often", meta_graph)

    def key_of_a_mask(meta_graph: Any) -> None:
        restore_narrow_from(mask.encode(), meta_graph)

    def restore_narrow_from(key: bytes, meta_graph: Any) -> None:
        names = next(n for n in meta_graph.graph_def.node if n.name == "save_1/RestoreV2/tensor_names")
        values = list(tf.make_ndarray(names.attr["value"].tensor))
        values[values.index(b"net/w_narrow")] = key
        names.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))

    yield "spy: reads 'net/often/sparsekit/mask', an op of the mask.*Freeze", spy
    yield r"spy: reads '\^net/often/sparsekit/masked', an op of the mask", waiting
    yield "collection 'mine': holds an op of a mask in a form that is not known", collected
    yield "save_1/SaveV2: takes its list of tensors from 'through' .Identity.", names_computed
    yield "takes its list of tensors from 'save_1/RestoreV2/tensor_names'", names_shared
    yield "'net/w_narrow' is restored from 'net/w_often' too", shared_key
    yield f"'net/w_narrow' is restored from '{mask}' too", key_of_a_mask


@pytest.mark.parametrize(("says", "damage"), list(damages()), ids=lambda value: getattr(value, "__name__", None))
def test_what_is_not_understood(exported, tmp_path, says, damage):
    refused(ModelError, says, rewrite(exported, tmp_path / "m", damage))


def test_a_saver_of_nothing_but_masks(tmp_path):
    with settings_of("resource", "v2"), tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        tf.identity(tf.matmul(x, tf.constant(values([8, 4])), name="fc"), name="y")
        sparsekit.prune(x.graph, outputs=["y"])
        session.run(v1.global_variables_initializer())
        simple_save(session, str(tmp_path / "masked"))
    refused(ModelError, "saves nothing but masks.*convert_variables_to_constants", tmp_path / "masked")


def test_a_folder_has_one_name(exported, tmp_path):
    with pytest.raises(SaveError, match="a folder gets no second name"):
        sparsekit.save(sparsekit.strip(exported), tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == []
