"""The conformance kit: it passes what is right, and says in a sentence what is wrong with what is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import tensorflow as tf

from sparsekit.criterion import Criterion
from sparsekit.graph.node import LiveNode, Node
from sparsekit.handler import Constraint, OpHandler, WeightSite
from sparsekit.hookspecs import hookimpl
from sparsekit.matrix_form import Contraction
from sparsekit.pattern import ordering_key
from sparsekit.planning import LayerDecision
from sparsekit.reconstruction import LayerProblem, assess
from sparsekit.target import LayerRule, TargetProfile
from sparsekit.testing import Layer, _lifecycle, check_criterion, check_handler, check_plugin, check_target
from sparsekit.verification import Verification

v1 = tf.compat.v1


class Dense(OpHandler):
    """A handler that is right; those below differ in what is said."""

    op_types = ("MatMul",)
    constraints = (
        Constraint("transpose-a", "transpose_a is not supported.", lambda site: not site.node.attr("transpose_a")),
    )

    def group_axis(self, node: Node) -> int:
        return 0


def dense(initializer: Any = None, *, transpose_a: bool = False) -> Layer:
    data = v1.placeholder(tf.float32, [None, 8], name="data")
    shape = [3 if transpose_a else 8, 8]
    weight = v1.get_variable("weight", shape, initializer=initializer or v1.random_normal_initializer(seed=1))
    return Layer(data, tf.matmul(data, weight, transpose_a=transpose_a, name="fc"))


def dense_transposed() -> Layer:
    return dense(transpose_a=True)


# --- handlers --------------------------------------------------------------------------------------------


def test_a_right_handler_passes() -> None:
    check_handler(Dense(), dense, violating={"transpose-a": dense_transposed})


def test_a_right_matrix_form_passes() -> None:
    check_handler(_form(), dense)


def test_a_handler_may_lack_a_matrix_form_for_some_of_its_ops() -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("not for this one")

    check_handler(_with(matrix_form=refuse), dense)


def test_the_weight_may_be_the_left_operand() -> None:
    class Left(Dense):
        weight_input = 0
        constraints = ()

        def matrix_form(self, site: WeightSite, data: tuple[int, ...], output: tuple[int, ...]) -> Contraction:
            return Contraction("mk", "kn", "nm", site.source.shape_at_op)

    def build() -> Layer:
        data = v1.placeholder(tf.float32, [None, 10], name="data")
        weight = v1.get_variable("weight", [10, 3])
        return Layer(data, tf.matmul(weight, data, transpose_a=True, transpose_b=True, name="fc"))

    check_handler(Left(), build)


def test_the_data_may_be_a_constant_and_its_channels_may_come_first() -> None:
    def build() -> Layer:
        data = tf.ones([8, 2], name="data")
        weight = v1.get_variable("weight", [8, 5])
        return Layer(data, tf.matmul(data, weight, transpose_a=True, name="fc"), channel_axis=0)

    class Handler(Dense):
        constraints = ()

    check_handler(Handler(), build)


def _with(**members: Any) -> OpHandler:
    return type("Broken", (Dense,), members)()


def _constraint(
    reason: str = "some-reason", message: str = "A sentence.", holds: Callable[[WeightSite], Any] = lambda site: True
) -> OpHandler:
    return _with(constraints=(Constraint(reason, message, holds),))


def _form(**members: Any) -> OpHandler:
    """A handler whose matrix form differs from the right one in what is said."""
    form = type("BrokenForm", (Contraction,), members)
    return _with(matrix_form=lambda self, site, data, output: form("mk", "kn", "mn", site.source.shape_at_op))


_RIGHT_FORM: dict[str, Any] = {
    "matrix_form": lambda self, site, data, output: Contraction("mk", "kn", "mn", site.source.shape_at_op)
}
_SHUFFLED = [0, 2, 4, 6, 1, 3, 5, 7]


def _takes_away(self: Contraction, output: Any) -> Any:
    taken = output[None].copy()
    output[:] = 0
    return taken


def _straight_through(self: OpHandler, site: WeightSite, masked: Any) -> None:
    raw = masked.op.inputs[0]
    site.rewire(raw + tf.stop_gradient(masked - raw))


def _edits_the_graph(self: OpHandler, node: Any) -> int:
    with node.operation.graph.as_default():
        tf.constant(1)
    return 0


_turns = itertools.count()

BROKEN_HANDLERS = {
    "no op type": (_with(op_types=()), "op_types must be a tuple of names with at least one"),
    "op types as a string": (_with(op_types="MatMul"), "op_types must be a tuple of names"),
    "another op type": (_with(op_types=("Conv2D",)), r"exactly one op of type Conv2D; it made 0, among ops .*MatMul"),
    "dtypes as a string": (_with(weight_dtypes="float32"), "weight_dtypes must be a tuple of names"),
    "another dtype": (_with(weight_dtypes=("float64",)), r"must prune the layer, but skips it \(weight-dtype\)"),
    "weight input is the data": (_with(weight_input=0), "weight_input is 0, but there .* reads its data"),
    "weight input out of range": (_with(weight_input=2), "weight_input is 2, but .* has 2 inputs, counted from 0"),
    "negative weight input": (_with(weight_input=-1), "weight_input must be the index of an input, not -1"),
    "output channels as the group axis": (
        _with(group_axis=lambda self, node: 1),
        r"axis 1 of the weight \[8, 8\] is not its input-channel axis: input channel 0 of the data meets 8 slices",
    ),
    "group axis out of range": (_with(group_axis=lambda self, node: 2), r"skips it \(weight-rank\)"),
    "group axis None": (_with(group_axis=lambda self, node: None), "group_axis must return the same int"),
    "group axis changes": (_with(group_axis=lambda self, node: next(_turns)), "group_axis must return the same int"),
    "group axis edits": (_with(group_axis=_edits_the_graph), "planning changed the graph"),
    "group axis differs in a GraphDef": (
        _with(group_axis=lambda self, node: 0 if isinstance(node, LiveNode) else 1),
        "must decide alike on a live graph and on a GraphDef: eligible, axis 0 on the one, eligible, axis 1",
    ),
    "constraints as a list": (_with(constraints=[]), "constraints must be a tuple"),
    "constraint as a pair": (_with(constraints=(("a", "b"),)), "must hold instances of sparsekit.Constraint"),
    "constraint without a reason": (_constraint(reason=""), "reason of a constraint must be a code .* not ''"),
    "reason in capitals": (_constraint(reason="TransposeA"), "must be a code of lower-case words"),
    "message without a sentence": (_constraint(message="bad"), "must be a sentence for people"),
    "constraint that never holds": (_constraint(holds=lambda site: False), r"skips it \(some-reason\): fc: A sentence"),
    "constraint without an answer": (_constraint(holds=lambda site: 1), "'some-reason' must answer True or False"),
    "two constraints of one reason": (_with(constraints=Dense.constraints * 2), "two constraints have the same reason"),
    "data input is the weight": (
        _with(**_RIGHT_FORM, data_input=lambda self, site: 1),
        "data_input must be the index of the input that holds the",
    ),
    "data input out of range": (
        _with(**_RIGHT_FORM, data_input=lambda self, site: 2),
        "data_input must be .* not 2: it has 2 inputs",
    ),
    "no form after all": (
        _with(matrix_form=lambda *_: None),
        "matrix_form must return a sparsekit.MatrixForm, not None",
    ),
    "X transposed": (
        _form(lower=lambda self, data: data.T[None]),
        r"lower must return \[blocks, rows, K\].* they returned \[1, 8, 3\], \[1, 8, 8\] and \[1, 3, 8\]",
    ),
    "X of two axes": (_form(lower=lambda self, data: data), r"lower must return \[blocks, rows, K\]"),
    "X in another order": (
        _form(lower=lambda self, data: data[None, :, ::-1]),
        r"lower\(data\) @ weight_matrix\(weight\) must be output_matrix .* 24 of 24 elements differ, .* column 0",
    ),
    "X in another dtype": (
        _form(lower=lambda self, data: data[None].astype(np.float64)),
        "lower and output_matrix must keep the dtype, float32 and float32",
    ),
    "overwrites the output": (
        _form(output_matrix=_takes_away),
        "a matrix form may only read the data, the weight and the output",
    ),
    "rows of the output in another order": (
        _form(output_matrix=lambda self, output: output[None, ::-1]),
        r"must be output_matrix of the op's output; 16 of 24 elements differ",
    ),
    "W without its last column": (
        _form(weight_matrix=lambda self, weight: weight[None, :, :-1]),
        r"weight_matrix must hold every element .*\[8, 8\] once, .* it returned float32\[1, 8, 7\]",
    ),
    "W in another dtype": (
        _form(weight_matrix=lambda self, weight: weight[None].astype(np.float64)),
        "it returned float64",
    ),
    "W cannot be undone": (
        _form(weight_from_matrix=lambda self, matrix: matrix[0].T),
        "weight_from_matrix must give back the very weight",
    ),
    "columns for rows": (
        _form(
            weight_matrix=lambda self, weight: weight.T[None],
            weight_from_matrix=lambda self, matrix: matrix[0].T,
        ),
        r"the rows of weight_matrix must be runs of 8 along the group axis \(axis 0 of the weight \[8, 8\]\)",
    ),
    "channels in another order": (
        _form(
            lower=lambda self, data: data[None][..., _SHUFFLED],
            weight_matrix=lambda self, weight: weight[None, _SHUFFLED],
            weight_from_matrix=lambda self, matrix: matrix[0][np.argsort(_SHUFFLED)],
        ),
        "groups of 4 are other weights than along the axis",
    ),
    "no mask": (_with(insert_mask=lambda self, site, masked: None), "insert_mask must let the op read the tensor"),
    "mask and more": (
        _with(insert_mask=lambda self, site, masked: site.rewire(masked * 2)),
        "insert_mask must let the op read the tensor that it is given, and change nothing else",
    ),
    "no gradient": (
        _with(insert_mask=lambda self, site, masked: site.rewire(tf.stop_gradient(masked))),
        "no gradient reaches 'weight:0' through the mask",
    ),
    "gradient past the mask": (
        _with(insert_mask=_straight_through),
        "the gradient must be exactly zero where weights are dropped",
    ),
    "another gradient": (
        _with(insert_mask=lambda self, site, masked: site.rewire(2 * masked - tf.stop_gradient(masked))),
        "weights that stay must get the gradient that the op alone gives them",
    ),
    "ops of its own": (
        _with(insert_mask=lambda self, site, masked: site.rewire(tf.identity(masked, name="mine"))),
        "must be the dense frozen graph, node for node.* fc, mine differ",
    ),
    "folds nothing": (_with(remove_mask=lambda self, w, mask: w), r"remove_mask must leave \+0.0 wherever"),
    "folds to -0.0": (_with(remove_mask=lambda self, w, mask: w * mask), r"remove_mask must leave \+0.0 wherever"),
    "alters kept weights": (
        _with(remove_mask=lambda self, w, mask: np.where(mask, w * np.float32(1.001), np.float32(0))),
        "remove_mask must keep the weights where the mask is True, bit for bit",
    ),
    "folds into another dtype": (
        _with(remove_mask=lambda self, w, mask: np.where(mask, w, 0).astype(np.float64)),
        "remove_mask must return an array of the weight's shape and dtype",
    ),
    "folds in place": (
        _with(remove_mask=lambda self, w, mask: np.copyto(w, 0, where=~mask) or w),
        "remove_mask changed its arguments",
    ),
}


@pytest.mark.parametrize(("handler", "message"), BROKEN_HANDLERS.values(), ids=BROKEN_HANDLERS)
def test_a_broken_handler_is_told_what_is_wrong(handler: OpHandler, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_handler(handler, dense)


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("verify_model", lambda model, registry: Verification(()), "must pass verification"),
        ("_run", lambda *_: np.asarray(next(_turns)), "outputs of the masked and of the stripped graph must be equal"),
    ],
)
def test_what_no_handler_can_break_alone_is_checked_too(
    name: str, broken: Callable[..., Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lifecycle, name, broken)
    with pytest.raises(AssertionError, match=message):
        check_handler(Dense(), dense)


def test_a_class_is_no_handler() -> None:
    with pytest.raises(AssertionError, match=r"instance of sparsekit.OpHandler, not <class"):
        check_handler(Dense, dense)  # type: ignore[arg-type]


def test_an_axis_that_is_not_summed_over_is_no_group_axis() -> None:
    """A depthwise kernel's channel axis meets one channel a slice, but every output sees one slice only."""

    class Depthwise(OpHandler):
        op_types = ("DepthwiseConv2dNative",)

        def group_axis(self, node: Node) -> int:
            return 2

    def build() -> Layer:
        data = v1.placeholder(tf.float32, [None, 5, 5, 8], name="data")
        return Layer(data, tf.nn.depthwise_conv2d(data, v1.get_variable("kernel", [3, 3, 8, 1]), [1] * 4, "SAME"))

    with pytest.raises(AssertionError, match="slice 1 along it does not reach the same outputs as slice 0"):
        check_handler(Depthwise(), build)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (lambda data: tf.reduce_sum(data**2), "input channel 0 of the data meets 8 slices"),
        (lambda data: tf.reduce_sum(data[:, 0] * data[:, 1]), "without slice 0 the output is not what it is without"),
    ],
    ids=["channels count by themselves", "channels count together"],
)
def test_a_layer_whose_data_goes_past_its_weight_is_refused(beside: Callable[[Any], Any], message: str) -> None:
    def build() -> Layer:
        layer = dense()
        return attrs.evolve(layer, output=layer.output + beside(layer.data))

    with pytest.raises(AssertionError, match=message):
        check_handler(Dense(), build)


@pytest.mark.parametrize(
    ("violating", "found"),
    [
        ({"transpose-a": dense}, "eligible"),
        ({"weight-dtype": dense_transposed}, "transpose-a"),
        ({"transpose-a": lambda: Layer(*[tf.identity(v1.placeholder(tf.float32))] * 2)}, "nothing"),
    ],
    ids=["violates nothing", "violates something else", "without the op"],
)
def test_a_violating_layer_must_be_skipped_for_its_reason(
    violating: dict[str, Callable[[], Layer]], found: str
) -> None:
    with pytest.raises(AssertionError, match=f"must be skipped for that reason; the plan says {found}"):
        check_handler(Dense(), dense, violating=violating)


def _twice() -> Layer:
    layer = dense()
    return attrs.evolve(layer, output=tf.matmul(layer.output, v1.get_variable("another", [8, 8])))


def _beside() -> Layer:
    layer = dense()
    return attrs.evolve(layer, output=tf.identity(layer.data))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: None, r"return a sparsekit\.testing\.Layer"),
        (lambda: dense(v1.zeros_initializer()), "must give 'weight' random values, not zeros"),
        (_twice, "exactly one op of type MatMul; it made 2"),
        (_beside, "'Identity:0' does not depend on the op"),
        (lambda: attrs.evolve(dense(), data=v1.placeholder(tf.float32)), "needs a static rank"),
        (lambda: attrs.evolve(dense(), channel_axis=0), "or the channel_axis of Layer"),
    ],
    ids=["no layer", "zeros", "two ops", "output beside", "data without a rank", "wrong channel axis"],
)
def test_a_wrong_build_function_is_told_apart(build: Callable[[], Layer], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_handler(Dense(), build)


# --- criteria --------------------------------------------------------------------------------------------


class Largest(Criterion):
    """A criterion that is right; those below differ in what is said."""

    name = "largest"
    live = True

    def score(self, weight: Any, axis: int) -> Any:
        return weight


def test_a_right_criterion_passes() -> None:
    check_criterion(Largest())


def _scores(score: Callable[[Any, int], Any], **members: Any) -> Criterion:
    return type("Broken", (Largest,), {"score": lambda self, weight, axis: score(weight, axis), **members})()


def _on_arrays_and_tensors(array: Callable[[Any], Any], tensor: Callable[[Any], Any]) -> Criterion:
    return _scores(lambda weight, axis: (array if isinstance(weight, np.ndarray) else tensor)(weight))


_random = np.random.default_rng(0)

BROKEN_CRITERIA = {
    "no name": (_scores(lambda w, axis: w, name=""), r"name must be lower-case words joined by hyphens, not ''"),
    "name with spaces": (_scores(lambda w, axis: w, name="The Best"), "name must be lower-case words"),
    "live is no bool": (_scores(lambda w, axis: w, live=1), "live must be True or False"),
    "not deterministic": (
        _scores(lambda w, axis: _random.random(w.shape), live=False),
        "is not deterministic: 48 of 48 scores differ when it is asked again",
    ),
    "goes by memory order": (
        _scores(lambda w, axis: w.ravel(order="K").reshape(w.shape), live=False),
        "is not deterministic",
    ),
    "one score a slice": (_scores(lambda w, axis: w.sum(axis)), r"returned shape \[6\]; .* one score for each weight"),
    "a list": (_scores(lambda w, axis: w.tolist()), "returned list; it must be a numpy array"),
    "bools": (_scores(lambda w, axis: w > 0), "returned scores that cannot be ranked: .*bool"),
    "NaN": (_scores(lambda w, axis: w * np.float32("nan")), "returned NaN for finite weights"),
    "in place": (_scores(lambda w, axis: np.abs(w, out=w), live=False), "changed the weight; it may only read it"),
    "array in a graph": (
        _on_arrays_and_tensors(lambda w: w, lambda w: np.ones(w.shape)),
        "returned ndarray; it must be a tf.Tensor",
    ),
    "another shape in a graph": (
        _on_arrays_and_tensors(lambda w: w, lambda w: tf.reduce_sum(w, 0)),
        "one score for each weight",
    ),
    "another order in a graph": (
        _on_arrays_and_tensors(lambda w: w, lambda w: -ordering_key(w)),
        r"\(live = True\) leads to another 2:4 mask than on the same numpy array: \d+ of 48 places differ",
    ),
    "random in a graph": (
        _on_arrays_and_tensors(lambda w: w, lambda w: tf.random.uniform(w.shape)),
        "leads to another 2:4 mask than on the same numpy array",
    ),
}


def _solves(change: Callable[[Any], Any], **members: Any) -> Criterion:
    """Masks by magnitude, of which ``change`` makes something else."""

    def solve(self: Criterion, problem: LayerProblem) -> Any:
        return change(assess(problem, problem.magnitude_mask(), problem.weight))

    return type("Broken", (Criterion,), {"name": "broken", "needs": "statistics", "solve": solve, **members})()


def test_a_right_criterion_that_needs_statistics_passes() -> None:
    check_criterion(_solves(lambda solution: solution))


BROKEN_CRITERIA |= {
    "needs something else": (_solves(lambda s: s, needs="luck"), "needs must be one of .*, not 'luck'"),
    "statistics while training": (_solves(lambda s: s, live=True), "live must be False"),
    "no solution": (_solves(lambda s: s.weight), "returned ndarray; it must be a Solution"),
    "other dtype": (_solves(lambda s: attrs.evolve(s, weight=s.weight.astype("f2"))), "returned float16"),
    "mask of floats": (_solves(lambda s: attrs.evolve(s, mask=s.mask * 1.0)), "returned a mask float64"),
    "NaN in weights": (_solves(lambda s: attrs.evolve(s, weight=s.weight * np.nan)), "returned NaN or infinity"),
    "not zero": (_solves(lambda s: attrs.evolve(s, weight=s.weight + 1)), "other than zero where its mask is False"),
    "keeps all": (_solves(lambda s: attrs.evolve(s, mask=s.mask | True)), "kept more than 2 weights of a group"),
    "random weights": (
        _solves(lambda s: attrs.evolve(s, weight=(s.mask * _random.random(s.mask.shape)).astype(s.weight.dtype))),
        "asked again, it gave other weights",
    ),
}


@pytest.mark.parametrize(("criterion", "message"), BROKEN_CRITERIA.values(), ids=BROKEN_CRITERIA)
def test_a_broken_criterion_is_told_what_is_wrong(criterion: Criterion, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_criterion(criterion)


def test_a_class_is_no_criterion() -> None:
    with pytest.raises(AssertionError, match=r"instance of sparsekit.Criterion"):
        check_criterion(Largest)  # type: ignore[arg-type]


# --- targets ---------------------------------------------------------------------------------------------


def _profile(**fields: Any) -> TargetProfile:
    facts = {
        "name": "test-vendor-one",
        "vendor": "Test vendor",
        "title": "Test vendor One",
        "gains": True,
        "reason": "It says so.",
        "sources": ("made up",),
    }
    return TargetProfile(**{**facts, **fields})


def _rule(holds: Callable[[LayerDecision], Any], **fields: Any) -> LayerRule:
    facts = {"name": "some-rule", "message": "It must be so.", "source": "made up"}
    return LayerRule(**{**facts, **fields}, holds=holds)


def test_a_right_profile_passes_and_its_rules_see_layers_of_every_kind() -> None:
    seen: list[LayerDecision] = []
    check_target(_profile(patterns=("2:4", "1:2"), rules=(_rule(seen.append),)))
    pruned = [decision for decision in seen if decision.pruned]
    assert {decision.reason for decision in seen} == {"eligible", "axis-too-short", "weight-dynamic"}
    assert any(len(decision.uses) > 1 for decision in pruned)
    assert {decision.dtype for decision in pruned} == {"float32", "float64"}
    assert {str(decision.pattern) for decision in pruned} == {"2:4", "1:2"}
    assert any(decision.shape[decision.axis] % 4 for decision in pruned)
    assert {decision.deployed for decision in pruned} == {True, False}


def test_a_rule_that_answers_otherwise_the_second_time_is_told_so() -> None:
    answers = itertools.cycle([True, False])
    with pytest.raises(AssertionError, match="as 'eligible', and the second time as 'not eligible: It must be so'"):
        check_target(_profile(rules=(_rule(lambda decision: next(answers)),)))


BROKEN_TARGETS = {
    "vendor is no text": (_profile(vendor=1), "vendor must be text for people"),
    "empty source": (_profile(sources=("made up", " ")), r"sources\[1\] must be text for people"),
    "reason without a full stop": (_profile(reason="because"), "reason must be whole sentences"),
    "gains is no bool": (_profile(gains="yes"), "gains must be True or False"),
    "no pattern": (_profile(patterns=("4:2",)), "a gain from no pattern"),
    "pattern spelt otherwise": (_profile(patterns=("2 : 4",)), "'2 : 4' never matches; write it as '2:4'"),
    "name of an installed target that gains otherwise": (
        _profile(gains=False, chips=("Ascend 310B",)),
        "users cannot ask for it as 'Ascend 310B'",
    ),
    "its name is taken": (
        _profile(name="310", gains=False),
        "'atlas-200-300-500-inference' answers to its name already",
    ),
    "rule fails": (
        _profile(rules=(_rule(lambda decision: decision.shape[0] > 0),)),
        r"on a skip decision \(reason 'weight-dynamic', .* rule 'some-rule': TypeError.* must answer for every layer",
    ),
    "rule answers with text": (
        _profile(rules=(_rule(lambda decision: "no"),)),
        "rule 'some-rule': 'no' for layer .* expected True, False or None",
    ),
    "rule's message is no sentence": (
        _profile(rules=(_rule(bool, message="it must be so"),)),
        "the message of rule 'some-rule' must be whole sentences",
    ),
    "rule's source says nothing": (
        _profile(rules=(_rule(bool, source=" "),)),
        "the source of rule 'some-rule' must be text for people",
    ),
}


@pytest.mark.parametrize(("profile", "message"), BROKEN_TARGETS.values(), ids=BROKEN_TARGETS)
def test_a_broken_target_is_told_what_is_wrong(profile: TargetProfile, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_target(profile)


def test_a_dict_is_no_target() -> None:
    with pytest.raises(AssertionError, match=r"instance of sparsekit.TargetProfile"):
        check_target({"name": "x"})  # type: ignore[arg-type]


# --- plugins ---------------------------------------------------------------------------------------------


def _plugin(**hooks: Callable[[], Any]) -> SimpleNamespace:
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def test_a_right_plugin_passes_and_its_registry_is_returned() -> None:
    plugin = _plugin(
        sparsekit_op_handlers=lambda: [Dense()],
        sparsekit_targets=lambda: [_profile()],
        sparsekit_criteria=lambda: [Largest()],
    )
    registry = check_plugin(plugin)
    assert (set(registry.handlers), set(registry.targets), set(registry.criteria)) == (
        {"MatMul"},
        {"test-vendor-one"},
        {"largest"},
    )


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (_plugin(), "offers nothing. Its hooks have the names in sparsekit/hookspecs.py and the decorator"),
        (_plugin(sparsekit_ops=lambda: ()), "The registry refuses the plugin: .*sparsekit_ops"),
        (_plugin(sparsekit_op_handlers=lambda: [Dense]), "The registry refuses the plugin: .*expected instances of"),
        (_plugin(sparsekit_targets=lambda: [_profile(reason="because")]), "reason must be whole sentences"),
        (_plugin(sparsekit_criteria=lambda: [BROKEN_CRITERIA["NaN"][0]]), "returned NaN"),
    ],
    ids=["no hooks", "misspelt hook", "class for instance", "broken target", "broken criterion"],
)
def test_a_broken_plugin_is_told_what_is_wrong(plugin: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_plugin(plugin)
