"""The op handlers that come with sparsekit; one file per op family, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Iterable

from sparsekit.handler import OpHandler
from sparsekit.hookspecs import hookimpl
from sparsekit_ops.batch_matmul import BatchMatMul
from sparsekit_ops.conv2d import Conv2D
from sparsekit_ops.conv2d_backprop_input import Conv2DBackpropInput
from sparsekit_ops.conv3d import Conv3D
from sparsekit_ops.conv3d_backprop_input import Conv3DBackpropInput
from sparsekit_ops.depthwise_conv2d import DepthwiseConv2D
from sparsekit_ops.einsum import Einsum
from sparsekit_ops.gather import Gather
from sparsekit_ops.matmul import MatMul


@hookimpl
def sparsekit_op_handlers() -> Iterable[OpHandler]:
    return (
        MatMul(),
        BatchMatMul(),
        Einsum(),
        Conv2D(),
        Conv3D(),
        DepthwiseConv2D(),
        Conv2DBackpropInput(),
        Conv3DBackpropInput(),
        Gather(),
    )
