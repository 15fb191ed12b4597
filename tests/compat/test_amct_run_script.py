"""The script of AMCT's page "4选2结构化稀疏", run as its user would: all nine steps, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

WITH_SPARSEKITS_NAME = "import sparsekit.compat.amct_tensorflow as amct"
WITH_AMCTS_NAME = "import amct_tensorflow as amct\nfrom amct_tensorflow.utils.log import LOGGER"

# The user's own network, a module beside the script. No kernel is square where it matters: input and output
# channels differ, so that a mask along the wrong axis shows.
USER_MODEL = """
import numpy as np
import tensorflow.compat.v1 as tf


def batch_norm(x, is_training, name):
    channels = x.shape[-1]
    with tf.variable_scope(name):
        gamma = tf.get_variable("gamma", [channels], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [channels], initializer=tf.zeros_initializer())
        mean = tf.get_variable("moving_mean", [channels], initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable("moving_variance", [channels], initializer=tf.ones_initializer(), trainable=False)
    if not is_training:
        return tf.nn.fused_batch_norm(x, gamma, beta, mean, variance, is_training=False)[0]
    y, batch_mean, batch_variance = tf.nn.fused_batch_norm(x, gamma, beta, is_training=True)
    for moving, batch in ((mean, batch_mean), (variance, batch_variance)):
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign(moving, 0.9 * moving + 0.1 * batch))
    return y


def build(is_training):
    x = tf.placeholder(tf.float32, [None, 8, 8, 3], name="images")
    with tf.variable_scope("net"):
        w1 = tf.get_variable("conv1/weights", [3, 3, 3, 8])
        h = tf.nn.relu(batch_norm(tf.nn.conv2d(x, w1, 1, "SAME", name="conv1/Conv2D"), is_training, "bn1"))
        w2 = tf.get_variable("conv2/weights", [3, 3, 8, 12])
        h = tf.nn.relu(batch_norm(tf.nn.conv2d(h, w2, 2, "SAME", name="conv2/Conv2D"), is_training, "bn2"))
        w3 = tf.get_variable("up/weights", [2, 2, 10, 12])
        shape = tf.stack([tf.shape(h)[0], 8, 8, 10])
        h = tf.nn.relu(tf.nn.conv2d_transpose(h, w3, shape, 2, name="up/deconv"))
        h = tf.reduce_mean(h, [1, 2])
        w4 = tf.get_variable("fc1/weights", [10, 16])
        h = tf.nn.relu(tf.matmul(h, w4, name="fc1/MatMul"))
        w5 = tf.get_variable("fc2/weights", [5, 16])
        h = tf.matmul(h, w5, transpose_b=True, name="fc2/MatMul")
    return tf.identity(h, name="logits")


def batches(count, seed):
    rng = np.random.RandomState(seed)
    for _ in range(count):
        labels = rng.randint(0, 5, 16)
        images = rng.randn(16, 8, 8, 3).astype(np.float32) + labels[:, None, None, None]
        yield images, labels
"""

# The page's nine steps. What it calls "user_..." is written out; its own lines are kept.
SCRIPT = """
@IMPORT@
import argparse
import os

import numpy as np
import tensorflow.compat.v1 as tf

import user_model

parser = argparse.ArgumentParser()
parser.add_argument("--variables", choices=["ref", "resource"])
parser.add_argument("--graph", choices=["built", "imported"])
parser.add_argument("--learning_rate", type=float, default=1e-3)
parser.add_argument("--momentum", type=float, default=0.9)
ARGS = parser.parse_args()

assert tf.executing_eagerly(), "an import switched TensorFlow's mode"
assert not tf.get_default_graph().get_operations(), "an import made a tensor"
if ARGS.variables == "ref":
    tf.disable_v2_behavior()
else:
    tf.disable_eager_execution()

user_model_outputs = ["logits"]


def user_load_graph(is_training):
    tf.reset_default_graph()
    if ARGS.graph == "built":
        user_model.build(is_training)
        return None
    return tf.train.import_meta_graph("./dense/train.meta" if is_training else "./dense/test.meta")


def user_loss(labels):
    logits = tf.get_default_graph().get_tensor_by_name("logits:0")
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    return loss + 1e-4 * tf.add_n([tf.nn.l2_loss(v) for v in tf.trainable_variables()])


def user_train(sess, train_op, loss, labels, count):
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    for images, answers in user_model.batches(count, seed=1):
        outputs = [loss, train_op, update_ops]
        sess.run(outputs, feed_dict={"images:0": images, labels: answers})


def user_do_inference(pb, images):
    with tf.Graph().as_default() as graph:
        graph_def = tf.GraphDef()
        with tf.io.gfile.GFile(pb, "rb") as f:
            graph_def.ParseFromString(f.read())
        tf.import_graph_def(graph_def, name="")
        with tf.Session() as sess:
            return sess.run("logits:0", {"images:0": images})


# 1. log level
assert amct.set_logging_level(print_level="info", save_level="info") is None

# 2. the original network: trained, saved, evaluated
os.makedirs("./dense", exist_ok=True)
for is_training in (False, True):
    tf.reset_default_graph()
    user_model.build(is_training)
    tf.train.Saver()
    tf.train.export_meta_graph("./dense/train.meta" if is_training else "./dense/test.meta")
labels = tf.placeholder(tf.int64, [None])
loss = user_loss(labels)
train_op = tf.train.RMSPropOptimizer(ARGS.learning_rate).minimize(loss)
with tf.Session() as sess:
    sess.run(tf.global_variables_initializer())
    user_train(sess, train_op, loss, labels, 5)
    tf.train.Saver(tf.trainable_variables() + [v for v in tf.global_variables() if "moving" in v.name]).save(
        sess, "./dense/model"
    )

# 3. the training graph
saver_dense = user_load_graph(is_training=True)
train_graph = tf.get_default_graph()
if saver_dense is None:
    saver_dense = tf.train.Saver()

# 4. the training flow with the sparse operators
record_file = "./tmp/record.txt"
simple_cfg = "./retrain.cfg"
result = amct.create_prune_retrain_model(
    graph=train_graph, outputs=user_model_outputs, record_file=record_file, config_defination=simple_cfg
)
assert result is None
labels = tf.placeholder(tf.int64, [None])
loss = user_loss(labels)
optimizer = tf.compat.v1.train.RMSPropOptimizer(ARGS.learning_rate, momentum=ARGS.momentum)
train_op = optimizer.minimize(loss)
saver_save = tf.train.Saver()
retrain_ckpt = "./tmp/retrain"
with tf.Session() as sess:
    sess.run(tf.compat.v1.global_variables_initializer())
    saver_dense.restore(sess, "./dense/model")
    user_train(sess, train_op, loss, labels, 4)
    saver_save.save(sess, retrain_ckpt, global_step=0)
os.rename(record_file, "./tmp/record_of_training.txt")

# 5. the inference graph
user_load_graph(is_training=False)
test_graph = tf.get_default_graph()

# 6. the sparse operators in the inference graph, and the record file; positional this time
result = amct.create_prune_retrain_model(test_graph, user_model_outputs, record_file, simple_cfg)
assert result is None

# 7. restore and freeze
outputs = [test_graph.get_tensor_by_name("logits:0")]
variables_to_restore = tf.compat.v1.global_variables()
saver_restore = tf.compat.v1.train.Saver(variables_to_restore)
masked_pb_path = "./tmp/masked.pb"
with tf.Session() as sess:
    sess.run(tf.compat.v1.global_variables_initializer())
    saver_restore.restore(sess, retrain_ckpt + "-0")
    constant_graph = tf.compat.v1.graph_util.convert_variables_to_constants(
        sess, test_graph.as_graph_def(), [output.name[:-2] for output in outputs]
    )
with tf.io.gfile.GFile(masked_pb_path, "wb") as f:
    f.write(constant_graph.SerializeToString())

# 8. save; the inference graph is still the default graph
pruned_model_path = "./result/user_model"
size = len(test_graph.get_operations())
result = amct.save_prune_retrain_model(
    pb_model=masked_pb_path, outputs=user_model_outputs, record_file=record_file, save_path=pruned_model_path
)
assert result is None
assert len(test_graph.get_operations()) == size

# 9. evaluate the pruned model
images = next(user_model.batches(1, seed=2))[0]
np.savez(
    "./evaluation.npz",
    masked=user_do_inference(masked_pb_path, images),
    pruned=user_do_inference("./result/user_model_pruned.pb", images),
    older_name=user_do_inference("./result/user_model_quantized.pb", images),
)
print("the script ends")
"""

CONFIG = """
prune_config {
  n_out_of_m_pruner {
    l1_selective_prune {
      n_out_of_m_type: M4N2
      update_freq: 0
    }
  }
}
"""

# Layer: (variable, shape, axis of the input channels).
LAYERS = {
    "net/conv1/Conv2D": ("net/conv1/weights", (3, 3, 3, 8), 2),
    "net/conv2/Conv2D": ("net/conv2/weights", (3, 3, 8, 12), 2),
    "net/up/deconv": ("net/up/weights", (2, 2, 10, 12), 3),
    "net/fc1/MatMul": ("net/fc1/weights", (10, 16), 0),
    "net/fc2/MatMul": ("net/fc2/weights", (5, 16), 1),
}


def record_text() -> str:
    entries = []
    for layer, (_, shape, _) in LAYERS.items():
        ints = "".join(f"      ints: {size}\n" for size in shape)
        entries.append(
            f'prune_record {{\n  selective_prune {{\n    name: "{layer}"\n    attr {{\n      name: "mask_shape"\n'
            f"      type: INTS\n{ints}    }}\n  }}\n}}\n"
        )
    return "".join(entries)


def two_of_four(weight: np.ndarray, axis: int) -> np.ndarray:
    """The documented mask, in plain loops: of every 4 along the axis the 2 largest |w| stay, pads go first."""
    rows = np.moveaxis(weight, axis, -1)
    mask = np.zeros(rows.shape, bool)
    for position in np.ndindex(rows.shape[:-1]):
        for start in range(0, rows.shape[-1], 4):
            group = rows[position][start : start + 4]
            order = sorted(range(len(group)), key=lambda i: (-abs(float(group[i])), i))
            for index in order[:2]:
                mask[(*position, start + index)] = True
    return np.moveaxis(mask, -1, axis)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "SPARSEKIT_TARGET": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def written(folder: Path, script: str, name: str = "script.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(script))
    return path


# Every pair of settings is in one of them; every run loads TensorFlow anew.
RUNS = [
    ("sparsekit", "ref", "built"),
    ("sparsekit", "resource", "imported"),
    ("amct", "ref", "imported"),
    ("amct", "resource", "built"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variables", "graph"), RUNS, ids=["-".join(run) for run in RUNS])
def test_the_pages_script_runs(tmp_path, name, variables, graph):
    import tensorflow as tf

    written(tmp_path, USER_MODEL, "user_model.py")
    (tmp_path / "retrain.cfg").write_text(CONFIG)
    imports = {"sparsekit": WITH_SPARSEKITS_NAME, "amct": WITH_AMCTS_NAME}[name]
    written(tmp_path, SCRIPT.replace("@IMPORT@", imports))
    runner = ["-m", "sparsekit.compat.amct_tensorflow"] if name == "amct" else []
    ended = run(tmp_path, *runner, "script.py", "--variables", variables, "--graph", graph)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("the script ends\n")

    # The file with the documented name, and the older one: one file under two names.
    pruned, older = (tmp_path / "result" / f"user_model_{kind}.pb" for kind in ("pruned", "quantized"))
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == [pruned.name, older.name]
    assert pruned.stat().st_ino == older.stat().st_ino

    # The weights: the mask is the documented one of the dense checkpoint (not of the initial values), trained on.
    graph_def = tf.compat.v1.GraphDef.FromString(pruned.read_bytes())
    nodes = {node.name: node for node in graph_def.node}
    dense = tf.train.load_checkpoint(str(tmp_path / "dense" / "model"))
    trained = tf.train.load_checkpoint(str(tmp_path / "tmp" / "retrain-0"))
    for variable, shape, axis in LAYERS.values():
        weight = tf.make_ndarray(nodes[variable].attr["value"].tensor)
        assert weight.shape == shape
        mask = two_of_four(dense.get_tensor(variable), axis)
        np.testing.assert_array_equal(weight != 0, mask)
        np.testing.assert_array_equal(weight, np.where(mask, trained.get_tensor(variable), 0))
        assert (trained.get_tensor(variable) != dense.get_tensor(variable))[mask].any()

    # Nothing of the masks is left, and nothing else was lost.
    assert not [node for node in nodes if "sparsekit" in node]
    assert {node.op for node in graph_def.node} <= {
        *("Placeholder", "Const", "Identity", "ReadVariableOp", "Conv2D", "FusedBatchNormV3", "Relu", "Shape"),
        *("StridedSlice", "Pack", "Conv2DBackpropInput", "Mean", "MatMul"),
    }
    evaluation = np.load(tmp_path / "evaluation.npz")
    assert np.isfinite(evaluation["masked"]).all()
    np.testing.assert_array_equal(evaluation["masked"], evaluation["pruned"])
    np.testing.assert_array_equal(evaluation["masked"], evaluation["older_name"])

    # The record, of both calls.
    assert (tmp_path / "tmp" / "record.txt").read_text() == record_text()
    assert (tmp_path / "tmp" / "record_of_training.txt").read_text() == record_text()

    # The log, on the screen and in the file.
    lines = (tmp_path / "amct_log" / "amct_tensorflow.log").read_text().splitlines()
    assert lines
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S* - INFO - \[AMCT\]:\[\w+\]: \S", line), line
        assert line in ended.stderr
    for path in ("./result/user_model_pruned.pb", "./result/user_model_quantized.pb"):
        assert any(path in line for line in lines), path
    for layer in LAYERS:
        assert sum(layer in line and "prune" in line for line in lines) == 2, layer


# The runner, without TensorFlow: these scripts are done in a moment.

RUNNER = ("-m", "sparsekit.compat.amct_tensorflow")


def test_a_script_sees_what_python_would_show_it(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    written(folder, "VALUE = 42\n", "sibling.py")
    written(
        folder,
        """
        import sys
        import sibling
        import amct_tensorflow as amct
        import amct_tensorflow.utils.log
        from amct_tensorflow.utils.log import LOGGER
        import sparsekit.compat.amct_tensorflow as ours
        assert amct is ours and amct.utils.log.LOGGER is LOGGER
        assert "tensorflow" not in sys.modules
        print([__name__, __file__, sys.argv, sibling.VALUE, sys.modules["__main__"].__file__])
        """,
    )
    ended = run(tmp_path, *RUNNER, "scripts/script.py", "-h", "--flag", "a b")
    assert ended.returncode == 0, ended.stderr
    path = "scripts/script.py"
    assert ended.stdout.strip() == str(["__main__", path, [path, "-h", "--flag", "a b"], 42, path])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P is new in 3.11")
def test_the_search_path_is_as_python_sets_it(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    written(folder, "import sys\nprint(sys.path)\n")
    for flags in ([], ["-P"]):
        plain = run(tmp_path, *flags, "scripts/script.py").stdout
        served = run(tmp_path, *flags, *RUNNER, "scripts/script.py").stdout
        # One folder more: the one that serves amct_tensorflow, after the script's own.
        assert re.sub(r"'[^']*/compat/amct_tensorflow/served', ", "", served) == plain


@pytest.mark.parametrize(
    ("ending", "status"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("pass", 0), ("sys.exit('no')", 1)]
)
def test_a_scripts_exit_status_is_kept(tmp_path, ending, status):
    written(tmp_path, f"import sys\n{ending}\n")
    assert run(tmp_path, *RUNNER, "script.py").returncode == status


def test_a_scripts_traceback_is_kept(tmp_path):
    written(
        tmp_path,
        """
        def broken():
            raise ValueError("what went wrong")

        broken()
        """,
    )
    ended = run(tmp_path, *RUNNER, "script.py")
    assert ended.returncode == 1
    assert re.search(r'File ".*script\.py", line 5, in <module>', ended.stderr)
    assert re.search(r'File ".*script\.py", line 3, in broken', ended.stderr)
    assert ended.stderr.endswith("ValueError: what went wrong\n")


def test_a_name_that_amct_tensorflow_lacks_is_reported_as_python_does(tmp_path):
    written(tmp_path, "import amct_tensorflow.nothing\n")
    ended = run(tmp_path, *RUNNER, "script.py")
    assert ended.returncode == 1
    assert "No module named 'amct_tensorflow.nothing'" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "usage: python -m sparsekit.compat.amct_tensorflow SCRIPT.py"),
        (["-h"], 0, "usage: python -m sparsekit.compat.amct_tensorflow SCRIPT.py"),
        (["nothing.py"], 2, "nothing.py: there is no such script"),
        (["."], 2, ".: there is no such script"),
    ],
)
def test_a_wrong_call_of_the_runner_is_answered_in_a_line(tmp_path, arguments, status, said):
    ended = run(tmp_path, *RUNNER, *arguments)
    assert ended.returncode == status
    assert said in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_processes_that_the_script_spawns_find_amct_too(tmp_path):
    (tmp_path / "script.py").write_text(
        "import multiprocessing\n"
        "import amct_tensorflow as amct\n"
        "from amct_tensorflow.utils.log import LOGGER\n"
        "def name(_):\n"
        "    return amct.__name__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(name, [0]))\n"
    )
    command = [sys.executable, "-m", "sparsekit.compat.amct_tensorflow", "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "['sparsekit.compat.amct_tensorflow']\n", done.stderr
