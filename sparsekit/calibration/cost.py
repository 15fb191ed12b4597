"""How much work the layers of a calibration are, before anything runs: for the estimate of the time that is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import numpy as np

from sparsekit.calibration.collecting import Use
from sparsekit.graph.node import Edge
from sparsekit.graph.shapes import Shapes
from sparsekit.matrix_form import MatrixForm

# A solver's steps cost as much as multiplying the weight with the Gram matrix about so often; it also factors it.
_SOLVER_STEPS = 70
_FACTORIZATIONS = 10


@attrs.frozen
class Cost:
    """The work of one layer, in multiply-adds.

    Attributes:
        forward: the layer's own part of a run of the model on all samples.
        sums: the sums over its inputs.
        solution: the search for mask and weights.
    """

    forward: float = 0.0
    sums: float = 0.0
    solution: float = 0.0


def costs(layers: Iterable[Sequence[Use]], samples: int) -> list[Cost]:
    """The work of every layer, from shapes that are known without running the model.

    Args:
        layers: the uses of every layer that is calibrated.
        samples: how many there are.
    """
    shapes = Shapes()
    return [_cost(uses, samples, shapes) for uses in layers]


def sequential(work: Sequence[Cost]) -> list[float]:
    """The work of every layer where each has a run of its own, up to the layer."""
    before = np.cumsum([cost.forward for cost in work])
    return [float(run) + cost.sums + cost.solution for run, cost in zip(before, work, strict=True)]


def _cost(uses: Sequence[Use], samples: int, shapes: Shapes) -> Cost:
    if not uses:
        return Cost()
    weight = np.broadcast_to(np.float32(0), uses[0].site.source.shape_at_op)
    forms = [_form(use, shapes) for use in uses]
    rows = samples * sum(count for _, count in forms)
    form = forms[0][0]
    if form is None:  # an input may be long or short: taken for a dense layer
        size = weight.shape[uses[0].site.source.axis_at_op]
        blocks, size, columns = 1, size, max(1, weight.size // size)
    else:
        blocks, size, columns = form.weight_matrix(weight).shape
    return Cost(
        forward=rows * blocks * size * columns,
        sums=rows * blocks * size**2,
        solution=blocks * size**2 * (_SOLVER_STEPS * columns + _FACTORIZATIONS * size),
    )


def _form(use: Use, shapes: Shapes) -> tuple[MatrixForm | None, int]:
    """An op's matrix form, and how many rows its output has for one sample."""
    data, result = shapes.of(use.data), shapes.of(Edge(use.site.node, 0))
    if not use.handler.has_matrix_form or data is None or result is None or None in (*data, *result):
        return None, 1
    lengths = [tuple(length or 0 for length in shape) for shape in (data, result)]
    try:
        form = use.handler.matrix_form(use.site, *lengths)
        return form, form.output_matrix(np.broadcast_to(np.float32(0), lengths[1])).shape[1]
    except (NotImplementedError, ValueError):
        return None, 1
