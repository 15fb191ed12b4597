"""Where a shift of an op's outputs can be stored: the bias, or the batch normalization, that follows it; and where a
batch normalization has its statistics."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from sparsekit.graph.node import Edge, FunctionView, Node
from sparsekit.graph.sums import BATCH_NORMS, SUMS, channel_axis
from sparsekit.graph.trace import Read, Tracer, hands_on

_LAYOUTS = ("Reshape", "ExpandDims", "Squeeze", "Cast")
# Conv1D squeezes its outputs before the bias, a dense layer of more than two dimensions reshapes them.
_HANDS_ON = ("Identity", "Reshape", "Squeeze", "ExpandDims", "EnsureShape")
_DATA, _MEAN, _VARIANCE = 0, 3, 4
_MAX_STEPS = 20


@attrs.frozen(eq=False)
class StoredVector:
    """A stored vector that an op combines with the outputs of another.

    Attributes:
        adder: the op that reads it.
        added: the vector as that op reads it.
        edge: where it is read as it is stored.
        way: the ops between: layouts, or a constant that is subtracted from it.
        read: where it is stored.
    """

    adder: Node
    added: Edge
    edge: Edge
    way: tuple[Node, ...]
    read: Read

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two that are one stored vector."""
        return tuple(leaf.location for leaf in self.read.leaves)


@attrs.frozen(eq=False)
class BiasSite(StoredVector):
    """A stored vector that is added to the outputs of an op.

    Attributes:
        summand: what it is added to: the op's outputs, perhaps in another shape.
        sign: -1 where it is subtracted: the mean of a batch normalization.
        factors: what the outputs are multiplied with before: a shift must be, too; each with the outputs as they are
            multiplied.
    """

    summand: Edge
    sign: int
    factors: tuple[tuple[Edge, Edge], ...]

    @property
    def channel_axis(self) -> int | None:
        """The axis of the outputs that it runs along, None where that is numpy's broadcasting."""
        return channel_axis(self.adder)


@attrs.frozen(eq=False)
class Normalization:
    """A batch normalization that goes by stored statistics.

    Attributes:
        node: the op whose output is normalized.
        data: what it normalizes.
        mean, variance: its statistics.
    """

    node: Node
    data: Edge
    mean: StoredVector
    variance: StoredVector

    def along(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which statistics are broadcast to the data, from the shape in which they are read."""
        if self.node.op not in BATCH_NORMS or channel_axis(self.node) == -1:
            return shape
        return (*shape, *[1] * (len(str(self.node.attr("data_format"))) - 2))


def normalization(node: Node, tracer: Tracer) -> Normalization | None:
    """The batch normalization whose last op the node is, None where it is none, or makes statistics itself."""
    if node.op in BATCH_NORMS:
        if node.attr("is_training", True) or len(node.inputs) <= _VARIANCE:
            return None
        mean, variance = (_stored(node, node.inputs[index], tracer) for index in (_MEAN, _VARIANCE))
        return Normalization(node, node.inputs[_DATA], mean, variance) if mean and variance else None
    if node.op not in SUMS or len(node.inputs) != 2:
        return None
    for scaled, offset in (node.inputs, node.inputs[::-1]):
        found = _written_out(node, scaled.node, offset.node, tracer)
        if found is not None:
            return found
    return None


def _written_out(node: Node, scaled: Node, offset: Node, tracer: Tracer) -> Normalization | None:
    """data * scale + (offset - mean * scale), with scale = 1 / sqrt(variance + epsilon), perhaps times a factor."""
    if scaled.op != "Mul" or offset.op != "Sub" or offset.inputs[1].node.op != "Mul":
        return None
    product = offset.inputs[1].node
    shared = {edge.node for edge in scaled.inputs} & {edge.node for edge in product.inputs}
    for scale in shared:
        root = next((n for n in (scale, *(edge.node for edge in scale.inputs)) if n.op == "Rsqrt"), None)
        if root is None or (root is not scale and scale.op != "Mul") or root.inputs[0].node.op not in SUMS:
            continue
        widened = root.inputs[0].node
        # Others that read what is between would see other statistics.
        private = all(len(inner.view.readers(inner)) == 1 for inner in (product, widened, offset))
        private = (
            private and len(scale.view.readers(scale)) == 2 and (root is scale or len(root.view.readers(root)) == 1)
        )
        data = [edge for edge in scaled.inputs if edge.node is not scale]
        means = [edge for edge in product.inputs if edge.node is not scale]
        if not private or len(data) != 1 or len(means) != 1:
            continue
        mean = _stored(product, means[0], tracer)
        # The other addend is epsilon, a scalar.
        candidates = [_stored(widened, edge, tracer) for edge in widened.inputs]
        vectors = [vector for vector in candidates if vector is not None and vector.read.shape]
        if mean is not None and len(vectors) == 1:
            return Normalization(node, data[0], mean, vectors[0])
    return None


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
        if reader.op in BATCH_NORMS:
            unchanging = index == 0 and not reader.attr("is_training", True)
            return _site(reader, index, reader.inputs[_MEAN], -1, factors, tracer) if unchanging else None
        if reader.op in SUMS:
            written_out = normalization(reader, tracer)
            if written_out is not None and factors:
                return _bias(written_out.mean, factors[-1][1], -1, factors[:-1])
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
    # Batch normalizations that are written out add offset - mean * scale.
    subtracted = added.node.op == "Sub" and tracer.data_source(added.node) is None
    found = _stored(adder, added.node.inputs[0] if subtracted else added, tracer)
    if found is None:
        return None
    way = (added.node, *found.way) if subtracted else found.way
    return _bias(attrs.evolve(found, added=added, way=way), adder.inputs[index], sign, factors)


def _bias(vector: StoredVector, summand: Edge, sign: int, factors: tuple[tuple[Edge, Edge], ...]) -> BiasSite:
    return BiasSite(vector.adder, vector.added, vector.edge, vector.way, vector.read, summand, sign, factors)


def _stored(reader: Node, added: Edge, tracer: Tracer) -> StoredVector | None:
    """What ``reader`` reads along an edge, where that is stored, at most laid out anew."""
    edge, way = added, []
    while edge.node.op in _LAYOUTS:
        way.append(edge.node)
        edge = edge.node.inputs[0]
    read = tracer.read(edge)
    return StoredVector(reader, added, edge, tuple(way), read) if isinstance(read, Read) else None


def read_elsewhere(biases: Collection[StoredVector]) -> bool:
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
