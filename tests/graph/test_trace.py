"""Where a layer's weight comes from, and every reason why none was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import freeze, session, settings_of, values, variable

import sparsekit
from sparsekit.graph.node import ProtoGraph
from sparsekit.pattern import Pattern, keep_mask
from sparsekit.planning import LayerDecision, Plan

v1 = tf.compat.v1
SETTINGS = [("ref", "v1"), ("resource", "v1"), ("resource", "v2")]


def plan_of(build: Callable[[Any], Any], outputs: Any = "y", width: int = 8) -> Plan:
    """The plan for ``y = build(x)`` with x of shape [None, width]."""
    with tf.Graph().as_default() as graph:
        y = build(v1.placeholder(tf.float32, [None, width], name="x"))
        tf.identity(y, name="y")
        return sparsekit.plan(graph, outputs=outputs)


def decision_of(build: Callable[[Any], Any], **more: Any) -> LayerDecision:
    (decision,) = plan_of(build, **more).decisions
    return decision


# --- reasons to stay dense -------------------------------------------------------------------------------


def fed(x: Any) -> Any:
    return tf.matmul(x, v1.placeholder(tf.float32, [8, 4], name="fed"), name="fc")


def made_of_data(x: Any) -> Any:
    return tf.matmul(x, x, transpose_b=True, name="fc")


def made_of_the_input(x: Any) -> Any:
    return tf.matmul(x, variable("w", [8, 4]) * tf.reduce_mean(x), name="fc")


def random_weight(x: Any) -> Any:
    return tf.matmul(x, tf.nn.dropout(variable("w", [8, 4]), rate=0.5), name="fc")


def from_a_data_set(x: Any) -> Any:
    data = tf.data.Dataset.from_tensors(np.ones([8, 4], np.float32))
    return tf.matmul(x, v1.data.make_one_shot_iterator(data).get_next(), name="fc")


def normalized(x: Any) -> Any:
    w = variable("w", [8, 4])
    return tf.matmul(x, w / tf.norm(w), name="fc")


def sum_of_two(x: Any) -> Any:
    return tf.matmul(x, variable("w", [8, 4]) + variable("v", [8, 4]), name="fc")


def of_unknown_shape(x: Any) -> Any:
    initial = v1.placeholder_with_default(np.ones([8, 4], np.float32), [None, None])
    return tf.raw_ops.MatMul(a=x, b=v1.get_variable("w", initializer=initial, validate_shape=False), name="fc")


def one_half_twice(x: Any) -> Any:
    """A mask over the whole could differ between the two."""
    w = variable("w", [4, 4])
    return tf.matmul(x, tf.concat([w, w], 0), name="fc")


def half_variable(x: Any) -> Any:
    return tf.cast(tf.matmul(tf.cast(x, tf.float16), variable("w", [8, 4], dtype=tf.float16), name="fc"), tf.float32)


def torn_apart(x: Any) -> Any:
    return tf.matmul(x, tf.reshape(variable("w", [4, 8]), [8, 4]), name="fc")


def merged_axes_of_two(x: Any) -> Any:
    return tf.matmul(x, tf.reshape(variable("w", [4, 2, 3]), [8, 3]), name="fc")


def transposed_then_torn(x: Any) -> Any:
    return tf.matmul(x, tf.reshape(tf.transpose(variable("w", [4, 8])), [16, 2])[:8], name="fc")


def laid_out_at_run_time(x: Any) -> Any:
    return tf.matmul(x, tf.reshape(variable("w", [4, 8]), tf.stack([tf.shape(x)[1], -1])), name="fc")


def transposed_data(x: Any) -> Any:
    return tf.matmul(x, variable("w", [3, 4]), transpose_a=True, name="fc")


REASONS = {
    fed: ("weight-dynamic", "'fed'"),
    made_of_data: ("weight-dynamic", "'x'"),
    made_of_the_input: ("weight-dynamic", "'x'"),
    random_weight: ("weight-dynamic", "Random"),
    from_a_data_set: ("weight-dynamic", "Iterator"),
    normalized: ("weight-computed", "truediv"),
    sum_of_two: ("weight-computed", "add"),
    of_unknown_shape: ("shape-unknown", "not known"),
    one_half_twice: ("weight-computed", "concat"),
    half_variable: ("weight-dtype", "float16"),
    torn_apart: ("layout-splits-groups", "Reshape"),
    merged_axes_of_two: ("layout-splits-groups", "several axes"),
    transposed_then_torn: ("weight-computed", "strided_slice"),
    laid_out_at_run_time: ("layout-unknown", "Reshape"),
    transposed_data: ("transpose-a", "transpose_a=True"),
}


@pytest.mark.parametrize("build", REASONS)
def test_a_layer_that_stays_dense_says_why(kind: str, build: Callable[[Any], Any]) -> None:
    reason, part = REASONS[build]
    decision = decision_of(build)
    assert (decision.name, decision.status, decision.reason) == ("fc", "skip", reason)
    assert part in decision.message
    assert decision.message.startswith("fc: ")


@pytest.mark.parametrize(("passed", "reason"), [("constant", "weight-computed"), ("data", "weight-dynamic")])
def test_what_a_call_passes_to_a_function_is_what_it_is_outside(passed, reason):
    @tf.function
    def inner(x: Any, table: Any) -> Any:
        return tf.matmul(x, table[:, 1:] * 2.0, name="fc")

    @tf.function
    def outer(x: Any, table: Any) -> Any:
        return inner(x, table)

    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        outer(x, tf.constant(values([8, 5])) if passed == "constant" else tf.transpose(x))
    (decision,) = sparsekit.plan(graph.as_graph_def()).decisions
    assert decision.reason == reason
    assert passed == "constant" or "depends on the Placeholder 'x', which changes" in decision.message


def test_what_a_loop_passes_to_its_body_may_change():
    with settings_of("resource", "v2"), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 8], name="x")
        table = tf.constant(values([8, 8]))
        tf.while_loop(
            lambda i, w, y: i < 3, lambda i, w, y: (i + 1, w + 1.0, tf.matmul(y, w * 2.0, name="fc")), [0, table, x]
        )
    (decision,) = sparsekit.plan(graph.as_graph_def()).decisions
    assert decision.reason == "weight-dynamic"


def test_a_data_dependent_product_does_not_hinder_its_neighbours(kind: str) -> None:
    def attention(x: Any) -> Any:
        query = tf.matmul(x, variable("w_query", [8, 8]), name="query")
        scores = tf.matmul(query, x, transpose_b=True, name="scores")
        return tf.matmul(scores, tf.matmul(x, variable("w_value", [8, 4]), name="value"), name="mixed")

    plan = plan_of(attention)
    assert [(d.name, d.reason) for d in plan.decisions] == [
        ("query", "eligible"),
        ("scores", "weight-dynamic"),
        ("value", "eligible"),
        ("mixed", "weight-dynamic"),
    ]


# --- weights that several ops read -----------------------------------------------------------------------


def test_a_square_weight_used_in_both_directions_is_skipped(kind: str) -> None:
    def tied(x: Any) -> Any:
        w = variable("w", [8, 8])
        return tf.matmul(tf.matmul(x, w, name="encode"), w, transpose_b=True, name="decode")

    decision = decision_of(tied)
    assert (decision.status, decision.reason, decision.uses) == (
        "skip",
        "shared-weight-conflict",
        ("encode", "decode"),
    )
    assert "[0, 1]" in decision.message


def test_settings_that_differ_for_one_weight_are_a_conflict(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8])
        w = variable("w", [8, 8])
        tf.matmul(tf.matmul(x, w, name="one"), w, name="two")
        plan = sparsekit.plan(graph, {"override": [{"layers": ["two"], "update_freq": 3}]})
        assert [(d.uses, d.reason) for d in plan.decisions] == [(("one", "two"), "shared-weight-conflict")]
        plan = sparsekit.plan(graph, {"skip_layers": ["two"]})
        assert [(d.uses, d.reason) for d in plan.decisions] == [(("one", "two"), "shared-weight-conflict")]
        plan = sparsekit.plan(graph, {"skip_layers": ["one", "two"]})
        assert [(d.uses, d.reason) for d in plan.decisions] == [(("one", "two"), "skip-layers")]


def test_one_of_the_ops_that_share_a_weight_cannot_have_a_mask(kind: str) -> None:
    def build(x: Any) -> Any:
        w = variable("w", [8, 8])
        return tf.matmul(tf.matmul(x, w, name="one"), w, transpose_a=True, name="two")

    decision = decision_of(build)
    assert decision.reason == "shared-weight-conflict"
    assert "transpose_a" in decision.message


def gathered(w: Any, x: Any) -> Any:
    return tf.gather(w, tf.cast(x[:, 0], tf.int32))


def looked_up(w: Any, x: Any) -> Any:
    return tf.nn.embedding_lookup(w, tf.cast(x[:, 0], tf.int32))


def added(w: Any, x: Any) -> Any:
    return x[:1, :8] + w


def added_after_identities(w: Any, x: Any) -> Any:
    return x[:1, :8] + tf.transpose(tf.stop_gradient(tf.identity(w)))


def scaled(w: Any, x: Any) -> Any:
    return x[:1, :8] * (w / tf.norm(w))


@pytest.mark.parametrize("outputs", ["y", None])
@pytest.mark.parametrize("other", [gathered, looked_up, added, added_after_identities, scaled])
def test_a_weight_that_another_op_uses_is_skipped(
    kind: str, other: Callable[[Any, Any], Any], outputs: str | None
) -> None:
    def build(x: Any) -> Any:
        w = variable("w", [8, 8])
        return tf.matmul(x, w, name="fc") + other(w, x)

    decision = decision_of(build, outputs=outputs)
    assert (decision.status, decision.reason) == ("skip", "shared-with-other-op")
    assert "which has no mask" in decision.message


def test_another_reader_that_no_output_needs_does_not_count(kind: str) -> None:
    def build(x: Any) -> Any:
        w = variable("w", [8, 8])
        gathered(w, x)
        return tf.matmul(x, w, name="fc")

    assert decision_of(build).pruned
    assert not decision_of(build, outputs=None).pruned


def weight_loss(w: Any) -> Any:
    return tf.nn.l2_loss(w)


def weight_norm(w: Any) -> Any:
    return tf.sqrt(tf.reduce_sum(w * w))


def histogram(w: Any) -> Any:
    return v1.summary.histogram("h", w)


def saver(w: Any) -> Any:
    return v1.train.Saver()


def average(w: Any) -> Any:
    return v1.train.ExponentialMovingAverage(0.9).apply([w])


def average_with_steps(w: Any) -> Any:
    return v1.train.ExponentialMovingAverage(0.9, num_updates=v1.train.get_or_create_global_step()).apply([w])


def copied(w: Any) -> Any:
    return v1.assign(v1.get_variable("copy", initializer=tf.zeros([8, 4])), w)


def loaded(w: Any) -> Any:
    return v1.assign(w, v1.placeholder(tf.float32, [8, 4]))


def clipped(w: Any) -> Any:
    return v1.assign(w, tf.clip_by_value(w, -1.0, 1.0))


def initialized_from(w: Any) -> Any:
    value = v1.cond(v1.is_variable_initialized(w), w.read_value, lambda: w.initial_value)
    return v1.get_variable("other", initializer=value)


def checked(w: Any) -> Any:
    return v1.report_uninitialized_variables([w])


def shape(w: Any) -> Any:
    return tf.shape(w)


SIDE_READERS = [
    weight_loss,
    weight_norm,
    histogram,
    saver,
    average,
    average_with_steps,
    copied,
    loaded,
    clipped,
    initialized_from,
    checked,
    shape,
]


@pytest.mark.parametrize("outputs", ["y", None])
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("side", SIDE_READERS)
def test_what_reads_a_weight_on_the_side_does_not_count(
    kind: str, side: Callable[[Any], Any], random: bool, outputs: str | None
) -> None:
    def build(x: Any) -> Any:
        w = v1.get_variable("w", [8, 4]) if random else variable("w", [8, 4])
        side(w)
        return tf.matmul(x, w, name="fc")

    decision = decision_of(build, outputs=outputs)
    assert decision.pruned, decision.message


def test_a_loss_over_data_and_weights_does_not_count(kind: str) -> None:
    def build(x: Any) -> Any:
        w = variable("w", [8, 4])
        y = tf.matmul(x, w, name="fc")
        tf.add_n([tf.reduce_mean(y**2), 0.1 * tf.nn.l2_loss(w)], name="loss")
        return y

    assert decision_of(build, outputs=None).pruned


# --- control flow ----------------------------------------------------------------------------------------


def _own_name(path: str) -> str:
    """TensorFlow numbers the op that makes a function's result anew."""
    return path.rpartition("/")[2].removesuffix("_0")


def _turns(body: Callable[[Any], Any], x: Any) -> Any:
    return v1.while_loop(lambda i, s: i < 3, lambda i, s: (i + 1, body(s)), (0, x))[1]


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
def test_a_weight_that_changes_in_a_loop_is_skipped(variables: str, control_flow: str) -> None:
    def build(x: Any) -> Any:
        w = variable("w", [8, 8])
        return v1.while_loop(
            lambda i, s, w: i < 3, lambda i, s, w: (i + 1, tf.matmul(s, w, name="fc"), w * 0.5), (0, x, w)
        )[1]

    with settings_of(variables, control_flow):
        decision = decision_of(build)
    assert (decision.status, decision.reason) == ("skip", "weight-loop-variant")


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
def test_two_weights_that_change_places_in_a_loop_are_skipped(variables: str, control_flow: str) -> None:
    def build(x: Any) -> Any:
        one, two = variable("one", [8, 8], 1), variable("two", [8, 8], 2)
        return v1.while_loop(
            lambda i, s, v, w: i < 3,
            lambda i, s, v, w: (i + 1, tf.matmul(s, v, name="fc"), w, v),
            (0, x, tf.identity(one), tf.identity(two)),
        )[1]

    with settings_of(variables, control_flow):
        decision = decision_of(build)
    assert (decision.status, decision.reason) == ("skip", "weight-loop-variant")


@pytest.mark.parametrize("control_flow", ["v1", "v2"])
@pytest.mark.parametrize("structure", ["loop", "cond"])
def test_a_resource_read_inside_control_flow_is_skipped_and_explained(control_flow: str, structure: str) -> None:
    def build(x: Any) -> Any:
        w = variable("w", [8, 8])
        if structure == "loop":
            return _turns(lambda s: tf.matmul(s, w.read_value(), name="fc"), x)
        return v1.cond(tf.reduce_sum(x) > 0, lambda: tf.matmul(x, w.read_value(), name="fc"), lambda: x)

    with settings_of("resource", control_flow):
        decision = decision_of(build)
        expected = "read-inside-function" if control_flow == "v2" else "read-inside-control-flow"
        assert (decision.status, decision.reason) == ("skip", expected)
        assert _own_name(decision.name) == "fc"
        assert "tf.identity" in decision.message or "read it before" in decision.message


@pytest.mark.parametrize("control_flow", ["v1", "v2"])
def test_a_weight_read_inside_a_loop_and_outside_is_skipped_everywhere(control_flow: str) -> None:
    """Else the layer outside were sparse and the one inside dense."""

    def build(x: Any) -> Any:
        w = variable("w", [8, 8])
        return tf.matmul(_turns(lambda s: tf.matmul(s, w.read_value(), name="inside"), x), w, name="outside")

    with settings_of("resource", control_flow):
        (decision,) = plan_of(build).decisions
    assert [_own_name(use) for use in decision.uses] == ["inside", "outside"]
    assert (decision.status, decision.reason) == ("skip", "shared-weight-conflict")
    assert "is read inside a" in decision.message


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
def test_one_weight_inside_a_loop_and_outside_has_one_decision(variables: str, control_flow: str) -> None:
    def build(x: Any) -> Any:
        w = tf.identity(variable("w", [8, 8]))
        return tf.matmul(_turns(lambda s: tf.matmul(s, w, name="inside"), x), w, name="outside")

    with settings_of(variables, control_flow):
        decision = decision_of(build)
    assert decision.pruned, decision.message
    assert [_own_name(use) for use in decision.uses] == ["inside", "outside"]


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
def test_a_weight_gathered_inside_a_loop_is_shared(variables: str, control_flow: str) -> None:
    def build(x: Any) -> Any:
        w = tf.identity(variable("w", [8, 8]))
        y = _turns(lambda s: s + tf.gather(w, 0), x)
        return tf.matmul(y, w, name="fc")

    with settings_of(variables, control_flow):
        decision = decision_of(build)
    assert (decision.status, decision.reason) == ("skip", "shared-with-other-op")


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
def test_a_weight_gathered_in_the_very_loop_that_multiplies_by_it_is_shared(variables: str, control_flow: str) -> None:
    def build(x: Any) -> Any:
        w = tf.identity(variable("w", [8, 8]))
        return _turns(lambda s: tf.matmul(s, w, name="fc") + tf.gather(w, 0), x)

    with settings_of(variables, control_flow):
        decision = decision_of(build)
    assert (decision.status, decision.reason) == ("skip", "shared-with-other-op")


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
@pytest.mark.parametrize("structure", ["loop", "cond"])
def test_a_weight_that_comes_out_of_control_flow_and_is_gathered_is_shared(
    variables: str, control_flow: str, structure: str
) -> None:
    def build(x: Any) -> Any:
        w = tf.identity(variable("w", [8, 8]))
        if structure == "loop":
            turns = v1.while_loop(
                lambda i, s, w: i < 3, lambda i, s, w: (i + 1, tf.matmul(s, w, name="fc"), w), (0, x, w)
            )
            return turns[1] + tf.gather(turns[2], 0)
        y, again = v1.cond(
            tf.reduce_sum(x) > 0, lambda: (tf.matmul(x, w, name="fc"), tf.identity(w)), lambda: (x, tf.identity(w))
        )
        return y + tf.gather(again, 0)

    with settings_of(variables, control_flow):
        decision = decision_of(build)
    assert (decision.status, decision.reason) == ("skip", "shared-with-other-op")


@pytest.mark.parametrize(("variables", "control_flow"), SETTINGS)
def test_a_neighbour_of_the_weight_in_a_loop_may_be_gathered(variables: str, control_flow: str) -> None:
    def build(x: Any) -> Any:
        w, table = tf.identity(variable("w", [8, 8])), tf.identity(variable("table", [8, 8]))
        turns = v1.while_loop(
            lambda i, s, w, t: i < 3,
            lambda i, s, w, t: (i + 1, tf.matmul(s, w, name="fc") + tf.gather(t, 0), w, t),
            (0, x, w, table),
        )
        return turns[1] + tf.gather(turns[3], 0)

    with settings_of(variables, control_flow):
        plan = plan_of(build)
    assert [decision.weight for decision in plan.pruned] == ["w"], str(plan)
    assert {decision.reason for decision in plan.skipped} <= {"embedding"}


def test_two_layers_in_one_loop(resource_kind: None) -> None:
    def build(x: Any) -> Any:
        one, two = tf.identity(variable("one", [8, 8])), tf.identity(variable("two", [8, 8]))
        return _turns(lambda s: tf.matmul(tf.matmul(s, one, name="one_fc"), two, name="two_fc"), x)

    plan = plan_of(build)
    assert [(_own_name(d.name), d.weight) for d in plan.pruned] == [("one_fc", "one"), ("two_fc", "two")]


def test_a_function_called_twice_with_two_weights(resource_kind: None) -> None:
    @tf.function
    def layer(x: Any, w: Any) -> Any:
        return tf.matmul(x, w, name="fc")

    plan = plan_of(
        lambda x: layer(layer(x, tf.identity(variable("one", [8, 8]))), tf.identity(variable("two", [8, 8])))
    )
    assert [d.weight for d in plan.pruned] == ["one", "two"]
    assert len({d.name for d in plan.pruned}) == 2


# --- partitioned variables, constants, frozen graphs -----------------------------------------------------


def test_a_constant_is_a_weight_too(kind: str) -> None:
    decision = decision_of(lambda x: tf.matmul(x, tf.constant(values([8, 4]), name="w"), name="fc"))
    assert (decision.status, decision.weight, decision.shape) == ("prune", "w", (8, 4))


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_are_seen_as_one_weight(kind: str, axis: int) -> None:
    def build(x: Any) -> Any:
        w = v1.get_variable("w", [8, 6], partitioner=v1.fixed_size_partitioner(3, axis=axis))
        return tf.matmul(x, w, name="fc")

    decision = decision_of(build)
    assert (decision.status, decision.shape, decision.axis) == ("prune", (8, 6), 0)
    assert decision.weight == "w/part_0"


def test_a_concatenation_with_something_else_is_no_weight(kind: str) -> None:
    def build(x: Any) -> Any:
        w = tf.concat([variable("w", [4, 4]), tf.zeros([4, 4]) + tf.reduce_mean(x)], 0)
        return tf.matmul(x, w, name="fc")

    assert decision_of(build).reason == "weight-dynamic"


def test_a_frozen_graph_is_planned_like_the_live_one(kind: str) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        w = variable("w", [8, 8])
        hidden = tf.matmul(x, w, name="one")
        tf.matmul(hidden, tf.transpose(variable("v", [4, 8])), name="two")
        live = sparsekit.plan(graph, outputs="two")
        with session(graph) as sess:
            frozen = freeze(sess, ["two"])
    assert ProtoGraph(frozen).node("one") is not None
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen, name="")
        plan = sparsekit.plan(graph, outputs="two")
    fields = ("name", "status", "reason", "shape", "axis", "weight", "uses", "dtype")
    rows = [[[getattr(d, field) for field in fields] for d in p.decisions] for p in (live, plan)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("shape", "pattern", "axis"),
    [
        ([2, 4, 3], "2:4", 1),
        ([3, 8, 3], "4:8", 1),
        ([3, 8, 3], "1:2", 1),
        ([2, 3, 4, 3], "2:4", 2),
        ([2, 4, 1, 3], "2:4", 1),
        ([1, 8, 3], "2:4", 1),
        ([6, 2, 3], "1:2", 1),
        ([6, 2, 3], "2:4", None),
        ([2, 6, 3], "2:4", None),
    ],
)
def test_groups_lie_within_the_innermost_of_merged_axes(
    kind: str, shape: list[int], pattern: str, axis: int | None
) -> None:
    """The output kernel of an attention is (heads, head size, out): groups of the product lie within a head."""
    merged = math.prod(shape[:-1])
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, merged])
        tf.matmul(x, tf.reshape(variable("w", shape), [merged, shape[-1]]), name="fc")
    (decision,) = sparsekit.plan(graph, {"pattern": pattern}).decisions
    assert (decision.axis, decision.reason) == ((axis, "eligible") if axis else (decision.axis, "layout-splits-groups"))
    if axis is None:
        return
    value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    along_axis = keep_mask(value, axis, Pattern.parse(pattern))
    as_the_op_sees_it = keep_mask(value.reshape(merged, -1), 0, Pattern.parse(pattern))
    assert np.array_equal(along_axis.reshape(merged, -1), as_the_op_sees_it)
