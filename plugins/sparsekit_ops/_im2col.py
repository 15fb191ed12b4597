"""Convolutions as matrix products: every row of X is the patch of the data that one output position sees.

The rows follow the output positions (sample, then height and width) and the columns of X the filter's positions with
the input channels fastest, whatever the data format. X is larger than the data by the number of filter positions
(divided by the strides); it is written once, from a strided view.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from sparsekit.matrix_form import MatrixForm

if TYPE_CHECKING:
    from sparsekit.graph.node import Node

Array: TypeAlias = npt.NDArray[Any]
Lengths: TypeAlias = tuple[int, ...]


@attrs.frozen
class Window:
    """How a convolution's filter moves; one number for every spatial axis.

    Attributes:
        kernel: the filter's lengths.
        strides, dilations: its steps from one output position, and from one of its own, to the next.
        padding: "SAME", "VALID" or "EXPLICIT".
        explicit: for the last of these, the zeros before and after the data.
        channels_first: whether data and output are [samples, channels, spatial axes].
    """

    kernel: Lengths
    strides: Lengths
    dilations: Lengths
    padding: str
    explicit: tuple[Lengths, ...]
    channels_first: bool

    @classmethod
    def of(cls, node: Node, kernel: Lengths) -> Window:
        """What the attributes of an op say; those that a GraphDef leaves out have TensorFlow's defaults."""
        rank = len(kernel) + 2
        channels_first = str(node.attr("data_format", "NHWC")).startswith("NC")
        spatial = slice(2, None) if channels_first else slice(1, -1)
        pads = node.attr("explicit_paddings") or [0] * (2 * rank)
        return cls(
            kernel=kernel,
            strides=tuple(node.attr("strides"))[spatial],
            dilations=tuple(node.attr("dilations") or [1] * rank)[spatial],
            padding=str(node.attr("padding")),
            explicit=tuple(zip(pads[::2], pads[1::2], strict=True))[spatial],
            channels_first=channels_first,
        )

    @property
    def spans(self) -> Lengths:
        """How far the filter reaches, its gaps included."""
        return tuple((length - 1) * gap + 1 for length, gap in zip(self.kernel, self.dilations, strict=True))

    def pads(self, sizes: Lengths) -> tuple[Lengths, ...]:
        """The zeros before and after data of these spatial sizes.

        TensorFlow's rule for SAME ("Neural network support / Notes on padding"): ceil(size / stride) outputs, and
        the odd zero goes to the end.
        """
        if self.padding == "EXPLICIT":
            return self.explicit
        if self.padding == "VALID":
            return ((0, 0),) * len(sizes)
        pads = []
        for size, stride, span in zip(sizes, self.strides, self.spans, strict=True):
            zeros = max(0, (-(-size // stride) - 1) * stride + span - size)
            pads.append((zeros // 2, zeros - zeros // 2))
        return tuple(pads)

    def channels_last(self, array: Array) -> Array:
        """Data or output with its channels last, as a view."""
        return np.moveaxis(array, 1, -1) if self.channels_first else array

    def spatial(self, shape: Lengths) -> Lengths:
        """The spatial sizes in the shape of data or output."""
        return shape[2:] if self.channels_first else shape[1:-1]


@attrs.frozen
class Convolution(MatrixForm):
    """A convolution of any rank; each of its groups is a block.

    Attributes:
        window: how the filter moves.
        groups: into how many groups input and output channels are cut.
        weight_shape: [spatial axes, input channels of a group, output channels of all groups].
    """

    window: Window
    groups: int
    weight_shape: Lengths

    @classmethod
    def of(cls, node: Node, weight_shape: Lengths, data_shape: Lengths) -> Convolution:
        window = Window.of(node, weight_shape[:-2])
        channels = data_shape[1 if window.channels_first else -1]
        return cls(window, channels // weight_shape[-2], weight_shape)

    def lower(self, data: Array) -> Array:
        window = self.window
        image, pads = window.channels_last(data), window.pads(window.spatial(data.shape))
        if np.any(pads):
            image = np.pad(image, ((0, 0), *pads, (0, 0)))
        return _rows(_patches(image, window.spans, window.strides, window.dilations), self.groups)

    def weight_matrix(self, weight: Array) -> Array:
        *kernel, channels, outputs = self.weight_shape
        split = weight.reshape(math.prod(kernel) * channels, self.groups, outputs // self.groups)
        return split.transpose(1, 0, 2)

    def weight_from_matrix(self, matrix: Array) -> Array:
        return matrix.transpose(1, 0, 2).reshape(self.weight_shape)

    def output_matrix(self, output: Array) -> Array:
        output = self.window.channels_last(output)
        return output.reshape(-1, self.groups, output.shape[-1] // self.groups).transpose(1, 0, 2)


@attrs.frozen
class TransposedConvolution(MatrixForm):
    """A transposed convolution: a convolution of stride 1 over the data with zeros between its elements.

    Attributes:
        window: how the filter of the convolution that it transposes moves over what is this one's output.
        output_sizes: the spatial sizes of the output; under a stride the data's do not tell them.
        weight_shape: [spatial axes, output channels, input channels].
    """

    window: Window
    output_sizes: Lengths
    weight_shape: Lengths

    @classmethod
    def of(cls, node: Node, weight_shape: Lengths, output_shape: Lengths) -> TransposedConvolution:
        """
        Raises:
            NotImplementedError: it is a grouped one, whose input channels are cut into groups too.
        """
        window = Window.of(node, weight_shape[:-2])
        channels = output_shape[1 if window.channels_first else -1]
        if channels != weight_shape[-2]:
            raise NotImplementedError(
                f"a grouped transposed convolution ({channels} output channels, {weight_shape[-2]} of them in the "
                "filter) has no matrix form"
            )
        return cls(window, window.spatial(output_shape), weight_shape)

    def lower(self, data: Array) -> Array:
        window = self.window
        patches = _patches(
            self._stuffed(window.channels_last(data)), window.spans, (1,) * len(window.kernel), window.dilations
        )
        # The filter goes over the zero-stuffed data backwards.
        turned = np.flip(patches, tuple(range(-len(window.kernel), 0)))
        return _rows(turned, groups=1)

    def _stuffed(self, data: Array) -> Array:
        """The data, channels last, with stride - 1 zeros between its elements, and as many around them (or as few of
        its elements) as give the output's sizes."""
        window = self.window
        sizes = tuple(size + span - 1 for size, span in zip(self.output_sizes, window.spans, strict=True))
        stuffed = np.zeros((data.shape[0], *sizes, data.shape[-1]), data.dtype)
        source, target = [slice(None)], [slice(None)]
        for axis, (before, _) in enumerate(window.pads(self.output_sizes)):
            stride, first = window.strides[axis], window.spans[axis] - 1 - before
            # Element i goes to first + i * stride, where that is inside.
            start = max(0, -(first // stride))
            stop = min(data.shape[1 + axis], -((first - sizes[axis]) // stride))
            source.append(slice(start, max(start, stop)))
            target.append(slice(first + start * stride, first + max(start, stop) * stride, stride))
        stuffed[tuple(target)] = data[tuple(source)]
        return stuffed

    def weight_matrix(self, weight: Array) -> Array:
        return np.swapaxes(weight, -1, -2).reshape(1, -1, self.weight_shape[-2])

    def weight_from_matrix(self, matrix: Array) -> Array:
        *kernel, outputs, channels = self.weight_shape
        return np.swapaxes(matrix.reshape(*kernel, channels, outputs), -1, -2)

    def output_matrix(self, output: Array) -> Array:
        return self.window.channels_last(output).reshape(1, -1, self.weight_shape[-2])


def _patches(image: Array, spans: Lengths, strides: Lengths, dilations: Lengths) -> Array:
    """What the filter sees from every position, as a view.

    Args:
        image: [samples, spatial axes, channels], padded.
        spans: how far the filter reaches.
        strides, dilations: its steps between positions, and within.

    Returns:
        [samples, output positions, channels, filter positions].
    """
    windows = sliding_window_view(image, spans, tuple(range(1, 1 + len(spans))))
    positions = tuple(slice(None, None, stride) for stride in strides)
    taps = tuple(slice(None, None, dilation) for dilation in dilations)
    index = (slice(None), *positions, slice(None), *taps)
    return windows[index]


def _rows(patches: Array, groups: int) -> Array:
    """From [samples, output positions, channels, filter positions] to [groups, rows, filter positions x channels]."""
    spatial = (patches.ndim - 2) // 2
    before, channels, taps = patches.shape[: 1 + spatial], patches.shape[1 + spatial], patches.shape[2 + spatial :]
    # To split an axis copies nothing; the reshape at the end does, once.
    split = patches.reshape(*before, groups, channels // groups, *taps)
    group, channel = 1 + spatial, 2 + spatial
    order = (group, *range(group), *range(channel + 1, split.ndim), channel)
    rows, columns = math.prod(before), math.prod(taps) * (channels // groups)
    return split.transpose(order).reshape(groups, rows, columns)
