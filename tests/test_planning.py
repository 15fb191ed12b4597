"""What a config leaves dense, wherever the layers lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import settings_of

import sparsekit

v1 = tf.compat.v1


def weight(*shape: int) -> np.ndarray:
    return np.random.RandomState(sum(shape)).randn(*shape).astype("f")


def reasons(graph: tf.Graph, cfg: dict[str, Any], outputs: list[str] | None = None) -> dict[str, str]:
    plan = sparsekit.plan(graph.as_graph_def() if outputs is None else graph, cfg, outputs=outputs)
    return {d.name.rpartition("/")[2]: d.reason for d in plan.decisions}


def two_headed() -> tf.Graph:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        x = tf.nn.relu(tf.matmul(x, weight(8, 16), name="body"))
        tf.nn.softmax(tf.matmul(x, weight(16, 5), name="head1"), name="out1")
        tf.identity(tf.matmul(tf.matmul(x, weight(16, 6), name="middle"), weight(6, 4), name="head2"), name="out2")
    return graph


@pytest.mark.parametrize("outputs", [None, ["out1", "out2"]])
def test_skip_outputs_leaves_the_last_layers_dense(outputs):
    found = reasons(two_headed(), {"skip_outputs": True}, outputs)
    heads, others = {"head1", "head2"}, {"body", "middle"}
    assert found == dict.fromkeys(heads, "output-layer") | dict.fromkeys(others, "eligible")


def test_skip_outputs_of_a_single_output():
    assert reasons(two_headed(), {"skip_outputs": True}, ["out1"]) == {"body": "eligible", "head1": "output-layer"}


def test_skip_outputs_needs_the_outputs_of_a_live_graph():
    with pytest.raises(sparsekit.ConfigError, match=r"config: skip_outputs: needs to know .*Pass outputs="):
        sparsekit.plan(two_headed(), {"skip_outputs": True})


def test_skip_outputs_looks_into_functions():
    with settings_of("resource", "v2"), tf.Graph().as_default() as graph:
        x = tf.matmul(v1.placeholder(tf.float32, [2, 8]), weight(8, 8), name="first")
        w, u = tf.constant(weight(8, 8)), tf.constant(weight(9, 8)[1:])

        def body(i: Any, s: Any) -> Any:
            return i + 1, tf.tanh(tf.matmul(tf.matmul(s, w, name="early"), u, name="late"))

        tf.identity(tf.while_loop(lambda i, _: i < 2, body, [0, x])[1], name="out")
    # The first layer's result is the loop's where it takes no turn.
    assert reasons(graph, {"skip_outputs": True}) == {"first": "eligible", "early": "eligible", "late": "output-layer"}


def test_min_weights_leaves_small_weights_dense_and_overrides_count():
    cfg = {
        "min_weights": 80,
        "override": [{"layers": ["body"], "min_weights": 129}, {"layers": ["head2"], "min_weights": 0}],
    }
    found = reasons(two_headed(), cfg)
    assert found == {"body": "too-few-weights", "head1": "eligible", "middle": "eligible", "head2": "eligible"}
    (decision,) = [d for d in sparsekit.plan(two_headed(), {"min_weights": 81}).decisions if d.name == "head1"]
    assert decision.message == "head1: its weight has 80 elements, fewer than min_weights = 81."
