"""What reviewers of the whole found, each as a user would meet it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import sparsekit
import sparsekit.compat.amct_tensorflow as amct

v1 = tf.compat.v1


def weight(name: str, shape: list[int]) -> tf.Tensor:
    return v1.get_variable(name, shape, initializer=v1.random_normal_initializer(seed=1))


@pytest.mark.parametrize("outputs", [None, ["fc"]])
def test_what_an_input_pipeline_computes_is_no_layer(outputs):
    """A dataset's map has functions of its elements, which are no inputs of the op; their constants are not ours."""
    matrix, added = np.eye(8, dtype="f"), np.full((8, 8), 7, "f")
    with tf.Graph().as_default() as graph:
        data = tf.data.Dataset.from_tensors((np.full((8, 8), 8, "f"), 1))
        data = data.map(lambda x, label: (tf.matmul(x, tf.constant(matrix)) + tf.constant(added), label))
        x, _ = v1.data.make_one_shot_iterator(data).get_next()
        tf.matmul(x, weight("w", [8, 4]), name="fc")
        plan = sparsekit.prune(graph, outputs=outputs).plan
        assert [d.name for d in plan.decisions] == ["fc"]
        with v1.Session() as session:
            expected = np.full((8, 8), 8, "f") @ matrix + added
            np.testing.assert_array_equal(session.run(x), expected)


def test_a_graph_frozen_after_its_gradients_were_built_is_verified_and_saved(tmp_path, monkeypatch):
    """The loop then keeps what its gradient needs, under names that say "gradients"; it is forward all the same."""
    monkeypatch.chdir(tmp_path)
    Path("cfg").write_text("prune_config { n_out_of_m_pruner { l1_selective_prune { } } }")
    v1.enable_control_flow_v2()
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        w = tf.identity(weight("w", [8, 8]))
        y = tf.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, tf.tanh(tf.matmul(s, w, name="rec"))), [0, x])[1]
        tf.matmul(y, weight("head", [8, 4]), name="out")
        amct.create_prune_retrain_model(graph, ["out"], "record", "cfg")
        loss = tf.reduce_mean(graph.get_tensor_by_name("out:0"))
        train_op = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(train_op, {x: np.ones((2, 8), "f")})
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["out"])
    sparsekit.save(frozen, "masked.pb")
    amct.save_prune_retrain_model("masked.pb", ["out"], "record", "model")
    for arguments in ({}, {"record": "record"}, {"outputs": ["out"]}):
        verification = sparsekit.verify("model_pruned.pb", **arguments)
        assert verification.ok and len(verification.layers) == 2, arguments


@pytest.mark.parametrize("outputs", [None, ["out"]])
def test_a_scope_that_is_called_something_grad_is_no_gradient(outputs):
    with tf.Graph().as_default() as graph:
        edge = tf.matmul(v1.placeholder(tf.float32, [None, 8], name="image"), weight("a", [8, 8]), name="edge")
        with v1.variable_scope("edge_grad"):
            y = tf.matmul(edge, weight("b", [8, 8]), name="fc")
        with v1.variable_scope("image_grad"):
            tf.identity(tf.matmul(y, weight("c", [8, 8]), name="fc"), name="deep")
        tf.identity(graph.get_tensor_by_name("image_grad/deep:0"), name="out")
        plan = sparsekit.prune(graph, outputs=outputs).plan
    assert [d.name for d in plan.pruned] == ["edge", "edge_grad/fc", "image_grad/fc"]


@pytest.mark.parametrize("cfg", [{"skip_layers": ["a*"]}, {"skip_types": ["MatMul"]}, {"prune": False}])
def test_pruned_twice_is_refused_whatever_the_second_config_leaves_out(tmp_path, cfg):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        x = tf.matmul(x, weight("wa", [8, 8]), name="a1")
        tf.matmul(x, weight("wb", [8, 8]), name="b1")
        sparsekit.prune(graph, {"skip_layers": ["b*"]}, record=tmp_path / "record")
        before = (tmp_path / "record").read_text(), graph.as_graph_def()
        with pytest.raises(sparsekit.GraphError, match="was pruned before: 'a1' already have masks"):
            sparsekit.prune(graph, cfg, record=tmp_path / "record")
        assert ((tmp_path / "record").read_text(), graph.as_graph_def()) == before


@pytest.mark.parametrize("resource", [False, True])
def test_a_fed_coefficient_makes_no_other_use_of_a_weight(resource):
    with tf.Graph().as_default() as graph, v1.variable_scope("", use_resource=resource):
        w = v1.get_variable("w", [8, 8])
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), w, name="fc")
        rate = v1.placeholder(tf.float32, [])
        w.assign_sub(rate * w)
        tf.reduce_sum(rate * tf.square(w), name="penalty")
        (decision,) = sparsekit.plan(graph).decisions
        assert decision.pruned, decision.message
        tf.matmul(v1.placeholder(tf.float32, [8, 8]), tf.square(w))
        reasons = {d.reason for d in sparsekit.plan(graph).decisions}
    assert "shared-with-other-op" in reasons


def test_an_op_of_the_users_under_a_name_like_ours_survives():
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8])
        x = tf.nn.relu(x, name="m/sparsekit/masked_input")
        tf.matmul(x, weight("w", [8, 4]), name="fc")
        sparsekit.prune(graph, outputs=["fc"])
        session.run(v1.global_variables_initializer())
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["fc"])
    pruned = sparsekit.strip(frozen)
    assert sparsekit.verify(pruned).ok
    assert "m/sparsekit/masked_input" in {node.name for node in pruned.node}


def test_names_kept_for_masks_are_refused_before_training():
    with tf.Graph().as_default() as graph:
        x = tf.nn.relu(v1.placeholder(tf.float32, [None, 8]), name="fc/sparsekit/masked")
        tf.matmul(x, weight("w", [8, 4]), name="fc")
        with pytest.raises(sparsekit.GraphError, match="already holds operations under 'fc/sparsekit/'"):
            sparsekit.prune(graph)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('prune_config { n_out_of_m_pruner { } }\nskip_layers: "fcc"', "2: skip_layers"),
        (
            '\n\nprune_config { n_out_of_m_pruner { } }\nregular_prune_skip_types: "MatMull"',
            "4: regular_prune_skip_types",
        ),
        (
            "override_layer_configs {\n  layer_name: 'fcc'\n  prune_config { n_out_of_m_pruner { } }\n}",
            "2: override_layer_configs.layer_name",
        ),
    ],
)
def test_an_unknown_name_in_an_amct_config_is_found_by_file_and_line(tmp_path, text, where):
    (tmp_path / "cfg").write_text(text)
    with tf.Graph().as_default() as graph:
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), weight("w", [8, 4]), name="fc")
        with pytest.raises(sparsekit.ConfigError, match=re.escape(f"{tmp_path / 'cfg'}:{where}: ")):
            sparsekit.plan(graph, tmp_path / "cfg")


def test_the_body_of_a_compiled_function_is_refused():
    variable = tf.Variable(tf.ones([8, 4]))
    function = tf.function(lambda x: tf.matmul(x, variable)).get_concrete_function(tf.TensorSpec([None, 8]))
    with pytest.raises(sparsekit.GraphError, match=r"is the body of the function .* Save the model"):
        sparsekit.prune(function.graph)
