"""Shifts of a layer's mean outputs, stored in the bias that follows it, or in one that is added."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from sparsekit.artefact.added_bias import AddedBias
from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.bias import BiasSite, bias_of, read_elsewhere
from sparsekit.calibration.network import Network
from sparsekit.graph.node import Edge, Node
from sparsekit.graph.trace import Tracer
from sparsekit.matrix_form import MatrixForm

Array: TypeAlias = npt.NDArray[Any]


@attrs.frozen(eq=False)
class OutputBias:
    """The bias of a layer, by the columns of the layer's matrices.

    Attributes:
        site: where it is stored.
        edges: all that read it.
        places: for every column [blocks, N] its place in the bias.
        factor: for every column what comes between the layer and the bias as a factor.
    """

    site: BiasSite
    edges: tuple[Edge, ...]
    places: Array
    factor: Array

    def moved(self, shift: Array) -> Change:
        """The change of the stored value that adds ``shift`` [blocks, N] to the layer's outputs."""
        by = np.zeros(self.places.size)
        by[self.places.ravel()] = (self.site.sign * shift * self.factor).ravel()
        return self.site.read, functools.partial(_moved, by=by)


def output_bias(
    model: Model, network: Network, uses: Sequence[Node], node: Node, form: MatrixForm, feeds: Any, tracer: Tracer
) -> OutputBias | None:
    """Where a shift of a layer's outputs can go, None where there is no bias of its own, channel by channel.

    Args:
        model: the model.
        network: runs it.
        uses: the ops that use the layer's weight, dead copies too.
        node: one of them that a run computes.
        form: its matrix form.
        feeds: inputs of the model, for the shapes.
        tracer: finds what is stored.

    Raises:
        ModelError: TensorFlow cannot run the model on the inputs.
    """
    found = [bias_of(use, tracer) for use in uses]
    biases = [bias for bias in found if bias is not None]
    if len(biases) < len(found) or len({(bias.key, bias.sign) for bias in biases}) != 1:
        return None
    bias = biases[list(uses).index(node)]
    if model.obstacle(bias.read) or read_elsewhere(biases) or not network.can_fetch(bias.adder):
        return None
    edges = [Edge(node, 0), bias.summand, bias.added, *(edge for pair in bias.factors for edge in pair)]
    output, summand, added, *multiplied = network.run(edges, feeds)
    if bias.read.shape is None or math.prod(bias.read.shape) != added.size:
        return None
    if bias.channel_axis is not None:
        axis = bias.channel_axis % summand.ndim
        added = added.reshape([-1 if i == axis else 1 for i in range(summand.ndim)])
    places = _by_column(np.arange(added.size).reshape(added.shape), summand.shape, output.shape, form)
    if places is None or sorted(places.ravel()) != list(range(added.size)):
        return None
    factor = np.ones(places.shape)
    for value, outputs in zip(multiplied[::2], multiplied[1::2], strict=True):
        columns = _by_column(value, outputs.shape, output.shape, form)
        if columns is None:
            return None
        factor = factor * columns
    return OutputBias(bias, tuple(other.edge for other in biases), places, factor)


@attrs.frozen(eq=False)
class NewBias:
    """A bias that can be added behind the ops of a layer.

    Attributes:
        nodes: the ops.
        shape: what it has, to be broadcast to the output of each.
        places: for every column [blocks, N] its place in the bias.
        dtype: of the output.
        along_last: it is a vector along the last axis of the output, and may be added as converters know a bias.
    """

    nodes: tuple[Node, ...]
    shape: tuple[int, ...]
    places: Array
    dtype: Any
    along_last: bool

    def value(self, shift: Array) -> Array:
        """The bias that adds ``shift`` [blocks, N] to the layer's outputs."""
        flat = np.zeros(self.places.size)
        flat[self.places.ravel()] = shift.ravel()
        return flat.reshape(self.shape).astype(self.dtype)

    def added(self, value: Array) -> list[AddedBias]:
        """The edits of the graph: one for every op, however often its function is called."""
        return [
            AddedBias(location, value, self.along_last)
            for location in dict.fromkeys(node.location for node in self.nodes)
        ]


def new_bias(
    network: Network, uses: Sequence[Node], nodes: Sequence[Node], form: MatrixForm, feeds: Any
) -> NewBias | None:
    """A bias to be added behind a layer's ops, None where its outputs differ in shape from use to use.

    Args:
        network: runs the model.
        uses: the ops that use the layer's weight and that a run computes.
        nodes: all that use it.
        form: the first one's matrix form.
        feeds: inputs of the model, for the shapes.

    Raises:
        ModelError: TensorFlow cannot run the model on the inputs.
    """
    outputs = network.run([Edge(node, 0) for node in uses], feeds)
    shape = outputs[0].shape
    bias = _bias_shape(shape, form)
    if any(other.ndim != len(shape) or _longer(bias, other.shape) for other in outputs):
        return None
    places = _by_column(np.arange(math.prod(bias)).reshape(bias), shape, shape, form)
    if places is None or sorted(places.ravel()) != list(range(math.prod(bias))):
        return None
    # Behind a grouped convolution TensorFlow fuses what converters know as a bias into an op that knows no groups.
    along_last = len(bias) == 1 and bias[0] > 1 and len(places) == 1
    return NewBias(tuple(nodes), bias, places, outputs[0].dtype, along_last)


def _bias_shape(shape: tuple[int, ...], form: MatrixForm) -> tuple[int, ...]:
    """The shortest shape that has a place for every column: the other axes of the output are rows."""
    lengths = []
    for axis, length in enumerate(shape):
        along = np.arange(length).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        lengths.append(1 if _by_column(along, shape, shape, form) is None else length)
    while len(lengths) > 1 and lengths[0] == 1:
        del lengths[0]
    return tuple(lengths)


def _longer(bias: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a bias has a length, other than one, that an output of that shape has not."""
    return any(length not in (1, other) for length, other in zip(bias[::-1], shape[::-1], strict=False))


def _by_column(
    values: Array, combined_shape: tuple[int, ...], output_shape: tuple[int, ...], form: MatrixForm
) -> Array | None:
    """Values that are combined with an op's output, one for every column of its matrix form: [blocks, N]; None where
    they are not the same in all rows.

    Args:
        values: to be broadcast.
        combined_shape: of the output where it is combined with them.
        output_shape: of the output as the op returns it.
        form: the op's matrix form.
    """
    try:
        matrix = form.output_matrix(np.broadcast_to(values, combined_shape).reshape(output_shape))
    except ValueError:  # the result is larger than the output
        return None
    first: Array = matrix[:, 0, :]
    return first if matrix.shape[1] and (matrix == first[:, None, :]).all() else None


def _moved(value: Array, by: Array) -> Array:
    return (value + by.reshape(value.shape)).astype(value.dtype)
