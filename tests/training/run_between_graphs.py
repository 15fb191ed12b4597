"""A server of a TF1-style cluster, the ps or a worker: what test_between_graphs.py starts three of.

python run_between_graphs.py FOLDER CONFIG   # workers train until there is a FOLDER/stop
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import tensorflow as tf
from keras_nets import X, Y

import sparsekit

tf1 = tf.compat.v1
SAVE_EVERY = 10


def main(folder: Path, config: str) -> None:
    found = json.loads(os.environ["TF_CONFIG"])
    job, index = found["task"]["type"], found["task"]["index"]
    server = tf.distribute.Server(found["cluster"], job_name=job, task_index=index)
    if job == "ps":
        server.join()
    tf1.disable_eager_execution()
    # Nothing may come from the weights that a graph is made with after a restart.
    tf1.set_random_seed(2 if (folder / "checkpoints").exists() else 1)
    device = tf1.train.replica_device_setter(cluster=found["cluster"], worker_device=f"/job:worker/task:{index}")
    with tf1.device(device):
        step = tf1.train.get_or_create_global_step()
        # Workers take different rows.
        rows = tf.data.Dataset.from_tensor_slices((X, Y)).shard(2, index).repeat().batch(8)
        x, y = tf1.data.make_one_shot_iterator(rows).get_next()
        for i, sizes in enumerate([(8, 16), (16, 12)]):
            x = tf.nn.relu(tf.matmul(x, tf1.get_variable(f"kernel_{i}", sizes), name=f"layer_{i}"))
        logits = tf.matmul(x, tf1.get_variable("kernel_2", [12, 4]), name="logits")
        result = sparsekit.prune(tf1.get_default_graph(), json.loads(config), outputs=["logits"])
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        train = tf1.train.AdamOptimizer(0.01).minimize(loss, global_step=step)
    assert {variable.device for variable in result.variables} == {"/job:ps/task:0"}
    log = (folder / f"worker-{index}.jsonl").open("a")
    with tf1.train.MonitoredTrainingSession(
        server.target,
        is_chief=index == 0,
        checkpoint_dir=str(folder / "checkpoints") if index == 0 else None,
        save_checkpoint_steps=SAVE_EVERY,
        save_checkpoint_secs=None,
        log_step_count_steps=None,
        # Workers know the ps alone: they do not wait for a dead one.
        config=tf1.ConfigProto(device_filters=["/job:ps", f"/job:worker/task:{index}"]),
    ) as session:
        begins = True
        while not (folder / "stop").exists():
            if not begins:
                session.run(train)
            count, values = session.run((step, result.variables))
            line = {"begins": begins, "step": int(count)}
            line |= {variable.op.name: value.tolist() for variable, value in zip(result.variables, values, strict=True)}
            print(json.dumps(line), file=log, flush=True)
            begins = False
            time.sleep(0.01)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
