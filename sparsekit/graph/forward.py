"""What belongs to the forward graph, and what gradients were already built."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sparsekit.errors import GraphError, near_matches
from sparsekit.graph.node import ArgumentNode, FunctionView, GraphView, LiveGraph, LiveNode, Node

_T = TypeVar("_T")
_GRADIENT = "_grad"
_GRADIENTS = re.compile(r"gradients(_\d+)?")
_UPDATE = re.compile(r"^(Resource)?(Sparse)?Apply[A-Z]")


def output_names(outputs: Any) -> tuple[str, ...] | None:
    """The names of the operations that ``outputs`` means.

    Args:
        outputs: operation names (``"name"``, ``"name:0"``), tensors, operations, or one of these; None: unknown.

    Raises:
        GraphError: it is empty or holds something else.
    """
    if outputs is None:
        return None
    several = isinstance(outputs, Iterable) and not isinstance(outputs, (str, bytes)) and not hasattr(outputs, "op")
    names = [_output_name(output) for output in (outputs if several else [outputs])]
    if not names:
        raise GraphError("is empty", where="outputs", expected="names of the operations whose results are used")
    return tuple(names)


def _output_name(output: Any) -> str:
    if isinstance(output, bytes):
        output = output.decode()
    name = output if isinstance(output, str) else getattr(getattr(output, "op", output), "name", None)
    if not isinstance(name, str) or not name:
        raise GraphError(
            f"holds {output!r}",
            where="outputs",
            expected="operation names such as 'logits', tensors or operations",
        )
    return re.sub(r":\d+$", "", name.removeprefix("^"))


def forward_nodes(view: GraphView, outputs: Sequence[str] | None) -> set[Node]:
    """The nodes that the outputs depend on; without outputs, all that no gradient led to.

    A graph at rest was cut down to its outputs when it was frozen: without outputs all of it counts.

    Raises:
        GraphError: an output is not in the graph; near matches are offered.
    """
    if outputs is None and not isinstance(view, LiveGraph):
        return set(view.nodes())
    if outputs is None:
        gradients = {node for node in view.nodes() if _differentiated(node, view) is not None}
        behind: set[Node] = reached(gradients, _readers)
        return set(view.nodes()) - behind
    wanted = set()
    for name in outputs:
        node = view.node(name)
        if node is None:
            raise GraphError(
                f"there is no operation '{name}' in the graph",
                where="outputs",
                expected="names of operations in the graph",
                hint=near_matches(name, (n.name for n in view.nodes())),
            )
        wanted.add(node)
    return reached(wanted, lambda node: [edge.node for edge in node.inputs])


def _readers(node: Node) -> list[Node]:
    return [reader for reader, _ in node.view.readers(node)]


def last_before_outputs(view: GraphView, outputs: Sequence[str] | None, among: set[Node]) -> set[Node]:
    """The nodes of ``among`` from which an output is reached without another one of them between.

    Args:
        view: the main graph.
        outputs: the operations whose results are used; None: those that nobody reads.
        among: nodes of the graph and of the functions it calls.
    """
    start = [view.node(name) for name in outputs] if outputs else [n for n in view.nodes() if not view.readers(n)]
    last = set()
    stack = [node for node in start if node is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node in among:
            last.add(node)
            continue
        for before in _one_back(node):
            if before not in seen:
                seen.add(before)
                stack.append(before)
    return last


def _one_back(node: Node) -> list[Node]:
    """What a node's results are made of: its inputs, the results of the functions it calls, what a caller passes."""
    if isinstance(node, ArgumentNode):
        call, index = node.outside()
        return [call.inputs[index].node]
    bodies = node.view.bodies(node)
    if bodies:
        return [edge.node for body in bodies for edge in body.results()]
    return [edge.node for edge in node.inputs]


def differentiated(view: GraphView) -> set[str]:
    """The names of the forward ops that gradients were built for, and of the variables that an optimizer updates."""
    names = set()
    for node in view.nodes():
        forward = _differentiated(node, view)
        if forward is not None:
            names.add(forward)
        if _UPDATE.match(node.op):
            names.add(node.inputs[0].node.name)
    return names


def _differentiated(node: Node, view: GraphView) -> str | None:
    """The forward op whose gradient ``node`` belongs to, None if it is no gradient op."""
    if isinstance(node, LiveNode):
        original = node.operation._original_op
        if original is not None:
            return str(original.name)
    # An imported graph has lost that link; the names still tell: "gradients/dense/product_grad/product", under an
    # import scope "imported/gradients/dense/product_grad/product" of "imported/dense/product".
    scopes = node.name.split("/")
    start = next((i for i, scope in enumerate(scopes) if _GRADIENTS.fullmatch(scope)), None)
    if start is None:
        return None
    for end in range(start + 1, len(scopes) - 1):
        if not scopes[end].endswith(_GRADIENT):
            continue
        forward = [*scopes[start + 1 : end], scopes[end].removesuffix(_GRADIENT)]
        for outer in (scopes[:start], []):
            name = "/".join([*outer, *forward])
            if view.node(name) is not None:
                return name
    return None


class ForwardGraph(LiveGraph):
    """A ``tf.Graph`` in which only those count as readers that the outputs depend on, as if it had been cut to them.

    Args:
        graph: the graph.
        outputs: the operations whose results are used.
    """

    def __init__(self, graph: Any, outputs: Sequence[str]) -> None:
        super().__init__(graph)
        self._outputs = outputs

    @functools.cached_property
    def _readers(self) -> dict[str, list[tuple[Node, int]]]:
        forward = forward_nodes(self, self._outputs)
        readers: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes():
            if node in forward:
                for index, edge in enumerate(node.inputs):
                    readers.setdefault(edge.node.name, []).append((node, index))
        return readers


def reached(start: Iterable[_T], neighbours: Callable[[_T], Iterable[_T]]) -> set[_T]:
    """All that one gets to from ``start``, which belongs to it."""
    found = set(start)
    stack = list(found)
    while stack:
        for item in neighbours(stack.pop()):
            if item not in found:
                found.add(item)
                stack.append(item)
    return found


class OneRun:
    """What one run of a model at rest computes, in the functions that it calls too.

    Args:
        view: the main graph.
        outputs: the operations whose results are asked for; None: all.
    """

    def __init__(self, view: GraphView, outputs: Sequence[str] | None) -> None:
        self._alive: dict[GraphView, set[Node]] = {view: forward_nodes(view, outputs)}

    def computes(self, node: Node) -> bool:
        """Whether the node's result is needed. Exporters leave ops in functions that nobody reads."""
        view = node.view
        if view not in self._alive:
            assert isinstance(view, FunctionView)
            results = {edge.node for edge in view.results()}
            self._alive[view] = reached(results, lambda inner: [edge.node for edge in inner.inputs])
        return node in self._alive[view] and (not isinstance(view, FunctionView) or self.computes(view.call))
