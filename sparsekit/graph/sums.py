"""The ops of TensorFlow that add a vector to the outputs of another op: sums, and batch normalizations."""

from __future__ import annotations

from sparsekit.graph.node import Node

BIAS_SUM = "BiasAdd"
"""Adds a vector along the channels: what converters know as a bias."""
BROADCAST_SUM = "AddV2"
"""Broadcasts as numpy does."""
SUMS = (BIAS_SUM, "Add", BROADCAST_SUM)
BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def channel_axis(node: Node) -> int | None:
    """The axis of the data that the op's vectors run along, None where that is numpy's broadcasting."""
    if node.op != BIAS_SUM and node.op not in BATCH_NORMS:
        return None
    return 1 if str(node.attr("data_format", "NHWC")).startswith("NC") else -1
