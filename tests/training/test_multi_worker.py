"""Two processes of MultiWorkerMirroredStrategy hold the same masks, die, and go on with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from clusters import Cluster
from keras_nets import compiled, kernels, masks_of, net, train
from logbook import read_logbook

import sparsekit

SCRIPT = Path(__file__).with_name("run_multi_worker.py")
CONFIG = {"update_freq": 3}
STEPS = 10


def _run(folder: Path, victim: int, fatal: int) -> None:
    """Two workers; whoever is left behind by the victim is ended, as whatever starts a cluster would do it."""
    with Cluster(SCRIPT, {"worker": 2}, [folder, json.dumps(CONFIG), STEPS, victim, fatal]) as cluster:
        if victim < 0:
            cluster.wait("worker 0")
            cluster.wait("worker 1")
        else:
            cluster.wait(f"worker {victim}", -9)


@pytest.mark.slow
def test_workers_agree_and_a_killed_one_goes_on_with_the_same_masks(tmp_path: Path) -> None:
    _run(tmp_path, 1, 5)
    _run(tmp_path, 0, 9)  # from the checkpoint of step 4 on
    _run(tmp_path, -1, 0)  # from that of step 8
    seen: dict[int, Any] = {}
    for index in range(2):
        steps = read_logbook(tmp_path / f"worker-{index}.jsonl")
        assert [line["step"] for line in steps].count(5) == 2
        assert [line["step"] for line in steps].count(9) >= 1
        for line in steps:
            # Of every worker, before and after a restart: the same bits.
            assert seen.setdefault(line["step"], line) == line
    assert sorted(seen) == list(range(1, STEPS + 1))
    assert not any(line["dropped"] for line in seen.values())
    changes = [step for step in range(2, STEPS + 1) if seen[step]["masks"] != seen[step - 1]["masks"]]
    assert set(changes) <= {3, 6, 9} and 9 in changes

    alone = compiled(net(), keras.optimizers.Adam(0.02))
    result = sparsekit.prune(alone, CONFIG)
    train(alone, result.callback, epochs=1)
    for index in range(2):
        model = net()
        model.load_weights(tmp_path / f"worker-{index}.weights.h5")
        for found, expected, mask in zip(kernels(model), kernels(alone), masks_of(result), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(found != 0, mask != 0)
