"""Values of variables in a session, read and written through ops that the graph has anyway: nothing is added to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy.typing as npt
import tensorflow as tf

from sparsekit.artefact.saved_model import ASSIGNS, VARIABLES
from sparsekit.errors import GraphError

Array: TypeAlias = npt.NDArray[Any]

# So many bytes pass to or from TensorFlow at once.
_MOST_BYTES = 1 << 28
_UNINITIALIZED = (tf.errors.FailedPreconditionError, tf.errors.NotFoundError)


def variables_of(graph: tf.Graph) -> list[tf.Operation]:
    """The ops that stand for variables, in the order of the graph."""
    return [op for op in graph.get_operations() if op.type in VARIABLES]


def read(session: Any, variables: Iterable[tf.Operation]) -> Iterator[tuple[str, Array | None]]:
    """The values of variables, by name, as many in memory as fit into some 256 MB; None where there is none yet.

    Args:
        session: a session of the variables' graph.
        variables: their ops, of those that have a `value_of`.

    Raises:
        GraphError: the session is closed.
    """
    found = ((op.name, value_of(op)) for op in variables)
    for names, tensors in _portions({name: tensor for name, tensor in found if tensor is not None}):
        try:
            values = _run(session, tensors)
        except _UNINITIALIZED:
            values = [_value_or_none(session, tensor) for tensor in tensors]
        yield from zip(names, values, strict=True)


def write(session: Any, values: Iterable[tuple[str, Array]]) -> None:
    """Assign values to variables, given by name.

    Raises:
        GraphError: there is no op that assigns to one of them, or the session is closed.
    """
    feeds: dict[str, Array] = {}
    assignments: list[tf.Operation] = []

    def flush() -> None:
        _run(session, assignments, feeds)
        feeds.clear()
        assignments.clear()

    for name, value in values:
        assignment = assignment_of(session.graph.get_operation_by_name(name))
        # Fed in place of what it assigns else. Two may assign the same tensor.
        place = assignment.inputs[1].name
        if place in feeds or sum(fed.nbytes for fed in feeds.values()) > _MOST_BYTES:
            flush()
        feeds[place] = value
        assignments.append(assignment)
    flush()


def assignment_of(variable: tf.Operation) -> tf.Operation:
    """An op that assigns to a variable and does nothing else, such as its initializer.

    Raises:
        GraphError: there is none.
    """
    written = variable.outputs[0]
    for op in written.consumers():
        if op.type in ASSIGNS and op.inputs[0].name == written.name and _alone(op):
            return op
    raise GraphError(
        "no op assigns to this variable",
        where=variable.name,
        expected="a variable with an initializer",
        hint="Create it with tf.compat.v1.get_variable or tf.Variable, or leave its layer out with skip_layers.",
    )


def value_of(variable: tf.Operation) -> tf.Tensor | None:
    """A tensor with a variable's value; None for a resource that functions, loops or branches alone read."""
    output = variable.outputs[0]
    if output.dtype.base_dtype != tf.resource:
        return output
    reads = (op for op in output.consumers() if op.type == "ReadVariableOp" and _alone(op))
    return next((op.outputs[0] for op in reads), None)


def _alone(op: tf.Operation) -> bool:
    """Whether an op runs whenever it is asked for, and nothing else has to run before."""
    return not op.control_inputs and op._get_control_flow_context() is None


def _portions(tensors: Mapping[str, tf.Tensor]) -> Iterator[tuple[list[str], list[tf.Tensor]]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        size += math.prod(tensor.shape.as_list() if tensor.shape.is_fully_defined() else ()) * tensor.dtype.size
        names.append(name)
        if size > _MOST_BYTES:
            yield names, [tensors[other] for other in names]
            names, size = [], 0
    if names:
        yield names, [tensors[other] for other in names]


def _value_or_none(session: Any, tensor: tf.Tensor) -> Array | None:
    try:
        (value,) = _run(session, [tensor])
    except _UNINITIALIZED:
        return None
    return value


def _run(session: Any, fetches: list[Any], feeds: Mapping[str, Array] | None = None) -> list[Any]:
    try:
        return list(session.run(fetches, feeds)) if fetches else []
    except RuntimeError as error:  # "Attempted to use a closed Session."
        raise GraphError(f"cannot run ({error})", where="session", expected="an open session of the graph") from error
