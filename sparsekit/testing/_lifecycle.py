"""A layer's life: masked, trained, frozen, stripped, verified; each step against the dense graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import tensorflow as tf

from sparsekit.artefact.model import FrozenGraph
from sparsekit.config import PruneConfig
from sparsekit.graph.node import ProtoGraph
from sparsekit.handler import OpHandler
from sparsekit.live.pruning import prune_live
from sparsekit.pattern import keep_mask
from sparsekit.planning import LayerDecision, make_plan
from sparsekit.plugins import Registry
from sparsekit.stripping import strip_masks
from sparsekit.testing._graphs import PlannedGraph, initialize
from sparsekit.verification import verify_model

_STEPS = 2


@attrs.frozen(eq=False)
class _Trained:
    """What is left of the masked graph after its training.

    Attributes:
        frozen: the masked GraphDef.
        variables: by name, the values of all its variables.
        weight: the weight, before its mask.
        mask: bool.
    """

    frozen: Any
    variables: dict[str, Any]
    weight: Any
    mask: Any


def check_lifecycle(
    handler: OpHandler, plan: Callable[[], PlannedGraph], registry: Registry, random: np.random.Generator
) -> None:
    """Check ``insert_mask`` and ``remove_mask`` alone and in the whole flow.

    Args:
        handler: the handler.
        plan: builds and plans a new graph; called once for the dense graph and once for the masked one.
        registry: with the handler in it.
        random: where data comes from.
    """
    who = type(handler).__qualname__
    dense = plan()
    data = random.standard_normal(dense.data_shape()).astype(dense.layer.data.dtype.as_numpy_dtype)
    trained = _train(plan(), dense, data, handler, registry)
    stripped = strip_masks(FrozenGraph(trained.frozen), registry).graph_def
    _check_nodes(stripped, _freeze_dense(dense, trained.variables), dense, who)
    _check_weight(stripped, trained, dense.decision, registry, who)
    if (_run(stripped, dense, data) != _run(trained.frozen, dense, data)).any():
        raise AssertionError(f"{who}: the outputs of the masked and of the stripped graph must be equal bit for bit.")


def _train(masked: PlannedGraph, dense: PlannedGraph, data: Any, handler: OpHandler, registry: Registry) -> _Trained:
    """Insert the mask, look at one forward pass and its gradient, train, and freeze."""
    who = type(handler).__qualname__
    decision = masked.decision
    feed = {masked.layer.data: data}
    with masked.graph.as_default():
        prune_live(masked.graph, masked.planning, registry, None)
        variable = _variable(masked)
        gradient, train = _training(masked.layer.output, variable, who) if variable is not None else (None, None)
    with tf.compat.v1.Session(graph=masked.graph) as session:
        initialize(masked.graph, session)
        weight = session.run(masked.weight)
        if np.count_nonzero(weight) < weight.size:
            raise AssertionError(f"{who}: the build function must give '{decision.weight}' random values, not zeros.")
        assert decision.axis is not None and decision.pattern is not None
        score = registry.criterion(decision.criterion).score(weight, decision.axis)
        mask = keep_mask(score, decision.axis, decision.pattern)
        _check_folding(handler, weight, mask)
        output, expected_gradient = _on_masked_weight(
            dense, handler.remove_mask(weight, mask), data, gradient is not None
        )
        if (session.run(masked.layer.output, feed) != output).any():
            raise AssertionError(
                f"{who}: with the mask inserted, the output must be what the op makes of the masked weight, bit for "
                "bit. insert_mask must let the op read the tensor that it is given, and change nothing else."
            )
        if gradient is not None:
            found = session.run(gradient, feed)
            if found[~mask].any():
                raise AssertionError(f"{who}: the gradient must be exactly zero where weights are dropped.")
            if not np.allclose(found[mask], expected_gradient[mask], rtol=1e-3, atol=1e-5):
                raise AssertionError(f"{who}: weights that stay must get the gradient that the op alone gives them.")
            for _ in range(_STEPS):
                session.run(train, feed)
        return _Trained(
            frozen=_freeze(session, masked),
            variables=_values(session, masked),
            weight=session.run(masked.weight),
            mask=mask,
        )


def _training(output: tf.Tensor, variable: tf.Variable, who: str) -> tuple[tf.Tensor, tf.Operation]:
    """The gradient for the weight, and a step of training."""
    optimizer = tf.compat.v1.train.GradientDescentOptimizer(1e-3)
    [(gradient, _)] = optimizer.compute_gradients(_loss(output), [variable])
    if gradient is None:
        raise AssertionError(
            f"{who}: no gradient reaches '{variable.name}' through the mask. insert_mask must use the tensor that it "
            "is given as it is; an op without a gradient is tested with a constant weight."
        )
    return tf.convert_to_tensor(gradient), optimizer.apply_gradients([(gradient, variable)])


def _loss(output: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(output))


def _check_folding(handler: OpHandler, weight: Any, mask: Any) -> None:
    """remove_mask alone."""
    who = type(handler).__qualname__
    given = weight.copy(), mask.copy()
    folded = handler.remove_mask(*given)
    if given[0].tobytes() != weight.tobytes() or given[1].tobytes() != mask.tobytes():
        raise AssertionError(f"{who}.remove_mask changed its arguments; it must return a new array.")
    if not isinstance(folded, np.ndarray) or (folded.shape, folded.dtype) != (weight.shape, weight.dtype):
        raise AssertionError(f"{who}.remove_mask must return an array of the weight's shape and dtype.")
    _check_values(folded, weight, mask, f"{who}.remove_mask")


def _check_values(folded: Any, weight: Any, mask: Any, what: str) -> None:
    if folded[~mask].any() or np.signbit(folded[~mask]).any():
        raise AssertionError(f"{what} must leave +0.0 wherever the mask is False.")
    if folded[mask].tobytes() != weight[mask].tobytes():
        raise AssertionError(f"{what} must keep the weights where the mask is True, bit for bit.")


def _check_weight(stripped: Any, trained: _Trained, live: LayerDecision, registry: Registry, who: str) -> None:
    """The weight in the stripped graph, as the handler finds it there."""
    planning = make_plan(ProtoGraph(stripped), PruneConfig(), None, registry)
    found = planning.plan.decisions[0]
    if (found.status, found.axis, found.shape) != (live.status, live.axis, live.shape):
        raise AssertionError(
            f"{who} must decide alike on a live graph and on a GraphDef: {live.reason}, axis {live.axis} on the one, "
            f"{found.reason}, axis {found.axis} on the other. Read the op through Node's own methods only."
        )
    _check_values(planning.layers[0].source.read.value(), trained.weight, trained.mask, f"{who}: the stripped weight")
    verification = verify_model(FrozenGraph(stripped), registry)
    if not verification.ok:
        raise AssertionError(f"{who}: the stripped graph must pass verification.\n{verification}")


def _check_nodes(stripped: Any, dense: Any, planned: PlannedGraph, who: str) -> None:
    """The stripped graph is the dense one, node for node, apart from the weight's values."""
    leaves = {leaf.name for leaf in planned.planned.source.leaves}

    def nodes(graph_def: Any) -> dict[str, Any]:
        found = {}
        for node in graph_def.node:
            found[node.name] = type(node).FromString(node.SerializeToString())
            if node.name in leaves:
                del found[node.name].attr["value"]
        return found

    left, right = nodes(stripped), nodes(dense)
    differing = [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)]
    if differing or list(left) != list(right):
        raise AssertionError(
            f"{who}: the stripped graph must be the dense frozen graph, node for node, apart from the weight; "
            f"{', '.join(differing[:5]) or 'the order of nodes'} differ. insert_mask may add no ops of its own."
        )


def _on_masked_weight(dense: PlannedGraph, weight: Any, data: Any, with_gradient: bool) -> tuple[Any, Any]:
    """The dense graph's output, and its gradient for the weight, as if ``weight`` were in the variable."""
    with dense.graph.as_default():
        wanted = [dense.layer.output]
        if with_gradient:
            wanted += tf.gradients(_loss(dense.layer.output), [dense.weight])
    with tf.compat.v1.Session(graph=dense.graph) as session:
        initialize(dense.graph, session)
        output, *gradient = session.run(wanted, {dense.weight: weight, dense.layer.data: data})
        return output, gradient[0] if gradient else None


def _variable(planned: PlannedGraph) -> tf.Variable | None:
    """The variable that holds the weight, None where a constant does."""
    variables = {variable.op.name: variable for variable in tf.compat.v1.global_variables()}
    return variables.get(planned.planned.source.leaves[0].name)


def _values(session: Any, planned: PlannedGraph) -> dict[str, Any]:
    with planned.graph.as_default():
        variables = {variable.op.name: variable for variable in tf.compat.v1.global_variables()}
    values: dict[str, Any] = session.run(variables)
    return values


def _freeze(session: Any, planned: PlannedGraph) -> Any:
    return tf.compat.v1.graph_util.convert_variables_to_constants(
        session, planned.graph.as_graph_def(), [planned.layer.output.op.name]
    )


def _freeze_dense(dense: PlannedGraph, values: dict[str, Any]) -> Any:
    """The dense graph, frozen with the variables of the masked one."""
    with dense.graph.as_default(), tf.compat.v1.Session() as session:
        for variable in tf.compat.v1.global_variables():
            initializer = variable.initializer
            session.run(initializer, {initializer.inputs[1]: values[variable.op.name]})
        return _freeze(session, dense)


def _run(graph_def: Any, planned: PlannedGraph, data: Any) -> Any:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(planned.layer.output.name, {planned.layer.data.name: data})
