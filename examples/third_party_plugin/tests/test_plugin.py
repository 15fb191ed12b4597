"""The plugin keeps sparsekit's contract, and is found where it is installed."""

from __future__ import annotations

import pytest
import sparsekit_example_plugin
import tensorflow as tf
from sparsekit_example_plugin.sparse_matmul import SparseMatMul

import sparsekit
from sparsekit.plugins import default_registry
from sparsekit.testing import Layer, check_handler, check_plugin

v1 = tf.compat.v1


def build(transpose_b: bool = False, b_is_sparse: bool = False) -> Layer:
    data = v1.placeholder(tf.float32, [None, 10], name="data")
    weight = v1.get_variable("weight", [6, 10] if transpose_b else [10, 6])
    output = tf.raw_ops.SparseMatMul(
        a=data, b=weight, transpose_b=transpose_b, a_is_sparse=True, b_is_sparse=b_is_sparse, name="fc"
    )
    return Layer(data, output)


@pytest.mark.parametrize("transpose_b", [False, True])
def test_handler(transpose_b: bool) -> None:
    check_handler(
        SparseMatMul(),
        lambda: build(transpose_b),
        violating={"already-sparse": lambda: build(b_is_sparse=True)},
    )


def test_hooks_targets_and_criteria() -> None:
    check_plugin(sparsekit_example_plugin)


def test_installed() -> None:
    registry = default_registry()
    offers = (registry.handlers["SparseMatMul"], registry.targets["acme-edge-2"], registry.criteria["positive"])
    assert {offer.plugin.distribution for offer in offers} == {"sparsekit-example-plugin"}


def test_a_graph_is_pruned_by_its_criterion_and_its_target_is_warned_of() -> None:
    graph = tf.Graph()
    with graph.as_default():
        build()
    with pytest.warns(sparsekit.UnsupportedTargetWarning, match="Products of Acme that gain: Acme Edge 2"):
        result = sparsekit.prune(graph, {"criterion": "positive"}, target="AE100")
    assert [(layer.name, layer.axis) for layer in result.plan.pruned] == [("fc", 0)]


def test_the_other_target_objects_to_a_layer_that_does_not_fit() -> None:
    graph = tf.Graph()
    with graph.as_default():
        build()
    plan = sparsekit.plan(graph, target="acme-edge-2")
    (layer,) = plan.decisions
    assert [rule.name for rule in layer.verdict.objections] == ["whole-tiles"]
    assert [rule.name for rule in layer.verdict.conditions] == ["data-type"]
    assert "not eligible: Input channels must fill tiles of 16" in str(plan)
