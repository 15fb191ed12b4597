"""Bad input changes nothing and says what to do: the type, the place, the next step, and what is left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import sparsekit
import sparsekit.compat.amct_tensorflow as amct
from sparsekit.errors import (
    ConfigError,
    GraphError,
    MissingFileError,
    ModelError,
    RecordError,
    SaveError,
    SparsekitError,
    TargetError,
    UnsupportedTargetError,
)

v1 = tf.compat.v1

DEFAULT = "prune_config { n_out_of_m_pruner { l1_selective_prune { } } }"


def network() -> tf.Tensor:
    """conv1 [3, 3, 4, 8], fc [8, 6]."""
    x = v1.placeholder(tf.float32, [None, 4, 4, 4], name="x")
    h = tf.nn.relu(tf.nn.conv2d(x, v1.get_variable("w1", [3, 3, 4, 8]), 1, "SAME", name="block/conv1"))
    h = tf.matmul(tf.reduce_mean(h, [1, 2]), v1.get_variable("w2", [8, 6]), name="block/fc")
    return tf.identity(h, name="logits")


@pytest.fixture
def graph() -> tf.Graph:
    with tf.Graph().as_default() as graph:
        network()
    return graph


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEKIT_TARGET", raising=False)


def folder() -> dict[str, bytes | None]:
    """Every path below the working directory, with what files hold; the log aside."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in sorted(Path().rglob("*"))
        if "amct_log" not in path.parts
    }


def refused(
    error: type[SparsekitError], where: str, says: str, call: Callable[[], object], graph: tf.Graph | None = None
) -> None:
    """The call raises; the message begins with the place and says the rest; graph and files are as before."""
    files = folder()
    before = graph.as_graph_def() if graph else None
    collections = _collections(graph)
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.search(says, message), message
    assert re.match(where, message), message
    assert caught.value.where, message
    # A parser's own words for what stands in that very line need no more.
    assert caught.value.expected or caught.value.hint or "not valid" in message, message
    assert "\n" not in message
    if graph:
        assert graph.as_graph_def() == before
        assert _collections(graph) == collections
    assert folder() == files


def _collections(graph: tf.Graph | None) -> dict[Any, int]:
    return {key: len(graph.get_collection_ref(key)) for key in graph.get_all_collection_keys()} if graph else {}


def through_both_doors(
    error: type[SparsekitError], where: str, says: str, graph: Any, outputs: Any = ("logits",)
) -> None:
    """The same refusal from sparsekit.prune and from AMCT's call; an old record stays."""
    Path("record.txt").write_text("# of an earlier run\n")
    Path("retrain.cfg").write_text(DEFAULT)
    live = graph if isinstance(graph, tf.Graph) else None
    refused(error, where, says, lambda: sparsekit.prune(graph, outputs=outputs, record="record.txt"), live)
    refused(
        error,
        where,
        says,
        lambda: amct.create_prune_retrain_model(graph, outputs, "record.txt", "retrain.cfg"),
        live,
    )


# Graphs


@pytest.mark.parametrize(
    "wrong", [None, v1.GraphDef(), "graph.pb", 3, tf.Graph], ids=["None", "GraphDef", "path", "number", "class"]
)
def test_what_is_no_graph(wrong):
    says = f"got {type(wrong).__name__}; expected a tf.Graph, such as tf.compat.v1.get_default"
    if isinstance(wrong, (str, v1.GraphDef)):  # models at rest, for which AMCT's call is not made
        with pytest.raises(GraphError, match=re.escape(says)):
            amct.create_prune_retrain_model(wrong, ["logits"], "record.txt", "retrain.cfg")
        return
    through_both_doors(GraphError, "graph: ", says, wrong)


def minimize(y: tf.Tensor) -> None:
    v1.train.RMSPropOptimizer(0.1).minimize(tf.reduce_mean(y))


def gradients_alone(y: tf.Tensor) -> None:
    tf.gradients(tf.reduce_sum(y), v1.trainable_variables()[0])


@pytest.mark.parametrize("built", [minimize, gradients_alone])
def test_gradients_that_were_already_built(graph, built):
    with graph.as_default():
        built(graph.get_tensor_by_name("logits:0"))
    says = r"gradients were already built for 'block/conv1'.*they would go past the masks.*before optimizer\.minimize"
    through_both_doors(GraphError, "graph: ", says, graph)


def test_gradients_in_an_imported_graph(graph):
    with graph.as_default():
        minimize(graph.get_tensor_by_name("logits:0"))
        v1.train.Saver()
        v1.train.export_meta_graph("model.meta")
    with tf.Graph().as_default() as imported:
        v1.train.import_meta_graph("model.meta")
    through_both_doors(GraphError, "graph: ", "gradients were already built for 'block/conv1'", imported)


def test_a_graph_that_was_pruned_before(graph):
    sparsekit.prune(graph, outputs=["logits"])
    says = r"was pruned before: 'block/conv1', 'block/fc' already have masks.*Prune every graph once"
    through_both_doors(GraphError, "graph: ", says, graph)


def test_a_graph_that_was_pruned_before_exported_and_imported(graph):
    sparsekit.prune(graph, outputs=["logits"])
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph.as_graph_def(), name="")
    through_both_doors(GraphError, "graph: ", "was pruned before", imported)


def test_a_graph_that_is_finalized(graph):
    graph.finalize()
    through_both_doors(GraphError, "graph: ", "is finalized and cannot be changed.*before a session, Supervisor", graph)


def test_names_that_are_kept_for_masks(graph):
    with graph.as_default():
        tf.constant(1.0, name="block/fc/sparsekit/mask")
    says = "already holds operations under 'block/fc/sparsekit/'.*rename them"
    through_both_doors(GraphError, "block/fc: ", says, graph)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (
            ["logitz"],
            r"there is no operation 'logitz' in the graph; expected .*\. Did you mean 'logits'\?",
        ),
        (
            ["logits", "block/fcc:0"],
            r"there is no operation 'block/fcc' in the graph; expected .*\. Did you mean 'block/fc'",
        ),
        ([], "is empty; expected names of the operations"),
        ([None], "holds None; expected operation names such as 'logits'"),
        ([3], "holds 3; expected operation names"),
        (4, "holds 4; expected operation names"),
        ([["logits"]], r"holds \['logits'\]; expected operation names"),
        ([""], "holds ''; expected operation names"),
    ],
)
def test_outputs_that_are_not_there(graph, outputs, says):
    Path("record.txt").write_text("# of an earlier run\n")
    Path("retrain.cfg").write_text(DEFAULT)
    refused(GraphError, "outputs: ", says, lambda: sparsekit.prune(graph, outputs=outputs, record="record.txt"), graph)
    call = lambda: amct.create_prune_retrain_model(graph, outputs, "record.txt", "retrain.cfg")  # noqa: E731
    refused(GraphError, "outputs: ", says, call, graph)


def test_an_output_of_another_graph_is_not_in_this_one(graph):
    with tf.Graph().as_default():
        other = tf.constant(1.0, name="elsewhere")
    says = "there is no operation 'elsewhere' in the graph"
    with pytest.raises(GraphError, match=says):
        sparsekit.prune(graph, outputs=[other])


def test_an_output_that_is_not_there_has_a_next_step_even_without_a_near_match(graph):
    with pytest.raises(GraphError) as caught:
        sparsekit.prune(graph, outputs=["qqqqqqqqqq"])
    assert caught.value.expected or caught.value.hint


# Layers that stay dense, each with a reason and a sentence


def skipped(build: Callable[[], tf.Tensor]) -> tuple[str, str]:
    """Reason and message for the layer 'odd'; the layer beside it is pruned, 'odd' untouched."""
    with tf.Graph().as_default() as graph:
        odd = build()
        x = v1.placeholder(tf.float32, [None, 8])
        tf.matmul(x, v1.get_variable("sound_w", [8, 8]), name="sound")
        before = graph.get_operation_by_name("odd").node_def
        result = sparsekit.prune(graph)
        assert [decision.name for decision in result.plan.pruned] == ["sound"]
        (decision,) = result.plan.skipped
        assert odd.op.node_def == before
    assert decision.message.startswith("odd: ")
    assert decision.reason in str(result.plan)
    assert decision.message.rstrip(".") in str(result.plan)
    return decision.reason, decision.message


def test_a_weight_from_a_placeholder_is_skipped():
    def build() -> tf.Tensor:
        x = v1.placeholder(tf.float32, [None, 8])
        return tf.matmul(x, 2.0 * v1.placeholder(tf.float32, [8, 8], name="fed"), name="odd")

    reason, message = skipped(build)
    assert reason == "weight-dynamic"
    assert message == "odd: its weight depends on the Placeholder 'fed', which changes at run time."


def test_a_half_weight_without_a_float_source_is_skipped():
    def build() -> tf.Tensor:
        x = v1.placeholder(tf.float16, [None, 8])
        return tf.matmul(x, v1.get_variable("half_w", [8, 8], tf.float16), name="odd")

    reason, message = skipped(build)
    assert reason == "weight-dtype"
    assert message == (
        "odd: its weight 'half_w' is stored as float16; masks need float32 or float64 (a float32 variable behind a "
        "cast is fine)."
    )


def test_a_half_weight_with_a_float_source_is_pruned():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float16, [None, 8])
        tf.matmul(x, tf.cast(v1.get_variable("w", [8, 8]), tf.float16), name="fc")
        assert [decision.dtype for decision in sparsekit.plan(graph).pruned] == ["float32"]


def test_transpose_a_is_skipped():
    def build() -> tf.Tensor:
        x = v1.placeholder(tf.float32, [8, None])
        return tf.matmul(x, v1.get_variable("odd_w", [8, 8]), transpose_a=True, name="odd")

    reason, message = skipped(build)
    assert reason == "transpose-a"
    assert message == "odd: transpose_a=True is not supported; transpose the data before the product."


# Configs


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "the config is empty.*A minimal config is prune_config"),
        ("# nothing\n\n", 1, "the config is empty"),
        (f'{DEFAULT}\nskip_layer: "x"', 2, "has no field 'skip_layer'.*Did you mean 'skip_layers'"),
        ("prune_config {\n  n_out_of_m_prune {\n  }\n}", 2, "no field 'n_out_of_m_prune'.*'n_out_of_m_pruner'"),
        ("\nprune_config {\n  n_out_of_m_pruner {\n", None, "not valid protobuf text"),
        ('pattern = "2:4"', 1, r"not valid protobuf text.*does not end in \.toml is read as AMCT"),
        (
            "prune_config { n_out_of_m_pruner { l1_selective_prune {\n n_out_of_m_type: M4N3 } } }",
            2,
            "unknown value M4N3; expected M4N2",
        ),
        (
            "prune_config {\n filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.3 } } }",
            2,
            "channel pruning",
        ),
        (f"{DEFAULT}\nretrain_data_quant_config {{ ulq_quantize {{ }} }}", 2, "quantization .*remove this block"),
        (f"{DEFAULT}\n\nretrain_weight_quant_config {{ arq_retrain {{ }} }}", 3, "quantization .*remove this block"),
        ("prune_config {\n}", 1, "prune_config without a pruner; expected n_out_of_m_pruner"),
        (f"override_layer_configs {{ {DEFAULT} }}", 1, "override_layer_configs without layer_name"),
    ],
)
def test_an_amct_config_that_cannot_be_used_is_named_with_its_line(graph, text, line, says):
    Path("bad.cfg").write_text(text)
    where = rf"bad\.cfg:{line}: " if line else r"bad\.cfg:\d+: "
    for call in (
        lambda: amct.create_prune_retrain_model(graph, ["logits"], "record.txt", "bad.cfg"),
        lambda: sparsekit.prune(graph, "bad.cfg", outputs=["logits"], record="record.txt"),
    ):
        refused(ConfigError, where, says, call, graph)


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("", r"bad\.toml:1: ", "the config is empty.*A minimal config is one line"),
        ('pattern = "2:4"\nskip_layer = ["x"]', r"bad\.toml: ", "unknown key 'skip_layer'.*Did you mean 'skip_layers'"),
        ('pattern = "2:4"\nupdate_freq = ', r"bad\.toml:2: ", "not valid TOML"),
        ("update_freq = -1", r"bad\.toml: update_freq: ", "expected a whole number of batches"),
        ('pattern = "5:4"', r"bad\.toml: ", "5:4"),
        ('[[override]]\nlayers = ["block/fc"]', r"bad\.toml: override\[0\]", "changes nothing; expected at least one"),
    ],
)
def test_a_toml_config_that_cannot_be_used(graph, text, where, says):
    Path("bad.toml").write_text(text)
    call = lambda: sparsekit.prune(graph, "bad.toml", outputs=["logits"], record="record.txt")  # noqa: E731
    refused(ConfigError, where, says, call, graph)


@pytest.mark.parametrize(
    ("cfg", "where", "says"),
    [
        ({"skip_layer": []}, "config: ", "unknown key 'skip_layer'.*Did you mean 'skip_layers'"),
        ({"skip_layers": "block/fc"}, "config: skip_layers: ", "expected a list of names"),
        ({"update_freq": 1.5}, "config: update_freq: ", "expected a whole number"),
        (
            {"skip_layers": ["blok/fc"]},
            "config: skip_layers: ",
            r"'blok/fc' matches no operation.*Did you mean 'block/fc'",
        ),
        ({"skip_layers": ["zzz"]}, "config: skip_layers: ", "'zzz' matches no operation.*block/conv1, block/fc"),
        ({"skip_types": ["Matmul"]}, "config: skip_types: ", "'Matmul' matches no op type.*Did you mean 'MatMul'"),
        (
            {"override": [{"types": ["Conv3d"], "prune": False}]},
            r"config: override\[0\]\.types: ",
            "'Conv3d' matches no op type of the graph.*Did you mean 'Conv3D'",
        ),
        (
            {"override": [{"layers": ["block/fd"], "update_freq": 1}]},
            r"config: override\[0\]\.layers: ",
            "'block/fd' matches no operation.*Did you mean 'block/fc'",
        ),
        ({"criterion": "magnitud"}, "criterion: ", "unknown criterion 'magnitud'.*Did you mean 'magnitude'"),
        (
            {"override": [{"layers": ["block/fc"], "criterion": "inverse"}]},
            "criterion: ",
            "unknown criterion 'inverse'; expected one of .*Did you mean 'inverted'",
        ),
        (["block/fc"], "config: ", "expected a PruneConfig, a dict, the path"),
        (3, "config: ", "expected a PruneConfig, a dict, the path"),
    ],
)
def test_a_dict_that_cannot_be_used(graph, cfg, where, says):
    call = lambda: sparsekit.prune(graph, cfg, outputs=["logits"], record="record.txt")  # noqa: E731
    refused(ConfigError, where, says, call, graph)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('skip_layers: "block/fd"', "'block/fd' matches no operation.*Did you mean 'block/fc'"),
        ('regular_prune_skip_layers: "block/fd"', "'block/fd' matches no operation.*Did you mean 'block/fc'"),
        ('regular_prune_skip_types: "Conv2d"', "'Conv2d' matches no op type.*Did you mean 'Conv2D'"),
        (
            f'override_layer_configs {{ layer_name: "fc" {DEFAULT} }}',
            "'fc' matches no operation.*Layers of this graph: block/conv1, block/fc",
        ),
        (
            f'override_layer_types {{ layer_type: "MatMull" {DEFAULT} }}',
            "'MatMull' matches no op .*Did you mean 'MatMul'",
        ),
    ],
)
def test_names_in_an_amct_config_that_the_graph_lacks(graph, lines, says):
    Path("bad.cfg").write_text(f"{DEFAULT}\n{lines}")
    call = lambda: amct.create_prune_retrain_model(graph, ["logits"], "record.txt", "bad.cfg")  # noqa: E731
    refused(ConfigError, r"bad\.cfg", says, call, graph)


@pytest.mark.parametrize("name", ["nothing.cfg", "nothing.toml", "no/folder/x.cfg"])
def test_a_config_that_is_not_there(graph, name):
    with pytest.raises(MissingFileError, match=f"^{name}: there is no such file"):
        sparsekit.prune(graph, name, outputs=["logits"], record="record.txt")
    with pytest.raises(FileNotFoundError):
        amct.create_prune_retrain_model(graph, ["logits"], "record.txt", name)
    assert folder() == {}


def test_a_target_that_does_not_exist_or_does_not_gain(graph, monkeypatch):
    call = lambda: sparsekit.prune(graph, outputs=["logits"], record="r.txt", target="Ascend 910X")  # noqa: E731
    refused(TargetError, "argument `target`: ", "unknown target 'Ascend 910X'.*`sparsekit targets`", call, graph)
    strict = lambda: sparsekit.prune(  # noqa: E731
        graph, outputs=["logits"], record="r.txt", target="Ascend 310P", strict_target=True
    )
    refused(UnsupportedTargetError, "argument `target`: ", "gains nothing from 2:4.*Nothing was changed", strict, graph)
    monkeypatch.setenv("SPARSEKIT_TARGET", "Ascend")
    Path("ok.cfg").write_text(DEFAULT)
    through_amct = lambda: amct.create_prune_retrain_model(graph, ["logits"], "r.txt", "ok.cfg")  # noqa: E731
    refused(TargetError, "environment variable SPARSEKIT_TARGET: ", "unknown target 'Ascend'", through_amct, graph)


# Places that cannot be written


@pytest.mark.parametrize("record", ["folder", "file/record.txt", "file/a/b.txt", "/proc/nothing/record.txt", "nul\0"])
def test_a_record_that_cannot_be_written_leaves_the_graph_as_it_was(graph, record):
    Path("folder").mkdir()
    Path("file").write_text("in the way")
    Path("ok.cfg").write_text(DEFAULT)
    for call in (
        lambda: sparsekit.prune(graph, outputs=["logits"], record=record),
        lambda: amct.create_prune_retrain_model(graph, ["logits"], record, "ok.cfg"),
    ):
        refused(SaveError, re.escape(record), "cannot be written .*Nothing was changed", call, graph)


def test_a_criterion_that_cannot_choose_in_a_live_graph(graph, monkeypatch):
    from sparsekit_criteria import Magnitude

    monkeypatch.setattr(Magnitude, "live", False)
    call = lambda: sparsekit.prune(graph, outputs=["logits"], record="record.txt")  # noqa: E731
    says = "criterion 'magnitude' cannot choose masks inside a training graph; expected one of "
    refused(ConfigError, "block/conv1: ", says, call, graph)


# Models


@pytest.fixture
def masked(graph) -> v1.GraphDef:
    """The network with masks, frozen; trained for one batch. Files: masked.pb, record.txt."""
    with graph.as_default(), v1.Session() as session:
        sparsekit.prune(graph, outputs=["logits"], record="record.txt")
        train = v1.train.RMSPropOptimizer(0.1).minimize(tf.reduce_mean(graph.get_tensor_by_name("logits:0")))
        session.run(v1.global_variables_initializer())
        session.run(train, {"x:0": np.ones((2, 4, 4, 4), np.float32)})
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
    Path("masked.pb").write_bytes(frozen.SerializeToString())
    return frozen


def through_saving(error: type[SparsekitError], where: str, says: str, model: Any, record: str = "record.txt") -> None:
    """The same refusal from strip and from AMCT's call; nothing is written."""
    refused(error, where, says, lambda: sparsekit.strip(model, record=record))
    if not isinstance(model, str):
        Path("bad.pb").write_bytes(model.SerializeToString())
        where = where.replace("the graph: ", "")
        where = rf"(bad\.pb: )?({where})"
        model = "bad.pb"
    call = lambda: amct.save_prune_retrain_model(model, ["logits"], record, "./result/model")  # noqa: E731
    refused(error, where, says, call)


def node(graph_def: v1.GraphDef, name: str) -> v1.NodeDef:
    return next(node for node in graph_def.node if node.name == name)


def saved_model() -> bytes:
    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(tf.ones([8, 8]))

        @tf.function(input_signature=[tf.TensorSpec([None, 8])])
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return x @ self.w

    tf.saved_model.save(Module(), "saved")
    return Path("saved", "saved_model.pb").read_bytes()


def meta_graph(graph: tf.Graph) -> bytes:
    with graph.as_default():
        return v1.train.export_meta_graph().SerializeToString()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (
            "text",
            "is not a binary GraphDef; expected a frozen GraphDef in a binary .pb.*convert_variables_to_constants",
        ),
        ("truncated", "is not a binary GraphDef|is not in the graph|holds no graph|names the layer|no operation"),
        ("empty", "is empty; expected a frozen GraphDef"),
        ("saved model", "is a SavedModel; expected a frozen GraphDef.*convert_variables_to_constants"),
        ("meta graph", "is a MetaGraph; expected a frozen GraphDef.*convert_variables_to_constants"),
        ("random", "is not a binary GraphDef"),
        ("checkpoint", "is not a binary GraphDef"),
        ("image", "is not a binary GraphDef"),
    ],
)
def test_a_file_that_is_no_frozen_pb(masked, graph, what, says):
    data = {
        "text": lambda: str(masked).encode(),
        "truncated": lambda: Path("masked.pb").read_bytes()[:-1000],
        "empty": lambda: b"",
        "saved model": saved_model,
        "meta graph": lambda: meta_graph(graph),
        "random": lambda: np.random.RandomState(0).bytes(5000),
        "checkpoint": lambda: b'model_checkpoint_path: "model"\n',
        "image": lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
    }[what]()
    Path("bad.pb").write_bytes(data)
    through_saving(SparsekitError, r"bad\.pb|outputs|record\.txt", says, "bad.pb")
    refused(
        SparsekitError,
        r"bad\.pb|outputs|record\.txt",
        says,
        lambda: sparsekit.verify("bad.pb", record="record.txt", outputs=["logits"]),
    )


def test_a_pb_cut_off_anywhere_is_refused(masked):
    data = Path("masked.pb").read_bytes()
    for length in range(0, len(data), max(1, len(data) // 60)):
        Path("bad.pb").write_bytes(data[:length])
        for call in (sparsekit.strip, sparsekit.verify):
            with pytest.raises(SparsekitError):
                call("bad.pb", record="record.txt", outputs=["logits"])


def test_a_folder_or_nothing_instead_of_a_pb(masked):
    Path("folder").mkdir()
    says = "is a folder; expected a frozen GraphDef in a binary .pb"
    refused(ModelError, "folder: ", says, lambda: amct.save_prune_retrain_model("folder", ["y"], "record.txt", "m"))
    for call in (sparsekit.strip, sparsekit.verify):
        says = r"there is no saved_model\.pb in it; expected the folder of a SavedModel"
        refused(MissingFileError, "folder: ", says, lambda call=call: call("folder"))
    for missing in ("nothing.pb", "masked.pb/below"):
        says = "there is no such file; expected a frozen GraphDef"
        through_saving(MissingFileError, f"{missing}: ", says, missing)
        with pytest.raises(FileNotFoundError):
            sparsekit.verify(missing)
    refused(ModelError, "'nul", "cannot be read", lambda: sparsekit.verify("nul\0"))


@pytest.mark.parametrize("model", [None, 3, tf.Graph(), b"bytes"])
def test_what_is_no_model(model):
    for call in (sparsekit.strip, sparsekit.verify):
        with pytest.raises(
            ModelError, match=f"^model: got {type(model).__name__}; expected a GraphDef or the path"
        ) as e:
            call(model)
        assert ("convert_variables_to_constants" in str(e.value)) == isinstance(model, tf.Graph)
    with pytest.raises(ModelError, match="the graph: holds no nodes"):
        sparsekit.verify(v1.GraphDef())


def twice(graph_def: v1.GraphDef) -> None:
    graph_def.node.add().CopyFrom(node(graph_def, "w1"))


def dangling(graph_def: v1.GraphDef) -> None:
    node(graph_def, "logits").input[0] = "nowhere"


def dangling_control(graph_def: v1.GraphDef) -> None:
    node(graph_def, "logits").input.append("^nowhere")


def bad_index(graph_def: v1.GraphDef) -> None:
    node(graph_def, "logits").input[0] = "block/fc:first"


def too_few_inputs(graph_def: v1.GraphDef) -> None:
    del node(graph_def, "block/fc").input[1]


def no_value(graph_def: v1.GraphDef) -> None:
    del node(graph_def, "w1").attr["value"]


def no_dtype(graph_def: v1.GraphDef) -> None:
    node(graph_def, "w1").attr["dtype"].type = 93


def cyclic(graph_def: v1.GraphDef) -> None:
    first = next(n for n in graph_def.node if n.op == "Identity" and n.name != "logits")
    first.input[0] = first.name


def wrong_size(graph_def: v1.GraphDef) -> None:
    node(graph_def, "w1").attr["value"].tensor.tensor_shape.dim[0].size = 7


@pytest.mark.parametrize(
    ("damage", "where", "says"),
    [
        (twice, "the graph: w1: ", "two nodes have this name; expected every name once"),
        (dangling, "the graph: logits: ", "reads 'nowhere', which is not in the graph.*damaged or was cut off"),
        (dangling_control, "the graph: logits: ", r"reads '\^nowhere', which is not in the graph"),
        (bad_index, "the graph: logits: ", "reads 'block/fc:first', which is no output"),
        (too_few_inputs, "the graph: block/fc: ", "is a MatMul with 1 inputs; expected 2"),
        (no_value, "the graph: w1: ", "is a constant without a value"),
        (no_dtype, "the graph: w1: ", r"its attribute 'dtype' is no dtype \(93\)"),
        (cyclic, "the graph: ", "depends on itself"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_graph_that_does_not_hold_together(masked, damage, where, says):
    damage(masked)
    through_saving(ModelError, where, says, masked)
    with pytest.raises(ModelError, match=says):
        sparsekit.verify(masked)


def test_a_constant_whose_data_does_not_fit_its_shape(masked):
    wrong_size(masked)
    with pytest.raises(ModelError, match=r"^w1: its value cannot be read"):
        sparsekit.strip(masked)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_stripped(masked, value):
    weight = tf.make_ndarray(node(masked, "w2").attr["value"].tensor).copy()
    weight[3, 3] = value
    node(masked, "w2").attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weight))
    says = "1 of 48 values of its weight 'w2' are NaN or infinite.*go back to a checkpoint with finite weights"
    through_saving(ModelError, "block/fc: ", says, masked)


def test_a_graph_that_is_not_frozen_is_not_stripped(graph, masked):
    says = "convert_variables_to_constants"
    through_saving(ModelError, "block/conv1", says, graph.as_graph_def())


def test_a_graph_frozen_but_for_its_weight_is_not_stripped(masked):
    weight = node(masked, "w2")
    weight.op = "VariableV2"
    weight.attr["shape"].shape.CopyFrom(weight.attr["value"].tensor.tensor_shape)
    del weight.attr["value"]
    through_saving(
        ModelError, "block/fc: ", "its weight 'w2' is a variable; freeze the graph first.*Freeze the graph with", masked
    )


def test_a_graph_without_masks_is_not_stripped(masked):
    dense = sparsekit.strip(masked)
    refused(
        ModelError,
        "the graph: ",
        "holds no masks; expected a frozen graph or SavedModel that sparsekit.prune masked before.*not one built anew",
        lambda: sparsekit.strip(dense),
    )
    through_saving(RecordError, "record.txt: ", "names the layer 'block/conv1', which has no mask in the graph", dense)


def test_a_graph_in_which_grappler_folded_the_masks_is_not_stripped(masked):
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    meta = meta_graph_pb2.MetaGraphDef(graph_def=masked)
    meta.collection_def["train_op"].node_list.value.append("logits")
    options = config_pb2.ConfigProto()
    rewrite = options.graph_options.rewrite_options
    rewrite.min_graph_nodes = -1
    rewrite.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.TWO
    optimized = tf_optimizer.OptimizeGraph(options, meta)
    assert node(optimized, "block/fc/sparsekit/masked").op == "Const"
    says = "its mask is no longer the op that was inserted but a Const.*Strip it first, then optimize"
    through_saving(ModelError, "block/(conv1|fc)/sparsekit/masked: ", says, optimized)


def test_a_mask_with_three_weights_in_a_group_is_not_folded(masked):
    state = node(masked, "block/fc/sparsekit/mask")
    mask = tf.make_ndarray(state.attr["value"].tensor).copy()
    mask[:4, 2] = [1, 1, 1, 0]
    state.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(mask))
    says = "its stored mask is no 2:4 mask along axis 0.*restore it from the checkpoint of the training run"
    through_saving(ModelError, "block/fc: ", says, masked)


@pytest.mark.parametrize("value", [0.5, np.nan, 2.0])
def test_a_mask_that_holds_other_values_than_0_and_1_is_not_folded(masked, value):
    state = node(masked, "block/fc/sparsekit/mask")
    mask = tf.make_ndarray(state.attr["value"].tensor).copy()
    mask[mask != 0] = value
    state.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(mask))
    through_saving(ModelError, "block/fc: ", "its stored mask is no 2:4 mask along axis 0", masked)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"2:4", b"\xff", b'{"axis": 0}'])
def test_a_mask_described_in_an_unknown_way_is_not_folded(masked, text):
    node(masked, "block/fc/sparsekit/masked").attr["_sparsekit"].s = text
    through_saving(ModelError, "block/fc/sparsekit/masked: ", "its mask is described in an unknown way", masked)


# Records


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("", "record.txt:1: ", "the record is empty.*Write it again"),
        (
            "prune_record {\n  selective_prune {\n    nam: 'x'\n  }\n}\n",
            r"record.txt:3: ",
            "has no field 'nam'.*'name'",
        ),
        ("not a record", "record.txt:1: ", "not valid protobuf text"),
        ('prune_record {\n selective_prune { name: "block/fc" } }', "record.txt:2: ", "has no mask_shape"),
    ],
)
def test_a_record_that_cannot_be_read(masked, text, where, says):
    Path("record.txt").write_text(text)
    with pytest.raises(RecordError, match=says) as caught:
        sparsekit.strip(masked, record="record.txt")
    assert re.match(where, str(caught.value))
    with pytest.raises(RecordError, match=says):
        sparsekit.verify(masked, record="record.txt")
    with pytest.raises(RecordError, match=says):
        amct.save_prune_retrain_model("masked.pb", ["logits"], "record.txt", "./result/model")
    assert not Path("result").exists()


def entries() -> list[str]:
    return re.findall(r"^prune_record \{.*?^\}\n", Path("record.txt").read_text(), re.DOTALL | re.MULTILINE)


def test_a_record_that_names_a_layer_more(masked):
    Path("more.txt").write_text("".join([*entries(), entries()[0].replace("block/conv1", "block/conv2")]))
    says = "names the layer 'block/conv2', which has no mask in the graph; expected the record that was written when "
    through_saving(RecordError, "more.txt: ", says + ".*Did you mean 'block/conv1'", masked, "more.txt")


def test_a_record_that_names_a_layer_less(masked):
    Path("less.txt").write_text(entries()[0])
    says = "does not name block/fc, which the graph masks; expected the record that was written when this very graph"
    through_saving(RecordError, "less.txt: ", says, masked, "less.txt")


def test_a_record_of_another_shape(masked):
    Path("other.txt").write_text(Path("record.txt").read_text().replace("ints: 6", "ints: 7"))
    says = r"gives 'block/fc' the shape \[8, 7\], in the graph it is \[8, 6\]; expected the record"
    through_saving(RecordError, "other.txt: ", says, masked, "other.txt")


def test_a_record_that_is_not_there(masked):
    with pytest.raises(MissingFileError, match=r"^nothing\.txt: there is no such file"):
        sparsekit.strip(masked, record="nothing.txt")
    with pytest.raises(MissingFileError, match=r"^nothing\.txt: there is no such file"):
        sparsekit.verify(masked, record="nothing.txt")


# Nothing to prune


def test_a_graph_with_nothing_to_prune_is_left_alone_and_it_is_said(caplog):
    with tf.Graph().as_default() as graph:
        tf.identity(v1.placeholder(tf.float32, [None, 8], name="x") * 2.0, name="y")
        before = [operation.name for operation in graph.get_operations()]
        with caplog.at_level("WARNING", "sparsekit"):
            result = sparsekit.prune(graph, outputs=["y"], record="record.txt")
        assert [name for name in before if name not in {o.name for o in graph.get_operations()}] == []
    assert result.variables == ()
    assert "There is nothing to prune: no op with an op handler was found." in caplog.text


def test_a_graph_with_nothing_to_prune_is_not_changed_at_all():
    with tf.Graph().as_default() as graph:
        tf.identity(v1.placeholder(tf.float32, [None, 8], name="x") * 2.0, name="y")
        before = graph.as_graph_def()
        sparsekit.prune(graph, outputs=["y"])
        assert [node for node in graph.as_graph_def().node if node.name != "sparsekit/initializer"] == list(before.node)


def test_a_criterion_that_fails_at_the_second_layer_leaves_every_op_as_it_was(monkeypatch):
    import sparsekit_criteria

    calls = []

    def score(self, weight, axis):
        calls.append(axis)
        if len(calls) == 2:
            raise TypeError("no such luck")
        return weight

    monkeypatch.setattr(sparsekit_criteria.Magnitude, "score", score)
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        for name in ("one", "two"):
            x = tf.matmul(x, v1.get_variable(f"w_{name}", [8, 8]), name=name)
        inputs = {op.name: [tensor.name for tensor in op.inputs] for op in graph.get_operations()}
        with pytest.raises(GraphError, match=r"two: its mask cannot be built .TypeError: no such luck.*anew"):
            sparsekit.prune(graph)
        assert {name: [t.name for t in graph.get_operation_by_name(name).inputs] for name in inputs} == inputs
        assert [variable.op.name for variable in v1.global_variables()] == ["w_one", "w_two"]
