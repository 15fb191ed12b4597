"""Real networks in TF1 style, with random weights, for tests and benchmarks."""

from __future__ import annotations

import tensorflow as tf

tf1 = tf.compat.v1


def resnet50(images: tf.Tensor, classes: int = 1000, training: bool = True) -> tf.Tensor:
    """ResNet-50 (He et al. 2015, stride in the 3x3): 53 convolutions and one dense layer.

    Args:
        images: [batch, height, width, 3].
        classes: width of the last layer.
        training: batch statistics instead of moving ones.

    Returns:
        Logits, [batch, classes], as the operation ``logits``.
    """

    def conv(name: str, x: tf.Tensor, size: int, width: int, stride: int = 1, relu: bool = True) -> tf.Tensor:
        with tf1.variable_scope(name):
            kernel = tf1.get_variable("kernel", [size, size, x.shape[-1], width])
            x = tf.nn.conv2d(x, kernel, stride, "SAME", name="conv")
            scale, offset = tf1.get_variable("scale", [width]), tf1.get_variable("offset", [width])
            mean = tf1.get_variable("mean", [width], trainable=False)
            variance = tf1.get_variable("variance", [width], initializer=tf1.ones_initializer(), trainable=False)
            if training:
                x, _, _ = tf1.nn.fused_batch_norm(x, scale, offset)
            else:
                x, _, _ = tf1.nn.fused_batch_norm(x, scale, offset, mean, variance, is_training=False)
            return tf.nn.relu(x) if relu else x

    x = conv("stem", images, 7, 64, 2)
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], 1):
        for block in range(blocks):
            with tf1.variable_scope(f"stage{stage}/block{block}"):
                stride = 2 if stage > 1 and block == 0 else 1
                shortcut = conv("shortcut", x, 1, 4 * width, stride, relu=False) if block == 0 else x
                x = conv("conv1", x, 1, width)
                x = conv("conv2", x, 3, width, stride)
                x = tf.nn.relu(conv("conv3", x, 1, 4 * width, relu=False) + shortcut)
    x = tf.reduce_mean(x, [1, 2])
    with tf1.variable_scope("head"):
        kernel = tf1.get_variable("kernel", [x.shape[-1], classes])
        x = tf.matmul(x, kernel, name="matmul") + tf1.get_variable("bias", [classes])
    return tf.identity(x, "logits")
