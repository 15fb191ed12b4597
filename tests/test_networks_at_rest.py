"""One-shot pruning of networks built with stock tools.

Each is judged from outside: masks from a sort of their own are multiplied into the weights of the original, which must
then compute, bit for bit, what the pruned artefact computes.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_graphs import bits, settings_of
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.keras.optimizer_v2.optimizer_v2 import RestoredOptimizer
from tensorflow.python.saved_model import revived_types

import sparsekit
from sparsekit.artefact.bundle import Bundle

pytestmark = pytest.mark.slow
v1 = tf.compat.v1
layers = keras.layers


def masked(weight: np.ndarray, axis: int) -> np.ndarray:
    """The weight with all but the 2 largest of every 4 along the axis zero; of equals the first stay."""
    result = np.moveaxis(weight.copy(), axis, -1)
    for start in range(0, result.shape[-1], 4):
        group = result[..., start : start + 4]
        smallest = np.argsort(-np.abs(group), axis=-1, kind="stable")[..., 2:]
        np.put_along_axis(group, smallest, 0, -1)
    return np.moveaxis(result, -1, axis)


def session_without_rewriting(graph: tf.Graph) -> Any:
    """A session that runs the ops as they stand: what is folded into constants cannot be fed."""
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = v1.OptimizerOptions.L0
    config.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    return v1.Session(graph=graph, config=config)


def run(graph_def: Any, inputs: dict[str, np.ndarray], outputs: list[str], weights: dict[str, Any]) -> list[np.ndarray]:
    """Run a graph with other values fed in place of its constants."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with session_without_rewriting(graph) as session:
            feeds = {f"{name}:0": value for name, value in (*inputs.items(), *weights.items())}
            return session.run([f"{name}:0" for name in outputs], feeds)


def constant(graph_def: Any, decision: Any) -> tuple[Any, bool]:
    """The node that holds a layer's weight, and whether it can be fed: not inside a function or a loop."""
    for node in graph_def.node:
        if node.name == decision.weight:
            return node, not node.input
    (found,) = [
        node
        for function in graph_def.library.function
        for node in function.node_def
        if node.op == "Const" and decision.weight.endswith(f"/{node.name}")
    ]
    return found, False


def check_frozen(graph_def: Any, inputs: dict[str, np.ndarray], outputs: list[str]) -> sparsekit.Plan:
    """Prune a frozen graph and judge it; returns the plan."""
    result = sparsekit.prune(graph_def)
    verification = sparsekit.verify(result.graph_def)
    assert verification.ok and len(verification.layers) == len(result.plan.pruned)
    difference = sparsekit.diff(graph_def, result.graph_def)
    assert difference.only_weights, difference
    assert all(change.only_zeros for change in difference.values)

    oracle = type(graph_def)()
    oracle.CopyFrom(graph_def)
    fed, changed = {}, 0
    for decision in result.plan.pruned:
        node, feedable = constant(oracle, decision)
        weight = tf.make_ndarray(node.attr["value"].tensor)
        assert weight.shape == decision.shape
        value = masked(weight, decision.axis)
        changed += (value != weight).sum()
        if feedable:
            fed[decision.weight] = value
        else:
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    assert sum(change.changed for change in difference.values) == changed
    pruned = run(result.graph_def, inputs, outputs, {})
    for ours, theirs in zip(pruned, run(oracle, inputs, outputs, fed), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    dense = run(graph_def, inputs, outputs, {})
    assert any(not np.array_equal(a, b) for a, b in zip(pruned, dense, strict=True))
    return result.plan


def freeze(function: Any, lower: bool = False) -> tuple[Any, list[str], list[str]]:
    """A concrete function as a frozen GraphDef, with the names of its inputs and outputs."""
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=lower)
    names = [[tensor.op.name for tensor in tensors] for tensors in (frozen.inputs, frozen.outputs)]
    return frozen.graph.as_graph_def(), *names


def images(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).rand(*shape).astype("f")


APPLICATIONS = {
    "ResNet50": (64, 54, 0),
    "MobileNetV2": (64, 36, 17),
    "InceptionV3": (75, 95, 0),
    "EfficientNetB0": (64, 66, 16),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications_frozen(name):
    size, pruned, depthwise = APPLICATIONS[name]
    keras.utils.set_random_seed(1)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    function = tf.function(lambda x: model(x, training=False))
    frozen, (x,), outputs = freeze(function.get_concrete_function(tf.TensorSpec([None, size, size, 3])))
    plan = check_frozen(frozen, {x: 255 * images(2, size, size, 3)}, outputs)
    assert len(plan.pruned) == pruned
    assert Counter(d.reason for d in plan.skipped) == Counter({"no-input-channels": depthwise} if depthwise else {})
    assert {d.op_type for d in plan.skipped} <= {"DepthwiseConv2dNative"}
    kinds = Counter(type(layer).__name__ for layer in model._flatten_layers())
    assert (kinds["Conv2D"] + kinds["Dense"], kinds["DepthwiseConv2D"]) == (pruned, depthwise)
    (stem,) = [d for d in plan.pruned if d.shape[d.axis] == 3]
    assert "the last 3 of 3 input channels keep 2" in stem.message


def transformer() -> keras.Model:
    """Two blocks of self-attention and a dense pair, on 16 words of 50: width 32, 4 heads of 8."""
    tokens = keras.Input((16,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 32)(tokens)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 8)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(32)(layers.Dense(64, activation="gelu")(x)))
    return keras.Model(tokens, layers.Dense(7)(layers.GlobalAveragePooling1D()(x)))


def lstm() -> keras.Model:
    tokens = keras.Input((16,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 24)(tokens)
    x = layers.LSTM(20, return_sequences=True)(x)
    x = layers.Bidirectional(layers.LSTM(16))(x)
    return keras.Model(tokens, layers.Dense(7)(x))


# Per model: how many layers are pruned, and why the others are not. Attention itself multiplies data with data; the
# kernel behind it, [heads, dim, out], is contracted over two axes at once, with groups within the second.
SEQUENCES: dict[str, tuple[Callable[[], keras.Model], int, dict[str, int]]] = {
    "transformer": (transformer, 13, {"weight-dynamic": 4}),
    "lstm": (lstm, 7, {}),
}


def tokens() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 50, [3, 16]).astype(np.int32)


@pytest.mark.parametrize("lower", [False, True], ids=["functions", "lowered"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_models_frozen(name, lower):
    build, pruned, skipped = SEQUENCES[name]
    keras.utils.set_random_seed(2)
    model = build()
    function = tf.function(lambda x: model(x, training=False))
    frozen, (x,), outputs = freeze(function.get_concrete_function(tf.TensorSpec([None, 16], tf.int32)), lower)
    plan = check_frozen(frozen, {x: tokens()}, outputs)
    assert len(plan.pruned) == pruned
    assert Counter(d.reason for d in plan.skipped) == skipped


# Detection: control flow around weights and inside it


def detector(image: Any, first: Any, weight: Callable[..., Any]) -> dict[str, Any]:
    """Boxes that outlive non-maximum suppression, refined in a loop, row by row and in one of two branches.

    Args:
        image: [1, 32, 32, 3].
        first: which branch, a bool.
        weight: gives a weight by name and shape.
    """
    h = tf.nn.relu(tf.nn.conv2d(image, weight("stem", 3, 3, 3, 16), 2, "SAME"))
    h = tf.nn.relu(tf.nn.conv2d(h, weight("body", 3, 3, 16, 16), 2, "SAME"))
    boxes = tf.reshape(tf.nn.conv2d(h, weight("boxes", 1, 1, 16, 4), 1, "SAME"), [-1, 4])
    scores = tf.reshape(tf.nn.conv2d(h, weight("scores", 1, 1, 16, 1), 1, "SAME"), [-1])
    kept = tf.image.non_max_suppression(boxes, scores, 10)
    features = tf.gather(tf.reshape(h, [-1, 16]), kept)
    outside, row, a, b = (
        weight(name, 16, width) for name, width in (("loop", 16), ("row", 16), ("first", 6), ("second", 6))
    )

    def turn(index: Any, state: Any) -> Any:
        inside = tf.constant(np.random.RandomState(9).randn(16, 16).astype("f"), name="inside")
        return index + 1, tf.tanh(tf.matmul(tf.matmul(state, outside), inside))

    _, features = tf.while_loop(lambda index, state: index < 3, turn, [0, features])
    features = tf.map_fn(lambda one: tf.matmul(one[None], row)[0], features)
    classes = tf.cond(first, lambda: tf.matmul(features, a), lambda: tf.matmul(features, b))
    return {"boxes": tf.gather(boxes, kept), "classes": classes}


def initial(*shape: int) -> np.ndarray:
    return np.random.RandomState(sum(shape)).randn(*shape).astype("f")


def detector_of_v1() -> tuple[Any, list[str], list[str]]:
    """Frozen from ref variables; loops and branches are nodes of the graph."""

    def weight(name: str, *shape: int) -> Any:
        return v1.get_variable(name, initializer=initial(*shape))

    with settings_of("ref", "v1"), tf.Graph().as_default() as graph:
        image = v1.placeholder(tf.float32, [1, 32, 32, 3], name="image")
        outputs = detector(image, v1.placeholder(tf.bool, [], name="first"), weight)
        names = [tf.identity(output, name).op.name for name, output in outputs.items()]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
    return frozen, ["image", "first"], names


def detector_of_v2(lower: bool) -> tuple[Any, list[str], list[str]]:
    """Frozen from resource variables; loops and branches are functions, or lowered to nodes again."""
    variables: dict[str, tf.Variable] = {}

    def weight(name: str, *shape: int) -> Any:
        if name not in variables:
            variables[name] = tf.Variable(initial(*shape), name=name)
        return tf.convert_to_tensor(variables[name])

    specs = tf.TensorSpec([1, 32, 32, 3], tf.float32, name="image"), tf.TensorSpec([], tf.bool, name="first")
    with settings_of("resource", "v2"):
        function = tf.function(lambda image, first: detector(image, first, weight)).get_concrete_function(*specs)
        return freeze(function, lower)


DETECTORS = {
    "v1": detector_of_v1,
    "functions": lambda: detector_of_v2(lower=False),
    "lowered": lambda: detector_of_v2(lower=True),
}


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_with_control_flow(kind):
    frozen, inputs, outputs = DETECTORS[kind]()
    ops = Counter(node.op for node in frozen.node)
    called = {node.op.removeprefix("Stateless") for node in frozen.node} & {"While", "If"}
    assert (called == {"While", "If"}) == (kind == "functions") and bool(ops["Enter"]) != (kind == "functions")
    for first in (True, False):
        feeds = dict(zip(inputs, (images(1, 32, 32, 3), np.array(first)), strict=True))
        plan = check_frozen(frozen, feeds, outputs)
    print(plan)
    assert len(plan.pruned) == len(plan.decisions) == 9


# SavedModels


def variables_of(session: Any, plan: sparsekit.Plan) -> dict[str, np.ndarray]:
    """The weights of a plan's layers, read in a session."""
    values = {}
    for decision in plan.pruned:
        handle = session.graph.get_tensor_by_name(f"{decision.weight}:0")
        with session.graph.as_default():
            values[decision.weight] = session.run(tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32))
    return values


def check_saved_model(folder: Path, target: Path, inputs: dict[str, np.ndarray]) -> sparsekit.Plan:
    """Prune a SavedModel and judge it through both kinds of loaders; returns the plan.

    Args:
        folder: the SavedModel.
        target: where the pruned one goes.
        inputs: what its signature is called with.
    """
    result = sparsekit.prune(folder)
    result.save(target)
    verification = sparsekit.verify(target)
    assert verification.ok and len(verification.layers) == len(result.plan.pruned)
    difference = sparsekit.diff(folder, target)
    assert difference.only_weights and all(change.only_zeros for change in difference.values)
    values = check_session_loader(folder, target, inputs, result.plan)
    check_object_loader(folder, target, inputs, result.plan, values)
    axes = {bits(values[d.weight]): d.axis for d in result.plan.pruned}
    bundles = [Bundle.open(path / "variables" / "variables") for path in (folder, target)]
    for change in difference.values:
        dense, pruned = (bundle.read(change.name) for bundle in bundles)
        np.testing.assert_array_equal(pruned, masked(dense, axes[bits(dense)]))
    return result.plan


def check_session_loader(
    folder: Path, target: Path, inputs: dict[str, np.ndarray], plan: sparsekit.Plan
) -> dict[str, np.ndarray]:
    """Returns the original weights, by variable."""

    def serve(session: Any, meta_graph: Any) -> list[np.ndarray]:
        signature = meta_graph.signature_def["serving_default"]
        feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
        return session.run([signature.outputs[name].name for name in sorted(signature.outputs)], feeds)

    with tf.Graph().as_default() as graph, v1.Session() as session:
        meta_graph = v1.saved_model.load(session, ["serve"], str(folder))
        values = variables_of(session, plan)
        dense = serve(session, meta_graph)
        for decision in plan.pruned:
            handle = graph.get_tensor_by_name(f"{decision.weight}:0")
            value = masked(values[decision.weight], decision.axis)
            session.run(tf.raw_ops.AssignVariableOp(resource=handle, value=value))
        expected = serve(session, meta_graph)
    with tf.Graph().as_default(), v1.Session() as session:
        pruned = serve(session, v1.saved_model.load(session, ["serve"], str(target)))
    for ours, theirs in zip(pruned, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(not np.array_equal(a, b) for a, b in zip(pruned, dense, strict=True))
    return values


def check_object_loader(
    folder: Path, target: Path, inputs: dict[str, np.ndarray], plan: sparsekit.Plan, values: dict[str, np.ndarray]
) -> None:
    feeds = {name: tf.constant(value) for name, value in inputs.items()}
    loaded = [tf.saved_model.load(str(path)) for path in (folder, target)]
    original, pruned = (model.signatures["serving_default"] for model in loaded)
    for decision in plan.pruned:
        value = values[decision.weight]
        served = [v for v in original.variables if v.shape == value.shape and np.array_equal(v.numpy(), value)]
        assert served, decision.weight
        for variable in served:
            variable.assign(masked(value, decision.axis))
    expected = original(**feeds)
    for name, ours in pruned(**feeds).items():
        np.testing.assert_array_equal(ours.numpy(), expected[name].numpy())


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequence_models_exported(name, tmp_path):
    build, pruned, skipped = SEQUENCES[name]
    keras.utils.set_random_seed(3)
    build().export(str(tmp_path / "m"), verbose=False)
    plan = check_saved_model(tmp_path / "m", tmp_path / "pruned", {"tokens": tokens()})
    assert len(plan.pruned) == pruned
    # An export holds two signatures that call the same: ops without a weight are seen in both, the embedding once.
    seen = {reason: 2 * count for reason, count in skipped.items()} | {"embedding": 1}
    assert Counter(d.reason for d in plan.skipped) == seen


# A model that others trained


def basic_pitch() -> Path:
    """The SavedModel in the package basic-pitch (Spotify), whose own dependencies are not installed."""
    found = importlib.util.find_spec("basic_pitch")
    assert found is not None and found.origin is not None, "pip install --no-deps basic-pitch==0.4.0 (see the Makefile)"
    return Path(found.origin).parent / "saved_models" / "icassp_2022" / "nmp"


@pytest.fixture(scope="session")
def optimizers_of_keras_2() -> None:
    """Without Keras 2, ``tf.saved_model.load`` finds no class for the optimizer that was saved with the model."""
    registration = revived_types.VersionedTypeRegistration(
        object_factory=lambda proto: RestoredOptimizer(),
        version=2,
        min_producer_version=1,
        min_consumer_version=1,
        setter=RestoredOptimizer._set_hyper,
    )
    if "optimizer" not in revived_types.registered_identifiers():
        revived_types.register_revived_type("optimizer", lambda instance: False, versions=[registration])


@pytest.mark.usefixtures("optimizers_of_keras_2")
def test_a_trained_model_that_others_made(tmp_path):
    """Its first 26 convolutions are a transform: kernels of one input channel in constants, or computed from one."""
    shutil.copytree(basic_pitch(), tmp_path / "m")
    audio = np.random.RandomState(0).randn(2, 43844, 1).astype("f")
    plan = check_saved_model(tmp_path / "m", tmp_path / "pruned", {"input_2": audio})
    convolutions = {use: decision for decision in plan.decisions for use in decision.uses}
    assert len(convolutions) == 32 and {d.op_type for d in plan.decisions} == {"Conv2D"}
    transform = [decision for use, decision in convolutions.items() if "/cq_t2010v2_1/" in use]
    assert Counter(decision.reason for decision in transform) == {"axis-too-short": 18, "weight-computed": 8}
    assert all("StridedSlice" in d.message for d in transform if d.reason == "weight-computed")
    others = {d.weight: (d.shape, d.reason) for use, d in convolutions.items() if "/cq_t2010v2_1/" not in use}
    assert others == {
        "conv2d_1/kernel": ((3, 39, 8, 8), "eligible"),
        "contours-reduced/kernel": ((5, 5, 8, 1), "eligible"),
        "conv2d_2/kernel": ((7, 7, 1, 32), "axis-too-short"),
        "conv2d_3/kernel": ((7, 3, 32, 1), "eligible"),
        "conv2d_4/kernel": ((5, 5, 8, 32), "eligible"),
        "conv2d_5/kernel": ((3, 3, 33, 1), "eligible"),
    }
    changed = {change.name: change.shape for change in sparsekit.diff(tmp_path / "m", tmp_path / "pruned").values}
    assert changed == {
        f"layer_with_weights-{index}/kernel/.ATTRIBUTES/VARIABLE_VALUE": shape
        for index, shape in (
            (1, (3, 39, 8, 8)),
            (3, (5, 5, 8, 1)),
            (5, (5, 5, 8, 32)),
            (7, (7, 3, 32, 1)),
            (8, (3, 3, 33, 1)),
        )
    }
    assert sparsekit.diff(basic_pitch(), tmp_path / "m").identical
