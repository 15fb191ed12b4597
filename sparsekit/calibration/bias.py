"""Where a shift of an op's outputs can be stored: the bias, or the batch normalization, that follows it."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from sparsekit.graph.node import Edge, FunctionView, Node
from sparsekit.graph.trace import Read, Tracer, hands_on

_SUMS = ("BiasAdd", "Add", "AddV2")
_BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_LAYOUTS = ("Reshape", "ExpandDims", "Squeeze", "Cast")
# Conv1D squeezes its outputs before the bias, a dense layer of more than two dimensions reshapes them.
_HANDS_ON = ("Identity", "Reshape", "Squeeze", "ExpandDims", "EnsureShape")
_MEAN = 3
_MAX_STEPS = 20


@attrs.frozen(eq=False)
class BiasSite:
    """A stored vector that is added to the outputs of an op.

    Attributes:
        adder: the op that adds it.
        summand: what the adder adds it to: the op's outputs, perhaps in another shape.
        added: what the adder adds, as it reads it.
        edge: where it is read as it is stored.
        way: the ops between: layouts, or a constant that is subtracted from it.
        read: where it is stored.
        sign: -1 where it is subtracted: the mean of a batch normalization.
        factors: what the outputs are multiplied with before: a shift must be, too; each with the outputs as they are
            multiplied.
    """

    adder: Node
    summand: Edge
    added: Edge
    edge: Edge
    way: tuple[Node, ...]
    read: Read
    sign: int
    factors: tuple[tuple[Edge, Edge], ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two that are one stored vector."""
        return tuple(leaf.location for leaf in self.read.leaves)

    @property
    def channel_axis(self) -> int | None:
        """The axis of the outputs that it runs along, None where that is numpy's broadcasting."""
        if self.adder.op not in (*_BATCH_NORMS, "BiasAdd"):
            return None
        return 1 if str(self.adder.attr("data_format", "NHWC")).startswith("NC") else -1


def bias_of(node: Node, tracer: Tracer) -> BiasSite | None:
    """The bias of an op, None where none follows it, or somebody else reads what comes before it."""
    factors: tuple[tuple[Edge, Edge], ...] = ()
    for _ in range(_MAX_STEPS):
        node = _returned(node)
        readers = node.view.readers(node)
        if len(readers) != 1:
            return None
        reader, index = readers[0]
        others = [edge for i, edge in enumerate(reader.inputs) if i != index]
        if reader.op in _BATCH_NORMS:
            unchanging = index == 0 and not reader.attr("is_training", True)
            return _site(reader, index, reader.inputs[_MEAN], -1, factors, tracer) if unchanging else None
        if reader.op in _SUMS:
            return _site(reader, index, others[0], 1, factors, tracer)
        if reader.op == "Sub" and index == 0:
            return _site(reader, index, others[0], -1, factors, tracer)
        if reader.op == "Mul" and tracer.data_source(others[0].node) is None:
            factors = (*factors, (others[0], reader.inputs[index]))
        elif reader.op not in _HANDS_ON or index:
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


def _site(
    adder: Node, index: int, added: Edge, sign: int, factors: tuple[tuple[Edge, Edge], ...], tracer: Tracer
) -> BiasSite | None:
    edge, way = added, []
    # Batch normalizations that are written out add offset - mean * scale.
    if edge.node.op == "Sub" and tracer.data_source(edge.node) is None:
        way.append(edge.node)
        edge = edge.node.inputs[0]
    while edge.node.op in _LAYOUTS:
        way.append(edge.node)
        edge = edge.node.inputs[0]
    read = tracer.read(edge)
    if not isinstance(read, Read):
        return None
    return BiasSite(adder, adder.inputs[index], added, edge, tuple(way), read, sign, factors)


def read_elsewhere(biases: Collection[BiasSite]) -> bool:
    """Whether a stored vector is also read by others than these: then it cannot be changed for them alone."""
    adders = {bias.adder for bias in biases}
    way = {node for bias in biases for node in bias.way}
    pending = [leaf for bias in biases for leaf in bias.read.leaves]
    seen = set(pending)
    while pending:
        node = pending.pop()
        for reader, index in node.view.readers(node):
            if reader in adders or reader in seen or reader.output_rank == 0 or reader.writes:
                continue
            passed = [argument for body in reader.view.bodies(reader) for argument in body.arguments(index)]
            if not passed and reader not in way and not hands_on(reader.op):
                return True
            seen.add(reader)
            pending += passed or [reader]
    return False
