"""Models at rest, pruned by the public API and run by TensorFlow alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

import sparsekit
from accuracy.rows import WITH_SAMPLES, Row
from sparsekit.errors import ConfigError

Array = npt.NDArray[Any]
tf1 = tf.compat.v1


def pruned(model: Any, row: Row, samples: Array) -> sparsekit.PruneResult | None:
    """The model pruned as a row says; None where this version of sparsekit does not know the row's config."""
    try:
        return sparsekit.prune(
            model, dict(row.config or {}), calibration=samples if row.group == WITH_SAMPLES else None
        )
    except ConfigError:
        return None


def layer_error(result: sparsekit.PruneResult) -> dict[str, float]:
    """The energy, in percent, that layers' outputs lose on the calibration samples; the mean over layers."""
    errors = [account.error_after for account in result.accounts if account.error_after is not None]
    return {"layer error": 100 * float(np.mean(errors))} if errors else {}


def run_frozen(graph_def: Any, output: str, name: str, values: Array, batch: int = 256) -> Array:
    """What a frozen graph makes of the values of its input ``name``."""
    with tf.Graph().as_default(), tf1.Session() as session:
        (tensor,) = tf.import_graph_def(graph_def, return_elements=[f"{output}:0"], name="")
        parts = [values[start : start + batch] for start in range(0, len(values), batch)]
        return np.concatenate([session.run(tensor, {f"{name}:0": part}) for part in parts])
