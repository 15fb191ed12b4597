"""The graphs that the handler checks work on."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import attrs
import tensorflow as tf

from sparsekit.config import PruneConfig
from sparsekit.graph.node import LiveNode
from sparsekit.handler import OpHandler
from sparsekit.live.pruning import plan_live
from sparsekit.planning import LayerDecision, PlannedLayer, Planning
from sparsekit.plugins import Plugin, Registered, Registry, default_registry


@attrs.frozen(eq=False)
class Layer:
    """One op under test, as a build function makes it in the default graph.

    Attributes:
        data: the tensor that the op's data comes from, a placeholder as a rule; values are fed for it. Sizes that
            are not static are taken as 3.
        output: the op's result, or what becomes of it.
        channel_axis: the axis of ``data`` that holds the input channels.
    """

    data: tf.Tensor
    output: tf.Tensor
    channel_axis: int = -1


Build = Callable[[], Layer]


@attrs.frozen(eq=False)
class PlannedGraph:
    """A new graph with the layer and its plan; nothing is edited yet."""

    graph: tf.Graph
    layer: Layer
    planning: Planning

    @property
    def planned(self) -> PlannedLayer:
        return self.planning.layers[0]

    @property
    def decision(self) -> LayerDecision:
        return self.planned.decision

    @property
    def weight(self) -> tf.Tensor:
        """The weight as it is read from its variable or constant, before any mask."""
        edge = self.planned.source.tensor
        assert isinstance(edge.node, LiveNode)
        return edge.node.operation.outputs[edge.index]

    def data_shape(self) -> list[int]:
        """A shape for the data that is fed."""
        if self.layer.data.shape.rank is None:
            raise AssertionError(f"Layer.data '{self.layer.data.name}' needs a static rank.")
        return [3 if size is None else size for size in self.layer.data.shape.as_list()]


def plan_new(handler: OpHandler, build: Build, registry: Registry) -> PlannedGraph:
    """Build a new graph and plan it; the layer must come out as one to be pruned."""
    who = type(handler).__qualname__
    graph, layer = new_graph(build)
    before = graph.as_graph_def()
    planning = plan_live(graph, PruneConfig(), (layer.output.op.name,), registry, None)
    if graph.as_graph_def() != before:
        raise AssertionError(f"{who}: planning changed the graph; group_axis and constraints may only read.")
    if not planning.plan.decisions:
        raise AssertionError(f"{who}: Layer.output '{layer.output.name}' does not depend on the op.")
    (decision,) = planning.plan.decisions
    if not decision.pruned:
        raise AssertionError(
            f"{who}: the plan must prune the layer, but skips it ({decision.reason}): {decision.message} weight_input "
            f"({handler.weight_input}), group_axis or a constraint is wrong, or the build function is."
        )
    for site in planning.layers[0].sites:
        for constraint in handler.constraints:
            if type(constraint.holds(site)) is not bool:
                raise AssertionError(f"{who}: constraint '{constraint.reason}' must answer True or False.")
    return PlannedGraph(graph, layer, planning)


def new_graph(build: Build) -> tuple[tf.Graph, Layer]:
    """Build in a new graph."""
    graph = tf.Graph()
    with graph.as_default():
        layer = build()
    if not isinstance(layer, Layer) or layer.output.graph is not graph or layer.data.graph is not graph:
        raise AssertionError("The build function must build in the default graph and return a sparsekit.testing.Layer.")
    return graph, layer


def registry_of(handler: OpHandler) -> Registry:
    """What is installed, with this handler in place of all others."""
    entry = Registered(handler, Plugin("under-test", "0", "sparsekit.testing", handler))
    return attrs.evolve(default_registry(), handlers=MappingProxyType(dict.fromkeys(handler.op_types, entry)))


def initialize(graph: tf.Graph, session: Any) -> None:
    """Initialize every variable of the graph."""
    with graph.as_default():
        session.run(tf.compat.v1.global_variables_initializer())
