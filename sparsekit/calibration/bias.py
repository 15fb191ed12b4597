"""Where a shift of an op's outputs can be stored: the bias, or the batch normalization, that follows it."""

from __future__ import annotations

import math

import attrs

from sparsekit.graph.node import ArgumentNode, Edge, FunctionView, Node
from sparsekit.graph.trace import Read, Tracer, hands_on

_SUMS = ("BiasAdd", "Add", "AddV2")
_BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_MEAN = 3
_MAX_STEPS = 20


@attrs.frozen(eq=False)
class BiasSite:
    """A stored vector that is added to the outputs of an op, channel by channel.

    Attributes:
        edge: where it is read.
        consumer: the op that adds it.
        read: where it is stored.
        sign: -1 where it is subtracted: the mean of a batch normalization.
        factors: what the outputs are multiplied with before: a shift must be, too.
    """

    edge: Edge
    consumer: Node
    read: Read
    sign: int
    factors: tuple[Edge, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two that are one stored vector."""
        return tuple(leaf.location for leaf in self.read.leaves)


def bias_of(node: Node, outputs: int, tracer: Tracer) -> BiasSite | None:
    """The bias of an op, None where none follows it, or somebody else reads what comes before it.

    Args:
        node: the op.
        outputs: its output channels.
        tracer: of the graph.
    """
    factors: tuple[Edge, ...] = ()
    for _ in range(_MAX_STEPS):
        node = _returned(node)
        readers = node.view.readers(node)
        if len(readers) != 1:
            return None
        reader, index = readers[0]
        others = [edge for i, edge in enumerate(reader.inputs) if i != index]
        if reader.op in _BATCH_NORMS:
            unchanging = index == 0 and not reader.attr("is_training", True)
            return _site(reader.inputs[_MEAN], reader, -1, factors, outputs, tracer) if unchanging else None
        if reader.op in _SUMS:
            return _added(others[0], reader, factors, outputs, tracer)
        if reader.op == "Sub" and index == 0:
            return _site(others[0], reader, -1, factors, outputs, tracer)
        if reader.op == "Mul" and _is_static(others[0], tracer):
            factors = (*factors, others[0])
        elif reader.op != "Identity":
            return None
        node = reader
    return None


def _returned(node: Node) -> Node:
    """The call whose one result the node is, where it lies in a called function; else the node itself."""
    view = node.view
    while isinstance(view, FunctionView) and view.role == "f" and not view.readers(node):
        results = view.results()
        if len(results) != 1 or results[0].node is not node:
            break
        node = view.call
        view = node.view
    return node


def _added(edge: Edge, consumer: Node, factors: tuple[Edge, ...], outputs: int, tracer: Tracer) -> BiasSite | None:
    """What is added: a bias; or offset - mean * scale, as batch normalizations are written out."""
    if edge.node.op == "Sub" and _is_static(edge, tracer):
        consumer, edge = edge.node, edge.node.inputs[0]
    return _site(edge, consumer, 1, factors, outputs, tracer)


def _site(
    edge: Edge, consumer: Node, sign: int, factors: tuple[Edge, ...], outputs: int, tracer: Tracer
) -> BiasSite | None:
    # Vectors are laid out for broadcasting; that changes no order.
    while edge.node.op in ("Reshape", "ExpandDims", "Squeeze", "Cast"):
        consumer, edge = edge.node, edge.node.inputs[0]
    read = tracer.read(edge)
    if not isinstance(read, Read) or read.shape is None or math.prod(read.shape) != outputs:
        return None
    return BiasSite(edge, consumer, read, sign, factors) if max(read.shape, default=0) == outputs else None


def read_elsewhere(read: Read, consumers: set[Node]) -> bool:
    """Whether a stored vector is also read by others than these: it cannot be changed for them alone."""
    pending = list(read.leaves)
    seen = set(pending)
    while pending:
        node = pending.pop()
        for reader, index in node.view.readers(node):
            if reader in consumers or reader in seen or reader.output_rank == 0 or reader.writes:
                continue
            passed = [argument for body in reader.view.bodies(reader) for argument in body.arguments(index)]
            if not passed and not hands_on(reader.op):
                return True
            seen.add(reader)
            pending += passed or [reader]
    return False


def _is_static(edge: Edge, tracer: Tracer) -> bool:
    """Whether it is made of weights and constants alone, in a few steps."""
    pending = [edge]
    for _ in range(_MAX_STEPS):
        if not pending:
            return True
        edge = pending.pop()
        if isinstance(tracer.read(edge), Read):
            continue
        if isinstance(edge.node, ArgumentNode):
            call, index = edge.node.outside()
            pending.append(call.inputs[index])
        elif edge.node.inputs:
            pending += edge.node.inputs
        else:
            return False
    return False
