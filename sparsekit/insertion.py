"""From a plan to a masked live graph."""

from __future__ import annotations

import tensorflow as tf

from sparsekit.graph.node import LiveNode
from sparsekit.masking import LayerMask, MaskDescription
from sparsekit.planning import PlannedLayer
from sparsekit.plugins import Registry


def insert_masks(graph: tf.Graph, layers: tuple[PlannedLayer, ...], registry: Registry) -> tuple[tf.Variable, ...]:
    """Give every planned layer a mask, and let its ops read the masked weight.

    Returns:
        The new variables: mask and batch count of each layer.
    """
    variables: list[tf.Variable] = []
    for layer in layers:
        decision = layer.decision
        assert decision.pattern is not None and decision.axis is not None
        owner = layer.source.leaves[0]
        assert isinstance(owner, LiveNode)
        mask = LayerMask(
            graph,
            decision.name,
            _tensor(layer.source.tensor.node, layer.source.tensor.index),
            owner.operation,
            MaskDescription(decision.pattern, decision.axis, decision.criterion, decision.update_freq),
            registry.criterion(decision.criterion),
        )
        for site, handler in zip(layer.sites, layer.handlers, strict=True):
            weight = _tensor(site.source.tensor.node, site.source.tensor.index)
            handler.insert_mask(site, mask.apply(weight))
        variables += mask.variables
    return tuple(variables)


def _tensor(node: object, index: int) -> tf.Tensor:
    assert isinstance(node, LiveNode)
    return node.operation.outputs[index]
