"""Masks over the life of a training run: checkpoints, exported graphs, other processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import (
    LAYERS,
    VARIABLE_KINDS,
    Model,
    bits,
    conv_net,
    counts,
    images,
    masks,
    rmsprop,
    run_script,
    session,
    settings_of,
    sgd,
    values,
)

import sparsekit
from sparsekit.pattern import keep_mask

v1 = tf.compat.v1
OPTIMIZERS = {"momentum": sgd, "rmsprop": rmsprop}


def training_graph(frequency: int, optimizer: str) -> tuple[Any, Model, Any]:
    """A pruned network with its train op: (graph, model, train op)."""
    graph = tf.Graph()
    with graph.as_default():
        model = conv_net()
        sparsekit.prune(graph, {"update_freq": frequency}, outputs=["y"])
        step = OPTIMIZERS[optimizer](model.loss())
    return graph, model, step


def all_variables(sess: Any) -> dict[str, bytes]:
    with sess.graph.as_default():
        found = v1.global_variables()
    return {v.op.name: bits(value) for v, value in zip(found, sess.run(found), strict=True)}


def train(sess: Any, model: Model, step: Any, batches: range) -> None:
    for batch in batches:
        sess.run(step, {model.x: images(batch)})


# --- checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frequency", [0, 2])
@pytest.mark.parametrize("stopped_after", [3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, frequency: int, optimizer: str, stopped_after: int, tmp_path: Path
) -> None:
    graph, model, step = training_graph(frequency, optimizer)
    with session(graph) as sess, graph.as_default():
        train(sess, model, step, range(stopped_after))
        v1.train.Saver().save(sess, str(tmp_path / "stopped"))
        train(sess, model, step, range(stopped_after, 8))
        uninterrupted = all_variables(sess)
    graph, model, step = training_graph(frequency, optimizer)
    with v1.Session(graph=graph) as sess, graph.as_default():
        v1.train.Saver().restore(sess, str(tmp_path / "stopped"))
        assert counts(sess, LAYERS) == [stopped_after] * 4
        train(sess, model, step, range(stopped_after, 8))
        assert all_variables(sess) == uninterrupted


RESUME = """
    import sys
    from pathlib import Path
    from small_graphs import settings_of, v1
    from test_state import all_variables, train, training_graph

    for kind in ("ref", "resource"):
        with settings_of(kind, "v1"):
            graph, model, step = training_graph(2, "rmsprop")
            with v1.Session(graph=graph) as sess, graph.as_default():
                saver = v1.train.Saver()
                saver.restore(sess, f"{sys.argv[1]}/{kind}-stopped")
                train(sess, model, step, range(3, 6))
                saver.save(sess, f"{sys.argv[1]}/{kind}-resumed")
"""


@pytest.mark.slow
def test_a_run_can_be_resumed_in_another_process(tmp_path: Path) -> None:
    expected = {}
    for kind in VARIABLE_KINDS:
        with settings_of(kind, "v1"):
            graph, model, step = training_graph(2, "rmsprop")
            with session(graph) as sess, graph.as_default():
                train(sess, model, step, range(3))
                v1.train.Saver().save(sess, str(tmp_path / f"{kind}-stopped"))
                train(sess, model, step, range(3, 6))
                expected[kind] = all_variables(sess)
    run_script(RESUME, tmp_path)
    for kind in VARIABLE_KINDS:
        reader = v1.train.load_checkpoint(str(tmp_path / f"{kind}-resumed"))
        found = {name: bits(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}
        assert found == expected[kind]


@pytest.mark.parametrize("frequency", [0, 2])
@pytest.mark.parametrize("imported", [False, True])
def test_a_dense_checkpoint_restores_and_the_first_batch_chooses_from_it(
    kind: str, frequency: int, imported: bool, tmp_path: Path
) -> None:
    with tf.Graph().as_default() as graph:
        model = conv_net()
        with session(graph) as sess:
            for number, weight in enumerate(model.weights.values()):
                weight.load(values(weight.shape, 50 + number), sess)
            restored = sess.run(model.weights)
            v1.train.Saver().save(sess, str(tmp_path / "dense"))
    with tf.Graph().as_default() as graph:
        if imported:
            saver = v1.train.import_meta_graph(str(tmp_path / "dense.meta"))
            x, y = (graph.get_tensor_by_name(name) for name in ("x:0", "y:0"))
            weights = {layer: _variable(restored_name) for layer, restored_name in _names(model).items()}
            model = Model(x, y, weights, model.axes)
        else:
            model = conv_net()
            saver = v1.train.Saver()  # before the masks: it knows nothing of them
        sparsekit.prune(graph, {"update_freq": frequency}, outputs=["y"])
        step = sgd(model.loss())
        with session(graph) as sess:  # initialized first, restored then: the usual order
            initial = sess.run(model.weights)
            saver.restore(sess, str(tmp_path / "dense"))
            sess.run(step, {model.x: images()})
            stored = masks(sess, LAYERS)
    for layer in LAYERS:
        axis = model.axes[layer]
        assert np.array_equal(stored[layer], keep_mask(restored[layer], axis))
        assert imported or not np.array_equal(stored[layer], keep_mask(initial[layer], axis))


def _names(model: Model) -> dict[str, str]:
    return {layer: weight.op.name for layer, weight in model.weights.items()}


def _variable(name: str) -> Any:
    (found,) = (v for v in v1.global_variables() if v.op.name == name)
    return found


def test_a_saver_from_before_saves_no_masks_and_one_from_after_cannot_restore_without(
    kind: str, tmp_path: Path
) -> None:
    with tf.Graph().as_default() as graph:
        conv_net()
        before = v1.train.Saver()
        sparsekit.prune(graph, outputs=["y"])
        after = v1.train.Saver()
        with session(graph) as sess:
            before.save(sess, str(tmp_path / "dense"))
            after.save(sess, str(tmp_path / "masked"))
            names = [
                set(v1.train.load_checkpoint(str(tmp_path / n)).get_variable_to_shape_map())
                for n in ("dense", "masked")
            ]
            assert names[1] - names[0] == {
                f"{layer}/sparsekit/{name}" for layer in LAYERS for name in ("mask", "batch")
            }
            before.restore(sess, str(tmp_path / "masked"))
            with pytest.raises(tf.errors.NotFoundError):
                after.restore(sess, str(tmp_path / "dense"))


def test_a_training_checkpoint_restores_into_the_inference_graph(kind: str, tmp_path: Path) -> None:
    graph, model, step = training_graph(0, "rmsprop")
    with session(graph) as sess, graph.as_default():
        train(sess, model, step, range(3))
        trained, stored = sess.run(model.weights), masks(sess, LAYERS)
        v1.train.Saver().save(sess, str(tmp_path / "trained"))
    with tf.Graph().as_default() as graph:
        model = conv_net()
        sparsekit.prune(graph, outputs=["y"])
        with v1.Session() as sess:
            v1.train.Saver(v1.global_variables()).restore(sess, str(tmp_path / "trained"))
            assert {k: bits(v) for k, v in sess.run(model.weights).items()} == {k: bits(v) for k, v in trained.items()}
            assert {k: bits(v) for k, v in masks(sess, LAYERS).items()} == {k: bits(v) for k, v in stored.items()}
            assert counts(sess, LAYERS) == [3] * 4


# --- exported graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [None, "there", "far/away"])
def test_an_imported_graph_trains_like_the_one_it_came_from(kind: str, scope: str | None, tmp_path: Path) -> None:
    graph, model, step = training_graph(2, "momentum")
    with session(graph) as sess:
        train(sess, model, step, range(3))
        expected = all_variables(sess)
    with tf.Graph().as_default() as graph:
        conv_net()
        sparsekit.prune(graph, {"update_freq": 2}, outputs=["y"])
        v1.train.export_meta_graph(str(tmp_path / "pruned.meta"))
    prefix = f"{scope}/" if scope else ""
    with tf.Graph().as_default() as graph:
        v1.train.import_meta_graph(str(tmp_path / "pruned.meta"), import_scope=scope)
        x, y = (graph.get_tensor_by_name(f"{prefix}{name}:0") for name in ("x", "y"))
        model = Model(x, y, {}, {})
        step = sgd(model.loss())
        with session(graph) as sess:
            train(sess, model, step, range(3))
            found = {name.removeprefix(prefix): value for name, value in all_variables(sess).items()}
            assert counts(sess, [prefix + layer for layer in LAYERS]) == [3] * 4
    assert {name: value for name, value in found.items() if "Momentum" not in name} == {
        name: value for name, value in expected.items() if "Momentum" not in name
    }


TRAIN_IMPORTED = """
    import sys
    ORDER = sys.argv[2]
    if ORDER == "sparsekit first":
        import sparsekit
        assert "tensorflow" not in sys.modules
        import tensorflow as tf
    elif ORDER == "tensorflow first":
        import tensorflow as tf
        import sparsekit
    else:  # somebody asks whether there is a TensorFlow before it is imported
        import sparsekit
        import importlib.util
        assert importlib.util.find_spec("tensorflow") is not None
        assert "tensorflow" not in sys.modules
        import tensorflow as tf
    assert not [finder for finder in sys.meta_path if "TensorFlow" in type(finder).__name__]
    from small_graphs import LAYERS, counts, images, masks, session, sgd, v1

    for name in ("ref", "resource"):
        for scope in (None, "there"):
            prefix = f"{scope}/" if scope else ""
            with tf.Graph().as_default() as graph:
                v1.train.import_meta_graph(f"{sys.argv[1]}/{name}.meta", import_scope=scope)
                x, y = (graph.get_tensor_by_name(f"{prefix}{tensor}:0") for tensor in ("x", "y"))
                step = sgd(tf.reduce_mean(tf.square(y - 1.0)))
                layers = [prefix + layer for layer in LAYERS]
                with session(graph) as sess:
                    for batch in range(2):
                        sess.run(step, {x: images(batch)})
                    assert counts(sess, layers) == [2] * 4, counts(sess, layers)
                    assert all(0 < mask.mean() < 1 for mask in masks(sess, layers).values())
    assert "sparsekit.live.mask" not in sys.modules
    print("trained")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned graph of each kind as a MetaGraph, and the same with a train op."""
    folder = tmp_path_factory.mktemp("exported")
    for kind in VARIABLE_KINDS:
        with settings_of(kind, "v1"), tf.Graph().as_default() as graph:
            model = conv_net()
            sparsekit.prune(graph, outputs=["y"])
            v1.train.export_meta_graph(str(folder / f"{kind}.meta"))
            v1.add_to_collection("train_op", sgd(model.loss()))
            with session(graph) as sess:
                v1.train.Saver().save(sess, str(folder / f"{kind}-trained"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("order", ["sparsekit first", "tensorflow first", "sparsekit first, then a question"])
def test_gradients_can_be_built_in_another_process(exported: Path, order: str) -> None:
    assert "trained" in run_script(TRAIN_IMPORTED, exported, order)


WITHOUT_SPARSEKIT = """
    import sys
    sys.modules["sparsekit"] = None
    from small_graphs import counts, images, masks, tf, v1

    layers = ["net/conv", "net/up", "net/fc", "net/back"]
    for name in ("ref", "resource"):
        with tf.Graph().as_default() as graph, v1.Session() as sess:
            saver = v1.train.import_meta_graph(f"{sys.argv[1]}/{name}-trained.meta")
            saver.restore(sess, f"{sys.argv[1]}/{name}-trained")
            assert sess.run("y:0", {"x:0": images()}).shape == (3, 9)
            assert counts(sess, layers) == [0] * 4
            sess.run(v1.get_collection("train_op"), {"x:0": images()})
            assert counts(sess, layers) == [1] * 4
            assert all(0 < mask.mean() < 1 for mask in masks(sess, layers).values())
    print("ran")
"""


@pytest.mark.slow
def test_a_saved_training_graph_runs_where_there_is_no_sparsekit(exported: Path) -> None:
    assert "ran" in run_script(WITHOUT_SPARSEKIT, exported)


def test_the_stored_masks_are_said_to_win_where_new_ones_were_due(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The count that a checkpoint restores decides, not how often the inference graph ran."""
    graph, model, step = training_graph(3, "momentum")
    with session(graph) as sess, graph.as_default():
        train(sess, model, step, range(3))
        v1.train.Saver().save(sess, str(tmp_path / "trained"))
    with tf.Graph().as_default() as graph, v1.Session() as sess:
        model = conv_net()
        sparsekit.prune(graph, {"update_freq": 3}, outputs=["y"])
        v1.train.Saver().restore(sess, str(tmp_path / "trained"))
        for _ in range(2):
            sess.run(model.y, {model.x: images()})
        frozen = v1.graph_util.convert_variables_to_constants(sess, graph.as_graph_def(), ["y"])
    with caplog.at_level(logging.WARNING, logger="sparsekit"):
        sparsekit.strip(frozen)
    assert "4 of 4 layers were due for a new mask" in caplog.text
