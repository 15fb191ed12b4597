"""ParameterServerStrategy: two parameter servers, two workers that do not wait for each other, and a chief."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster
from logbook import read_logbook

SCRIPT = Path(__file__).with_name("run_coordinator.py")


# The first layer's masks are chosen again and again, until a while after the restart, those of the others once.
CONFIGS = [{"override": [{"layers": ["*dense_0*"], "update_freq": 4}], "freeze_step": 35}, {"masking": "project"}]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=["refresh", "project"])
def test_after_a_worker_and_the_chief_died_masks_are_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    arguments = (tmp_path, json.dumps(config), 60)
    with Cluster(SCRIPT, {"ps": 2, "worker": 2, "chief": 1}) as cluster:
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
    if refreshed:
        # One count for all workers; when a step asks it, another's may be in it already, so a choice may be left out.
        assert [line["counted"] for line in (start, saved, *others)] == [0, 20, 40, 60, 80]
        masks = [line["masks"][0] for line in (start, saved, *others)]
        assert len(set(masks)) == 3 and len(set(masks[2:])) == 1
        # In place, who does not wait for others cannot move a dropped weight either; where masks change, a step that
        # began with older ones may end after the choice.
        assert not any(any(line["dropped"][1:]) for line in (saved, *others))
    else:
        # Two may take the same value out, so not always: see the README.
        assert any(not each for line in (saved, *others) for each in line["dropped"])
