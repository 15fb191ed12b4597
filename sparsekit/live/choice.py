"""How zeros are kept in a live graph: what is asked for, and which layers that can serve."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import attrs
import tensorflow as tf

from sparsekit.config import Masking, PruneConfig
from sparsekit.graph.node import LiveNode
from sparsekit.live.variable_reads import has_own_gradient, other_uses, python_variables, reads
from sparsekit.planning import PlannedLayer, Planning
from sparsekit.table import first_of

_SHOWN = 5
_WHY: dict[Masking, str] = {
    "forward": "as configured",
    "in-place": "as configured; for optimizers that leave a weight of zero without a gradient where it is",
    "project": "as configured; in the forward pass until a train op is built with result.project(train_op)",
}

_CHOSEN_AGAIN = (
    "; masks that are chosen again in the forward pass until a train op is built with result.project(train_op)"
)


def with_masking(graph: tf.Graph, planning: Planning, config: PruneConfig) -> Planning:
    """The planning with how every layer's zeros are kept, and a sentence of it in the plan."""
    if config.masking == "auto":
        sentence = "Masking: forward (safe with every optimizer that a graph may get; in-place costs less)."
        return _told(planning, sentence)
    if config.masking == "forward":
        return _told(planning, f"Masking: forward ({_WHY['forward']}).")
    known = python_variables(graph).keys() if config.masking == "in-place" else None
    obstacles = {layer.decision.name: _obstacle(layer, known) for layer in planning.layers}
    layers = tuple(
        layer if obstacles[layer.decision.name] else attrs.evolve(layer, masking=config.masking)
        for layer in planning.layers
    )
    chosen_again = any(layer.masking == "in-place" and layer.decision.update_freq for layer in layers)
    why = _WHY[config.masking] + (_CHOSEN_AGAIN if chosen_again else "")
    sentence = f"Masking: {config.masking} ({why}){_others(obstacles)}."
    return _told(attrs.evolve(planning, layers=layers, masking=config.masking), sentence)


def _told(planning: Planning, sentence: str) -> Planning:
    return attrs.evolve(planning, plan=attrs.evolve(planning.plan, masking=sentence if planning.layers else ""))


def _others(obstacles: dict[str, str]) -> str:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for layer, reason in obstacles.items():
        if reason:
            by_reason[reason].append(layer)
    return "".join(f"; forward for {first_of(layers, _SHOWN)}: {reason}" for reason, layers in by_reason.items())


def _obstacle(layer: PlannedLayer, known: Collection[tf.Operation] | None) -> str:
    """Why a layer must be masked in the forward pass, "" if it need not.

    Args:
        layer: the layer.
        known: where every gradient must be masked, the variables whose readers can be told.
    """
    variables = {leaf.operation for site in layer.sites for leaf in site.source.leaves if isinstance(leaf, LiveNode)}
    if len(variables) > 1:
        return "the weight lies in several variables"
    (variable,) = variables
    if variable.type == "Const":
        return "the weight is a constant"
    if layer.decision.update_freq and tf.DeviceSpec.from_string(variable.device).job not in (None, "localhost"):
        return (
            "masks that are chosen again move values between the variable and another one, which workers that share "
            "them would do at the same time (update_freq = 0 chooses once)"
        )
    return "" if known is None else _unreachable_gradient(layer, variable, known)


def _unreachable_gradient(layer: PlannedLayer, variable: tf.Operation, known: Collection[tf.Operation]) -> str:
    """Why not every gradient for the variable can be masked, "" if it can."""
    if variable not in known:
        return "the variable is in no collection, so that later readers of it are not known"
    readers = reads(variable)
    if any(has_own_gradient(read) for read in readers):
        return "a read of the variable has a gradient of its own"
    for use in other_uses(variable):
        return f"'{use.name}' ({use.type}) uses the variable itself: that gradient cannot be masked"
    for site in layer.sites:
        assert isinstance(site.source.tensor.node, LiveNode)
        read = site.source.tensor.node.operation
        while read not in readers and read.type == "Identity":
            read = read.inputs[0].op
        if read not in readers:
            return "the variable is used without a read of it"
    return ""
