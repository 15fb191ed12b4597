"""Where retraining starts from: weights, masks and biases that calibration chose, to be loaded into a session."""

from __future__ import annotations

import logging
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sparsekit.calibration import variables
from sparsekit.calibration.live_model import LiveModel
from sparsekit.errors import GraphError, PluginError
from sparsekit.graph.trace import Read
from sparsekit.pattern import keep_mask
from sparsekit.planning import PlannedLayer

Array: TypeAlias = npt.NDArray[Any]
_log = logging.getLogger("sparsekit")

_STARTED = 1
"""The batch count of a layer whose mask was chosen: with update_freq 0 it is never chosen again."""


class CalibratedStart:
    """Values that calibration chose, for sessions of a graph that has masks.

    Somebody who forgets to load them is told so when they are thrown away.

    Args:
        graph: the graph.
        values: of weights and biases, by the names of their variables.
        masks: bool, of every layer, with its mask variable and its batch count.
        others: checksums of the variables that calibration left as they were, by name, for a warning.
        calibrated: the session that they were chosen in, which does not see the masks.
    """

    def __init__(
        self,
        graph: tf.Graph,
        values: Mapping[str, Array],
        masks: Sequence[tuple[Array, tf.Variable, tf.Variable]],
        others: Mapping[str, int],
        calibrated: Any,
    ) -> None:
        self._graph = graph
        self._values = values
        self._masks = masks
        self._others = others
        self._calibrated = weakref.ref(calibrated)
        self._reminder = weakref.finalize(self, _remind, len(masks)) if masks else None

    def load(self, session: Any) -> None:
        """Assign everything in a session of the graph; nothing is added to the graph, which may be finalized.

        Raises:
            GraphError: it is a session of another graph, is closed, does not see the masks, or was trained already.
        """
        self._check(session)
        variables.write(session, self._values.items())
        variables.write(session, self._as_stored())
        # Last: before that, no layer counts as started.
        count = np.int64(_STARTED)
        variables.write(session, ((batch.op.name, np.asarray(count)) for _, _, batch in self._masks))
        if self._reminder is not None:
            self._reminder.detach()
        self._compare_others(session)

    def _compare_others(self, session: Any) -> None:
        found = variables.read(session, map(self._graph.get_operation_by_name, self._others))
        strange = [name for name, value in found if value is None or checksum(value) != self._others[name]]
        if strange:
            _log.warning(
                "%d variables, such as '%s', have other values here than in the session that was calibrated. Was the "
                "dense checkpoint restored before result.start(session)?",
                len(strange),
                strange[0],
            )

    def _as_stored(self) -> Iterator[tuple[str, Array]]:
        for mask, variable, _ in self._masks:
            yield variable.op.name, mask.astype(variable.dtype.base_dtype.as_numpy_dtype)

    def _check(self, session: Any) -> None:
        require_session(session, self._graph)
        if session is self._calibrated():
            raise GraphError(
                "is the one that was calibrated, which does not see the masks",
                where="session",
                expected="a session that was opened after prune",
                hint="Open a new one, and restore the same checkpoint in it.",
            )
        counts = variables.read(session, (batch.op for _, _, batch in self._masks))
        trained = max((int(count) for _, count in counts if count is not None), default=0)
        if trained > _STARTED:
            raise GraphError(
                f"was trained already, for {trained} batches: the start would undo that",
                where="session",
                expected="a session in which a dense checkpoint was restored",
                hint="Where training goes on from a checkpoint with masks, leave the start out.",
            )


def checksum(value: Array) -> int:
    """Equal for equal bits."""
    return zlib.crc32(np.ascontiguousarray(value).view(np.uint8).data)


def require_session(session: Any, graph: tf.Graph) -> None:
    """Raises GraphError where ``session`` is no open session of ``graph``."""
    found = ""
    if not (hasattr(session, "run") and hasattr(session, "graph")):
        found = f"got {type(session).__name__}"
    elif session.graph is not graph:
        found = "is a session of another graph"
    elif getattr(session, "_closed", False):
        found = "is closed"
    if found:
        raise GraphError(found, where="session", expected="an open tf.compat.v1.Session of the graph")


def chosen_of(model: LiveModel, layers: Sequence[PlannedLayer]) -> tuple[dict[str, Array], list[Array]]:
    """What becomes of the variables, by name, and the mask of every layer, bool.

    Args:
        model: what calibration made of the live graph.
        layers: those that it pruned.

    Raises:
        PluginError: a criterion keeps more weights than the pattern allows.
    """
    values: dict[str, Array] = {}
    weights: dict[int, Array] = {}
    for read, change in model.changes:
        whole = weights[id(read)] = change(_current(model, read, values))
        values.update((leaf.name, part) for leaf, part in read.split(whole) if leaf.op != "Const")
    return values, [_mask(model, layer, weights[id(layer.source.read)]) for layer in layers]


def _current(model: LiveModel, read: Read, values: Mapping[str, Array]) -> Array:
    ((_, stored),) = model.values(read)
    parts = [values.get(leaf.name, part) for leaf, part in read.split(stored)]
    return parts[0] if read.concat_axis is None else np.concatenate(parts, read.concat_axis)


def _mask(model: LiveModel, layer: PlannedLayer, pruned: Array) -> Array:
    """Every weight that is not 0 stays, and the largest of the dense ones where that are fewer than may."""
    decision = layer.decision
    assert decision.pattern is not None and decision.axis is not None
    ((_, dense),) = model.values(layer.source.read)
    mask = keep_mask(np.where(pruned != 0, np.asarray(np.inf, dense.dtype), dense), decision.axis, decision.pattern)
    if pruned[~mask].any():
        raise PluginError(
            f"criterion '{decision.criterion}' keeps more weights than {decision.pattern} allows",
            where=decision.name,
            hint="Its author can find out with sparsekit.testing.",
        )
    return mask


def _remind(layers: int) -> None:
    _log.warning(
        "The start that was calibrated for %d layers was loaded into no session: without result.start(session), masks "
        "are chosen by magnitude at the first batch.",
        layers,
    )
