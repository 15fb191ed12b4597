"""Shifts of a layer's mean outputs, stored in the bias that follows it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

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
