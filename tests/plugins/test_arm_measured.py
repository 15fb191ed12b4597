"""What sparsekit_targets/arm.py calls measured: the multiply-adds that Vela estimates for networks of one layer."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from edge_example import edge_deploy

from sparsekit.pattern import Pattern, keep_mask

RANDOM = np.random.RandomState(0)


def _conv(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(x, w, 1, "SAME")


def _transposed(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d_transpose(x, w, [1, 16, 16, w.shape[2]], 2)


# name: (op, shape of the data, shape of the weight, axis of its input channels, axis of its output channels)
LAYERS = {
    "conv": (_conv, (1, 8, 8, 16), (3, 3, 16, 16), 2, 3),
    "conv, 1x1": (_conv, (1, 8, 8, 16), (1, 1, 16, 16), 2, 3),
    "conv, 3 channels": (_conv, (1, 8, 8, 3), (3, 3, 3, 16), 2, 3),
    "conv, 7 channels": (_conv, (1, 8, 8, 7), (3, 3, 7, 16), 2, 3),
    "conv, 10 channels": (_conv, (1, 8, 8, 10), (3, 3, 10, 16), 2, 3),
    "conv, two groups": (_conv, (1, 8, 8, 16), (3, 3, 8, 16), 2, 3),
    "transposed conv": (_transposed, (1, 8, 8, 16), (3, 3, 16, 16), 3, 2),
    "fully connected": (tf.matmul, (1, 256), (256, 64), 0, 1),
}


@functools.cache
def _of_dense(layer: str, accelerator: str = "ethos-u85-256") -> int:
    """What values do not change: asked for once."""
    with tempfile.TemporaryDirectory() as folder:
        return _multiply_adds(Path(folder), layer, _weights(layer, "2:4")[0], accelerator)


def _multiply_adds(folder: Path, layer: str, weight: np.ndarray, accelerator: str = "ethos-u85-256") -> int:
    op, shape, *_ = LAYERS[layer]
    module = tf.Module()
    module.weight = tf.Variable(weight)
    call = tf.function(lambda x: tf.nn.relu(op(x, module.weight)), input_signature=[tf.TensorSpec(shape, tf.float32)])
    tf.saved_model.save(module, folder / "model", signatures=call.get_concrete_function())
    images = RANDOM.randn(4, *shape[1:]).astype(np.float32)
    tflite = folder / "model.tflite"
    tflite.write_bytes(edge_deploy.quantized(folder / "model", images))
    return edge_deploy.estimate(tflite, accelerator, edge_deploy.find_vela()).multiply_adds


def _weights(layer: str, pattern: str, along_outputs: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Dense and pruned."""
    *_, shape, inputs, outputs = LAYERS[layer]
    dense = RANDOM.randn(*shape).astype(np.float32)
    mask = keep_mask(np.abs(dense), outputs if along_outputs else inputs, Pattern.parse(pattern))
    return dense, np.where(mask, dense, np.float32(0))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_u85_skips_half_of_a_weight_that_is_2_4(layer: str, tmp_path: Path) -> None:
    _, pruned = _weights(layer, "2:4")
    assert _multiply_adds(tmp_path, layer, pruned) / _of_dense(layer) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("pattern", ["1:4", "1:2"])
def test_sparser_patterns_are_worth_as_much(pattern: str, tmp_path: Path) -> None:
    _, pruned = _weights("conv", pattern)
    assert _multiply_adds(tmp_path, "conv", pruned) / _of_dense("conv") == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("layer", ["conv", "transposed conv", "fully connected"])
def test_zeros_along_the_output_channels_change_nothing(layer: str, tmp_path: Path) -> None:
    _, pruned = _weights(layer, "2:4", along_outputs=True)
    assert _multiply_adds(tmp_path, layer, pruned) == _of_dense(layer)


def test_one_bad_group_keeps_the_whole_operator_dense(tmp_path: Path) -> None:
    dense, pruned = _weights("conv", "2:4")
    pruned[1, 1, 4:8, 5] = dense[1, 1, 4:8, 5]
    assert _multiply_adds(tmp_path, "conv", pruned) == _of_dense("conv")


@pytest.mark.parametrize("accelerator", ["ethos-u65-256", "ethos-u55-128"])
def test_its_predecessors_multiply_zeros_too(accelerator: str, tmp_path: Path) -> None:
    _, pruned = _weights("conv", "2:4")
    assert _multiply_adds(tmp_path, "conv", pruned, accelerator) == _of_dense("conv", accelerator)
