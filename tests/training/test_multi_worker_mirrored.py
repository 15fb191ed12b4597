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


@pytest.mark.slow
def test_workers_agree_and_a_killed_one_goes_on_with_the_same_masks(tmp_path: Path) -> None:
    with Cluster(SCRIPT, {"worker": 2}) as cluster:
        # From the start on, from the checkpoint of step 4, and from that of step 8. Whoever is left behind is ended, as
        # what starts clusters does it.
        for victim, fatal in ((1, 5), (0, 9)):
            cluster.start_all(tmp_path, json.dumps(CONFIG), STEPS, victim, fatal)
            cluster.wait(f"worker {victim}", -9)
            cluster.kill(f"worker {1 - victim}")
            cluster.move()
        cluster.start_all(tmp_path, json.dumps(CONFIG), STEPS, -1, 0)
        for index in range(2):
            printed = cluster.wait(f"worker {index}")
            assert "Keras' fit does not work under MultiWorkerMirroredStrategy" in printed
            assert "strategy.experimental_distribute_dataset" in printed
    seen: dict[int, Any] = {}
    for index in range(2):
        steps = read_logbook(tmp_path / f"worker-{index}.jsonl")
        assert [line["step"] for line in steps].count(5) == 2
        assert [line["step"] for line in steps].count(9) >= 1
        for line in steps:
            # Of every worker, before and after a restart: the same bits.
            assert seen.setdefault(line["step"], line) == line
    assert sorted(seen) == list(range(1, STEPS + 1))
    assert not any(map(any, (line["dropped"] for line in seen.values())))
    changes = [step for step in range(2, STEPS + 1) if seen[step]["masks"] != seen[step - 1]["masks"]]
    assert set(changes) <= {3, 6, 9} and 9 in changes

    for options in ("float16", "bfloat16", "averages"):
        steps, others = (read_logbook(tmp_path / f"{options}-{index}.jsonl") for index in range(2))
        assert steps == others, options
        assert [line["counted"] for line in steps] == [1, 2, 3, 4, 5, 6], options
        assert not any(map(any, (line["dropped"] for line in steps))), options
        assert any(steps[-1]["flips"]), options

    alone = compiled(net(), keras.optimizers.Adam(0.02))
    result = sparsekit.prune(alone, CONFIG)
    train(alone, result.callback, epochs=1)
    for index in range(2):
        model = net()
        model.load_weights(tmp_path / f"worker-{index}.weights.h5")
        for found, expected, mask in zip(kernels(model), kernels(alone), masks_of(result), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(found != 0, mask != 0)
