"""ParameterServerStrategy: two parameter servers, two workers that do not wait for each other, and a chief."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from clusters import Cluster
from keras_nets import net
from logbook import read_logbook
from tensorflow.python.distribute.sharded_variable import ShardedVariable

import sparsekit
from sparsekit.errors import GraphError

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


def _in_two(create: Any, initial_value: Any, **options: Any) -> Any:
    """What a variable_partitioner makes of a kernel."""
    value = initial_value() if callable(initial_value) else initial_value
    if len(value.shape) < 2:
        return create(initial_value=value, **options)
    options.pop("shape", None)
    parts = tf.split(value, 2)
    return ShardedVariable([create(initial_value=part, **options) for part in parts], name="kernel")


@pytest.mark.parametrize("front_door", [sparsekit.prune, sparsekit.plan])
def test_weights_in_parts_are_refused(front_door: Any) -> None:
    with tf.variable_creator_scope(_in_two):
        model = net()
    with pytest.raises(GraphError, match=r"dense_0/kernel' is split .* Keras 3 does not train .* variable_partitioner"):
        front_door(model)


def test_of_a_module_weights_in_parts_are_skipped_with_a_reason() -> None:
    class Halves(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = ShardedVariable([tf.Variable(tf.ones([4, 8]), name=name) for name in "ab"], name="kernel")

        @tf.function(input_signature=[tf.TensorSpec([None, 8])])
        def __call__(self, x: Any) -> Any:
            return x @ tf.convert_to_tensor(self.kernel)

    (decision,) = sparsekit.plan(Halves()).decisions
    assert "is one of several parts" in decision.message
