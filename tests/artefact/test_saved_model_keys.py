"""Which stored tensors either loader serves, proven on what stock exporters write: patch them, load, compute."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_graphs import settings_of
from tensorflow.core.protobuf import saved_model_pb2

from sparsekit.artefact.bundle import Bundle, patch
from sparsekit.artefact.saved_model import SavedModel, WeightKeys
from sparsekit.errors import MissingFileError, ModelError

Array = npt.NDArray[Any]
Weights = dict[str, Array]
v1 = tf.compat.v1

X = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@attrs.frozen(eq=False)
class Export:
    """A SavedModel with its kernels.

    Attributes:
        build: writes it into a folder and returns the kernels by name.
        signatures: what each computes from ``X`` and the kernels.
        copies: how many stored tensors hold each kernel.
        by_session: whether a Session loader can serve it at all.
    """

    build: Callable[[str], Weights]
    signatures: Mapping[str, Callable[[Weights], Array]]
    copies: int = 1
    by_session: bool = True


# TensorFlow 1


def tf1(kind: str, save: Callable[[Any, str, Any, Any], None]) -> Callable[[str], Weights]:
    def build(folder: str) -> Weights:
        kernels = {"a": normal(8, 8), "b": normal(8, 8, seed=1), "c": normal(8, 4)}
        with settings_of(kind, "v2"), tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 8], name="x")
            h = x
            for name, kernel in kernels.items():
                initializer = v1.constant_initializer(kernel)
                h = tf.matmul(h, v1.get_variable(f"{name}/kernel", kernel.shape, initializer=initializer))
            session.run(v1.global_variables_initializer())
            save(session, folder, x, tf.identity(h, name="y"))
        return kernels

    return build


def simple_save(session: Any, folder: str, x: Any, y: Any) -> None:
    v1.saved_model.simple_save(session, folder, {"x": x}, {"y": y})


def build_with_two_graphs(session: Any, folder: str, x: Any, y: Any) -> None:
    signature = {"serving_default": v1.saved_model.predict_signature_def({"x": x}, {"y": y})}
    builder = v1.saved_model.Builder(folder)
    builder.add_meta_graph_and_variables(session, ["train"])
    builder.add_meta_graph(["serve"], signature_def_map=signature, strip_default_attrs=True)
    builder.save()


def chain(*names: str) -> Callable[[Weights], Array]:
    def compute(kernels: Weights) -> Array:
        y = X
        for name in names:
            y = y @ kernels[name]
        return y

    return compute


# TensorFlow 2


SPEC = [tf.TensorSpec([None, 8], tf.float32)]


class Functions(tf.Module):
    """Two functions that share one variable, variables of one shape and name, a list, a function inside another."""

    def __init__(self) -> None:
        super().__init__()
        self.late = tf.Variable(normal(8, 8), name="w")
        self.early = tf.Variable(normal(8, 8, seed=1), name="w")
        self.more = [tf.Variable(normal(8, 8, seed=2), name="w"), {"deep": tf.Variable(normal(8, 8, seed=3))}]

    @tf.function(input_signature=SPEC)
    def one(self, x: Any) -> Any:
        return x @ self.early @ self.more[1]["deep"]

    @tf.function(input_signature=SPEC)
    def two(self, x: Any) -> Any:
        return self.one(x) @ self.late @ self.more[0]


def module(folder: str) -> Weights:
    model = Functions()
    tf.saved_model.save(model, folder, signatures={"serving_default": model.two, "one": model.one})
    return {v: normal(8, 8, seed=i) for i, v in enumerate(("late", "early", "list", "deep"))}


class Lookup(tf.Module):
    """An asset that a table is filled from when the model is loaded."""

    def __init__(self, vocabulary: str) -> None:
        super().__init__()
        filled = tf.lookup.TextFileInitializer(vocabulary, tf.string, 0, tf.int64, 1, delimiter=" ")
        self.table = tf.lookup.StaticHashTable(filled, -1)
        self.kernel = tf.Variable(normal(8, 8))
        self.other = tf.Variable(normal(8, 8, seed=1))

    @tf.function(input_signature=SPEC)
    def serve(self, x: Any) -> Any:
        return x @ self.kernel * tf.cast(self.table.lookup(tf.constant("two")), tf.float32)

    @tf.function(input_signature=SPEC)
    def again(self, x: Any) -> Any:
        return self.serve(x) @ self.other


def with_asset(folder: str) -> Weights:
    vocabulary = Path(folder).parent / "words.txt"
    vocabulary.write_text("one 1\ntwo 2\n")
    model = Lookup(str(vocabulary))
    tf.saved_model.save(model, folder, signatures={"serving_default": model.serve, "again": model.again})
    return {"kernel": normal(8, 8), "other": normal(8, 8, seed=1)}


# Keras 3


def dense(units: int, seed: int, **more: Any) -> Any:
    """A layer whose kernel is ``normal(8, units, seed=seed)``."""

    def initializer(shape: Any, dtype: Any = None) -> Any:
        return tf.constant(normal(*shape, seed=seed), dtype)

    return keras.layers.Dense(units, kernel_initializer=initializer, **more)


def sequential() -> tuple[Any, Weights]:
    model = keras.Sequential([keras.layers.Input((8,)), dense(8, 0), dense(8, 1, use_bias=False), dense(4, 2)])
    return model, {"a": normal(8, 8), "b": normal(8, 8, seed=1), "c": normal(8, 4, seed=2)}


def functional() -> tuple[Any, Weights]:
    x = keras.layers.Input((8,))
    h = keras.layers.BatchNormalization(epsilon=0.0)(dense(8, 0)(x))
    y = keras.layers.add([dense(4, 2)(h), dense(4, 3)(x)])
    return keras.Model(x, y), {"a": normal(8, 8), "c": normal(8, 4, seed=2), "d": normal(8, 4, seed=3)}


def shared() -> tuple[Any, Weights]:
    x = keras.layers.Input((8,))
    layer = dense(8, 0)
    return keras.Model(x, dense(4, 2)(layer(layer(x)))), {"a": normal(8, 8), "c": normal(8, 4, seed=2)}


def exported(make: Callable[[], tuple[Any, Weights]]) -> Callable[[str], Weights]:
    def build(folder: str) -> Weights:
        model, kernels = make()
        model.export(folder, verbose=False)
        return kernels

    return build


def saved(folder: str) -> Weights:
    model, kernels = sequential()
    tf.saved_model.save(model, folder)
    return kernels


def archive(folder: str) -> Weights:
    """Two endpoints of one model."""
    model, kernels = sequential()
    spec = keras.InputSpec(shape=(None, 8), dtype="float32")
    written = keras.export.ExportArchive()
    written.track(model)
    written.add_endpoint("serving_default", model.call, input_signature=[spec])
    written.add_endpoint("first", model.layers[0].call, input_signature=[spec])
    written.write_out(folder, verbose=False)
    return kernels


EXPORTS = {
    "tf1-ref": Export(tf1("ref", simple_save), {"serving_default": chain("a", "b", "c")}),
    "tf1-resource": Export(tf1("resource", simple_save), {"serving_default": chain("a", "b", "c")}),
    "tf1-two-graphs-ref": Export(tf1("ref", build_with_two_graphs), {"serving_default": chain("a", "b", "c")}),
    "tf1-two-graphs": Export(tf1("resource", build_with_two_graphs), {"serving_default": chain("a", "b", "c")}),
    "module": Export(
        module,
        {"serving_default": chain("early", "deep", "late", "list"), "one": chain("early", "deep")},
    ),
    "asset": Export(
        with_asset,
        {
            "serving_default": lambda w: 2 * chain("kernel")(w),
            "again": lambda w: 2 * chain("kernel", "other")(w),
        },
    ),
    "keras-sequential": Export(exported(sequential), {"serving_default": chain("a", "b", "c")}, copies=2),
    "keras-functional": Export(
        exported(functional), {"serving_default": lambda w: chain("a", "c")(w) + chain("d")(w)}, copies=2
    ),
    "keras-shared-layer": Export(exported(shared), {"serving_default": chain("a", "a", "c")}, copies=2),
    "keras-archive": Export(archive, {"serving_default": chain("a", "b", "c"), "first": chain("a")}, copies=2),
    # TensorFlow's own exporter leaves the variables of a Keras 3 model without a value in a Session.
    "keras-saved": Export(saved, {"serving_default": chain("a", "b", "c")}, by_session=False),
}


@attrs.frozen(eq=False)
class Written:
    """An export on disk."""

    export: Export
    folder: Path
    kernels: Weights


@pytest.fixture(scope="module", params=EXPORTS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return Written(EXPORTS[request.param], folder, EXPORTS[request.param].build(str(folder)))


# The two loaders


def by_objects(folder: Path) -> dict[str, Array]:
    """What every signature gives for ``X`` through ``tf.saved_model.load``."""
    loaded = tf.saved_model.load(str(folder), tags=["serve"])
    results = {}
    for name, function in loaded.signatures.items():
        (argument,) = function.structured_input_signature[1] or {"x": None}
        (results[name],) = (value.numpy() for value in function(**{argument: tf.constant(X)}).values())
    return results


def by_session(folder: Path) -> dict[str, Array]:
    """The same through a Session."""
    with tf.Graph().as_default(), v1.Session() as session:
        meta_graph = v1.saved_model.load(session, ["serve"], str(folder))
        results = {}
        for name, signature in meta_graph.signature_def.items():
            if signature.inputs:
                (x,), (y,) = signature.inputs.values(), signature.outputs.values()
                results[name] = session.run(y.name, {x.name: X})
    return results


def agrees(results: Mapping[str, Array], export: Export, kernels: Weights) -> bool:
    return all(
        np.allclose(results[name], compute(kernels), rtol=1e-3, atol=1e-3)
        for name, compute in export.signatures.items()
    )


def keys_of(folder: Path) -> tuple[SavedModel, WeightKeys]:
    model = SavedModel.open(folder)
    return model, model.weight_keys(model.meta_graph(["serve"]))


def variable_of(kernel: Array, model: SavedModel, keys: WeightKeys) -> str:
    """The variable that serves a kernel: of those whose stored value it is, the one that both loaders know."""
    assert model.bundle is not None
    found = [
        name
        for name, known in keys.variables.items()
        if known.objects and np.array_equal(model.bundle.read(known.objects[0]), kernel)
    ]
    (name,) = found
    return name


def patched(folder: Path, target: Path, values: Mapping[str, Array]) -> Path:
    shutil.copytree(folder, target)
    patch(target / "variables" / "variables", values.items())
    return target


def test_every_stored_copy_is_known(written: Written) -> None:
    model, keys = keys_of(written.folder)
    assert model.bundle is not None and keys.differing(model.bundle) == {}
    for kernel in written.kernels.values():
        name = variable_of(kernel, model, keys)
        known = keys.variables[name]
        stored = [
            key
            for key, entry in model.bundle.entries.items()
            if entry.dtype == "float32" and np.array_equal(model.bundle.read(key), kernel)
        ]
        assert known.keys == tuple(sorted(stored)) and not known.doubts
        assert len(known.keys) == written.export.copies
        assert bool(known.session) == written.export.by_session
        assert all(name in keys.restored_from(key) for key in known.keys)
        if written.export.copies == 2:
            assert all(key.startswith("_all_variables/") for key in known.session)
            assert all(key.startswith("variables/") for key in known.objects)


def test_both_loaders_serve_what_was_patched(written: Written, tmp_path: Path) -> None:
    model, keys = keys_of(written.folder)
    new = {name: normal(*kernel.shape, seed=77 + i) for i, (name, kernel) in enumerate(written.kernels.items())}
    values = {
        key: new[name]
        for name, kernel in written.kernels.items()
        for key in keys.variables[variable_of(kernel, model, keys)].keys
    }
    folder = patched(written.folder, tmp_path / "new", values)
    assert agrees(by_objects(folder), written.export, new)
    if written.export.by_session:
        assert agrees(by_session(folder), written.export, new)
    else:
        with pytest.raises(tf.errors.FailedPreconditionError):
            by_session(written.folder)
    model, keys = keys_of(folder)
    assert model.bundle is not None and keys.differing(model.bundle) == {}
    before, after = (read_folder(path) for path in (written.folder, folder))
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert changed == {"variables/variables.index", "variables/variables.data-00000-of-00001"}


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("written", [name for name, export in EXPORTS.items() if export.copies > 1], indirect=True)
def test_each_loader_serves_its_own_copy(written: Written, tmp_path: Path) -> None:
    model, keys = keys_of(written.folder)
    kernel = normal(8, 8)
    name = variable_of(kernel, model, keys)
    known = keys.variables[name]
    old, new = written.kernels, written.kernels | {"a": normal(8, 8, seed=99)}

    folder = patched(written.folder, tmp_path / "session", dict.fromkeys(known.session, new["a"]))
    assert agrees(by_session(folder), written.export, new) and agrees(by_objects(folder), written.export, old)
    half, half_keys = keys_of(folder)
    assert half.bundle is not None and half_keys.differing(half.bundle) == {name: known.keys}

    folder = patched(written.folder, tmp_path / "objects", dict.fromkeys(known.objects, new["a"]))
    assert agrees(by_session(folder), written.export, old) and agrees(by_objects(folder), written.export, new)
    half, half_keys = keys_of(folder)
    assert half.bundle is not None and half_keys.differing(half.bundle, [name]) == {name: known.keys}


# What the maps say beyond that


def test_functions_that_no_signature_calls(tmp_path: Path) -> None:
    tf.saved_model.save(Functions(), str(tmp_path / "m"))
    _, keys = keys_of(tmp_path / "m")
    (two,) = (found for name, found in keys.captures.items() if "two" in name)
    value = "/.ATTRIBUTES/VARIABLE_VALUE"
    assert set(two) == {f"{name}{value}" for name in ("late", "early", "more/0", "more/1/deep")}
    assert all(known.session and not known.objects for known in keys.variables.values())


def test_without_variables(tmp_path: Path) -> None:
    class Frozen(tf.Module):
        @tf.function(input_signature=SPEC)
        def __call__(self, x: Any) -> Any:
            return x @ tf.constant(normal(8, 8))

    frozen = Frozen()
    tf.saved_model.save(frozen, str(tmp_path / "tf2"), signatures=frozen.__call__)
    model, keys = keys_of(tmp_path / "tf2")
    assert keys.variables == {} and keys.unmapped == {}
    shutil.rmtree(tmp_path / "tf2" / "variables")
    model, keys = keys_of(tmp_path / "tf2")
    assert model.bundle is None and keys.variables == {}

    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8])
        simple_save(session, str(tmp_path / "tf1"), x, x @ tf.constant(normal(8, 8)))
    model, keys = keys_of(tmp_path / "tf1")
    assert model.bundle is None and keys.variables == {} and keys.captures == {}


def tf1_with(folder: Path, make: Callable[[], Any], **more: Any) -> tuple[SavedModel, WeightKeys]:
    """A TensorFlow 1 model around the kernel that ``make`` makes."""
    with settings_of("resource", "v2"), tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8])
        y = tf.matmul(x, make())
        session.run(v1.global_variables_initializer())
        signature = {"serving_default": v1.saved_model.predict_signature_def({"x": x}, {"y": y})}
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session, ["serve"], signature_def_map=signature, **{name: value() for name, value in more.items()}
        )
        builder.save()
    return keys_of(folder)


def variable(name: str = "w", **more: Any) -> Any:
    return v1.get_variable(name, [8, 8], initializer=v1.random_normal_initializer(), **more)


def test_the_parts_of_a_partitioned_variable_have_keys_of_their_own(tmp_path: Path) -> None:
    """And "w" itself, which lists them, is none of them."""
    _, keys = tf1_with(tmp_path / "m", lambda: tf.convert_to_tensor(variable(partitioner=v1.fixed_size_partitioner(2))))
    assert not keys.unmapped
    bundle = Bundle.open(tmp_path / "m" / "variables" / "variables")
    (first,), (second,) = keys.variables["w/part_0"].session, keys.variables["w/part_1"].session
    assert {first, second, "w"} == set(bundle.entries)
    whole = tf.train.load_checkpoint(str(bundle.prefix)).get_tensor("w")
    np.testing.assert_array_equal(np.concatenate([bundle.read(first), bundle.read(second)]), whole)


@pytest.mark.filterwarnings("ignore")
def test_a_variable_that_is_initialised_after_it_was_restored_is_in_doubt(tmp_path: Path) -> None:
    _, keys = tf1_with(tmp_path / "m", variable, main_op=v1.saved_model.main_op.main_op)
    assert "the initialisation op" in keys.unmapped["w"][0] and keys.variables["w"].session == ("w",)


def test_a_variable_that_the_saver_leaves_out_is_in_doubt(tmp_path: Path) -> None:
    def make() -> Any:
        return variable() + variable("other")

    _, keys = tf1_with(tmp_path / "m", make, saver=lambda: v1.train.Saver(v1.global_variables("other")))
    assert keys.unmapped == {"w": ("no stored tensor is restored into it",)}


def test_renamed_and_reshaped_tensors(tmp_path: Path) -> None:
    _, keys = tf1_with(
        tmp_path / "renamed", variable, saver=lambda: v1.train.Saver({"stored": v1.global_variables()[0]})
    )
    assert keys.variables["w"].keys == ("stored",) and keys.unmapped == {}
    _, keys = tf1_with(tmp_path / "reshaped", variable, saver=lambda: v1.train.Saver(reshape=True))
    assert "(Reshape), not as stored" in keys.unmapped["w"][0]


def test_nodes_of_one_shared_name_are_one_variable(tmp_path: Path) -> None:
    def make() -> Any:
        first = variable()
        again = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[8, 8], shared_name="w", name="again")
        return first + tf.raw_ops.ReadVariableOp(resource=again, dtype=tf.float32)

    _, keys = tf1_with(tmp_path / "m", make)
    assert keys.variables["again"] == keys.variables["w"] and keys.variables["w"].keys == ("w",)
    assert set(keys.restored_from("w")) == {"w", "again"}


def test_stored_tensors_that_do_not_fit_are_in_doubt(tmp_path: Path) -> None:
    module(str(tmp_path / "m"))
    model = SavedModel.open(tmp_path / "m")
    names = {name: known.keys for name, known in model.weight_keys(model.meta_graph()).variables.items()}
    for node in model.meta_graph().graph_def.node:
        if node.op == "VarHandleOp":
            node.attr["shape"].shape.dim[0].size = 5
            node.attr["dtype"].type = 2
    keys = model.weight_keys(model.meta_graph())
    for name, doubts in keys.unmapped.items():
        (key,) = names[name]
        assert doubts == (
            f"'{key}' is float32, the variable float64",
            f"'{key}' has the shape [8, 8], the variable [5, 8]",
        )
    assert set(keys.unmapped) == set(names)
    shutil.rmtree(tmp_path / "m" / "variables")
    model = SavedModel.open(tmp_path / "m")
    doubts = model.weight_keys(model.meta_graph()).unmapped
    assert any("there is no stored tensor 'late/" in text for texts in doubts.values() for text in texts)
    assert any("has no key in the checkpoint" in text for texts in doubts.values() for text in texts)


def test_a_saver_function_that_does_more_is_in_doubt(tmp_path: Path) -> None:
    module(str(tmp_path / "m"))
    model = SavedModel.open(tmp_path / "m")
    (restore,) = (f for f in model.meta_graph().graph_def.library.function if "traced_restore" in f.signature.name)
    for node in restore.node_def:
        if node.op == "Identity":
            node.op = "Neg"
    keys = model.weight_keys(model.meta_graph())
    assert len(keys.unmapped) == 4
    assert all("(Neg), not as stored" in doubts[0] for doubts in keys.unmapped.values())


# Folders that are none


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "m"
    module(str(folder))
    return folder


def test_text(small: Path, tmp_path: Path) -> None:
    model = SavedModel.open(small)
    shutil.copytree(small / "variables", tmp_path / "m" / "variables")
    (tmp_path / "m" / "saved_model.pbtxt").write_text(text_format.MessageToString(model.proto))
    text, keys = keys_of(tmp_path / "m")
    assert text.proto == model.proto and text.file.name == "saved_model.pbtxt"
    assert keys.variables == model.weight_keys(model.meta_graph()).variables


def test_tags(tmp_path: Path) -> None:
    tf1("resource", build_with_two_graphs)(str(tmp_path / "m"))
    model = SavedModel.open(tmp_path / "m")
    assert [graph.tags for graph in model.meta_graphs] == [("train",), ("serve",)] and not model.loads_by_objects
    assert model.meta_graph(["serve"]) is model.meta_graphs[1]
    for graph in model.meta_graphs:
        assert all(known.session == known.objects for known in model.weight_keys(graph).variables.values())
    with pytest.raises(ModelError, match=r"has 2 graphs; expected the tags \['train'\] or \['serve'\]"):
        model.meta_graph()
    with pytest.raises(ModelError, match=r"has no graphs with the tags \['gpu', 'serve'\]"):
        model.meta_graph(["serve", "gpu"])


def serialized(**fields: Any) -> bytes:
    return saved_model_pb2.SavedModel(**fields).SerializeToString()


def graph_def() -> bytes:
    with tf.Graph().as_default() as graph:
        tf.matmul(v1.placeholder(tf.float32, [1, 8], name="x"), tf.constant(normal(8, 8)))
    return graph.as_graph_def().SerializeToString()


NO_MODELS = {
    "empty": (b"", "is empty; expected a SavedModel"),
    "text": (b"this is not a model at all", "is not a SavedModel"),
    "a GraphDef": (graph_def(), "is a GraphDef; expected a SavedModel"),
    "no meta graphs": (serialized(saved_model_schema_version=1), "is not a SavedModel"),
    "empty meta graphs": (serialized(meta_graphs=[{}, {}]), "has no graphs"),
    "a damaged graph": (
        serialized(meta_graphs=[{"graph_def": {"node": [{"name": "a", "op": "Identity", "input": ["b"]}]}}]),
        "saved_model.pb: a: reads 'b', which is not in the graph",
    ),
    "a circle": (
        serialized(meta_graphs=[{"graph_def": {"node": [{"name": "a", "op": "Identity", "input": ["a"]}]}}]),
        "depends on itself",
    ),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_refuses_other_files(tmp_path: Path, name: str) -> None:
    data, message = NO_MODELS[name]
    (tmp_path / "saved_model.pb").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        SavedModel.open(tmp_path)


@pytest.mark.parametrize("text", ["meta_graphs {", "a: 1", "\ufeff", "meta_graphs " + "{ graph_def " * 5000])
def test_refuses_other_texts(tmp_path: Path, text: str) -> None:
    (tmp_path / "saved_model.pbtxt").write_text(text)
    with pytest.raises(ModelError, match=r"saved_model.pbtxt: (is not a SavedModel|is a GraphDef)"):
        SavedModel.open(tmp_path)


def test_refuses_other_places(tmp_path: Path, small: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no such folder"):
        SavedModel.open(tmp_path / "none")
    with pytest.raises(MissingFileError, match=r"there is no saved_model.pb in it"):
        SavedModel.open(tmp_path)
    with pytest.raises(ModelError, match=r"is a file; expected the folder of a SavedModel. Name the folder, "):
        SavedModel.open(small / "saved_model.pb")
    with pytest.raises(ModelError, match="cannot be read"):
        SavedModel.open("a\0b")
    (tmp_path / "saved_model.cpb").touch()
    with pytest.raises(ModelError, match="is split into chunks"):
        SavedModel.open(tmp_path)
    (tmp_path / "saved_model.pb").mkdir()
    with pytest.raises(ModelError, match=r"saved_model.pb: is a folder; expected a SavedModel"):
        SavedModel.open(tmp_path)


def test_variables_without_their_index(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "m")
    (tmp_path / "m" / "variables" / "variables.index").unlink()
    with pytest.raises(MissingFileError, match=r"variables.index: there is no such file"):
        SavedModel.open(tmp_path / "m")


# Hostile graphs


def changed(small: Path, change: Callable[[Any], None]) -> WeightKeys:
    model = SavedModel.open(small)
    change(model.meta_graphs[0].proto)
    return model.weight_keys(model.meta_graphs[0])


def restore_function(meta_graph: Any) -> Any:
    name = (
        next(n for n in meta_graph.graph_def.node if n.name == meta_graph.saver_def.restore_op_name).attr["f"].func.name
    )
    return next(f for f in meta_graph.graph_def.library.function if f.signature.name == name)


def call_itself(meta_graph: Any) -> None:
    function = restore_function(meta_graph)
    call = function.node_def.add(name="again", op="StatefulPartitionedCall")
    call.input.extend(argument.name for argument in function.signature.input_arg)
    call.attr["f"].func.name = function.signature.name


def multiply(meta_graph: Any) -> None:
    """Thirty functions, each of which calls the next one twice."""
    library = meta_graph.graph_def.library.function
    for level in range(30):
        function = library.add()
        function.signature.name = f"level{level}"
        for name in ("first", "second"):
            call = function.node_def.add(name=name, op="StatefulPartitionedCall")
            call.attr["f"].func.name = f"level{level + 1}"
    call = restore_function(meta_graph).node_def.add(name="bomb", op="StatefulPartitionedCall")
    call.attr["f"].func.name = "level0"


def circle_in_function(meta_graph: Any) -> None:
    for node in restore_function(meta_graph).node_def:
        if node.op == "Identity":
            node.input[0] = f"{node.name}:output:0"


def lose_inputs(meta_graph: Any) -> None:
    for node in restore_function(meta_graph).node_def:
        del node.input[:]


def wrong_outputs(meta_graph: Any) -> None:
    for node in restore_function(meta_graph).node_def:
        node.input[:] = [text.replace(":0", ":x") for text in node.input]


def lose_arguments(meta_graph: Any) -> None:
    call = next(n for n in meta_graph.graph_def.node if n.name == meta_graph.saver_def.restore_op_name)
    del call.input[1:]


def unknown_restore_op(meta_graph: Any) -> None:
    meta_graph.saver_def.restore_op_name = "nowhere"


def child_out_of_range(meta_graph: Any) -> None:
    meta_graph.object_graph_def.nodes[0].children[0].node_id = 1 << 30


def negative_child(meta_graph: Any) -> None:
    meta_graph.object_graph_def.nodes[0].children[0].node_id = -1


HOSTILE = {
    call_itself: "functions call each other",
    multiply: "functions call each other",
    circle_in_function: "goes round in a circle",
    lose_inputs: "has 0 inputs; expected 2",
    wrong_outputs: "cannot be read",
    lose_arguments: "passes 1 inputs to '__inference__traced_restore_\\d+'; expected 5",
    unknown_restore_op: "nowhere: is not in the graph",
    child_out_of_range: "is number 1073741824 of",
    negative_child: "is number -1 of",
}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_refuses_hostile_graphs(small: Path, change: Callable[[Any], None]) -> None:
    with pytest.raises(ModelError, match=HOSTILE[change]):
        changed(small, change)


def bound_elsewhere(meta_graph: Any) -> None:
    for function in meta_graph.object_graph_def.concrete_functions.values():
        function.bound_inputs[:] = [0, -5, 99, 0][: len(function.bound_inputs)]


def too_many_bound(meta_graph: Any) -> None:
    for function in meta_graph.object_graph_def.concrete_functions.values():
        function.bound_inputs.extend([0] * 10)


def names_of_another_kind(meta_graph: Any) -> None:
    for node in restore_function(meta_graph).node_def:
        if node.op == "Const":
            node.attr["value"].tensor.dtype = 1


def fewer_names(meta_graph: Any) -> None:
    for node in restore_function(meta_graph).node_def:
        if node.op == "Const":
            del node.attr["value"].tensor.string_val[:]


def another_file(meta_graph: Any) -> None:
    meta_graph.saver_def.filename_tensor_name = "elsewhere:0"


def on_a_condition(meta_graph: Any) -> None:
    call = next(n for n in meta_graph.graph_def.node if n.name == meta_graph.saver_def.restore_op_name)
    call.op = "If"
    call.input.insert(0, "Const")
    for branch in ("then_branch", "else_branch"):
        call.attr[branch].func.name = call.attr["f"].func.name


def two_ways_to_one_object(meta_graph: Any) -> None:
    root = meta_graph.object_graph_def.nodes[0]
    numbers = {child.local_name: child.node_id for child in root.children}
    for child in root.children:
        if child.local_name == "late":
            child.node_id = numbers["early"]


def restored_by_a_function(meta_graph: Any) -> None:
    for node in meta_graph.object_graph_def.nodes:
        node.registered_saver = "mine"


DOUBTFUL = {
    bound_elsewhere: "which tf.saved_model.load serves in its place, is no variable",
    too_many_bound: "does not fit its function",
    names_of_another_kind: "not as stored",
    fewer_names: "not as stored",
    another_file: "not as stored",
    on_a_condition: "in a branch or loop, not as stored",
    two_ways_to_one_object: "has no key in the checkpoint",
    restored_by_a_function: "is restored by a function of its own",
}


@pytest.mark.parametrize("change", DOUBTFUL, ids=lambda change: change.__name__)
def test_says_what_is_not_proven(small: Path, change: Callable[[Any], None]) -> None:
    keys = changed(small, change)
    assert any(DOUBTFUL[change] in doubt for doubts in keys.unmapped.values() for doubt in doubts)


# Fuzzing


@pytest.fixture(scope="module")
def room(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes]]:
    folder = tmp_path_factory.mktemp("room") / "m"
    shutil.copytree(small, folder)
    yield folder, (small / "saved_model.pb").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5), st.booleans()
)
@example([(0.0, 0)], False)
def test_damaged_graphs_are_refused_or_read(room: tuple[Path, bytes], places: Any, cut: bool) -> None:
    folder, data = room
    out = bytearray(data)
    for place, byte in places:
        out[int(place * len(out))] = byte
    if cut:
        del out[int(places[0][0] * len(out)) :]
    (folder / "saved_model.pb").write_bytes(out)
    try:
        model = SavedModel.open(folder)
        for graph in model.meta_graphs:
            keys = model.weight_keys(graph)
            assert set(keys.unmapped) <= set(keys.variables)
    except (ModelError, MissingFileError):
        pass


def test_the_input_is_only_read(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    model = SavedModel.open(small)
    model.weight_keys(model.meta_graph())
    assert before == {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert isinstance(model.bundle, Bundle) and os.fspath(model.folder) == str(small)
