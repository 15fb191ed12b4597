"""Does an op handler keep its promises? See :class:`sparsekit.handler.OpHandler`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from sparsekit.config import PruneConfig
from sparsekit.graph.node import LiveGraph
from sparsekit.handler import Constraint, OpHandler
from sparsekit.live.pruning import plan_live
from sparsekit.plugins import Registry
from sparsekit.testing._contraction import check_contraction
from sparsekit.testing._graphs import Build, PlannedGraph, new_graph, plan_new, registry_of
from sparsekit.testing._lifecycle import check_lifecycle
from sparsekit.testing._matrix_form import check_matrix_form


def check_handler(handler: OpHandler, build: Build, *, violating: Mapping[str, Build] | None = None) -> None:
    """Check a handler on a layer: from its declaration, through training and freezing, to the stripped graph.

    The handler need not be installed; whoever else has a handler for its op types is left out.

    Args:
        handler: an instance.
        build: makes, in the default graph, one op of the handler's types that can be pruned, with a weight of random
            values, and always under the same names. A dozen input channels and a kernel larger than its stride are
            best. The weight is a variable; of an op without a gradient, a constant.
        violating: by reason code, what builds a layer that must be skipped for that reason.

    Raises:
        AssertionError: it breaks the contract; the message says how.
    """
    _check_declaration(handler)
    _check_on_the_op(handler, build)
    registry = registry_of(handler)
    random = np.random.default_rng(0)

    def plan() -> PlannedGraph:
        return plan_new(handler, build, registry)

    check_contraction(plan(), random)
    if handler.has_matrix_form:
        check_matrix_form(handler, plan(), random)
    check_lifecycle(handler, plan, registry, random)
    for reason, broken in (violating or {}).items():
        _check_violated(reason, broken, handler, registry)


def _check_declaration(handler: OpHandler) -> None:
    if not isinstance(handler, OpHandler):
        raise AssertionError(f"A handler is an instance of sparsekit.OpHandler, not {handler!r}.")
    who = type(handler).__qualname__
    for field in ("op_types", "weight_dtypes"):
        names = getattr(handler, field)
        if not isinstance(names, tuple) or not names or not all(isinstance(name, str) and name for name in names):
            raise AssertionError(f"{who}.{field} must be a tuple of names with at least one, not {names!r}.")
    if type(handler.weight_input) is not int or handler.weight_input < 0:
        raise AssertionError(f"{who}.weight_input must be the index of an input, not {handler.weight_input!r}.")
    if not isinstance(handler.constraints, tuple):
        raise AssertionError(f"{who}.constraints must be a tuple, not {handler.constraints!r}.")
    for constraint in handler.constraints:
        if not isinstance(constraint, Constraint):
            raise AssertionError(f"{who}.constraints must hold instances of sparsekit.Constraint, not {constraint!r}.")
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", constraint.reason):
            raise AssertionError(
                f"{who}: the reason of a constraint must be a code of lower-case words joined by hyphens, such as "
                f"'transpose-a', not {constraint.reason!r}."
            )
        if " " not in constraint.message or not constraint.message.endswith("."):
            raise AssertionError(
                f"{who}: the message of constraint '{constraint.reason}' must be a sentence for people, with a full "
                f"stop, not {constraint.message!r}."
            )
    reasons = [constraint.reason for constraint in handler.constraints]
    if len(set(reasons)) < len(reasons):
        raise AssertionError(f"{who}: two constraints have the same reason: {', '.join(reasons)}.")


def _check_on_the_op(handler: OpHandler, build: Build) -> None:
    """What the declaration says must fit the op that was built."""
    who = type(handler).__qualname__
    graph, layer = new_graph(build)
    nodes = [node for node in LiveGraph(graph).nodes() if node.op in handler.op_types]
    if len(nodes) != 1:
        raise AssertionError(
            f"{who}: the build function must make exactly one op of type {' or '.join(handler.op_types)}; it made "
            f"{len(nodes)}, among ops of type {', '.join(sorted({op.type for op in graph.get_operations()}))}."
        )
    node = nodes[0]
    places = [index for index, _ in handler.weight_sites(node)]
    if handler.weight_input >= len(node.inputs) or not all(0 <= index < len(node.inputs) for index in places):
        raise AssertionError(
            f"{who}.weight_input is {handler.weight_input}, but {node!r} has {len(node.inputs)} inputs, counted from 0."
        )
    if all(node.inputs[index].node.name == layer.data.op.name for index in places):
        raise AssertionError(f"{who}.weight_input is {handler.weight_input}, but there {node!r} reads its data.")
    axis = handler.group_axis(node)
    if type(axis) is not int or axis != handler.group_axis(node):
        raise AssertionError(f"{who}.group_axis must return the same int whenever it is asked, not {axis!r}.")


def _check_violated(reason: str, build: Build, handler: OpHandler, registry: Registry) -> None:
    who = type(handler).__qualname__
    graph, layer = new_graph(build)
    plan = plan_live(graph, PruneConfig(), (layer.output.op.name,), registry, None).plan
    found = [decision.reason for decision in plan.decisions]
    if found != [reason]:
        raise AssertionError(
            f"{who}: the layer built for violating['{reason}'] must be skipped for that reason; the plan says "
            f"{', '.join(found) or 'nothing'}."
        )
