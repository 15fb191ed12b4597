"""The user's side: handwritten digits, a small network in TF1 style, training, freezing, evaluating.

Nothing here knows of sparsity.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1

OUTPUT = "logits"
BATCH = 50


class Digits(NamedTuple):
    """scikit-learn's digits, 8x8 pixels in 0..1, split into 1,200 for training and 597 for testing."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Model(NamedTuple):
    """A graph and the tensors that the script needs."""

    graph: tf.Graph
    images: tf.Tensor
    labels: tf.Tensor
    logits: tf.Tensor
    loss: tf.Tensor


def load_digits(seed: int) -> Digits:
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels.astype(np.int32), train_size=1200, random_state=seed, stratify=labels
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def build(training: bool, seed: int = 0) -> Model:
    """A narrow network with convolutions, a transposed convolution, batch norm and two dense layers."""
    graph = tf.Graph()
    with graph.as_default():
        tf1.set_random_seed(seed)
        images = tf1.placeholder(tf.float32, [None, 8, 8, 1], name="images")
        labels = tf1.placeholder(tf.int32, [None], name="labels")
        x = _block("conv1", images, [3, 3, 1, 8], training)
        x = _block("conv2", x, [3, 3, 8, 16], training, stride=2)
        x = _block("up", x, [2, 2, 8, 16], training, stride=2, transposed=True)
        x = _block("conv3", x, [3, 3, 8, 12], training, stride=2)
        x = tf.reduce_max(x, [1, 2])
        x = tf.nn.relu(_dense("fc1", x, 12, 16))
        logits = tf.identity(_dense("fc2", x, 16, 10), OUTPUT)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    return Model(graph, images, labels, logits, loss)


def _block(
    name: str, x: tf.Tensor, shape: list[int], training: bool, stride: int = 1, transposed: bool = False
) -> tf.Tensor:
    with tf1.variable_scope(name):
        kernel = tf1.get_variable("kernel", shape, initializer=tf1.variance_scaling_initializer(2.0))
        if transposed:
            size = tf.shape(x)
            output = tf.stack([size[0], size[1] * stride, size[2] * stride, shape[2]])
            x = tf.nn.conv2d_transpose(x, kernel, output, stride, name="conv")
            x.set_shape([None, None, None, shape[2]])
        else:
            x = tf.nn.conv2d(x, kernel, stride, "SAME", name="conv")
        return tf.nn.relu(_batch_norm(x, training))


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


def _dense(name: str, x: tf.Tensor, inputs: int, outputs: int) -> tf.Tensor:
    with tf1.variable_scope(name):
        kernel = tf1.get_variable("kernel", [inputs, outputs], initializer=tf1.glorot_uniform_initializer())
        bias = tf1.get_variable("bias", [outputs], initializer=tf1.zeros_initializer())
        return tf.matmul(x, kernel, name="matmul") + bias


def minimize(model: Model, learning_rate: float) -> tf.Operation:
    """Gradients and an adaptive optimizer: after masks were inserted, if there are any."""
    with model.graph.as_default():
        return tf1.train.RMSPropOptimizer(learning_rate, momentum=0.9).minimize(model.loss)


def train(
    model: Model,
    train_op: tf.Operation,
    data: Digits,
    epochs: int,
    save_to: Path,
    restore: Callable[[tf1.Session], Any] = lambda session: None,
    seed: int = 0,
    on_epoch: Callable[[], Any] = lambda: None,
) -> None:
    """Train and save a checkpoint with every global variable."""
    shuffle = np.random.RandomState(seed)
    with model.graph.as_default(), tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        restore(session)
        for _ in range(epochs):
            order = shuffle.permutation(len(data.train_images))
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                feed = {model.images: data.train_images[batch], model.labels: data.train_labels[batch]}
                session.run(train_op, feed)
            on_epoch()
        tf1.train.Saver(tf1.global_variables()).save(session, str(save_to), write_meta_graph=False)


def freeze(model: Model, restore: Callable[[tf1.Session], Any], pb: Path) -> Path:
    """Restore a session of the inference graph and freeze it to a pb."""
    with model.graph.as_default(), tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        restore(session)
        frozen = tf1.graph_util.convert_variables_to_constants(session, model.graph.as_graph_def(), [OUTPUT])
    with tf.io.gfile.GFile(str(pb), "wb") as file:
        file.write(frozen.SerializeToString())
    return pb


def evaluate(pb: Path, data: Digits) -> tuple[float, float]:
    """Accuracy and cross-entropy of a frozen pb on the test digits, with nothing but TensorFlow."""
    graph_def = tf1.GraphDef.FromString(pb.read_bytes())
    with tf.Graph().as_default(), tf1.Session() as session:
        (logits,) = tf.import_graph_def(graph_def, return_elements=[f"{OUTPUT}:0"])
        values = session.run(logits, {"import/images:0": data.test_images}).astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    log_probabilities = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    accuracy = (values.argmax(axis=1) == data.test_labels).mean()
    cross_entropy = -log_probabilities[np.arange(len(values)), data.test_labels].mean()
    return float(accuracy), float(cross_entropy)
