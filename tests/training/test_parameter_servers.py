"""ParameterServerStrategy: one ps, two workers that do not wait for each other, and a chief."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster
from logbook import read_logbook

SCRIPT = Path(__file__).with_name("run_coordinator.py")


# The first layer's masks are chosen again and again, those of the others once.
CONFIGS = [{"override": [{"layers": ["*dense_0*"], "update_freq": 25}]}, {"masking": "project"}]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=["refresh", "project"])
def test_after_a_worker_and_the_chief_died_masks_are_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    arguments = (tmp_path, json.dumps(config), 60)
    with Cluster(SCRIPT, {"ps": 1, "worker": 2, "chief": 1}) as cluster:
        cluster.start_all(*arguments, 40)
        cluster.wait("chief 0", -9)
        cluster.kill("worker 1")
        cluster.start("worker 1")
        cluster.start("chief 0", *arguments, 0)
        printed = cluster.wait("chief 0")
    assert "Keras' fit does not work under ParameterServerStrategy" in printed
    assert "coordinator.schedule(step" in printed
    assert "verified" in printed
    start, saved, restored, *others = read_logbook(tmp_path / "chief.jsonl")
    assert restored == saved
    assert len(others) == 3
    refreshed = 1 if "override" in config else 0
    for line in (saved, *others):
        assert line["masks"][refreshed:] == start["masks"][refreshed:]
        if refreshed:  # in-place: who does not wait for others cannot move a dropped weight either
            assert not any(line["dropped"][1:])
    if refreshed:
        # Best effort: counts are approximate, and a step that began with older masks may end after the choice.
        assert others[-1]["masks"][0] != start["masks"][0]
