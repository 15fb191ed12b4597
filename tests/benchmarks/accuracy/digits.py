"""Networks for scikit-learn's handwritten digits, trained, retrained and frozen in TF1 style.

mlpn is narrow, mlpw wide; cnn is a small residual network with batch normalization and a transposed convolution, cnn8
the same with half as many channels: layers so small that every weight counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sparsekit
from accuracy.scoring import divergence, log_softmax, lost_energy

Array = npt.NDArray[Any]
tf1 = tf.compat.v1

INPUT, OUTPUT = "images", "logits"
BATCH, EPOCHS = 50, 60
RATE = 3e-3


@attrs.frozen(eq=False)
class Digits:
    """A split of the data by seed: 1,200 images for training, 597 for testing, pixels from 0 to 1.

    Attributes:
        images, labels: for training, and for calibration; float32 [1200, 8, 8, 1], int32 [1200].
        test_images, test_labels: for scoring, and for nothing else.
    """

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


def digits(seed: int) -> Digits:
    """The split of a seed; classes keep their shares."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    images, test_images, labels, test_labels = train_test_split(
        images, labels.astype(np.int32), train_size=1200, random_state=seed, stratify=labels
    )
    return Digits(images, labels, test_images, test_labels)


# --- the networks ----------------------------------------------------------------------------------------


def mlp(*widths: int) -> Callable[[tf.Tensor, bool], tf.Tensor]:
    """Dense layers of these widths, and one to ten classes; 64 inputs."""

    def logits(images: tf.Tensor, training: bool) -> tf.Tensor:
        x = tf.reshape(images, [-1, 64])
        for layer, width in enumerate(widths, 1):
            x = tf.nn.relu(_dense(f"fc{layer}", x, width))
        return _dense("head", x, 10)

    return logits


def residual(width: int) -> Callable[[tf.Tensor, bool], tf.Tensor]:
    """Two residual blocks, one at 8x8 and one twice as wide at 4x4, a transposed convolution back to 8x8, a head."""

    def logits(images: tf.Tensor, training: bool) -> tf.Tensor:
        def conv(name: str, x: tf.Tensor, width: int, size: int = 3, stride: int = 1) -> tf.Tensor:
            with tf1.variable_scope(name):
                kernel = _kernel([size, size, x.shape[-1], width])
                return _batch_norm(tf.nn.conv2d(x, kernel, stride, "SAME", name="conv"), training)

        x = tf.nn.relu(conv("stem", images, width))
        x = tf.nn.relu(x + conv("block1/conv2", tf.nn.relu(conv("block1/conv1", x, width)), width))
        shortcut = conv("block2/shortcut", x, 2 * width, size=1, stride=2)
        inner = tf.nn.relu(conv("block2/conv1", x, 2 * width, stride=2))
        x = tf.nn.relu(shortcut + conv("block2/conv2", inner, 2 * width))
        with tf1.variable_scope("up"):
            shape = tf.stack([tf.shape(x)[0], 8, 8, width])
            x = tf.nn.conv2d_transpose(x, _kernel([2, 2, width, 2 * width]), shape, 2, name="conv")
            x.set_shape([None, 8, 8, width])
            x = tf.nn.relu(_batch_norm(x, training))
        return _dense("head", tf.reduce_mean(x, [1, 2]), 10)

    return logits


NETWORKS: dict[str, Callable[[tf.Tensor, bool], tf.Tensor]] = {
    "mlpn": mlp(16, 16),
    "mlpw": mlp(256, 256),
    "cnn": residual(16),
    "cnn8": residual(8),
}


def _kernel(shape: list[int]) -> tf.Variable:
    # Small at first, as PyTorch does it, in which the networks' prototypes were trained.
    initializer = tf1.variance_scaling_initializer(1 / 3, distribution="uniform")
    return tf1.get_variable("kernel", shape, initializer=initializer)


def _dense(name: str, x: tf.Tensor, width: int) -> tf.Tensor:
    with tf1.variable_scope(name):
        bias = tf1.get_variable("bias", [width], initializer=tf1.zeros_initializer())
        return tf.matmul(x, _kernel([x.shape[-1], width]), name="matmul") + bias


def _batch_norm(x: tf.Tensor, training: bool) -> tf.Tensor:
    width = x.shape[-1]
    scale = tf1.get_variable("scale", [width], initializer=tf1.ones_initializer())
    offset = tf1.get_variable("offset", [width], initializer=tf1.zeros_initializer())
    mean = tf1.get_variable("mean", [width], initializer=tf1.zeros_initializer(), trainable=False)
    variance = tf1.get_variable("variance", [width], initializer=tf1.ones_initializer(), trainable=False)
    if not training:
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-3)
    now_mean, now_variance = tf.nn.moments(x, [0, 1, 2])
    update = [mean.assign(0.9 * mean + 0.1 * now_mean), variance.assign(0.9 * variance + 0.1 * now_variance)]
    with tf.control_dependencies(update):
        return tf.nn.batch_normalization(x, now_mean, now_variance, offset, scale, 1e-3)


# --- training --------------------------------------------------------------------------------------------


def dense_network(name: str, data: Digits, seed: int, checkpoint: Path) -> Any:
    """Train a network from scratch.

    Returns:
        The frozen GraphDef; the variables are saved under ``checkpoint``.
    """
    _train(name, data, seed, EPOCHS, RATE, checkpoint)
    return _frozen(name, checkpoint, None)


def retrained(name: str, data: Digits, seed: int, epochs: int, config: dict[str, Any] | None, dense: Path) -> Any:
    """Go on from the dense checkpoint, by the flow for live graphs: prune before gradients, train, freeze, strip.

    Args:
        name: the network.
        data: what to train on.
        seed: of the order of batches.
        epochs: how long.
        config: what ``sparsekit.prune`` is told; None: no masks, a control with the same training.
        dense: the checkpoint.

    Returns:
        The frozen GraphDef, without masks and with zeros in its weights.
    """
    checkpoint = dense.with_name("retrained")
    _train(name, data, seed, epochs, RATE, checkpoint, start=dense, config=config)
    frozen = _frozen(name, checkpoint, config)
    return frozen if config is None else sparsekit.strip(frozen)


def _train(
    name: str,
    data: Digits,
    seed: int,
    epochs: int,
    rate: float,
    save_to: Path,
    start: Path | None = None,
    config: dict[str, Any] | None = None,
) -> None:
    with tf.Graph().as_default() as graph:
        tf1.set_random_seed(seed)
        images = tf1.placeholder(tf.float32, [None, 8, 8, 1], name=INPUT)
        labels = tf1.placeholder(tf.int32, [None])
        logits = tf.identity(NETWORKS[name](images, True), OUTPUT)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        dense = tf1.train.Saver(tf1.global_variables())
        if config is not None:
            sparsekit.prune(graph, config, outputs=[OUTPUT])
        # The rate falls to nothing, along half a cosine.
        step = tf1.train.get_or_create_global_step()
        steps = epochs * (len(data.images) // BATCH)
        falling = rate * (1 + tf.cos(np.pi * tf.cast(step, tf.float32) / steps)) / 2
        train_op = tf1.train.AdamOptimizer(falling).minimize(loss, step)
        with tf1.Session() as session:
            session.run(tf1.global_variables_initializer())
            if start is not None:
                dense.restore(session, str(start))
            run = session.make_callable(train_op, [images, labels])
            shuffle = np.random.RandomState(seed)
            for _ in range(epochs):
                order = shuffle.permutation(len(data.images))
                for batch in order.reshape(-1, BATCH):
                    run(data.images[batch], data.labels[batch])
            tf1.train.Saver(tf1.global_variables()).save(session, str(save_to), write_meta_graph=False)


def _frozen(name: str, checkpoint: Path, config: dict[str, Any] | None) -> Any:
    with tf.Graph().as_default() as graph:
        images = tf1.placeholder(tf.float32, [None, 8, 8, 1], name=INPUT)
        tf.identity(NETWORKS[name](images, False), OUTPUT)
        if config is not None:
            sparsekit.prune(graph, config, outputs=[OUTPUT])
        with tf1.Session() as session:
            tf1.train.Saver(tf1.global_variables()).restore(session, str(checkpoint))
            return tf1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), [OUTPUT])


# --- scoring ---------------------------------------------------------------------------------------------


def score(logits: Array, dense: Array, data: Digits) -> dict[str, float]:
    """Measures of logits [597, 10] for the test images, on their own and beside the dense network's."""
    right = logits.argmax(axis=1) == data.test_labels
    log_probabilities = log_softmax(logits)
    return {
        "accuracy": 100 * float(right.mean()),
        "cross-entropy": -float(np.take_along_axis(log_probabilities, data.test_labels[:, None], 1).mean()),
        "kl": divergence(dense, logits),
        "output error": 100 * lost_energy(logits, dense),
    }
