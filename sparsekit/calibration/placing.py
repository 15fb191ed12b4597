"""Where the shifts of layers' outputs go: into biases of their own, or into ones that are added."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from sparsekit.artefact.added_bias import AddedBias, Places
from sparsekit.artefact.model import Change, Model
from sparsekit.calibration.network import Network
from sparsekit.calibration.shifting import NewBias, OutputBias, new_bias, output_bias
from sparsekit.graph.node import Node
from sparsekit.graph.trace import Tracer
from sparsekit.matrix_form import MatrixForm

Array: TypeAlias = npt.NDArray[Any]
Place: TypeAlias = OutputBias | NewBias | str
"""A bias that is there, one that can be added, or why there is neither."""


class Shifts:
    """The places for shifts in a model, and what was put there.

    Attributes:
        biases: what is added to the graph.
    """

    def __init__(self, model: Model, network: Network, tracer: Tracer) -> None:
        self.biases: list[AddedBias] = []
        self._model = model
        self._network = network
        self._tracer = tracer
        asked_for = {*network.outputs, *(model.outputs or ())}
        self._places = Places(model.view, asked_for, entered_elsewhere=model.entered_elsewhere)

    def place(self, nodes: Sequence[Node], computed: Sequence[Node], form: MatrixForm, feeds: Any) -> Place:
        """Where a shift of a layer's outputs can go.

        Args:
            nodes: the ops that use the layer's weight.
            computed: those that a run computes.
            form: the matrix form of the first of these.
            feeds: inputs of the model, for the shapes.
        """
        bias = output_bias(self._model, self._network, nodes, computed[0], form, feeds, self._tracer)
        if bias is not None:
            return bias
        obstacle = self._obstacle(nodes)
        if obstacle:
            return f"no bias is added: {obstacle}"
        new = new_bias(self._network, computed, nodes, form, feeds)
        return new or "no bias is added: its outputs have no place for one"

    def _obstacle(self, nodes: Sequence[Node]) -> str:
        if obstacle := self._model.bias_obstacle():
            return obstacle
        if not all(self._network.can_fetch(node) for node in nodes):
            return "its weight is used in a loop or cond too"
        if not all(self._network.can_add(node) for node in nodes):
            return "the dtype of its output is not known"
        return self._places.obstacle(nodes)

    def put(self, place: OutputBias | NewBias, shift: Array) -> Iterator[Change]:
        """Add a shift [blocks, N] to a layer's outputs, from now on; yields what becomes of stored values."""
        if isinstance(place, OutputBias):
            read, move = place.moved(shift)
            self._network.set(place.edges, move(next(self._model.values(read))[1]))
            yield read, move
            return
        if not shift.any():
            return
        value = place.value(shift)
        for node in place.nodes:
            self._network.add(node, value)
        self.biases += place.added(value)
