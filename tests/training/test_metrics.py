"""What users of Keras see of sparsity, and where."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_nets import X, Y, masks_of, pruned_net, train
from tensorflow.core.util import event_pb2

from sparsekit.errors import ConfigError

optimizers = keras.optimizers


def _events(folder: Path) -> dict[str, dict[int, Any]]:
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    for file in folder.rglob("events.out.tfevents.*"):
        for record in tf.compat.v1.io.tf_record_iterator(str(file)):
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found[value.tag][event.step] = getattr(value, kind)
    return dict(found)


@pytest.mark.parametrize(("folder", "frequency"), [(None, 2), ("logs", -1)])
def test_histograms_that_nobody_would_see_are_refused(folder: str | None, frequency: int) -> None:
    _, result = pruned_net(optimizers.SGD(0.3), {})
    with pytest.raises(ConfigError, match=f"histogram_freq: got {frequency}"):
        result.make_callback(folder, histogram_freq=frequency)


@pytest.mark.parametrize("masking", ["in-place", "forward"])
def test_tensorboard_gets_density_magnitude_flips_and_histograms(masking: str, tmp_path: Path) -> None:
    model, result = pruned_net(optimizers.SGD(0.3, 0.9), {"masking": masking, "update_freq": 4, "start_step": 12})
    train(model, result.make_callback(tmp_path, histogram_freq=2), epochs=4)
    events = _events(tmp_path)
    names = [weight.name for weight in result.weights]
    assert set(events) == {f"sparsity/{kind}/{n}" for kind in ("density", "retained", "flips", "kept") for n in names}
    for weight in result.weights:
        densities = events[f"sparsity/density/{weight.name}"]
        np.testing.assert_allclose([densities[e] for e in range(4)], [1, 0.5, 0.5, 0.5])
        retained = events[f"sparsity/retained/{weight.name}"]
        assert retained[0] == 1
        assert all(0.5 < retained[e] < 1 for e in (1, 2, 3))
        flips = events[f"sparsity/flips/{weight.name}"]
        assert flips[0] == 0
        assert flips[1] >= weight.mask.numpy().size / 2  # the first choice drops half
        assert sum(flips.values()) == int(weight.flips)
        histogram = events[f"sparsity/kept/{weight.name}"]
        assert sorted(histogram) == [1, 3]
        assert sum(histogram[3].bucket) == histogram[3].num == weight.mask.numpy().sum()
        kept = weight.kept().numpy()
        assert (histogram[3].min, histogram[3].max) == (kept.min(), kept.max())


def test_the_progress_bar_and_the_history_show_sparsity(capsys: pytest.CaptureFixture[str]) -> None:
    model, result = pruned_net(optimizers.SGD(0.1), {"start_step": 15})
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=2, callbacks=[result.callback]).history
    assert history["sparsity"][0] == 0
    assert history["sparsity"][1] == pytest.approx(0.5)
    shown = capsys.readouterr().out
    assert "sparsity: 0.0000e+00" in shown
    assert "sparsity: 0.5000" in shown


def test_nothing_is_read_between_the_ends_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, result = pruned_net(optimizers.SGD(0.1), {"update_freq": 1})
    reads: list[str] = []
    inside = {"steps": False}
    kind = type(result.weights[0].mask)
    numpy = kind.numpy
    monkeypatch.setattr(
        kind, "numpy", lambda self: (reads.append(self.name) if inside["steps"] else None, numpy(self))[1]
    )

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            inside["steps"] = True  # before the first step something else may have written weights: that is looked at

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            inside["steps"] = False

    train(model, Watch(), result.callback, epochs=1)
    assert len(masks_of(result)) == 3
    assert not [name for name in reads if name.startswith(("mask", "flips", "steps", "shadow"))]
