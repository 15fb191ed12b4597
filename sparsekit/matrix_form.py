"""An op as the matrix product that it is: what calibrated pruning works on.

Every op that is pruned sums over the input channels of its data, so its data can be laid out as a matrix X and its
weight as a matrix W such that X @ W holds the op's output. An op handler says how with a :class:`MatrixForm`; for ops
that an einsum equation describes, :class:`Contraction` is one.
"""

from __future__ import annotations

import abc
import math
from typing import Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


class MatrixForm(abc.ABC):
    """How one op's data, weight and output are laid out in output = X @ W; pure numpy.

    All matrices have a leading axis of blocks, which are multiplied one by one: more than one for products in batches
    and for grouped convolutions. The rows of W are the summed-over positions, in runs along the group axis: one run of
    as many rows as that axis is long (its part within the block, if it is cut into blocks) after the other, in the
    axis' own order. So groups of m along the axis are m consecutive rows of a run.
    """

    @abc.abstractmethod
    def lower(self, data: Array) -> Array:
        """The op's data as X.

        Args:
            data: as the op reads it. The number of its samples is free; other lengths are those that the form was
                made for.

        Returns:
            [blocks, rows, K], of the data's dtype; it may share memory with the data.
        """

    @abc.abstractmethod
    def weight_matrix(self, weight: Array) -> Array:
        """The weight, as the op reads it, as W: [blocks, K, N], every element once; it may share memory."""

    @abc.abstractmethod
    def weight_from_matrix(self, matrix: Array) -> Array:
        """The inverse of :meth:`weight_matrix`: from [blocks, K, N] to the weight as the op reads it."""

    @abc.abstractmethod
    def output_matrix(self, output: Array) -> Array:
        """The op's output as X @ W gives it: [blocks, rows, N]; it may share memory."""


@attrs.frozen
class Contraction(MatrixForm):
    """The matrix form of a product that an einsum equation describes.

    A label of data, weight and result makes blocks, one of data and weight alone is summed over, one of weight and
    result makes columns and one of data and result rows. For a dense layer, data "mk" and weight "kn" give "mn".

    Attributes:
        data: a label (a letter) for every axis of the data. One that is there twice means a diagonal, one that
            appears nowhere else a sum.
        weight: a label for every axis of the weight.
        result: a label for every axis of the output. In all three, "1" stands for an axis of length one that has no
            counterpart.
        weight_shape: the lengths of the weight's axes.
    """

    data: str
    weight: str
    result: str
    weight_shape: tuple[int, ...]

    def lower(self, data: Array) -> Array:
        return _arranged(data, self.data, (self._blocks, self._rows, self._summed))

    def weight_matrix(self, weight: Array) -> Array:
        return _arranged(weight, self.weight, (self._blocks, self._summed, self._columns))

    def weight_from_matrix(self, matrix: Array) -> Array:
        lengths = dict(zip(self.weight, self.weight_shape, strict=True))
        order = self._blocks + self._summed + self._columns
        kept = self.weight.replace("1", "")
        unfolded = matrix.reshape([lengths[label] for label in order])
        return unfolded.transpose([order.index(label) for label in kept]).reshape(self.weight_shape)

    def output_matrix(self, output: Array) -> Array:
        return _arranged(output, self.result, (self._blocks, self._rows, self._columns))

    @property
    def _blocks(self) -> str:
        return _labels(self.weight, both=(self.data, self.result))

    @property
    def _summed(self) -> str:
        return _labels(self.weight, both=(self.data,), but=self.result)

    @property
    def _columns(self) -> str:
        return _labels(self.weight, both=(self.result,), but=self.data)

    @property
    def _rows(self) -> str:
        return _labels(self.result, both=(self.data,), but=self.weight)


def _labels(labels: str, both: tuple[str, ...], but: str = "") -> str:
    """The labels that are in all of ``both`` and not in ``but``, each once, in their order."""
    found = (label for label in dict.fromkeys(labels) if label != "1" and label not in but)
    return "".join(label for label in found if all(label in others for others in both))


def _arranged(array: Array, labels: str, wanted: tuple[str, str, str]) -> Array:
    """The array with its labelled axes merged into three."""
    array = array.reshape([length for label, length in zip(labels, array.shape, strict=True) if label != "1"])
    labels = labels.replace("1", "")
    order = "".join(wanted)
    if sorted(labels) == sorted(order):
        # What einsum does too, but for every dtype.
        array = array.transpose([labels.index(label) for label in order])
    else:
        array = np.einsum(f"{labels}->{order}", array)
    lengths = dict(zip(order, array.shape, strict=True))
    return array.reshape([math.prod(lengths[label] for label in part) for part in wanted])
