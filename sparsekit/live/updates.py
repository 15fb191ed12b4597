"""What a train op does to a variable, told by its graph and by the ops themselves: no optimizer is known by name."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework import node_def_pb2
from tensorflow.python.framework import op_def_registry

from sparsekit.graph.forward import reached
from sparsekit.live.mask import SCOPE, state_variable
from sparsekit.live.variable_reads import python_variables

Array: TypeAlias = npt.NDArray[np.float64]

_OURS = f"/{SCOPE}/"


@attrs.frozen
class Update:
    """What a train op does to a variable.

    Attributes:
        slots: other variables of its shape (references or resources) that move a weight which has no gradient.
        doubt: why there may be more that does, half a sentence; "" if there is not.
    """

    slots: tuple[tf.Tensor, ...]
    doubt: str


class TrainOp:
    """What runs when a train op does.

    Args:
        end: the operation or tensor.
        layers: the variables of layers. Whether they are trained or not (a target network, a teacher), they hold no
            momentum.
    """

    def __init__(self, end: tf.Operation | tf.Tensor, layers: Collection[tf.Operation]) -> None:
        self._before = _before(end if isinstance(end, tf.Operation) else end.op)
        weights = {op for op, found in python_variables(end.graph).items() if any(each.trainable for each in found)}
        weights |= set(layers)
        others = (op for op in self._before if _is_variable_op(op) and op not in weights and _OURS not in op.name)
        self._others = sorted(others, key=lambda op: op.name)
        # Of those that are trained (sums of gradients, momentum that is kept by hand, slots), what depends on them.
        self._states: dict[tf.Operation, set[tf.Operation]] = {}

    def writers_of(self, variable: tf.Operation) -> tuple[tf.Operation, ...]:
        """The ops that write a variable, besides those that keep its zeros."""
        target = variable.outputs[0]
        users = (op for op in target.consumers() if op in self._before and _OURS not in op.name)
        return tuple(op for op in users if _writes(op, target))

    def update_of(self, variable: tf.Operation) -> Update:
        """What it does to a variable."""
        target = variable.outputs[0]
        slots: dict[str, tf.Tensor] = {}
        doubts = []
        for writer in self.writers_of(variable):
            asked = _moving_slots(writer, target)
            if asked is None:
                doubts.append(f"how '{writer.name}' ({writer.type}) updates the weight is not known")
                continue
            slots |= {slot.name: slot for slot in asked}
            state = self._state_in(writer, target)
            if state is not None:
                doubts.append(f"'{writer.name}' ({writer.type}) updates the weight by what '{state.name}' holds")
        return Update(tuple(slots.values()), "; ".join(dict.fromkeys(doubts)))

    def _state_in(self, writer: tf.Operation, variable: tf.Tensor) -> tf.Operation | None:
        """A variable, as large as the weight at least, that what is written depends on, besides the op's own slots."""
        size = _shape(variable).num_elements() or 0
        values = {tensor.op for tensor in writer.inputs if not _is_variable(tensor)}
        for state in self._others:
            elements = _shape(state.outputs[0]).num_elements()
            if state is variable.op or (elements is not None and elements < size):
                continue
            if state not in self._states:
                self._states[state] = self._computed_from(state) if self._is_trained(state.outputs[0]) else set()
            if values & self._states[state]:
                return state
        return None

    def _is_trained(self, state: tf.Tensor) -> bool:
        """Whether the train op writes it, or another op adds to it; else it is only initialized."""
        writers = [op for op in state.consumers() if _writes(op, state)]
        return any(op in self._before or _adds(op, state) for op in writers)

    def _computed_from(self, variable: tf.Operation) -> set[tf.Operation]:
        def users(op: tf.Operation) -> set[tf.Operation]:
            return {user for output in op.outputs for user in output.consumers()} & self._before

        return reached([variable], users)


def _before(end: tf.Operation) -> set[tf.Operation]:
    """The op and all that run before it."""
    return reached([end], lambda op: [*(tensor.op for tensor in op.inputs), *op.control_inputs])


def _writes(op: tf.Operation, variable: tf.Tensor) -> bool:
    """Whether an op that takes a variable may write it, itself or through what it hands on."""
    if variable.dtype.base_dtype != tf.resource:
        definition = op_def_registry.get(op.type)
        return definition is None or any(arg.is_ref for arg in definition.input_arg)
    hands_on = any(output.dtype.base_dtype in (tf.resource, tf.variant) for output in op.outputs)
    calls = any(value.HasField("func") or value.list.func for value in op.node_def.attr.values())
    return not op.outputs or hands_on or calls


def _is_variable_op(op: tf.Operation) -> bool:
    return len(op.outputs) == 1 and _is_variable(op.outputs[0])


def _is_variable(tensor: tf.Tensor) -> bool:
    is_variable = tensor.dtype._is_ref_dtype or (tensor.dtype == tf.resource and "dtype" in tensor.op.node_def.attr)
    return is_variable and not tensor.op.inputs and "shape" in tensor.op.node_def.attr


def _shape(variable: tf.Tensor) -> tf.TensorShape:
    """Of what a variable (a reference or a resource) holds."""
    return tf.TensorShape(variable.op.get_attr("shape"))


def _moving_slots(writer: tf.Operation, variable: tf.Tensor) -> tuple[tf.Tensor, ...] | None:
    """The slots that move a weight of zero which has no gradient; None where it is not certain that nothing else does.

    The op itself is asked: it runs on weights of zero without gradients, with slots of 0 and 1 in all combinations.
    Momentum moves the weight then; second moments alone do not.
    """
    if not writer.inputs or writer.inputs[0] is not variable:
        return None
    slots = tuple(tensor for tensor in itertools.islice(writer.inputs, 1, None) if _is_variable(tensor))
    found, kept = (_outcomes(writer, variable, slots, start) for start in (0.0, 1.0))
    # An op without slots that leaves nothing of a weight writes what was computed elsewhere.
    if found is None or kept is None or (not slots and not kept.all()):
        return None
    moving = [axis for axis in range(len(slots)) if _decides(found, axis)]
    without = found[tuple(0 if axis in moving else slice(None) for axis in range(len(slots)))]
    return None if np.any(without[np.isfinite(without)]) else tuple(slots[axis] for axis in moving)


def _decides(outcomes: Array, axis: int) -> bool:
    """Whether there is a weight that moves, and would not if that slot were 0."""
    without, with_it = np.moveaxis(outcomes, axis, 0)
    return bool(np.any(np.isfinite(with_it) & (without == 0) & (with_it != 0)))


def _adds(op: tf.Operation, variable: tf.Tensor) -> bool:
    """Whether what it writes depends on what was there, as far as that can be told."""
    if len(op.inputs) != 2 or op.inputs[0] is not variable:
        return True
    left = _outcomes(op, variable, (), start=1.0)
    return left is None or bool(left.all()) or variable.op in _before(op.inputs[1].op)


def _outcomes(writer: tf.Operation, variable: tf.Tensor, slots: tuple[tf.Tensor, ...], start: float) -> Array | None:
    """What an op makes of weights that are ``start`` and have no gradient: by every slot, whether it is 0 or 1.

    None: it does not run alone.
    """
    shape = _shape(variable)
    if not all(_shape(slot).is_compatible_with(shape) for slot in slots):
        return None
    inputs = []
    for tensor in itertools.islice(writer.inputs, 1, None):
        scalar = None if _is_variable(tensor) or tensor.shape.rank != 0 else _scalar(tensor)
        is_number = _dtype(tensor).is_floating or _dtype(tensor).is_integer
        if not is_number or not (_is_variable(tensor) or scalar is not None or tensor.shape.is_compatible_with(shape)):
            return None
        inputs.append(_Input(_is_variable(tensor), scalar, _dtype(tensor)))
    definition = node_def_pb2.NodeDef(name="update", op=writer.type)
    for name, value in writer.node_def.attr.items():
        if not name.startswith("_"):
            definition.attr[name].CopyFrom(value)
    text = definition.SerializeToString(deterministic=True)
    found = _run_alone(text, tuple(inputs), _dtype(variable), not variable.dtype._is_ref_dtype, start)
    return None if found is None else np.array(found).reshape([2] * len(slots))


def _scalar(tensor: tf.Tensor) -> float:
    """A hyperparameter; something else than 0 where a schedule makes it."""
    value = tf.get_static_value(tensor) if tensor.dtype.is_floating else 1
    return float(value) if value else 0.5


def _dtype(tensor: tf.Tensor) -> tf.DType:
    """Of a value, or of what a variable holds."""
    return tf.as_dtype(tensor.op.get_attr("dtype")) if _is_variable(tensor) else tensor.dtype.base_dtype


@attrs.frozen
class _Input:
    """An input of an op that runs alone: a slot, a hyperparameter or, where there is no scalar, a gradient."""

    is_slot: bool
    scalar: float | None
    dtype: tf.DType


@functools.lru_cache(maxsize=256)
def _run_alone(
    definition: bytes, inputs: tuple[_Input, ...], dtype: tf.DType, is_resource: bool, start: float
) -> tuple[float, ...] | None:
    """What an op leaves of weights, for all combinations of slots of 0 and 1; None where it fails."""
    slots = sum(each.is_slot for each in inputs)
    size = 2**slots
    combinations = iter(np.indices([2] * slots).reshape(slots, size))
    node = node_def_pb2.NodeDef.FromString(definition)
    with tf.Graph().as_default() as graph:

        def variable(name: str, kind: tf.DType, value: Any) -> Any:
            return state_variable(not is_resource, name, kind, lambda: tf.constant(np.broadcast_to(value, size), kind))

        weight = variable("weight", dtype, start)
        variables = [weight]
        named = ["weight"]
        for i, each in enumerate(inputs):
            name = f"input_{i}"
            if each.is_slot:
                variables.append(variable(name, each.dtype, next(combinations)))
            else:
                value = np.zeros(size) if each.scalar is None else np.asarray(each.scalar)
                tf.constant(value.astype(each.dtype.as_numpy_dtype), name=name)
            named.append(name)
        left = tf.cast(weight.read_value(), tf.float64, name="left")
        initializer = tf.group(*(each.initializer for each in variables), name="initializer")
        names = [initializer.name, "update", left.name]
        graph_def = graph.as_graph_def()
    node.input.extend(named)
    graph_def.node.append(node)
    try:
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            # A session that sees no accelerator leaves their settings to the user's own.
            with tf.compat.v1.Session(graph=graph, config=tf.compat.v1.ConfigProto(device_count={"GPU": 0})) as session:
                for name in names[:2]:
                    session.run(graph.get_operation_by_name(name))
                return tuple(session.run(names[2]).tolist())
    except (ValueError, tf.errors.OpError):
        return None
