"""From a dense checkpoint through a calibrated start to a verified file, on handwritten digits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_graphs import bits, counts, masks, run_graph

import sparsekit

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "amct_flow"))
import network

v1 = tf.compat.v1
CONFIG = {"skip_layers": ["conv1/conv"]}  # one input channel


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network's checkpoint, without masks."""
    path = tmp_path_factory.mktemp("dense") / "dense.ckpt"
    model = network.build(training=True)
    network.train(model, network.minimize(model, 2e-3), network.load_digits(0), epochs=15, save_to=path)
    return path


class Retraining:
    """The training graph with masks, before its first batch.

    Args:
        dense: the checkpoint that it is restored from.
        calibrated: whether the start is calibrated.
        record: where its record goes.
    """

    def __init__(self, dense: Path, calibrated: bool, record: Path | None = None) -> None:
        self.data = network.load_digits(0)
        self.model = network.build(training=True)
        with self.model.graph.as_default() as graph:
            saver = v1.train.Saver(v1.global_variables())
            more: dict[str, Any] = {}
            with v1.Session() as before:
                if calibrated:
                    saver.restore(before, str(dense))
                    more = {"calibration": {"images": self.data.train_images[:600]}, "session": before}
                self.result = sparsekit.prune(graph, CONFIG, outputs=[network.OUTPUT], record=record, **more)
            self.step = network.minimize(self.model, 1e-3)
            self.session = v1.Session()
            self.session.run(v1.global_variables_initializer())
            saver.restore(self.session, str(dense))
            if calibrated:
                self.result.start(self.session)
        self.layers = [decision.name for decision in self.result.plan.pruned]

    def loss(self) -> float:
        return float(self.session.run(self.model.loss, self._feeds(slice(None))))

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for start in range(0, len(self.data.train_images), network.BATCH):
                self.session.run(self.step, self._feeds(slice(start, start + network.BATCH)))

    def _feeds(self, part: slice) -> dict[Any, Any]:
        return {self.model.images: self.data.train_images[part], self.model.labels: self.data.train_labels[part]}


def test_a_calibrated_start_is_retrained_stripped_and_verified(dense: Path, tmp_path: Path) -> None:
    by_magnitude = Retraining(dense, calibrated=False)
    training = Retraining(dense, calibrated=True, record=tmp_path / "record.txt")
    assert training.layers == by_magnitude.layers and len(training.layers) == 5
    losses = by_magnitude.loss(), training.loss()
    assert losses[1] < 0.5 * losses[0]

    chosen = masks(training.session, training.layers)
    training.train(epochs=2)
    assert training.loss() < losses[1]
    trained = masks(training.session, training.layers)
    assert {layer: bits(mask) for layer, mask in trained.items()} == {layer: bits(m) for layer, m in chosen.items()}
    assert counts(training.session, training.layers) == [1 + 2 * 24] * 5
    with training.model.graph.as_default():
        v1.train.Saver(v1.global_variables()).save(training.session, str(tmp_path / "retrained.ckpt"))

    inference = network.build(training=False)
    sparsekit.prune(inference.graph, CONFIG, outputs=[network.OUTPUT], record=tmp_path / "record.txt")
    with inference.graph.as_default():
        saver = v1.train.Saver(v1.global_variables())
    masked = network.freeze(
        inference, lambda sess: saver.restore(sess, str(tmp_path / "retrained.ckpt")), tmp_path / "m"
    )
    pruned = sparsekit.strip(masked, record=tmp_path / "record.txt")
    sparsekit.save(pruned, tmp_path / "pruned.pb")
    assert sparsekit.verify(tmp_path / "pruned.pb", record=tmp_path / "record.txt").ok
    feeds = {"images:0": training.data.test_images}
    frozen = v1.GraphDef.FromString(masked.read_bytes())
    assert np.array_equal(*(run_graph(graph_def, "logits:0", feeds) for graph_def in (frozen, pruned)))
    accuracy, _ = network.evaluate(tmp_path / "pruned.pb", training.data)
    assert accuracy > 0.9
