"""Biases that are added to a graph: a constant behind an op, and an op that adds it, read by all who read the op."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework import op_def_registry

from sparsekit.graph.node import GraphView, Node
from sparsekit.graph.sums import BIAS_SUM, BROADCAST_SUM

Array: TypeAlias = NDArray[Any]
Location: TypeAlias = tuple[str, str]

_SUFFIX = "/sparsekit/bias"
_VALUE = "/value"


@attrs.frozen(eq=False)
class AddedBias:
    """What is added to the one output of an op.

    Attributes:
        location: of the op: (function name, "" for the main graph; its name).
        value: in the output's dtype; it is broadcast to the output, as numpy does.
        along_last: it is a vector along the output's last axis: what converters know as a bias.
    """

    location: Location
    value: Array = attrs.field(repr=False)
    along_last: bool

    @property
    def name(self) -> str:
        """The name of the op that adds it."""
        return added_name(self.location[1])

    def nodes(self, op: Any) -> tuple[Any, Any]:
        """Its two nodes: the constant and the sum.

        Args:
            op: the NodeDef of the op.
        """
        inside = bool(self.location[0])
        dtype = tf.as_dtype(self.value.dtype).as_datatype_enum
        constant, total = type(op)(), type(op)()
        constant.name, constant.op, constant.device = self.name + _VALUE, "Const", op.device
        constant.attr["dtype"].type = dtype
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(self.value))
        total.name, total.op, total.device = self.name, self._kind, op.device
        total.attr["T"].type = dtype
        if self.along_last:
            total.attr["data_format"].s = b"NHWC"  # the last axis, whatever the rank
        source = f"{op.name}:{_output(op.op)}:0" if inside else op.name
        total.input.extend([source, f"{constant.name}:{_output('Const')}:0" if inside else constant.name])
        return constant, total

    @property
    def output(self) -> str:
        """How the others read the sum."""
        if not self.location[0]:
            return self.name
        return f"{self.name}:{_output(self._kind)}:0"

    @property
    def _kind(self) -> str:
        return BIAS_SUM if self.along_last else BROADCAST_SUM


def added_name(op: str) -> str:
    """The name of the op that adds a bias to the output of an op of this name."""
    return op + _SUFFIX


def added_biases(nodes: Any, biases: Mapping[str, AddedBias], returned: Any = None) -> None:
    """Add biases to the nodes of a graph or function, in place.

    Args:
        nodes: its NodeDefs.
        biases: by the names of their ops.
        returned: of a function, what it returns, by name.
    """
    if not biases:
        return
    for node in nodes:
        for index, text in enumerate(node.input):
            node.input[index] = _behind(text, biases)
    for key in list(returned or ()):
        returned[key] = _behind(returned[key], biases)
    old = list(nodes)
    made = {node.name: biases[node.name].nodes(node) for node in old if node.name in biases}
    for pair in made.values():
        nodes.extend(pair)


def _behind(text: str, biases: Mapping[str, AddedBias]) -> str:
    """What is read in place of an op's output, the bias added."""
    bias = None if text.startswith("^") else biases.get(text.partition(":")[0])
    return text if bias is None else bias.output


def _output(op: str) -> str:
    name: str = op_def_registry.get(op).output_arg[0].name
    return name


class Places:
    """Where biases can be added to a model's graph.

    Args:
        view: the graph.
        outputs: operations whose results are asked for by name.
        entered_elsewhere: functions that the graph does not call may be called all the same, by a loader.
    """

    def __init__(self, view: GraphView, outputs: Collection[str], *, entered_elsewhere: bool) -> None:
        self._view = view
        self._outputs = outputs
        self._entered_elsewhere = entered_elsewhere

    def obstacle(self, nodes: Sequence[Node]) -> str:
        """Why no bias can be added behind ops that use one weight, "" if it can.

        Args:
            nodes: all of them, in functions every call apart.
        """
        if len({node.op for node in nodes}) > 1:
            return f"its weight is used by ops of several types ({', '.join(sorted({n.op for n in nodes}))})"
        (op,) = {node.op for node in nodes}
        definition = op_def_registry.get(op)
        if definition is None or len(definition.output_arg) != 1 or definition.output_arg[0].number_attr:
            return f"{op} has not just one output"
        for location in {node.location for node in nodes}:
            function, name = location
            if not function and name in self._outputs:
                return "its output is asked for by its name"
            if not set(self._at(location)) <= set(nodes):
                return f"the function '{function}' is called with other weights too"
        if any(node.view.node(added_name(node.name)) is not None for node in nodes):
            return f"another node is called '{added_name(nodes[0].name)}'"
        if self._entered_elsewhere and (unseen := self._unseen(op)):
            return f"the function '{unseen}', which no signature calls, may use its weight too"
        return ""

    def _at(self, location: Location) -> list[Node]:
        return self._nodes.get(location, [])

    @functools.cached_property
    def _nodes(self) -> dict[Location, list[Node]]:
        found: dict[Location, list[Node]] = {}
        for node in everywhere(self._view):
            found.setdefault(node.location, []).append(node)
        return found

    def _unseen(self, op: str) -> str:
        """A function that nothing in the graph calls and that has such an op, "" if there is none."""
        called = {function for function, _ in self._nodes}
        for name, function in self._view.library.items():
            if name not in called and any(node.op == op for node in function.node_def):
                return str(name)
        return ""


def everywhere(view: GraphView) -> Iterator[Node]:
    """The nodes of a graph and of all functions that it calls, once for every call."""
    for node in view.nodes():
        yield node
        for body in view.bodies(node):
            yield from everywhere(body)
