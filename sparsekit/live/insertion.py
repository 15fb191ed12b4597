"""From a plan to a masked live graph."""

from __future__ import annotations

import tensorflow as tf

from sparsekit.errors import GraphError
from sparsekit.graph.node import Edge, LiveNode
from sparsekit.live.mask import LayerMask, MaskDescription
from sparsekit.live.variable_reads import mask_gradients, python_variables
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry


def insert_masks(graph: tf.Graph, layers: tuple[PlannedLayer, ...], registry: Registry) -> list[LayerMask]:
    """Give every planned layer a mask, and let its ops read the masked weight.

    Returns:
        The mask of each layer.

    Raises:
        GraphError: a plugin failed; no op reads a mask and no variable was added to a collection.
    """
    variables = graph.get_collection_ref(tf.compat.v1.GraphKeys.GLOBAL_VARIABLES)
    before = len(variables)
    masks = []
    for layer in layers:
        try:
            masks.append(_build(graph, layer, registry))
        except Exception as error:
            del variables[before:]
            raise GraphError(
                f"its mask cannot be built ({type(error).__name__}: {error})",
                where=layer.decision.name,
                expected=f"criterion '{layer.decision.criterion}' to work inside a graph",
                hint="No op was rewired. Build the graph anew before you try again, with another criterion.",
            ) from error
    objects = python_variables(graph)
    # Every mask is there before the first op is rewired.
    for layer, mask in zip(layers, masks, strict=True):
        for site, handler in zip(layer.sites, layer.handlers, strict=True):
            handler.insert_mask(site, mask.apply(_tensor(site.source.tensor)))
        if layer.masking == "in-place":
            mask_gradients(_owner(layer), objects[_owner(layer)], layer.decision.name)
    return masks


def _build(graph: tf.Graph, layer: PlannedLayer, registry: Registry) -> LayerMask:
    decision = layer.decision
    assert decision.pattern is not None and decision.axis is not None
    return LayerMask(
        graph,
        decision.name,
        _tensor(layer.source.tensor),
        _owner(layer),
        MaskDescription(decision.pattern, decision.axis, decision.criterion, decision.update_freq),
        registry.criterion(decision.criterion),
        layer.masking,
    )


def _owner(layer: PlannedLayer) -> tf.Operation:
    owner = layer.source.leaves[0]
    assert isinstance(owner, LiveNode)
    return owner.operation


def _tensor(edge: Edge) -> tf.Tensor:
    assert isinstance(edge.node, LiveNode)
    return edge.node.operation.outputs[edge.index]
