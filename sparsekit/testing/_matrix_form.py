"""Is the matrix form of an op the op? See :class:`sparsekit.matrix_form.MatrixForm`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from sparsekit.graph.node import LiveNode
from sparsekit.handler import OpHandler
from sparsekit.matrix_form import MatrixForm
from sparsekit.pattern import keep_mask
from sparsekit.testing._graphs import PlannedGraph, initialize


def check_matrix_form(handler: OpHandler, planned: PlannedGraph, random: np.random.Generator) -> None:
    """X @ W is the op's output, W holds the weight as it is, and its runs of rows are the group axis.

    An op that its handler has no matrix form for, by NotImplementedError, is left out.
    """
    who = type(handler).__qualname__
    site = planned.planned.sites[0]
    assert isinstance(site.node, LiveNode)
    inputs, index = site.node.operation.inputs, handler.data_input(site)
    if type(index) is not int or not 0 <= index < len(inputs) or index == site.input:
        raise AssertionError(
            f"{who}.data_input must be the index of the input that holds the data of {site.node!r}, not {index!r}: it "
            f"has {len(inputs)} inputs, and number {site.input} is the weight."
        )
    wanted = (inputs[index], inputs[site.input], site.node.operation.outputs[0])
    data, weight, output = _values(planned, wanted, random)
    try:
        form = handler.matrix_form(site, data.shape, output.shape)
    except NotImplementedError:
        return
    if not isinstance(form, MatrixForm):
        raise AssertionError(f"{who}.matrix_form must return a sparsekit.MatrixForm, not {form!r}.")
    before = [value.tobytes() for value in (data, weight, output)]
    _check_weight_matrix(form, weight, site.source.axis_at_op, who)
    _check_product(form, data, weight, output, who)
    if [value.tobytes() for value in (data, weight, output)] != before:
        raise AssertionError(f"{who}: a matrix form may only read the data, the weight and the output.")


def _values(planned: PlannedGraph, tensors: tuple[tf.Tensor, ...], random: np.random.Generator) -> Any:
    """What the op reads and returns for random data."""
    layer = planned.layer
    fed = random.standard_normal(planned.data_shape()).astype(layer.data.dtype.as_numpy_dtype)
    with tf.compat.v1.Session(graph=planned.graph) as session:
        initialize(planned.graph, session)
        return session.run(tensors, {layer.data: fed})


def _check_weight_matrix(form: MatrixForm, weight: Any, axis: int, who: str) -> None:
    matrix = form.weight_matrix(weight)
    if matrix.ndim != 3 or matrix.size != weight.size or matrix.dtype != weight.dtype:
        raise AssertionError(
            f"{who}: weight_matrix must hold every element of the weight {weight.dtype}{list(weight.shape)} once, as "
            f"[blocks, K, N]; it returned {matrix.dtype}{list(matrix.shape)}."
        )
    back = form.weight_from_matrix(matrix)
    if back.shape != weight.shape or back.tobytes() != weight.tobytes():
        raise AssertionError(f"{who}: weight_from_matrix must give back the very weight that weight_matrix was given.")
    rows, run = matrix.shape[1], weight.shape[axis]
    kept = keep_mask(weight, axis)
    if rows % run or (kept != form.weight_from_matrix(_keep_in_runs(matrix, run))).any():
        raise AssertionError(
            f"{who}: the rows of weight_matrix must be runs of {run} along the group axis (axis {axis} of the weight "
            f"{list(weight.shape)}), one run after the other; of the {rows} rows that it returned, groups of 4 are "
            "other weights than along the axis."
        )


def _keep_in_runs(matrix: Any, run: int) -> Any:
    """The mask chosen on the matrix: groups are consecutive rows of a run."""
    blocks, rows, columns = matrix.shape
    return keep_mask(matrix.reshape(blocks, rows // run, run, columns), 2).reshape(matrix.shape)


def _check_product(form: MatrixForm, data: Any, weight: Any, output: Any, who: str) -> None:
    x, w, y = form.lower(data), form.weight_matrix(weight), form.output_matrix(output)
    blocks, rows, columns = y.shape if y.ndim == 3 else (0, 0, 0)
    if x.shape != (blocks, rows, w.shape[1]) or w.shape != (blocks, w.shape[1], columns):
        raise AssertionError(
            f"{who}: lower must return [blocks, rows, K], weight_matrix [blocks, K, N] and output_matrix "
            f"[blocks, rows, N]; they returned {list(x.shape)}, {list(w.shape)} and {list(y.shape)}."
        )
    if x.dtype != data.dtype or y.dtype != output.dtype:
        raise AssertionError(f"{who}: lower and output_matrix must keep the dtype, {data.dtype} and {output.dtype}.")
    x, w = x.astype(np.float64), w.astype(np.float64)
    # What rounding in the op's own dtype can make of a sum, in any order of its terms.
    room = (w.shape[1] + 2) * float(np.spacing(np.ones((), output.dtype))) * (abs(x) @ abs(w))
    wrong = ~(abs(x @ w - y) <= room)
    if wrong.any():
        block, row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{who}: lower(data) @ weight_matrix(weight) must be output_matrix of the op's output; "
            f"{np.count_nonzero(wrong)} of {wrong.size} elements differ, the first one in block {block}, row {row}, "
            f"column {column}."
        )
