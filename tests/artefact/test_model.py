"""Pruning models at rest, in one shot: only the pruned weights change, and every loader sees them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import networks
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from models_at_rest import (
    EXPORTS,
    files,
    frozen,
    in_functions,
    keras_export,
    module_export,
    run,
    served_by_a_session,
    served_by_objects,
)

import sparsekit
from sparsekit.pattern import Pattern, keep_mask

v1 = tf.compat.v1


AXES = {"conv": 2, "deconv": 3, "dense": 0, "head": 0}


def test_a_graph_def_changes_in_its_pruned_weights_alone():
    graph_def = frozen()
    before = graph_def.SerializeToString(deterministic=True)
    result = sparsekit.prune(graph_def)
    assert graph_def.SerializeToString(deterministic=True) == before
    assert {d.name: d.axis for d in result.plan.pruned} == AXES
    weights = {d.weight: d for d in result.plan.pruned}
    for old, new in zip(graph_def.node, result.graph_def.node, strict=True):
        if old.name not in weights:
            assert old == new
            continue
        value, pruned = (tf.make_ndarray(node.attr["value"].tensor) for node in (old, new))
        mask = keep_mask(value, weights[old.name].axis)
        np.testing.assert_array_equal(pruned, np.where(mask, value, 0))
        assert not np.signbit(pruned[~mask]).any()
    assert result.graph_def.versions == graph_def.versions
    assert sparsekit.verify(result.graph_def).ok
    assert sparsekit.verify(graph_def).status == "not sparse"


def test_the_outputs_are_those_of_the_same_graph_with_masked_weights():
    graph_def = frozen()
    masked = type(graph_def)()
    masked.CopyFrom(graph_def)
    for decision in sparsekit.plan(graph_def).pruned:
        node = next(node for node in masked.node if node.name == decision.weight)
        value = tf.make_ndarray(node.attr["value"].tensor)
        masked_value = value * keep_mask(value, decision.axis).astype("f")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(masked_value))
    x = np.random.RandomState(1).randn(2, 4, 4, 4).astype("f")
    np.testing.assert_array_equal(run(sparsekit.prune(graph_def).graph_def, x), run(masked, x))


@pytest.mark.parametrize("suffix", [".pb", ".pbtxt"])
def test_a_file_comes_out_in_the_kind_it_went_in(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    sparsekit.save(frozen(), path)
    before = path.read_bytes()
    assert (text_format.MessageToString(frozen()).encode() == before) == (suffix == ".pbtxt")
    sparsekit.prune(path, record=tmp_path / "record").save(tmp_path / "new" / path.name)
    assert path.read_bytes() == before
    assert sparsekit.verify(tmp_path / "new" / path.name, record=tmp_path / "record").ok
    sparsekit.prune(path).save(path)  # OUT is IN
    assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()


def test_a_live_graph_has_nothing_to_save():
    with tf.Graph().as_default() as graph:
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), v1.get_variable("w", [8, 8]))
        result = sparsekit.prune(graph)
    for action in (lambda: result.graph_def, lambda: result.save("x.pb")):
        with pytest.raises(sparsekit.GraphError, match="Train the graph, freeze it"):
            action()


def test_weights_that_are_not_finite_are_refused_by_name():
    graph_def = frozen()
    node = next(node for node in graph_def.node if node.name == sparsekit.plan(graph_def).pruned[0].weight)
    value = tf.make_ndarray(node.attr["value"].tensor)
    value[0, 0, 0, 0] = np.nan
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    with pytest.raises(sparsekit.ModelError, match=r"conv: 1 of 288 values of its weight .* are NaN"):
        sparsekit.prune(graph_def)


# Functions


def test_weights_in_functions_are_found_by_call_site_and_pruned():
    graph_def = in_functions()
    result = sparsekit.prune(graph_def)
    uses = sorted([use.rpartition("/")[2] for use in d.uses] for d in result.plan.pruned)
    assert uses == [["given"], ["given"], ["own", "own"], ["turn"]]
    assert sparsekit.verify(result.graph_def).ok
    assert [f.signature for f in result.graph_def.library.function] == [f.signature for f in graph_def.library.function]
    x = np.random.RandomState(1).randn(2, 8).astype("f")
    assert not np.array_equal(run(result.graph_def, x), run(graph_def, x))


def test_einsum_conv3d_depthwise_and_fused_ops_are_known():
    random = np.random.RandomState(0)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 4, 6, 6, 8], name="x")
        y = tf.nn.conv3d(x, random.randn(1, 3, 3, 8, 4).astype("f"), [1] * 5, "SAME", name="conv3d")
        y = tf.nn.depthwise_conv2d(y[:, 0], random.randn(3, 3, 4, 2).astype("f"), [1] * 4, "SAME", name="depthwise")
        y = tf.raw_ops.Einsum(inputs=[y, random.randn(8, 3, 5).astype("f")], equation="bhwc,cnd->bhwnd", name="second")
        y = tf.raw_ops.Einsum(inputs=[random.randn(7, 5).astype("f"), y], equation="ed,bhwnd->bhwne", name="first")
        tf.raw_ops.Einsum(inputs=[y, random.randn(3, 7).astype("f")], equation="bhwne,ne->bhw", name="two")
    plan = {d.op_type if "fused" in d.name else d.name: d for d in sparsekit.plan(graph.as_graph_def()).decisions}
    assert {name: (d.reason, d.axis) for name, d in plan.items()} == {
        "conv3d": ("eligible", 3),
        "depthwise": ("no-input-channels", 2),
        "second": ("eligible", 0),
        "first": ("eligible", 1),
        "two": ("layout-splits-groups", plan["two"].axis),
    }


# SavedModels


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_saved_model_serves_the_pruned_weights_through_both_loaders(tmp_path, kind):
    export, layers = EXPORTS[kind]
    source, target = tmp_path / "dense", tmp_path / "out" / "pruned"
    export(source)
    before = files(source)
    assert sparsekit.verify(source).status == "not sparse"
    result = sparsekit.prune(source, record=tmp_path / "record")
    assert len(result.plan.pruned) == len(result.plan.decisions) == layers
    result.save(target)
    assert files(source) == before
    after = files(target)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"variables/variables.index", "variables/variables.data-00000-of-00001"}
    assert set(before) - set(after) <= {"fingerprint.pb"}
    assert {name: len(after[name]) for name in changed} == {name: len(before[name]) for name in changed}
    verification = sparsekit.verify(target, record=tmp_path / "record")
    assert verification.ok and len(verification.layers) == layers
    x = np.random.RandomState(0).randn(2, 8, 8, 3).astype("f")
    by_session = served_by_a_session(target, x)
    np.testing.assert_allclose(served_by_objects(target, x), by_session, atol=1e-6)
    assert np.abs(by_session - served_by_a_session(source, x)).max() > 1e-3


def test_a_copy_that_one_loader_alone_would_serve_is_looked_at(tmp_path):
    from sparsekit.artefact.bundle import Bundle, patch

    keras_export(tmp_path / "m")
    sparsekit.prune(tmp_path / "m").save(tmp_path / "m")
    bundle = Bundle.open(tmp_path / "m" / "variables" / "variables")
    key = next(key for key, entry in bundle.entries.items() if entry.shape == (12, 5))
    patch(bundle.prefix, [(key, np.ones((12, 5), "f"))])
    verification = sparsekit.verify(tmp_path / "m")
    (bad,) = [layer for layer in verification.layers if not layer.ok]
    assert (bad.shape, bad.violations) == ((12, 5), 15)
    assert key in bad.message


def test_saving_over_the_input_replaces_it_in_one_step(tmp_path):
    module_export(tmp_path / "m")
    sparsekit.prune(tmp_path / "m").save(tmp_path / "m")
    assert sparsekit.verify(tmp_path / "m").ok
    assert os.listdir(tmp_path) == ["m"]


def test_a_folder_that_is_no_saved_model_is_never_replaced(tmp_path):
    module_export(tmp_path / "m")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(sparsekit.SaveError, match="notes: is a folder that holds something else"):
        sparsekit.prune(tmp_path / "m").save(tmp_path / "notes")
    assert files(tmp_path / "notes") == {"thesis.txt": b"years of work"}
    (tmp_path / "empty").mkdir()
    sparsekit.prune(tmp_path / "m").save(tmp_path / "empty")
    assert sparsekit.verify(tmp_path / "empty").ok


def test_a_saved_model_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    import sparsekit.artefact.model

    module_export(tmp_path / "m")
    before = files(tmp_path / "m")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sparsekit.artefact.model, "patch", fail)
    for path in ("m", "new"):
        with pytest.raises(sparsekit.SaveError, match="No space left on device"):
            sparsekit.prune(tmp_path / "m").save(tmp_path / path)
    assert os.listdir(tmp_path) == ["m"] and files(tmp_path / "m") == before


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_one_whole_model(tmp_path):
    """Two models are written over each other until the kill."""
    module_export(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "source")
    whole = [files(tmp_path / "m")]
    for pattern in ("2:4", "1:4"):
        sparsekit.prune(tmp_path / "source", {"pattern": pattern}).save(tmp_path / "new")
        whole.append(files(tmp_path / "new"))
        shutil.rmtree(tmp_path / "new")
    script = """
import itertools, os, signal, sys, time
import sparsekit
results = [sparsekit.prune("source", {"pattern": pattern}) for pattern in ("2:4", "1:4")]
for delay in map(float, sys.argv[1:]):
    child = os.fork()
    if not child:
        try:
            for result in itertools.cycle(results):
                result.save("m")
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
    input()
"""
    delays = [f"{delay:.3f}" for delay in np.linspace(0, 0.1, 12)]
    command, pipe = [sys.executable, "-c", script, *delays], subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in delays:
            assert process.stdout.readline() == b"9\n"
            assert files(tmp_path / "m") in whole
            process.stdin.write(b"\n")
            process.stdin.flush()
    assert process.returncode == 0


@pytest.mark.slow
def test_a_frozen_resnet50_is_pruned_and_saved(tmp_path):
    with tf.Graph().as_default() as graph, v1.Session() as session:
        networks.resnet50(v1.placeholder(tf.float32, [1, 32, 32, 3], name="x"), classes=10, training=False)
        session.run(v1.global_variables_initializer())
        model = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
    result = sparsekit.prune(model, {"pattern": "1:4", "skip_layers": ["head/*"]})
    result.save(tmp_path / "pruned.pb")
    verification = sparsekit.verify(tmp_path / "pruned.pb", cfg={"pattern": "1:4", "skip_layers": ["head/*"]})
    assert verification.ok and len(verification.layers) == 53
    assert verification.layers[5].pattern == Pattern(1, 4)
