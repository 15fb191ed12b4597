"""A TF1-style cluster, each worker with a graph of its own: one ps, two workers, and a chief that is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from clusters import SECONDS, Cluster

SCRIPT = Path(__file__).with_name("run_between_graphs.py")


def _log(folder: Path, worker: int) -> list[dict[str, Any]]:
    path = folder / f"worker-{worker}.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    )


def _until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS / 3
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def _masks(line: dict[str, Any]) -> Any:
    return {name: value for name, value in line.items() if name.endswith("mask")}


@pytest.mark.slow
def test_a_killed_chief_goes_on_with_the_masks_of_its_checkpoint(tmp_path: Path) -> None:
    # The first layer's masks are chosen again and again, those of the others once.
    config = {"override": [{"layers": ["layer_0"], "update_freq": 10}]}
    arguments = tmp_path, json.dumps(config)
    with Cluster(SCRIPT, {"ps": 1, "worker": 2}) as cluster:
        cluster.start("ps 0", *arguments)
        cluster.start("worker 0", *arguments)
        # Who comes before the variables are initialized looks again after half a minute only.
        _until(lambda: len(_log(tmp_path, 0)) > 2)
        cluster.start("worker 1", *arguments)
        _until(lambda: len(_log(tmp_path, 1)) > 20)
        cluster.kill("worker 0")
        before = len(_log(tmp_path, 0)), len(_log(tmp_path, 1))
        checkpoint = tf.train.load_checkpoint(tf.train.latest_checkpoint(tmp_path / "checkpoints"))
        saved = {name: checkpoint.get_tensor(name).tolist() for name in checkpoint.get_variable_to_shape_map()}
        cluster.start("worker 0", *arguments)
        for worker in range(2):
            _until(lambda worker=worker: len(_log(tmp_path, worker)) > before[worker] + 20)
        (tmp_path / "stop").touch()
        for worker in range(2):
            cluster.wait(f"worker {worker}")
    chief, other = _log(tmp_path, 0), _log(tmp_path, 1)
    restored = chief[before[0]]
    assert restored["begins"] and restored["step"] >= saved["global_step"]
    # Every mask that anybody saw after the first batch, before and after the restart, is the same one.
    seen = [_masks(line) for line in [*chief[1:], *other]]
    first = next(name for name in seen[0] if "layer_0" in name)
    assert len(seen[0]) == 3
    for name in seen[0].keys() - {first}:
        assert all(masks[name] == saved[name] for masks in seen)
    assert seen[-1][first] != seen[0][first]
    for mask in [*_masks(chief[-1]).values(), *_masks(other[-1]).values()]:
        groups = tf.reshape(tf.constant(mask), [-1, 4, len(mask[0])])
        assert tf.reduce_all(tf.reduce_sum(groups, 1) == 2)
