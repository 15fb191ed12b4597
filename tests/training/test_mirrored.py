"""Keras' fit under MirroredStrategy trains the same sparse model on two devices as on one."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from clusters import ROOT, SECONDS
from keras_nets import SPECS, compiled, masks_of, net, train

import sparsekit
from sparsekit.errors import GraphError

SCRIPT = Path(__file__).with_name("run_mirrored.py")


@functools.cache
def _found() -> dict[str, Any]:
    """All of it from one process: devices must be split before TensorFlow looks at them."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), folder],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(Path(folder, "found.json").read_text())


@pytest.mark.slow
def test_fit_gives_the_masks_and_weights_of_one_device() -> None:
    # After every step every copy of a weight, its mask, shadow and count held the same bits: the script looks.
    for case in ("sgd", "adam", "lamb"):
        found = _found()[case]
        assert found["same masks"], case
        assert found["flips"][0] == found["flips"][1], case
        assert found["difference"] < 1e-6, case
        assert found["sparsity"] == [[0.5] * 2] * 2
        assert found["verified"]
    assert _found()["adam"]["flips"][0][0] > 10
    assert _found()["sgd"]["plan"] == "Masking: in-place (SGD updates every weight by itself)."
    assert "Masking: project (Lamb is not known" in _found()["lamb"]["plan"]


@pytest.mark.slow
@pytest.mark.parametrize("options", ["float16", "bfloat16", "averages"])
def test_under_mixed_precision_and_with_options_of_optimizers_copies_keep_the_same_zeros(options: str) -> None:
    found = _found()[options]
    assert found.pop("flips") > 10
    assert found == {"alike": True, "zeros": True, "counted": 20, "verified": True}


@pytest.mark.slow
def test_an_interrupted_fit_ends_with_the_very_weights_of_one_that_was_not() -> None:
    assert _found()["resumed"]


@pytest.mark.slow
def test_a_dense_file_brings_new_masks() -> None:
    assert _found()["a dense file"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step in replicas", "step outside"])
def test_step_in_a_loop(where: str) -> None:
    found = _found()[where]
    assert found["dropped"] == 0 and found["alike"] and found["flips"] > 5 and found["verified"]


@pytest.mark.slow
def test_what_cannot_be_is_refused() -> None:
    central, forward, straight_through, keras_own = _found()["refusals"]
    assert "CentralStorageStrategy" in central and "take MirroredStrategy" in central
    assert "masking: 'forward'" in forward and 'expected masking "auto", "in-place" or "project"' in forward
    assert "gradient: 'ste'" in straight_through and 'expected "masked"' in straight_through
    assert "DataParallel, which does nothing on TensorFlow" in keras_own


@pytest.mark.parametrize("config", [{"update_freq": 3}, {"masking": "project"}, {"gradient": "ste"}], ids=str)
def test_a_strategy_of_one_device_changes_nothing(config: dict[str, Any]) -> None:
    ends = []
    for scope in (contextlib.nullcontext(), tf.distribute.OneDeviceStrategy("CPU:0").scope()):
        with scope:
            model = compiled(net(), keras.optimizers.Adam(0.01))
        result = sparsekit.prune(model, config)
        train(model, result.callback, epochs=1)
        masks = masks_of(result)
        result.finalize()
        ends.append([*masks, *(variable.numpy() for variable in [*model.variables, *model.optimizer.variables])])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_is_not_built_yet_is_built_under_its_strategy() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = compiled(keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(3)]))
    assert len(sparsekit.plan(model, input_signature=SPECS).pruned) == 2
    result = sparsekit.prune(model)
    train(model, result.callback, epochs=1)
    result.finalize()
    assert sparsekit.verify(model).ok


def test_weights_from_outside_of_the_scope_are_refused() -> None:
    outside = net()
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        inside = net()
    both = keras.Sequential([keras.Input((8,)), inside.layers[0], outside.layers[1]])
    with pytest.raises(GraphError, match=r"dense_1.*outside of the scope of MirroredStrategy.*whole model in one"):
        sparsekit.prune(both)
    for model in (inside, outside):
        assert len(sparsekit.prune(model).weights) == 3  # nothing was left half-done
