"""Keras' fit under MirroredStrategy on two virtual devices: what test_mirrored.py starts, since devices must be split
before TensorFlow has looked at them.

python run_mirrored.py FOLDER
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras_nets import SPECS, X, Y, ZerosStay, compiled, kernels, masks_of, net, train

import sparsekit
from sparsekit.errors import SparsekitError

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
optimizers = keras.optimizers
DEVICES = ["CPU:0", "CPU:1"]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (lambda: optimizers.SGD(0.1, 0.9), {}),
    "adam": (lambda: optimizers.Adam(0.01), {"update_freq": 3, "start_step": 2}),
    "lamb": (lambda: optimizers.Lamb(0.01), {"update_freq": 4, "freeze_step": 13}),
}
# Replicas round and clip on their own: the weights are not those of one device.
OPTIONS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "float16": (
        lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.01, 0.9), initial_scale=2.0**22, dynamic_growth_steps=4),
        "mixed_float16",
        {"update_freq": 3, "start_step": 2},
    ),
    "bfloat16": (lambda: optimizers.Adam(0.01), "mixed_bfloat16", {"update_freq": 3, "masking": "project"}),
    "averages": (
        lambda: optimizers.AdamW(0.01, weight_decay=0.05, global_clipnorm=0.1, use_ema=True),
        "float32",
        {"start_step": 4},
    ),
}


def alike_everywhere(result: Any) -> bool:
    """Whether every copy of what belongs to a mask holds the same bits."""
    return all(
        np.array_equal(variable.values[0].numpy(), copy.numpy())
        for weight in result.weights
        for variable in (weight.variable, *weight.state.values())
        for copy in variable.values
    )


class AlikeEverywhere(keras.callbacks.Callback):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert alike_everywhere(self._result), batch


def fit(case: str, scope: Any, epochs: int, folder: Path | None = None) -> tuple[Any, Any, Any]:
    optimizer, config = CASES[case]
    with scope:
        model = compiled(net(), optimizer())
    result = sparsekit.prune(model, config)
    callbacks = [result.callback, ZerosStay(result)]
    if folder is not None:
        callbacks.append(keras.callbacks.BackupAndRestore(str(folder), delete_checkpoint=False))
    if not isinstance(scope, contextlib.nullcontext):
        callbacks.append(AlikeEverywhere(result))
    return model, result, train(model, *callbacks, epochs=epochs)


def fits_as_on_one_device(strategy: Any, case: str) -> dict[str, Any]:
    one, alone, history = fit(case, contextlib.nullcontext(), 2)
    two, result, mirrored = fit(case, strategy.scope(), 2)
    flips = [[int(weight.flips.numpy()) for weight in each.weights] for each in (alone, result)]
    masks = masks_of(alone), masks_of(result)
    for each in (alone, result):
        each.finalize()
    return {
        "plan": str(result).splitlines()[-1],
        "same masks": all(np.array_equal(a, b) for a, b in zip(*masks, strict=True)),
        "flips": flips,
        "difference": max(float(np.abs(a - b).max()) for a, b in zip(kernels(one), kernels(two), strict=True)),
        "sparsity": [history["sparsity"], mirrored["sparsity"]],
        "verified": sparsekit.verify(two).ok,
    }


def keeps_zeros(strategy: Any, options: str) -> dict[str, Any]:
    """Fit under a precision or with an option of the optimizer; the callbacks look after every step."""
    optimizer, policy, config = OPTIONS[options]
    keras.config.set_dtype_policy(policy)
    with strategy.scope():
        model = compiled(net(), optimizer())
    keras.config.set_dtype_policy("float32")
    result = sparsekit.prune(model, config)
    train(model, result.callback, ZerosStay(result), AlikeEverywhere(result), epochs=2)
    found = {
        "alike": alike_everywhere(result),  # at the end of a fit averages replace the weights
        "zeros": all(not weight.variable.numpy()[weight.mask.numpy() == 0].any() for weight in result.weights),
        "counted": int(result.state.steps.numpy()),
        "flips": sum(int(weight.flips.numpy()) for weight in result.weights),
    }
    result.finalize()
    return {**found, "verified": sparsekit.verify(model).ok}


def resumes(strategy: Any, folder: Path) -> bool:
    """Fit as a whole, and in two parts; whether all variables end with the same bits."""
    ends = []
    for parts in ((3,), (1, 3)):
        for epochs in parts:
            model, result, _ = fit("adam", strategy.scope(), epochs, folder / str(len(parts)))
        state = [variable.numpy() for weight in result.weights for variable in weight.state.values()]
        ends.append([*state, *(variable.numpy() for variable in [*model.variables, *model.optimizer.variables])])
    model.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras")
    ends += [[variable.numpy() for variable in loaded.variables], [variable.numpy() for variable in model.variables]]
    return all(len(a) == len(b) and all(map(np.array_equal, a, b)) for a, b in ((ends[0], ends[1]), (ends[2], ends[3])))


def settles_on_a_dense_file(strategy: Any, folder: Path) -> bool:
    """A file of a dense model is loaded after the masks were chosen: they are those of its weights."""
    dense = compiled(net(), optimizers.SGD(0.5))
    train(dense, epochs=1)
    dense.save_weights(folder / "dense.weights.h5")
    with strategy.scope():
        model = net()
    result = sparsekit.prune(model)
    model.load_weights(folder / "dense.weights.h5")
    result.settle()
    masks = masks_of(result), masks_of(sparsekit.prune(dense))
    return alike_everywhere(result) and all(map(np.array_equal, *masks))


def in_a_loop(strategy: Any, own: bool) -> dict[str, Any]:
    """A tf.Module, or a Keras model whose optimizer is not wrapped, with `step`, in and out of replicas."""
    with strategy.scope():
        model = net()
        optimizer = optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
    call = tf.function(model, input_signature=SPECS)
    with strategy.scope() if own else contextlib.nullcontext():
        result = sparsekit.prune(model if own else call, {"update_freq": 2})

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        def replica(x: tf.Tensor, y: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x))) / 2
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            if own:
                result.step()

        strategy.run(replica, args=(x, y))

    dropped = 0.0
    for _ in range(5):
        step(tf.constant(X), tf.constant(Y))
        if not own:
            result.step()
        dropped += sum(float(np.abs(w.variable.numpy() * (1 - w.mask.numpy())).sum()) for w in result.weights)
    alike = alike_everywhere(result)
    flips = sum(int(weight.flips.numpy()) for weight in result.weights)
    result.finalize()
    return {"dropped": dropped, "alike": alike, "flips": flips, "verified": sparsekit.verify(model).ok}


def refusals(strategy: Any) -> Iterator[str]:
    with tf.distribute.experimental.CentralStorageStrategy(DEVICES).scope():
        central = net()
    with strategy.scope():
        model = net()
    for what, config in ((central, {}), (model, {"masking": "forward"}), (model, {"gradient": "ste"})):
        try:
            sparsekit.prune(what, config)
            yield "not refused"
        except SparsekitError as error:
            yield str(error)
    mesh = keras.distribution.DeviceMesh((2,), ["batch"], ["cpu:0", "cpu:1"])
    keras.distribution.set_distribution(keras.distribution.DataParallel(mesh))
    try:
        sparsekit.prune(model)
    except SparsekitError as error:
        yield str(error)
    keras.distribution.set_distribution(None)
    sparsekit.prune(model).finalize()  # nothing was left half-done


def main(folder: Path) -> None:
    strategy = tf.distribute.MirroredStrategy(DEVICES)
    found: dict[str, Any] = {case: fits_as_on_one_device(strategy, case) for case in CASES}
    found |= {options: keeps_zeros(strategy, options) for options in OPTIONS}
    found["resumed"] = resumes(strategy, folder)
    found["a dense file"] = settles_on_a_dense_file(strategy, folder)
    found["step in replicas"] = in_a_loop(strategy, True)
    found["step outside"] = in_a_loop(strategy, False)
    found["refusals"] = list(refusals(strategy))
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
