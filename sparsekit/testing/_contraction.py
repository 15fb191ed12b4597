"""Is the group axis the one that the op sums over? Told from the op's results alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from sparsekit.testing._graphs import PlannedGraph, initialize


def check_contraction(planned: PlannedGraph, random: np.random.Generator) -> None:
    """The group axis is the axis that the op sums over together with the input channels of its data.

    Told from the op's results alone: every input channel meets exactly one slice of the weight along the axis,
    every slice reaches every output, and to drop a slice is to drop its channels. Values are small positive
    integers: sums are exact in any order, and nothing cancels.
    """
    layer, decision = planned.layer, planned.decision
    axis, shape, data_shape = decision.axis, decision.shape, planned.data_shape()
    assert axis is not None and shape is not None
    weight = random.integers(1, 5, shape).astype(planned.weight.dtype.as_numpy_dtype)
    data = random.integers(1, 5, data_shape).astype(layer.data.dtype.as_numpy_dtype)
    channel_axis = layer.channel_axis % len(data_shape)
    slices, channels = range(shape[axis]), range(data_shape[channel_axis])
    where = f"{decision.name}: axis {axis} of the weight {list(shape)} is not its input-channel axis:"
    wrong = f"group_axis is wrong, or the channel_axis of Layer (here {channel_axis} of the data {data_shape}) is."
    with tf.compat.v1.Session(graph=planned.graph) as session:
        initialize(planned.graph, session)

        def output(weight: Any, data: Any) -> Any:
            return session.run(layer.output, {planned.weight: weight, layer.data: data})

        nothing = output(weight * 0, data * 0)
        meets = np.array(
            [
                [(output(_only(weight, axis, [c]), _only(data, channel_axis, [k])) != nothing).any() for k in channels]
                for c in slices
            ]
        )
        for k in channels:
            met = np.flatnonzero(meets[:, k])
            if len(met) != 1:
                raise AssertionError(
                    f"{where} input channel {k} of the data meets {len(met)} slices of the weight along it "
                    f"({', '.join(map(str, met[:5]))}), where it must meet exactly one. {wrong}"
                )
        reached = [output(_only(weight, axis, [c]), data) != nothing for c in slices]
        for c in slices:
            if not reached[c].any() or (reached[c] != reached[0]).any():
                raise AssertionError(
                    f"{where} slice {c} along it does not reach the same outputs as slice 0, so the op does not sum "
                    f"over it. {wrong}"
                )
            rest = [k for k in channels if not meets[c, k]]
            dropped = output(_only(weight, axis, [other for other in slices if other != c]), data)
            if (dropped != output(weight, _only(data, channel_axis, rest))).any():
                raise AssertionError(
                    f"{where} without slice {c} the output is not what it is without the input channels that meet it. "
                    f"{wrong}"
                )


def _only(array: Any, axis: int, kept: list[int]) -> Any:
    """The array with zeros everywhere but in the ``kept`` slices along ``axis``."""
    result = np.zeros_like(array)
    index = (slice(None),) * axis + (kept,)
    result[index] = array[index]
    return result
