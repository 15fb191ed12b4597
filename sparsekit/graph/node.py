"""One read-only view over a ``tf.Graph``, a ``GraphDef`` and the function bodies in either.

Planning, handlers and verification see nodes only through this module, so that they decide alike for all.
"""

from __future__ import annotations

import abc
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import op_def_registry

from sparsekit.errors import ModelError

ARGUMENT = "_Arg"
"""Op type of the pseudo node that stands for an argument inside a function body."""

# The ops that hand their inputs to their functions as arguments, and where these begin. Others (a dataset's map, say)
# have functions of data that is no input of theirs; what these compute is no layer of the graph.
_FIRST_ARGUMENT = {
    "PartitionedCall": 0,
    "StatefulPartitionedCall": 0,
    "While": 0,
    "StatelessWhile": 0,
    "If": 1,
    "StatelessIf": 1,
    "Case": 1,
    "StatelessCase": 1,
}


# The kinds of attributes that are told as they are stored.
_PLAIN = frozenset(("b", "i", "f", "tensor"))
# Functions are looked at once for every call of them, so that a small file may ask for much: this many bodies, nodes in
# them and characters of their paths are no work of an exporter.
_MAX_BODIES = 20_000
_MAX_INNER_NODES = 1_000_000
_MAX_INNER_NAMES = 1 << 28
_MAX_DEPTH = 60


@attrs.define(unsafe_hash=True)
class Edge:
    """Output ``index`` of ``node``, read by somebody. (Freezing it would double what it costs, once per input.)"""

    node: Node
    index: int


class Node(abc.ABC):
    """An op of a graph.

    Attributes:
        name: its name in its own graph or function body.
        path: its name for people; inside a function body the calling op's path comes before.
        op: its op type.
        view: the graph or function body that holds it.
    """

    __slots__ = ()
    name: str
    op: str
    view: GraphView

    @property
    def path(self) -> str:
        return self.view.prefix + self.name

    @property
    def root(self) -> GraphView:
        """The main graph that it belongs to, through however many calls."""
        view = self.view
        while isinstance(view, FunctionView):
            view = view.call.view
        return view

    @property
    def location(self) -> tuple[str, str]:
        """Where it is stored: (function name, "" for the main graph; its name). Several calls share a function."""
        return self.view.function, self.name

    @property
    @abc.abstractmethod
    def inputs(self) -> tuple[Edge, ...]:
        """Its data inputs, without control inputs."""

    @abc.abstractmethod
    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute: a bool, int, float, str, dtype name, shape tuple (None: unknown), list of these, a
        function's name, or a TensorProto; ``default`` where it is not there."""

    @property
    def output_rank(self) -> int | None:
        """The largest rank of its outputs, 0 where it has none, None where unknown (always, outside a live graph)."""
        definition = op_def_registry.get(self.op)
        return 0 if definition is not None and not definition.output_arg else None

    @property
    def writes(self) -> bool:
        """Whether it takes a ref variable as such, to assign to it. (What assigns to a resource has no output.)"""
        definition = op_def_registry.get(self.op)
        return definition is not None and any(arg.is_ref for arg in definition.input_arg)

    def calls(self) -> list[tuple[str, str]]:
        """The functions that it hands its inputs to: (attribute, function name)."""
        if self.op not in _FIRST_ARGUMENT:
            return []
        found = []
        for role in _function_attributes(self.op):
            value = self.attr(role)
            names = value if isinstance(value, list) else [value]
            found += [(role, name) for name in names if isinstance(name, str)]
        return found

    @property
    def in_control_flow(self) -> bool:
        """Whether it was built inside a v1 loop or cond (known in a live graph alone)."""
        return False

    def constant(self) -> np.ndarray | None:
        """The value of a constant, read-only where possible; None for any other op.

        Raises:
            ModelError: the stored tensor does not match its own shape.
        """
        if self.op != "Const":
            return None
        try:
            return _array(self.attr("value"))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"its value cannot be read ({error})", where=self.path) from error

    def __repr__(self) -> str:
        return f"<{self.op} '{self.path}'>"


class GraphView(abc.ABC):
    """A graph or a function body.

    Attributes:
        prefix: what comes before a node's name to make its path.
        function: the function's name, "" for a main graph.
        depth: through how many calls it is reached.
    """

    prefix: str = ""
    function: str = ""
    depth: int = 0

    @abc.abstractmethod
    def nodes(self) -> Iterator[Node]:
        """Every node, in the order of the graph."""

    @abc.abstractmethod
    def node(self, name: str) -> Node | None:
        """The node of that name, or None."""

    @property
    @abc.abstractmethod
    def library(self) -> Mapping[str, Any]:
        """The FunctionDefs that nodes may call, by name."""

    @functools.cached_property
    def _readers(self) -> dict[str, list[tuple[Node, int]]]:
        readers = defaultdict(list)
        for node in self.nodes():
            for index, edge in enumerate(node.inputs):
                readers[edge.node.name].append((node, index))
        return readers

    def readers(self, node: Node) -> list[tuple[Node, int]]:
        """Who reads any output of ``node``: (reader, index of its input)."""
        return self._readers.get(node.name, [])

    def bodies(self, call: Node) -> tuple[FunctionView, ...]:
        """The function bodies that a node of this view calls, seen from this very call; the same ones every time."""
        if call.op not in _FIRST_ARGUMENT:
            return ()
        if call not in self._bodies:
            called = [(role, self.library[name]) for role, name in call.calls() if name in self.library]
            for role, definition in called:
                call.root.count_body(call, len(definition.node_def) + len(definition.signature.input_arg))
                _check_call(call, role, definition.signature)
            labels = _labels([role for role, _ in called])
            self._bodies[call] = tuple(
                FunctionView(definition, call, role, label)
                for (role, definition), label in zip(called, labels, strict=True)
            )
        return self._bodies[call]

    def count_body(self, call: Node, nodes: int) -> None:
        """Refuse a model whose functions call each other without end, or nearly so.

        Raises:
            ModelError: names the call.
        """
        self._opened += 1
        self._inner_nodes += nodes
        self._inner_names += (nodes + 1) * len(call.path)
        if (
            self._opened > _MAX_BODIES
            or self._inner_nodes > _MAX_INNER_NODES
            or self._inner_names > _MAX_INNER_NAMES
            or call.view.depth > _MAX_DEPTH
        ):
            raise ModelError(
                f"its functions call each other more than {_MAX_BODIES:,} times, with more than "
                f"{_MAX_INNER_NODES:,} nodes in all, or without end",
                where=call.path[:200],
                expected="functions that do not call themselves",
            )

    _opened = 0
    _inner_nodes = 0
    _inner_names = 0

    @functools.cached_property
    def _bodies(self) -> dict[Node, tuple[FunctionView, ...]]:
        return {}


def _check_call(call: Node, role: str, signature: Any) -> None:
    """A call passes what its function takes, and a loop's body returns what the next turn takes.

    Raises:
        ModelError: names the call.
    """
    passed, taken = len(call.inputs) - _FIRST_ARGUMENT[call.op], len(signature.input_arg)
    if passed != taken:
        raise ModelError(f"passes {passed} inputs to '{signature.name}'", where=call.path, expected=f"{taken}")
    if role == "body" and len(signature.output_arg) != taken:
        found = f"its body '{signature.name}' returns {len(signature.output_arg)} values"
        raise ModelError(found, where=call.path, expected=f"{taken}, as it takes")


def _labels(roles: list[str]) -> list[str]:
    """What tells the bodies of one call apart in the paths of their nodes; the usual single one needs nothing."""
    counts: dict[str, int] = {}
    labels = []
    for role in roles:
        counts[role] = counts.get(role, -1) + 1
        plain = role in ("f", "body")
        labels.append("" if plain else f"{role}_{counts[role]}/" if roles.count(role) > 1 else f"{role}/")
    return labels


class LiveNode(Node):
    """An op of a ``tf.Graph``."""

    def __init__(self, view: LiveGraph, operation: tf.Operation) -> None:
        self.view = view
        self.operation = operation
        self.name = operation.name
        self.op = operation.type

    @functools.cached_property
    def inputs(self) -> tuple[Edge, ...]:
        view: LiveGraph = self.view  # type: ignore[assignment]
        return tuple(Edge(view.wrap(tensor.op), tensor.value_index) for tensor in self.operation.inputs)

    def attr(self, name: str, default: Any = None) -> Any:
        try:
            return _plain(self.operation.get_attr(name))
        except ValueError:
            return default

    @property
    def output_rank(self) -> int | None:
        ranks = [output.shape.rank for output in self.operation.outputs]
        return None if None in ranks else max(ranks, default=0)

    @property
    def in_control_flow(self) -> bool:
        return self.operation._get_control_flow_context() is not None

    @property
    def definition(self) -> Any:
        """Its NodeDef."""
        view: LiveGraph = self.view  # type: ignore[assignment]
        return view.definitions[self.name]


class LiveGraph(GraphView):
    """A ``tf.Graph``. Take a new view after an edit: inputs and readers are remembered."""

    def __init__(self, graph: tf.Graph) -> None:
        self.graph = graph
        self._wrapped: dict[str, LiveNode] = {}

    def wrap(self, operation: tf.Operation) -> LiveNode:
        """The node of an operation."""
        name = operation.name
        node = self._wrapped.get(name)
        if node is None:
            node = self._wrapped[name] = LiveNode(self, operation)
        return node

    def nodes(self) -> Iterator[Node]:
        return map(self.wrap, self.graph.get_operations())

    def node(self, name: str) -> Node | None:
        try:
            return self.wrap(self.graph.get_operation_by_name(name))
        except (KeyError, ValueError):
            return None

    @functools.cached_property
    def graph_def(self) -> Any:
        """The graph as it was when this was first asked for."""
        return self.graph.as_graph_def()

    @functools.cached_property
    def definitions(self) -> Mapping[str, Any]:
        """The NodeDefs, by name."""
        return {node.name: node for node in self.graph_def.node}

    @functools.cached_property
    def library(self) -> Mapping[str, Any]:
        # Serializing the graph is the one way to its functions that every TensorFlow offers; it is asked for only
        # where some op calls one.
        return {f.signature.name: f for f in self.graph_def.library.function}


class ProtoNode(Node):
    """A NodeDef of a GraphDef."""

    # There are as many as the graph has nodes; without a dictionary each, and without cached_property's lock (before
    # Python 3.12), they cost a third.
    __slots__ = ("_inputs", "definition", "name", "op", "view")

    def __init__(self, view: GraphView, definition: Any) -> None:
        self.view = view
        self.definition = definition
        self.name = definition.name
        self.op = definition.op
        self._inputs: tuple[Edge, ...] | None = None

    @property
    def inputs(self) -> tuple[Edge, ...]:
        if self._inputs is None:
            node = self.view.node
            # Most read the first output of a node, which is written as its bare name.
            self._inputs = tuple(
                [
                    Edge(found, 0) if (found := node(text)) else self._edge(text)
                    for text in self.definition.input
                    if text[:1] != "^"
                ]
            )
        return self._inputs

    def _edge(self, text: str) -> Edge:
        view: ProtoGraph = self.view  # type: ignore[assignment]
        name, colon, index = text.partition(":")
        node = view.named(name, text, self)
        if colon and not (index.isdecimal() and len(index) < 10):
            raise ModelError(f"reads '{text[:200]}', which is no output", where=self.path)
        return Edge(node, int(index) if index else 0)

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.definition.attr.get(name)
        if value is None:
            return default
        found, expected = value.WhichOneof("value"), _attribute_fields(self.op).get(name)
        if found == "placeholder":  # of a function that is generic; no exporter leaves one
            return default
        if expected is not None and found not in (None, expected):
            raise ModelError(f"its attribute '{name}' is given as '{found}'", where=self.path, expected=f"'{expected}'")
        return getattr(value, found) if found in _PLAIN else _plain_attribute(value)


class ProtoGraph(GraphView):
    """A ``GraphDef``; it is read in place, never imported.

    Raises:
        ModelError: two nodes have one name.
    """

    def __init__(self, graph_def: Message) -> None:
        self.graph_def: Any = graph_def
        self._nodes = {node.name: ProtoNode(self, node) for node in self.graph_def.node}
        if len(self._nodes) != len(self.graph_def.node):
            seen: set[str] = set()
            twice = next(n.name for n in self.graph_def.node if n.name in seen or seen.add(n.name))  # type: ignore[func-returns-value]
            raise ModelError("two nodes have this name", where=twice, expected="every name once")

    def nodes(self) -> Iterator[ProtoNode]:
        return iter(self._nodes.values())

    def node(self, name: str) -> ProtoNode | None:
        return self._nodes.get(name)

    def named(self, name: str, text: str, reader: Node) -> ProtoNode:
        """The node of that name.

        Raises:
            ModelError: there is none; ``reader`` reads it as ``text``.
        """
        node = self._nodes.get(name)
        if node is None:
            raise ModelError(f"reads '{text[:200]}', which is not in the graph", where=reader.path)
        return node

    @functools.cached_property
    def library(self) -> Mapping[str, Any]:
        return {f.signature.name: f for f in self.graph_def.library.function}


class _BodyNode(ProtoNode):
    __slots__ = ()

    def _edge(self, text: str) -> Edge:
        name, _, output = text.partition(":")
        node = self.view.node(name)
        if node is None:
            raise ModelError(f"reads '{text}', which is not in the function", where=self.path)
        return Edge(node, _output_index(node, output) if output else 0)


class ArgumentNode(Node):
    """Stands for argument ``index`` of a function body."""

    op = ARGUMENT
    inputs: tuple[Edge, ...] = ()

    def __init__(self, view: FunctionView, name: str, index: int) -> None:
        self.view = view
        self.name = name
        self.index = index

    def attr(self, name: str, default: Any = None) -> Any:
        return default

    def outside(self) -> tuple[Node, int]:
        """Who passes it: (calling op, index of its input)."""
        view: FunctionView = self.view  # type: ignore[assignment]
        return view.call, self.index + _FIRST_ARGUMENT[view.call.op]


class FunctionView(GraphView):
    """A function body as one call sees it.

    Attributes:
        call: the op that calls it.
        role: the call's attribute that names it, such as "body" or "then_branch".
    """

    def __init__(self, definition: Message, call: Node, role: str, label: str = "") -> None:
        self.definition: Any = definition
        self.call = call
        self.role = role
        self.prefix = f"{call.path}/{label}"
        self.function = self.definition.signature.name
        self.depth = call.view.depth + 1
        arguments = (arg.name for arg in self.definition.signature.input_arg)
        self._nodes: dict[str, Node] = {name: ArgumentNode(self, name, i) for i, name in enumerate(arguments)}
        self._nodes.update((node.name, _BodyNode(self, node)) for node in self.definition.node_def)

    def nodes(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def node(self, name: str) -> Node | None:
        return self._nodes.get(name)

    @property
    def library(self) -> Mapping[str, Any]:
        return self.call.view.library

    def arguments(self, index: int) -> list[Node]:
        """What stands in the body for input ``index`` of the call: an argument, or nothing (a condition, say)."""
        names = self.definition.signature.input_arg
        position = index - _FIRST_ARGUMENT[self.call.op]
        return [self._nodes[names[position].name]] if 0 <= position < len(names) else []

    def results(self) -> list[Edge]:
        """What the body returns, output by output."""
        return [self.result(index) for index in range(len(self.definition.signature.output_arg))]

    def returned_as(self, node: Node) -> list[int]:
        """Which outputs of the call are an output of ``node``."""
        return self._returned.get(node, [])

    @functools.cached_property
    def _returned(self) -> dict[Node, list[int]]:
        returned = defaultdict(list)
        for index, edge in enumerate(self.results()):
            returned[edge.node].append(index)
        return dict(returned)

    def result(self, index: int) -> Edge:
        """What the body returns as its output ``index``."""
        name = self.definition.signature.output_arg[index].name
        text = self.definition.ret[name]
        node_name, _, output = text.partition(":")
        node = self._nodes[node_name]
        return Edge(node, _output_index(node, output) if output else 0)


@functools.cache
def _function_attributes(op: str) -> tuple[str, ...]:
    definition = op_def_registry.get(op)
    if definition is None:
        return ()
    return tuple(attr.name for attr in definition.attr if attr.type in ("func", "list(func)"))


_FIELDS = {"string": "s", "int": "i", "float": "f", "bool": "b"}


@functools.cache
def _attribute_fields(op: str) -> dict[str, str]:
    """In which field of an AttrValue each attribute of an op is given."""
    definition = op_def_registry.get(op)
    attributes = definition.attr if definition else ()
    return {a.name: "list" if a.type.startswith("list(") else _FIELDS.get(a.type, a.type) for a in attributes}


def _output_index(node: Node, output: str) -> int:
    """From a function body's "output_true:0" to the index of the output."""
    name, _, offset = output.partition(":")
    definition = op_def_registry.get(node.op)
    index = 0
    for arg in definition.output_arg if definition else ():
        if arg.name == name:
            return index + int(offset or 0)
        index += _length(node, arg)
    return int(offset or 0)


def _length(node: Node, arg: Any) -> int:
    """How many tensors one output of an op's definition stands for."""
    if arg.number_attr:
        return int(node.attr(arg.number_attr, 0))
    if arg.type_list_attr:
        return len(node.attr(arg.type_list_attr, ()))
    return 1


def _plain(value: Any) -> Any:
    """A value of a live graph's attribute, or a part of a stored one, as :meth:`Node.attr` tells it."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, tf.DType):
        return value.base_dtype.name
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    kind = type(value).__name__
    if kind == "AttrValue":
        return _plain_attribute(value)
    if kind == "TensorShapeProto":
        return None if value.unknown_rank else tuple([d.size for d in value.dim])
    if kind == "NameAttrList":
        return value.name
    return value


def _plain_attribute(value: Any) -> Any:
    """What an AttrValue holds."""
    which = value.WhichOneof("value")
    if which == "type":
        return _dtype_name(value.type)
    if which == "list":
        fields = value.list.ListFields()
        if fields and fields[0][0].name == "type":
            return [_dtype_name(number) for number in fields[0][1]]
        return [_plain(item) for item in fields[0][1]] if fields else []
    return _plain(getattr(value, which)) if which else None


@functools.cache
def _dtype_name(number: int) -> str | None:
    """The name of a dtype, None where the number stands for none."""
    try:
        return str(tf.as_dtype(number).base_dtype.name)
    except TypeError:
        return None


def _array(tensor: Any) -> np.ndarray:
    """What a TensorProto holds. Raw bytes, as weights are stored, are not copied again: a large weight is in memory
    once."""
    content = tensor.tensor_content
    if not content or tensor.dtype == types_pb2.DT_STRING:
        return tf.make_ndarray(tensor)
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    return np.frombuffer(content, _numpy_dtype(tensor.dtype)).reshape(shape)


@functools.cache
def _numpy_dtype(number: int) -> np.dtype[Any]:
    return np.dtype(tf.as_dtype(number).as_numpy_dtype)
