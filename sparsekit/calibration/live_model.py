"""A live graph as a model with stored weights: those that its variables have in a session."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from sparsekit.artefact.added_bias import AddedBias
from sparsekit.artefact.model import Array, Change, Model
from sparsekit.artefact.rewriting import Edits
from sparsekit.calibration import variables
from sparsekit.errors import GraphError
from sparsekit.graph.forward import forward_nodes, reached
from sparsekit.graph.node import LiveGraph
from sparsekit.graph.trace import Read
from sparsekit.table import first_of

DATA_OPS = (
    "Placeholder",
    "PlaceholderV2",
    "PlaceholderWithDefault",
    "IteratorGetNext",
    "QueueDequeueV2",
    "QueueDequeueManyV2",
    "QueueDequeueUpToV2",
)
"""What gives a run its data, as sessions can be fed in their place."""


class LiveModel(Model):
    """A live graph and a session. Neither is changed: it runs as a copy, in a session of its own.

    Args:
        view: the graph.
        session: a session of it, whose variables are initialized or restored.
        outputs: the operations that a run asks for.
        changes: what becomes of weights and biases.

    Raises:
        GraphError: variables that a run needs have no values yet.
    """

    view: LiveGraph  # type: ignore[assignment]

    def __init__(self, view: LiveGraph, session: Any, outputs: Sequence[str], changes: tuple[Change, ...] = ()) -> None:
        self.source = "the graph"
        self.view = view
        self.outputs = self.main_outputs = tuple(outputs)
        self.changes = changes
        self._session = session
        self._without_value: set[str] = set()

    @property
    def graph_def(self) -> Any:
        return self.view.graph_def

    def obstacle(self, read: Read) -> str:
        for leaf in read.leaves:
            if leaf.op == "Const":
                return f"'{leaf.path}' is a constant of the graph, which no session can change"
            if leaf.name in self._without_value:
                return f"'{leaf.path}' has no value in the session"
        return ""

    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        parts = [self._value(leaf) for leaf in read.leaves]
        yield "", parts[0] if read.concat_axis is None else np.concatenate(parts, read.concat_axis)

    def _value(self, leaf: Any) -> Array:
        if leaf.op == "Const":
            constant: Array = leaf.constant()
            return constant
        ((_, value),) = variables.read(self._session, [leaf.operation])
        if value is None:
            values = variables.read(self._session, self._variables())
            raise _uninitialized([name for name, value in values if value is None])
        return value

    @functools.cached_property
    def inputs(self) -> Mapping[str, str]:
        fed = {tensor.name for op in self._needed if op.type not in DATA_OPS for tensor in op.inputs}
        makers = [op for op in self.view.graph.get_operations() if op.type in DATA_OPS]
        names = [output.name for op in makers for output in op.outputs if output.name in fed]
        return {name.removesuffix(":0"): name for name in names}

    @functools.cached_property
    def _needed(self) -> set[tf.Operation]:
        """The ops that a run needs, those that give it its data included."""
        return reached(
            (self.view.graph.get_operation_by_name(name) for name in self.main_outputs or ()),
            lambda op: () if op.type in DATA_OPS else (*(tensor.op for tensor in op.inputs), *op.control_inputs),
        )

    def load(self, session: Any, graph_def: Any, folder: Path) -> None:
        for node in (*graph_def.node, *(node for f in graph_def.library.function for node in f.node_def)):
            node.device = ""  # the machines and cards of a training are not those of a copy
        with session.graph.as_default():
            tf.import_graph_def(graph_def, name="")
        hidden = [op.name for op in self._variables() if variables.value_of(op) is None]
        if hidden:
            raise GraphError(
                "this variable is read in functions, loops or branches alone, so that its value cannot be had",
                where=hidden[0],
                hint="Read it in the graph itself, with tf.identity.",
            )
        variables.write(session, self._initialized())
        missing = [op.name for op in self._variables() if op.name in self._without_value]
        if missing:
            raise _uninitialized(missing)
        session.run(self._tables())

    def _variables(self) -> list[tf.Operation]:
        """Those that a run needs, in the order of the graph."""
        return [op for op in variables.variables_of(self.view.graph) if op in self._needed]

    def others(self, changed: Collection[str]) -> Iterator[tuple[str, Array]]:
        """The values that flow into the outputs from variables that did not change, by name."""
        forward = {node.name for node in forward_nodes(self.view, self.main_outputs)}
        others = [op for op in self._variables() if op.name in forward and op.name not in changed]
        for name, value in variables.read(self._session, others):
            assert value is not None
            yield name, value

    def _initialized(self) -> Iterator[tuple[str, Array]]:
        """The values of all variables that have one: those of biases lie behind what a run needs."""
        found = variables.variables_of(self.view.graph)
        self._without_value = {op.name for op in found}
        for name, value in variables.read(self._session, found):
            if value is not None:
                self._without_value.remove(name)
                yield name, value

    def _tables(self) -> list[str]:
        """The initializers of tables that a run needs."""
        found = self.view.graph.get_collection(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS)
        return [op.name for op in found if op.inputs and op.inputs[0].op in self._needed]

    def changed(self, changes: Iterable[Change], edits: Edits | None = None) -> LiveModel:
        assert edits is None
        return LiveModel(self.view, self._session, self.main_outputs or (), (*self.changes, *changes))

    def bias_obstacle(self) -> str:
        return "a live graph keeps its ops"

    def with_biases(self, biases: Sequence[AddedBias]) -> LiveModel:
        assert not biases
        return self

    def graph_obstacle(self) -> str:
        return "is a live graph"

    def save(self, path: str | os.PathLike[str]) -> Path:
        raise GraphError("a live graph cannot be saved", hint="Freeze it first.")


def _uninitialized(names: Sequence[str]) -> GraphError:
    shown = first_of([f"'{name}'" for name in names], 5)
    return GraphError(
        f"{shown} {'has' if len(names) == 1 else 'have'} no value yet",
        where="session",
        expected="a session in which the variables were restored or initialized",
        hint="Restore the dense checkpoint in it first.",
    )
