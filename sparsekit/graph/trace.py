"""Where an op's weight comes from: from the op's input back to variables or constants, or the reason why not."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from sparsekit.graph.node import ARGUMENT, ArgumentNode, Edge, FunctionView, GraphView, Node

Array: TypeAlias = NDArray[Any]

MASK_ATTRIBUTE = "_sparsekit"
"""Attribute of the multiply that masks a weight; its value describes the mask."""

VARIABLES = ("VariableV2", "Variable", "VarHandleOp")
# Ops that hand on a weight as it is. Those of v1 control flow are among them: a mask goes before them.
_UNCHANGED = {"Identity", "StopGradient", "PreventGradient", "Snapshot", "CheckNumerics", "Enter", "Switch", "_SwitchN"}
# Ops after which a zero is still a zero, so that the mask can go before them, where the precision is.
_ZERO_STAYS_ZERO = {
    "Cast",
    "FakeQuantWithMinMaxArgs",
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
    "QuantizeAndDequantize",
    "QuantizeAndDequantizeV2",
    "QuantizeAndDequantizeV3",
    "QuantizeAndDequantizeV4",
}
_RESHAPES = {"Reshape", "ExpandDims", "Squeeze"}
_HANDS_ON_TOO = {"Transpose", "ReadVariableOp", "ConcatV2", "Merge", "NextIteration", "Exit"}
# In these the branch of a cond keeps a value for its gradient.
_HANDS_ON_TOO |= {"OptionalFromValue", "OptionalGetValue"}
# A dozen ops stand between a weight and its op, a partitioned variable has some hundred parts, and a layout is as many
# numbers as an array has axes. More is no work of an exporter, and would be looked at for every layer anew.
_MAX_STEPS = 250
_MAX_PARTS = 1_000
_MAX_LAYOUT = 64
_RANDOM = re.compile(r"Random|TruncatedNormal|Multinomial|Dropout")


def hands_on(op: str) -> bool:
    """Whether an op's result is its first input, at most laid out or rounded anew."""
    return op in _UNCHANGED or op in _ZERO_STAYS_ZERO or op in _RESHAPES or op in _HANDS_ON_TOO


@attrs.frozen(eq=False)
class WeightSource:
    """The variable(s) or constant(s) behind an op's weight, and the edge where a mask belongs.

    Attributes:
        key: equal for two sources that read the same weight.
        read: where it is stored.
        tensor: the output to be masked: the weight as it is read.
        consumer, input: the first reader of ``tensor`` on the way to the op: the edge that a mask goes on.
        path: the ops between ``tensor`` and the op, the op last.
        shape: of ``tensor``.
        dtype: of ``tensor``, by name.
        axis: the group axis, on ``tensor``; of several that are merged before the op the innermost.
        shape_at_op, axis_at_op: its shape and the group axis where the op reads it.
    """

    key: tuple[object, ...]
    read: Read
    tensor: Edge
    consumer: Node
    input: int
    path: tuple[Node, ...]
    shape: tuple[int, ...]
    dtype: str
    axis: int
    shape_at_op: tuple[int, ...]
    axis_at_op: int

    @property
    def holds_part_of_axis(self) -> bool:
        """Whether ``axis`` is one of several that are merged before the op: groups must lie within it."""
        return self.shape[self.axis] != self.shape_at_op[self.axis_at_op]

    def as_op_sees(self, stored: Array) -> Array:
        """A value of the weight, laid out as the op sees it. Precision stays that of the storage."""
        for step in self._layouts(stored.shape):
            stored = stored.transpose(step) if isinstance(step, list) else stored.reshape(step)
        return stored

    def as_stored(self, seen: Array) -> Array:
        """A value that the op should see, laid out as it is stored; the inverse of `as_op_sees`."""
        shapes = [self.shape]
        for step in self._layouts(self.shape):
            shapes.append(tuple(shapes[-1][axis] for axis in step) if isinstance(step, list) else step)
        for step, before in zip(reversed(self._layouts(self.shape)), reversed(shapes[:-1]), strict=True):
            seen = seen.transpose(np.argsort(step)) if isinstance(step, list) else seen.reshape(before)
        return seen

    def _layouts(self, shape: tuple[int, ...]) -> list[list[int] | tuple[int, ...]]:
        """What happens to the layout on the way: orders of axes, and new shapes."""
        steps: list[list[int] | tuple[int, ...]] = []
        for node in self.path[:-1]:
            moved = _moved(node, shape)
            assert moved is not None  # it was traced
            if node.op == "Transpose":
                steps.append([moved[1](axis) or 0 for axis in range(len(shape))])
            elif moved[0] != shape:
                steps.append(moved[0])
            shape = moved[0]
        return steps

    @property
    def leaves(self) -> tuple[Node, ...]:
        """The variable or constant; several where it is partitioned."""
        return self.read.leaves

    @property
    def name(self) -> str:
        """The variable's or constant's name; of a partitioned one the first part's."""
        return self.leaves[0].path


@attrs.frozen(eq=False)
class Read:
    """A weight as it is read from where it is stored.

    Attributes:
        leaves: the variable or constant; several where a partitioned variable is concatenated.
        concat_axis: the axis of that concatenation, None for a single leaf.
        out_of_reach: why a live graph has no edge for a mask here, None if it has; the stored weight can be edited
            all the same.
    """

    leaves: tuple[Node, ...]
    concat_axis: int | None = None
    out_of_reach: Untraceable | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it is made of constants alone."""
        return all(leaf.op == "Const" for leaf in self.leaves)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the whole, None where unknown."""
        if self.concat_axis is None:
            return _leaf_shape(self.leaves[0])
        shapes = [_leaf_shape(leaf) for leaf in self.leaves]
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(shapes):
            return None
        whole = list(known[0])
        whole[self.concat_axis] = sum(shape[self.concat_axis] for shape in known)
        return tuple(whole)

    def value(self) -> Array | None:
        """The weight where it is made of constants, None where a variable is part of it."""
        parts = [leaf.constant() for leaf in self.leaves]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return known[0] if self.concat_axis is None else np.concatenate(known, self.concat_axis)

    def split(self, weight: Array) -> list[tuple[Node, Array]]:
        """A value for the whole, cut into values for the leaves."""
        if self.concat_axis is None:
            return [(self.leaves[0], weight)]
        lengths = [(_leaf_shape(leaf) or ())[self.concat_axis] for leaf in self.leaves]
        parts = np.split(weight, np.cumsum(lengths)[:-1], self.concat_axis)
        return list(zip(self.leaves, parts, strict=True))


@attrs.frozen
class Untraceable:
    """Why no static weight was found: a stable code, and a sentence for people."""

    reason: str
    message: str


class Tracer:
    """Traces weights; what it learns about a graph serves the next trace in it."""

    def __init__(self) -> None:
        self._origins: dict[GraphView, dict[Node, Node]] = {}
        self._before: dict[Node, Node] = {}
        self._concatenated: dict[Node, Read | None] = {}

    def trace(self, op: Node, weight_input: int, group_axis: int) -> WeightSource | Untraceable:
        """Follow an op's weight to its variable or constant.

        Args:
            op: the op.
            weight_input: index of the input that holds the weight.
            group_axis: the group axis of the weight as the op sees it.
        """
        if not 0 <= weight_input < len(op.inputs):
            return Untraceable(
                "weight-missing", f"has {len(op.inputs)} inputs, its weight would be number {weight_input}"
            )
        consumer, index = op, weight_input
        back = [op]
        while True:
            edge = consumer.inputs[index]
            # What is read through an identity is what is read before it, which was nothing: asked once for all of them.
            read = None if consumer is not op and consumer.op == "Identity" else self.read(edge)
            if isinstance(read, Untraceable):
                return read
            if read is not None:
                break
            step = self._step(edge.node)
            if isinstance(step, Untraceable):
                return step
            consumer, index = step
            back.append(consumer)
            if len(back) > _MAX_STEPS:
                return Untraceable("weight-computed", f"its weight lies behind more than {_MAX_STEPS} ops")
        path = back[::-1]
        shape = read.shape
        if shape is None:
            return Untraceable("shape-unknown", f"the shape of its weight '{read.leaves[0].path}' is not known")
        found = _axis_at_source(path[:-1], shape, group_axis)
        if isinstance(found, Untraceable):
            return found
        axis, shape_at_op = found
        return WeightSource(
            key=(*[_identity(leaf) for leaf in read.leaves], read.concat_axis),
            read=read,
            tensor=edge,
            consumer=consumer,
            input=index,
            path=tuple(path),
            shape=shape,
            dtype=str(read.leaves[0].attr("dtype")),
            axis=axis,
            shape_at_op=shape_at_op,
            axis_at_op=group_axis % len(shape_at_op),
        )

    def read(self, edge: Edge) -> Read | Untraceable | None:
        """What ``edge`` reads as it is stored; None if something stands between."""
        node = self._before_identities(edge.node)
        if node.op == "Const" or node.op in ("VariableV2", "Variable"):
            if not isinstance(node.view, FunctionView):
                return Read((node,))
            inside = Untraceable("weight-inside-function", f"its weight '{node.path}' lies inside a function")
            return Read((node,), out_of_reach=inside)
        if node.op == "ReadVariableOp":
            return self._read_resource(node)
        if node.op == "ConcatV2":
            if node not in self._concatenated:
                self._concatenated[node] = self._read_parts(node)
            return self._concatenated[node]
        return None

    def _before_identities(self, node: Node) -> Node:
        """What Identities hand on; each is passed once, however many layers lie behind it."""
        passed = []
        while node.op == "Identity" and node.inputs and node not in self._before:
            passed.append(node)
            node = node.inputs[0].node
        end = self._before.get(node, node)
        self._before.update((identity, end) for identity in passed)
        return end

    def _read_parts(self, concat: Node) -> Read | None:
        """A partitioned variable: a concatenation of single variables, alike but for their length along it."""
        *parts, axis = concat.inputs
        at = _numbers(axis.node)
        if at is None or len(at) != 1 or not 0 < len(parts) <= _MAX_PARTS:
            return None
        leaves: list[Node] = []
        for part in parts:
            node = self._before_identities(part.node)
            read = None if node.op == "ConcatV2" else self.read(part)
            if not isinstance(read, Read):
                return None
            leaves += read.leaves
        shapes = [_leaf_shape(leaf) or () for leaf in leaves]
        rank = len(shapes[0])
        others = {(*shape[: at[0] % rank], *shape[at[0] % rank + 1 :]) for shape in shapes} if rank else set()
        alike = len(others) == 1 and {len(shape) for shape in shapes} == {rank}
        alike = alike and len({leaf.attr("dtype") for leaf in leaves}) == 1
        if not alike or len({_identity(leaf) for leaf in leaves}) < len(parts):
            return None
        return Read(tuple(leaves), at[0] % rank)

    def _read_resource(self, read: Node) -> Read | Untraceable:
        """From a read back to the variable, which may be handed into functions, loops and conds as a resource."""
        out_of_reach = None
        node = self._before_identities(read.inputs[0].node)
        steps = 0
        while node.op != "VarHandleOp":
            if node.op in ("Enter", "Switch"):
                out_of_reach = Untraceable(
                    "read-inside-control-flow",
                    f"its variable is read inside a loop or cond ('{read.path}'); read it before, with tf.identity",
                )
                node = self._before_identities(node.inputs[0].node)
            elif isinstance(node, ArgumentNode):
                out_of_reach = Untraceable(
                    "read-inside-function",
                    f"its variable is read inside a function ('{read.path}'); read it before the call, with "
                    "tf.identity",
                )
                passed = self._passed_argument(node)
                if isinstance(passed, Untraceable):
                    return passed
                call, index = passed
                node = self._before_identities(call.inputs[index].node)
            else:
                return self._not_static(node)
            steps += 1
            if steps > _MAX_STEPS:
                return Untraceable("weight-computed", f"its variable lies behind more than {_MAX_STEPS} ops")
        return Read((node,), out_of_reach=out_of_reach)

    def _step(self, node: Node) -> tuple[Node, int] | Untraceable:
        """One op further back: the op itself and the index of the input to follow."""
        if node.attr(MASK_ATTRIBUTE) is not None:
            return Untraceable(
                "already-masked", f"its weight already has a mask ('{node.path}'): strip the graph first"
            )
        if node.op in _UNCHANGED or node.op in _ZERO_STAYS_ZERO or node.op in _RESHAPES or node.op == "Transpose":
            return node, 0
        if isinstance(node, ArgumentNode):
            return self._passed_argument(node)
        if node.op == "Merge":
            # A loop variable of a v1 loop that the body hands on unchanged.
            for index, edge in enumerate(node.inputs):
                if edge.node.op == "Enter" and _goes_round_unchanged(node, node.inputs[1 - index].node):
                    return node, index
            return Untraceable(
                "weight-loop-variant",
                f"its weight changes from one turn of a loop to the next ('{node.path}')",
            )
        return self._not_static(node)

    def _passed_argument(self, argument: ArgumentNode) -> tuple[Node, int] | Untraceable:
        call, index = argument.outside()
        view = argument.view
        if isinstance(view, FunctionView) and view.role in ("body", "cond"):
            body = next((view for view in call.view.bodies(call) if view.role == "body"), None)
            returned = self._before_identities(body.result(argument.index).node) if body else None
            if not (isinstance(returned, ArgumentNode) and returned.index == argument.index):
                return Untraceable(
                    "weight-loop-variant", f"its weight changes from one turn of '{call.path}' to the next"
                )
        return call, index

    def _not_static(self, node: Node) -> Untraceable:
        source = self.data_source(node)
        if source is None:
            return Untraceable(
                "weight-computed",
                f"its weight is computed by '{node.path}' ({node.op}) instead of being a variable or constant",
            )
        kind = "the function argument" if source.op == ARGUMENT else f"the {source.op}"
        return Untraceable("weight-dynamic", f"its weight depends on {kind} '{source.path}', which changes at run time")

    def data_source(self, node: Node) -> Node | None:
        """A placeholder, iterator, random op or the like that ``node`` depends on; None if there is none."""
        return self._origins_in(node.view).get(node)

    def has_data(self, view: GraphView) -> bool:
        """Whether there is any such node in the graph or function body."""
        return bool(self._origins_in(view))

    def _origins_in(self, view: GraphView) -> dict[Node, Node]:
        origins = self._origins.get(view)
        if origins is None:
            origins = self._origins[view] = self._data_origins(view)
        return origins

    def _data_origins(self, view: GraphView) -> dict[Node, Node]:
        """Every node that data reaches, with the node that it comes from. Found forwards: loops do no harm."""
        origins = {node: source for node in view.nodes() if (source := self._own_source(node)) is not None}
        reached = list(origins)
        while reached:
            node = reached.pop()
            for reader, _ in view.readers(node):
                if reader not in origins:
                    origins[reader] = origins[node]
                    reached.append(reader)
        return origins

    def _own_source(self, node: Node) -> Node | None:
        """The data source that a node is itself. What a plain call passes on is what it is outside; a loop's argument
        may change at every turn."""
        if isinstance(node, ArgumentNode) and isinstance(node.view, FunctionView) and node.view.role == "f":
            call, index = node.outside()
            return self.data_source(call.inputs[index].node) if index < len(call.inputs) else node
        return node if _is_data_source(node) else None


def _is_data_source(node: Node) -> bool:
    if _makes_data(node.op):
        return True
    return not node.inputs and node.op not in (*VARIABLES, "Const", "NoOp")


@functools.cache
def _makes_data(op: str) -> bool:
    return bool(_RANDOM.search(op)) or op.startswith("Placeholder")


def _goes_round_unchanged(merge: Node, back: Node) -> bool:
    for _ in range(_MAX_STEPS):
        if back is merge:
            return True
        if back.op not in ("NextIteration", "Identity", "Switch"):
            return False
        back = back.inputs[0].node
    return False


def _identity(leaf: Node) -> object:
    """What two nodes share that stand for one variable."""
    function, name = leaf.location
    if leaf.op == "Const":
        return (function, "", name)
    return (function, leaf.attr("container", ""), leaf.attr("shared_name", "") or name)


def _leaf_shape(leaf: Node) -> tuple[int, ...] | None:
    if leaf.op == "Const":
        value = leaf.attr("value")
        shape = tuple([d.size for d in value.tensor_shape.dim])
    else:
        shape = leaf.attr("shape")
    return None if shape is None or (shape and min(shape) < 0) else tuple(shape)


def _axis_at_source(
    path: list[Node], shape: tuple[int, ...], group_axis: int
) -> tuple[int, tuple[int, ...]] | Untraceable:
    """Take the group axis of the op back through the ops between, to the weight as it is stored; and its shape there
    to the op."""
    back: list[Callable[[int], int | None]] = []
    for node in path:
        moved = _moved(node, shape)
        if moved is None:
            return Untraceable(
                "layout-unknown",
                f"how '{node.path}' ({node.op}) lays out its weight is not known before it runs",
            )
        shape, axis_before = moved
        back.append(axis_before)
    if not -len(shape) <= group_axis < len(shape):
        return Untraceable("weight-rank", f"its weight has rank {len(shape)}, too low for group axis {group_axis}")
    axis: int | None = group_axis % len(shape)
    for node, axis_before in zip(reversed(path), reversed(back), strict=True):
        axis = axis_before(axis)  # type: ignore[arg-type]
        if axis is None:
            return Untraceable(
                "layout-splits-groups",
                f"'{node.path}' ({node.op}) tears groups along the input channels apart",
            )
    assert axis is not None
    return axis, shape


def _moved(node: Node, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Callable[[int], int | None]] | None:
    """The shape after ``node``, and a function from an axis after it to the axis before it."""
    if node.op == "Transpose":
        permutation = _numbers(node.inputs[1].node)
        if permutation is None or len(permutation) != len(shape):
            return None
        order = [p % len(shape) for p in permutation]
        if sorted(order) != list(range(len(shape))):
            return None
        return tuple(shape[p] for p in order), lambda axis: order[axis]
    if node.op in _RESHAPES:
        after = _reshaped(node, shape)
        if after is None:
            return None
        return after, lambda axis, before=shape: _axis_before_reshape(before, after, axis)
    return shape, lambda axis: axis


def _reshaped(node: Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if node.op == "Squeeze":
        axes = node.attr("squeeze_dims") or [i for i, size in enumerate(shape) if size == 1]
        drop = {int(axis) % len(shape) for axis in axes}
        return tuple(size for i, size in enumerate(shape) if i not in drop)
    sizes = _numbers(node.inputs[1].node)
    if not sizes:
        return None
    if node.op == "ExpandDims":
        at = sizes[0] % (len(shape) + 1)
        return (*shape[:at], 1, *shape[at:])
    if -1 in sizes:
        sizes[sizes.index(-1)] = math.prod(shape) // max(1, math.prod(s for s in sizes if s != -1))
    return tuple(sizes) if math.prod(sizes) == math.prod(shape) and min(sizes) >= 0 else None


def _numbers(node: Node) -> list[int] | None:
    """The integers of a constant that is a layout: a shape, an order of axes, an axis; None for anything else."""
    shape = _leaf_shape(node) if node.op == "Const" else None
    if shape is None or math.prod(shape) > _MAX_LAYOUT:
        return None
    value = node.constant()
    if value is None or value.dtype.kind not in "iu":
        return None
    return [int(number) for number in value.reshape(-1)]


def _axis_before_reshape(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """The axis of ``before`` along which the indices of ``after``'s axis run, None if they are torn apart.

    A row-major axis is known by how many elements come before it and by its length. Where it is several axes in one,
    its neighbours are neighbours along the innermost of these (that has any).
    """
    outer, length = math.prod(after[:axis]), after[axis]
    seen = 1
    for first, size in enumerate(before):
        if seen == outer and (size == length or size > 1):
            merged = 1
            for index in range(first, len(before)):
                merged *= before[index]
                if merged == length:
                    return index
        seen *= size
    return None
