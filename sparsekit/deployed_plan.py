"""The plan of a file in a deployment format: what its layers are, though nothing in it can be pruned."""

from __future__ import annotations

from collections.abc import Iterable

from sparsekit.artefact.deployed import NO_CHANNEL_AXIS, DeployedLayer
from sparsekit.config import PruneConfig
from sparsekit.planning import LayerDecision, Plan, judged, too_short
from sparsekit.target import TargetProfile


def plan_deployed(layers: Iterable[DeployedLayer], config: PruneConfig, target: TargetProfile | None = None) -> Plan:
    """The layers that should follow the config's pattern, and why the others need not.

    Such a file keeps no names that a config could mean: of it only the pattern counts.

    Args:
        layers: as a reader found them.
        config: the config.
        target: judges the layers as they are, data type included.
    """
    return Plan(tuple(judged(_decide(layer, config), target) for layer in layers), target)


def _decide(layer: DeployedLayer, config: PruneConfig) -> LayerDecision:
    reason, message = _obstacle(layer, config)
    if not reason:
        note = f" ({layer.note})" if layer.note else ""
        message = (
            f"at most {config.pattern.n} of every {config.pattern.m} consecutive weights along axis {layer.axis} of "
            f"{list(layer.shape or ())} should not be zero{note}; prune the model that it was made from."
        )
    return LayerDecision(
        name=layer.name,
        op_type=layer.op_type,
        status="skip" if reason else "prune",
        reason=reason or "eligible",
        message=f"{layer.name}: {message}",
        shape=layer.shape,
        axis=layer.axis,
        dtype=layer.dtype,
        weight=layer.location,
        uses=(layer.name,),
        pattern=config.pattern,
        deployed=layer.dtype_is_final,
    )


def _obstacle(layer: DeployedLayer, config: PruneConfig) -> tuple[str, str]:
    if layer.exempt:
        return "no-input-channels" if layer.exempt == NO_CHANNEL_AXIS else "weight-dynamic", f"{layer.exempt}."
    if not layer.readable or layer.axis is None or layer.shape is None:
        return "weight-unreadable", f"{layer.obstacle or 'its layout is not known'}."
    return too_short(layer.shape, layer.axis, config.pattern)
