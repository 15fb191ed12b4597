"""What a config leaves dense, wherever the layers lie."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import tensorflow as tf
from small_graphs import settings_of

import sparsekit
from sparsekit.config import PruneConfig
from sparsekit.live.pruning import plan_live
from sparsekit.plugins import default_registry
from sparsekit.target import LayerRule, TargetProfile

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


# --- what a target makes of the plan ---------------------------------------------------------------------

ROOMY = TargetProfile(
    name="roomy",
    vendor="Test vendor",
    title="Test vendor Roomy",
    gains=True,
    reason="It says so.",
    sources=("made up",),
    rules=(
        LayerRule(
            name="sixteen",
            message="Sixteen input channels must be there.",
            source="made up",
            holds=lambda layer: layer.shape is not None and layer.axis is not None and layer.shape[layer.axis] >= 16,
        ),
        LayerRule(
            name="small-output",
            message="The converter must see few outputs.",
            source="made up",
            holds=lambda layer: None if layer.shape and layer.shape[-1] > 5 else True,
        ),
    ),
)


def judged(target: TargetProfile | None, **keys: Any) -> sparsekit.Plan:
    return plan_live(two_headed(), PruneConfig(**keys), ("out1", "out2"), default_registry(), target).plan


def test_a_target_judges_every_pruned_layer_and_no_other():
    plan = judged(ROOMY, skip_layers=("middle",))
    assert {d.name: str(d.verdict) for d in plan.pruned} == {
        "body": "not eligible: Sixteen input channels must be there",
        "head1": "eligible",
        "head2": "not eligible: Sixteen input channels must be there",
    }
    assert [d.verdict for d in plan.skipped] == [None]
    assert plan.summary().endswith(" On Test vendor Roomy, 1 of the 3 pruned layers is eligible.")


def test_the_plan_shows_verdicts_and_counts_those_under_conditions():
    plan = judged(ROOMY)
    lines = {line.split()[0]: line for line in str(plan).splitlines()}
    assert lines["body"].endswith("eligible   target: not eligible: Sixteen input channels must be there")
    assert lines["middle"].endswith("target: eligible if met at conversion: The converter must see few outputs")
    assert (
        "On Test vendor Roomy, 2 of the 4 pruned layers are eligible, 1 of them if conditions are met at conversion.\n"
        "Target: Test vendor Roomy. It says so."
    ) in str(plan)


def test_a_target_changes_no_decision():
    def bare(plan: sparsekit.Plan) -> list[sparsekit.LayerDecision]:
        return [attrs.evolve(decision, verdict=None) for decision in plan.decisions]

    for target in (ROOMY, attrs.evolve(ROOMY, gains=False)):
        assert bare(judged(target)) == list(judged(None).decisions)


def test_without_a_target_there_is_no_verdict_and_no_word_of_one():
    plan = judged(None)
    assert {d.verdict for d in plan.decisions} == {None}
    assert plan.summary() == "4 of 4 layers are pruned, 328 weights."


def test_a_shared_weight_has_its_message_and_its_verdict():
    with tf.Graph().as_default() as graph:
        shared = v1.get_variable("shared", [16, 16])
        tf.matmul(tf.matmul(v1.placeholder(tf.float32, [None, 16]), shared), shared, name="out")
    (decision,) = (plan := plan_live(graph, PruneConfig(), ("out",), default_registry(), ROOMY).plan).pruned
    assert len(decision.uses) == 2
    assert f"one mask for the 2 ops that use it. target: {decision.verdict}" in str(plan)


def test_a_rule_that_fails_stops_the_plan_before_anything_is_done():
    broken = attrs.evolve(ROOMY, rules=(attrs.evolve(ROOMY.rules[0], holds=lambda layer: 1 / 0),))
    with pytest.raises(sparsekit.PluginError, match="target profile 'roomy', rule 'sixteen': ZeroDivisionError"):
        judged(broken)


def test_a_layer_in_the_scope_of_a_variables_name_is_a_layer_whatever_the_outputs() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        for name in ("main", "aux"):
            kernel = v1.get_variable(name, [8, 4])
            with tf.name_scope(f"{name}/"):
                tf.matmul(x, kernel, name="fc")
    for outputs in (None, ["main/fc"]):
        plan = sparsekit.plan(graph, {"skip_layers": ["aux/*"]}, outputs=outputs)
        assert [decision.name for decision in plan.pruned] == ["main/fc"]
        with pytest.raises(sparsekit.ConfigError, match=r"'aux' matches no operation of the graph, only variables"):
            sparsekit.plan(graph, {"skip_layers": ["aux"]}, outputs=outputs)
