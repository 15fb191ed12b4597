"""Models at rest that are large: what is not called on the way, how work grows, what memory is taken."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.python.framework import importer

import sparsekit

v1 = tf.compat.v1


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype("f")


def masked_graph(folder: Path) -> Any:
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        tf.matmul(x, v1.get_variable("w", initializer=normal(8, 4)), name="fc")
        sparsekit.prune(graph, outputs=["fc"], record=folder / "record.txt")
        session.run(v1.global_variables_initializer())
        return v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["fc"])


class Net(tf.Module):
    def __init__(self) -> None:
        self.w = tf.Variable(normal(8, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 8])])
    def serve(self, x: Any) -> Any:
        return tf.matmul(x, self.w)


def test_nothing_is_imported_or_extracted_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = masked_graph(tmp_path)
    net = Net()
    tf.saved_model.save(net, str(tmp_path / "model"), signatures=net.serve)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("edits are made on the protos")

    for module, name in (
        (tf, "import_graph_def"),
        (v1, "import_graph_def"),
        (importer, "import_graph_def"),
        (v1.graph_util, "extract_sub_graph"),
        (tf.Graph, "as_graph_def"),
    ):
        monkeypatch.setattr(module, name, refuse)
    pruned = sparsekit.strip(masked, record=tmp_path / "record.txt")
    for model in (pruned, tmp_path / "model"):
        assert sparsekit.plan(model).pruned
        result = sparsekit.prune(model, {"pattern": "1:4"})
        out = result.save(tmp_path / f"out-{type(model).__name__}.pb")
        assert sparsekit.verify(out, cfg={"pattern": "1:4"}).ok


def chain(nodes: int) -> Any:
    """Every fourth node is a layer with a constant of its own."""
    graph_def = graph_pb2.GraphDef()
    graph_def.node.add(name="x", op="Placeholder").attr["dtype"].type = 1
    weight = tf.make_tensor_proto(normal(8, 8))
    last = "x"
    while len(graph_def.node) < nodes:
        number = len(graph_def.node)
        if number % 4 == 0:
            constant = graph_def.node.add(name=f"w{number}", op="Const")
            constant.attr["dtype"].type = 1
            constant.attr["value"].tensor.CopyFrom(weight)
            node = graph_def.node.add(name=f"layer{number}", op="MatMul", input=[last, constant.name])
        else:
            node = graph_def.node.add(name=f"relu{number}", op="Relu", input=[last])
        node.attr["T"].type = 1
        last = node.name
    return graph_def


def calls_in(work: Callable[[], object]) -> int:
    """How many functions are called, in Python and in C."""
    count = 0

    def profile(*_: Any) -> None:
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("verb", [sparsekit.plan, sparsekit.prune, sparsekit.verify])
def test_work_grows_as_the_graph_does(verb: Callable[[Any], object]) -> None:
    verb(chain(100))
    small, large = chain(2_000), chain(8_000)
    assert calls_in(lambda: verb(large)) < 4.4 * calls_in(lambda: verb(small))


_GIGABYTES = """
    import sys
    import numpy as np, tensorflow as tf
    import sparsekit
    folder, kind = sys.argv[1:]
    ROWS, COLUMNS, LAYERS = 26_400, 4_096, 5  # 433 MB each, 2.2 GB in all

    class Net(tf.Module):
        def __init__(self):
            row = np.random.default_rng(0).standard_normal((1, COLUMNS)).astype("f")
            self.weights = [tf.Variable(tf.repeat(row + i, ROWS, 0)) for i in range(LAYERS)]
        @tf.function(input_signature=[tf.TensorSpec([None, ROWS])])
        def serve(self, x):
            return sum(tf.matmul(x, w) for w in self.weights)

    def status(name):
        (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
        return int(line.split()[1]) << 10

    if kind == "make":
        net = Net()
        tf.saved_model.save(net, folder + "/model", signatures=net.serve)
    else:
        sparsekit.plan
        before = status("VmRSS")
        result = sparsekit.prune(folder + "/model")
        assert len(result.plan.pruned) == LAYERS, result.plan
        result.save(folder + "/pruned")
        assert sparsekit.verify(folder + "/pruned").ok
        print((status("VmHWM") - before) / (ROWS * COLUMNS * 4))
"""


@pytest.mark.slow
def test_more_than_two_gigabytes_are_pruned_a_variable_at_a_time(tmp_path: Path) -> None:
    code = textwrap.dedent(_GIGABYTES)
    for kind in ("make", "prune"):
        ended = subprocess.run([sys.executable, "-c", code, str(tmp_path), kind], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    stored = sum(file.stat().st_size for file in (tmp_path / "pruned" / "variables").iterdir())
    assert stored > 1 << 31
    taken = float(ended.stdout)
    # Of a variable of 433 MB: its bytes as they are read, and what becomes of them; never all five.
    assert taken < 3, f"{taken:.2f} times the largest variable"
    reader = tf.train.load_checkpoint(str(tmp_path / "pruned" / "variables" / "variables"))
    name = next(name for name in reader.get_variable_to_shape_map() if name.startswith("weights/3"))
    value = reader.get_tensor(name)
    assert (np.count_nonzero(value.reshape(-1, 4, value.shape[1]), axis=1) == 2).all()
