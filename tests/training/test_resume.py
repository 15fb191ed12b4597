"""A run that was interrupted and resumed ends with the very weights of one that was not."""

from __future__ import annotations

import functools
import logging
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_nets import SPECS, X, Y, compiled, kernels, masks_of, net, train

import sparsekit
from sparsekit.errors import ConfigError

optimizers = keras.optimizers
MASKINGS = ["in-place", "project", "forward"]
# Masks are chosen anew every three of ten steps: some time before and some time after the interruption.
EVERY_THREE = {"update_freq": 3, "start_step": 2, "freeze_step": 26}


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """Ends the process, as far as the run can tell."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self._batches = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batches -= 1
        if self._batches == 0:
            raise Killed


def _new(config: dict[str, Any]) -> tuple[Any, Any]:
    model = compiled(net(), optimizers.Adam(0.02))
    return model, sparsekit.prune(model, config)


def _end_of(model: Any, result: Any) -> list[Any]:
    state = [*masks_of(result), *(weight.flips.numpy() for weight in result.weights)]
    result.finalize()
    return [*state, *(variable.numpy() for variable in [*model.variables, *model.optimizer.variables])]


def _assert_equal(found: list[Any], expected: list[Any], of: str = "") -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b, of)


@functools.cache
def _uninterrupted(masking: str) -> list[Any]:
    model, result = _new({"masking": masking, **EVERY_THREE})
    train(model, result.callback, epochs=4)
    assert sum(int(weight.flips) for weight in result.weights) > 10
    return _end_of(model, result)


@pytest.mark.parametrize(
    ("masking", "ours_first"), [*((masking, True) for masking in MASKINGS), ("in-place", False), ("project", False)]
)
def test_backup_and_restore(masking: str, ours_first: bool, tmp_path: Any) -> None:
    config = {"masking": masking, **EVERY_THREE}

    def callbacks(result: Any) -> list[Any]:
        pair = [result.callback, keras.callbacks.BackupAndRestore(str(tmp_path))]
        return pair if ours_first else pair[::-1]

    model, result = _new(config)
    with pytest.raises(Killed):
        train(model, *callbacks(result), Kill(24), epochs=4)
    model, result = _new(config)
    history = train(model, *callbacks(result), epochs=4)
    assert len(history["loss"]) == 2
    _assert_equal(_end_of(model, result), _uninterrupted(masking))


@pytest.mark.parametrize("masking", MASKINGS)
def test_checkpoints(masking: str, tmp_path: Any) -> None:
    config = {"masking": masking, **EVERY_THREE}
    model, result = _new(config)
    train(model, result.callback, epochs=2)
    saved = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for kind in ("tf.train.Checkpoint", ".keras", ".weights.h5"):
        if kind == ".keras":
            model = keras.models.load_model(tmp_path / "model.keras")
            result = sparsekit.prune(model, config)
            model.load_weights(tmp_path / "model.keras")
        else:
            model, result = _new(config)
            model.optimizer.build(model.trainable_variables)
        if kind == "tf.train.Checkpoint":
            restored = tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(saved)
            restored.assert_existing_objects_matched()
        if kind == ".weights.h5":
            model.load_weights(tmp_path / "model.weights.h5")
        train(model, result.callback, epochs=4, initial_epoch=2)
        _assert_equal(_end_of(model, result), _uninterrupted(masking), kind)


@pytest.mark.parametrize("schedule", [{"update_freq": 100}, {"start_step": 2}, {"start_step": 11}])
def test_a_checkpoint_of_a_dense_model_gets_masks_of_its_own(schedule: dict[str, int], tmp_path: Any) -> None:
    dense = compiled(net(), optimizers.SGD(0.1, 0.9))
    train(dense, epochs=3)
    dense.save_weights(tmp_path / "dense.weights.h5")
    model = compiled(net(), optimizers.SGD(0.1, 0.9))
    result = sparsekit.prune(model, schedule)
    train(model, result.callback, epochs=1)
    model.load_weights(tmp_path / "dense.weights.h5")
    result.settle()
    if schedule == {"start_step": 11}:  # of 10 so far
        assert result.sparsity == 0
        return
    for kernel, mask, trained in zip(kernels(model), masks_of(result), kernels(dense), strict=True):
        np.testing.assert_array_equal(kernel, trained * mask)
        groups = np.abs(trained).reshape(-1, 4, trained.shape[1]), mask.reshape(-1, 4, trained.shape[1])
        np.testing.assert_allclose((groups[0] * groups[1]).sum(1), np.sort(groups[0], 1)[:, 2:].sum(1), rtol=1e-6)


@pytest.mark.parametrize("kind", ["tf", "h5"])
def test_a_checkpoint_of_another_masking_is_refused(kind: str, tmp_path: Any) -> None:
    model, result = _new({"masking": "forward"})
    train(model, result.callback, epochs=1)
    checkpoint = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    model.save_weights(tmp_path / "model.weights.h5")
    model, result = _new({"masking": "in-place"})
    if kind == "tf":
        tf.train.Checkpoint(model=model).restore(checkpoint)
    else:
        model.load_weights(tmp_path / "model.weights.h5")
    with pytest.raises(
        ConfigError, match=r'the checkpoint is of a model with masking "forward".*Resume with the config'
    ):
        train(model, result.callback, epochs=1)


def test_in_forward_mode_checkpoints_hold_the_dense_values(tmp_path: Any) -> None:
    model = net()
    dense = kernels(model)
    sparsekit.prune(model, {"masking": "forward"})
    masked = model(X[:4]).numpy()
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    model.save(tmp_path / "model.keras")
    for name, restore in {
        "tf": lambda fresh: tf.train.Checkpoint(model=fresh).restore(path).expect_partial(),
        "keras": lambda fresh: fresh.load_weights(tmp_path / "model.keras"),
    }.items():
        fresh = keras.models.clone_model(model)
        restore(fresh)
        for found, expected in zip(kernels(fresh), dense, strict=True):
            np.testing.assert_array_equal(found, expected, name)
        assert not np.allclose(fresh(X[:4]).numpy(), masked)


class Net(tf.Module):
    """Somebody's own model: no Keras in sight."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(3)
        self.first = tf.Variable(random.standard_normal((8, 16)), dtype=tf.float32, name="first")
        self.second = tf.Variable(random.standard_normal((16, 3)), dtype=tf.float32, name="second")
        self.velocity = [tf.Variable(tf.zeros_like(w), trainable=False) for w in (self.first, self.second)]

    @tf.function(input_signature=SPECS)
    def __call__(self, x: Any) -> Any:
        return tf.nn.relu(x @ self.first) @ self.second

    def train(self, result: Any, steps: int) -> None:
        @tf.function
        def step() -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(Y, self(X)))
            weights = (self.first, self.second)
            for weight, velocity, gradient in zip(weights, self.velocity, tape.gradient(loss, weights), strict=True):
                velocity.assign(0.9 * velocity + gradient)
                weight.assign_sub(0.2 * velocity)
            result.step()

        for _ in range(steps):
            step()


@pytest.mark.parametrize("masking", ["auto", "forward"])
def test_a_module_in_a_loop_of_its_own(masking: str, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = {"masking": masking, "update_freq": 3}
    one = Net()
    result = sparsekit.prune(one, config)
    variables = len(one.variables)
    one.train(result, 10)
    path = tf.train.Checkpoint(one).save(str(tmp_path / "checkpoint"))
    one.train(result, 10)

    two = Net()
    resumed = sparsekit.prune(two, config)
    tf.train.Checkpoint(two).restore(path).assert_consumed()
    two.train(resumed, 10)
    _assert_equal(masks_of(resumed), masks_of(result))
    with caplog.at_level(logging.WARNING):
        result.finalize()
        resumed.finalize()
    assert "not zero any more" not in caplog.text
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(one.variables) == variables == 4
    assert sparsekit.verify(one).ok
    tf.saved_model.save(one, str(tmp_path / "saved"))
    assert sparsekit.verify(tmp_path / "saved").ok
