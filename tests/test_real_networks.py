"""The whole flow on networks of real size and shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import networks
import numpy as np
import pytest
import tensorflow as tf

import sparsekit

tf1 = tf.compat.v1
EXAMPLES = Path(__file__).parents[1] / "examples"


def test_resnet50_has_54_layers_and_all_are_pruned():
    with tf.Graph().as_default() as graph:
        networks.resnet50(tf1.placeholder(tf.float32, [None, 64, 64, 3]))
        plan = sparsekit.plan(graph)
        assert sparsekit.plan(graph, outputs=["logits"]) == plan
    assert len(plan.decisions) == len(plan.pruned) == 54
    stem, head = plan.decisions[0], plan.decisions[-1]
    assert (stem.shape, stem.axis, stem.op_type) == ((7, 7, 3, 64), 2, "Conv2D")
    assert (head.shape, head.axis, head.op_type) == ((2048, 1000), 0, "MatMul")
    assert "the last 3 of 3 input channels keep 2" in stem.message


@pytest.mark.slow
def test_resnet50_trains_freezes_strips_and_computes_the_same(tmp_path):
    images = np.random.RandomState(0).rand(2, 32, 32, 3).astype(np.float32)

    def build(training):
        graph = tf.Graph()
        with graph.as_default():
            tf1.set_random_seed(0)
            x = tf1.placeholder(tf.float32, [None, 32, 32, 3], name="x")
            logits = networks.resnet50(x, classes=10, training=training)
            sparsekit.prune(graph, outputs=["logits"], record=tmp_path / "record.txt")
        return graph, x, logits

    graph, x, logits = build(training=True)
    with graph.as_default():
        loss = tf.reduce_mean(tf.square(logits))
        train_op = tf1.train.RMSPropOptimizer(1e-4, momentum=0.9).minimize(loss)
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            for _ in range(2):
                session.run(train_op, {x: images})
            tf1.train.Saver().save(session, str(tmp_path / "model"))
    graph, x, logits = build(training=False)
    with graph.as_default(), tf1.Session() as session:
        tf1.train.Saver().restore(session, str(tmp_path / "model"))
        masked = tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
    pruned = sparsekit.strip(masked, record=tmp_path / "record.txt")
    verification = sparsekit.verify(pruned, record=tmp_path / "record.txt")
    assert verification.ok
    assert len(verification.layers) == 54
    stem, *rest = verification.layers
    assert stem.density == pytest.approx(2 / 3)
    assert all(layer.density == 0.5 for layer in rest)
    np.testing.assert_array_equal(run(pruned, images), run(masked, images))


def run(graph_def, images):
    with tf.Graph().as_default(), tf1.Session() as session:
        (logits,) = tf.import_graph_def(graph_def, return_elements=["logits:0"])
        return session.run(logits, {"import/x:0": images})


@pytest.mark.slow
def test_the_amct_flow_example_ends_with_a_sparse_model_that_is_as_good_as_dense(tmp_path):
    script = EXAMPLES / "amct_flow" / "amct_flow.py"
    done = subprocess.run([sys.executable, script, "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dense, retrained = (
        float(line.split("accuracy ")[1][:6]) for line in done.stdout.splitlines() if "accuracy" in line
    )
    assert dense > 0.9
    assert retrained > dense - 0.02
    verification = sparsekit.verify(tmp_path / "out" / "user_model_pruned.pb", record=tmp_path / "out" / "record.txt")
    assert verification.ok
    assert {layer.op_type for layer in verification.layers} == {"Conv2D", "Conv2DBackpropInput", "MatMul"}
    assert "Sparse: all 5 layers" in (tmp_path / "amct_log" / "amct_tensorflow.log").read_text()


@pytest.mark.slow
def test_the_demo_prints_its_table_the_plan_and_the_verification(tmp_path):
    command = [Path(sys.executable).with_name("sparsekit"), "demo", "--seeds", "1", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for row in ("control", "one-shot", "retrained", "random", "inverted", "eligible", "Sparse: all 5 layers"):
        assert row in done.stdout
    assert (tmp_path / "out" / "user_model_pruned.pb").is_file()
