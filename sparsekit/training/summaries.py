"""Summaries as TensorBoard reads them, written by TensorFlow alone: TensorBoard need not be installed to train."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

_BUCKETS = 30


class SummaryWriter:
    """Writes one event file into a folder.

    Args:
        folder: where; made if it is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._writer = tf.summary.create_file_writer(os.fspath(folder))

    def write(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write values by their tags, and let them be seen.

        Args:
            step: what they are drawn over.
            scalars: numbers.
            histograms: arrays of any shape.
        """
        summary = tf.compat.v1.Summary()
        for tag, number in scalars.items():
            summary.value.add(tag=tag, simple_value=number)
        for tag, values in histograms.items():
            summary.value.add(tag=tag, histo=_histogram(values))
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _histogram(values: npt.NDArray[Any]) -> Any:
    values = values.astype(np.float64).ravel()
    counts, edges = np.histogram(values, _BUCKETS)
    return tf.compat.v1.HistogramProto(
        min=values.min(initial=np.inf),
        max=values.max(initial=-np.inf),
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )
