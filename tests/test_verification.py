"""What the weights of a frozen graph say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsekit
from sparsekit import Pattern
from sparsekit.errors import ConfigError, GraphError, RecordError
from sparsekit.pattern import PATTERN_2_4
from sparsekit.record import LayerRecord, Record

v1 = tf.compat.v1


def matmul(weight: np.ndarray, transpose_b: bool = False, name: str = "fc") -> None:
    x = v1.placeholder(weight.dtype, [None, weight.shape[1 if transpose_b else 0]], name=f"{name}_x")
    tf.identity(tf.matmul(x, tf.constant(weight, name=f"{name}_w"), transpose_b=transpose_b, name=name), f"{name}_y")


def conv(weight: np.ndarray, name: str = "conv") -> None:
    x = v1.placeholder(weight.dtype, [None, 8, 8, weight.shape[2]], name=f"{name}_x")
    tf.identity(tf.nn.conv2d(x, tf.constant(weight, name=f"{name}_w"), 1, "SAME", name=name), f"{name}_y")


def deconv(weight: np.ndarray, name: str = "deconv") -> None:
    x = v1.placeholder(weight.dtype, [2, 8, 8, weight.shape[3]], name=f"{name}_x")
    shape = [2, 8, 8, weight.shape[2]]
    w = tf.constant(weight, name=f"{name}_w")
    tf.identity(tf.nn.conv2d_transpose(x, w, shape, 1, "SAME", name=name), f"{name}_y")


def frozen(*layers: object) -> v1.GraphDef:
    """A frozen graph; every layer is (builder, weight, *more)."""
    with tf.Graph().as_default() as graph:
        for build, *arguments in layers:
            build(*arguments)
    return graph.as_graph_def()


def sparse(shape: tuple[int, ...], axis: int, n: int = 2, m: int = 4, seed: int = 0) -> np.ndarray:
    """Weights of which the first n of every m along the axis are not zero."""
    weight = np.random.RandomState(seed).uniform(0.5, 1, shape).astype(np.float32)
    places = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.where(places % m < n, weight, np.float32(0))


def record_of(path: Path, *layers: LayerRecord) -> Path:
    path.write_text(Record(layers).to_text())
    return path


def test_a_sparse_graph_is_ok_and_says_what_was_found():
    graph_def = frozen(
        (conv, sparse((3, 5, 6, 7), 2)), (deconv, sparse((2, 2, 9, 12), 3)), (matmul, sparse((10, 3), 0))
    )
    found = sparsekit.verify(graph_def)
    assert found.ok
    assert found.summary() == "Sparse: all 3 layers follow their pattern."
    conv_layer, deconv_layer, fc = found.layers
    assert (conv_layer.name, conv_layer.op_type, conv_layer.shape) == ("conv", "Conv2D", (3, 5, 6, 7))
    assert (conv_layer.axis, conv_layer.pattern, conv_layer.ok) == (2, PATTERN_2_4, True)
    assert (conv_layer.groups, conv_layer.violations, conv_layer.finite) == (3 * 5 * 2 * 7, 0, True)
    assert conv_layer.density == 4 / 6
    assert (deconv_layer.axis, deconv_layer.groups, deconv_layer.density) == (3, 2 * 2 * 9 * 3, 0.5)
    assert (fc.axis, fc.groups, fc.density, fc.message) == (0, 9, 0.6, "")
    assert str(found).endswith("Sparse: all 3 layers follow their pattern.")
    assert all(text in str(found) for text in ("conv", "3x5x6x7", "Conv2D", "2:4", "0.5000", "ok"))


@pytest.mark.parametrize(
    ("build", "shape", "right", "wrong"),
    [
        (matmul, (12, 8), 0, 1),
        (lambda weight: matmul(weight, True), (12, 8), 1, 0),
        (conv, (3, 3, 8, 12), 2, 3),
        (conv, (4, 8, 8, 12), 2, 1),
        (deconv, (3, 3, 8, 12), 3, 2),
    ],
    ids=["matmul", "matmul transposed", "conv along out", "conv along width", "deconv along out"],
)
def test_sparsity_along_the_wrong_axis_is_caught(build, shape, right, wrong):
    assert sparsekit.verify(frozen((build, sparse(shape, right)))).ok
    found = sparsekit.verify(frozen((build, sparse(shape, wrong))))
    assert not found.ok
    (layer,) = found.layers
    # Whole slices along the right axis are kept: half of all groups are full.
    assert layer.axis == right
    assert layer.violations == layer.groups // 2 > 0
    assert layer.message == f"{layer.violations} of {layer.groups} groups hold more than 2 non-zeros"
    assert found.summary().startswith("NOT sparse: 1 of 1 layers fail (")


def test_one_weight_too_many_is_one_violation():
    weight = sparse((3, 3, 8, 5), 2)
    weight[1, 2, 6, 3] = 1e-30
    (layer,) = sparsekit.verify(frozen((conv, weight))).layers
    assert (layer.ok, layer.violations) == (False, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_ok(value):
    weight = sparse((8, 5), 0)
    weight[0, 0] = value
    found = sparsekit.verify(frozen((matmul, weight), (matmul, sparse((8, 5), 0), False, "good")))
    assert not found.ok
    bad, good = found.layers
    assert (bad.ok, bad.finite, bad.violations) == (False, False, 0)
    assert bad.message == "NaN or infinity in 'fc_w'"
    assert (good.ok, good.finite) == (True, True)
    weight[1:4, 0] = 1
    (layer,) = sparsekit.verify(frozen((matmul, weight))).layers
    assert layer.message == "1 of 10 groups hold more than 2 non-zeros, NaN or infinity in 'fc_w'"


def test_a_graph_that_still_has_its_masks_is_not_ok():
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        tf.identity(tf.matmul(x, v1.get_variable("w", [8, 4]), name="fc"), name="y")
        sparsekit.prune(graph, outputs=["y"])
        session.run(v1.global_variables_initializer())
        masked = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])
    found = sparsekit.verify(masked)
    assert not found.ok
    assert "strip the graph first" in found.layers[0].message
    assert math.isnan(found.layers[0].density)
    # Not even where the weight under the mask is sparse already.
    pruned = sparsekit.strip(masked)
    assert sparsekit.verify(pruned).ok
    for node in masked.node:
        if node.name == "w":
            node.CopyFrom(next(node for node in pruned.node if node.name == "w"))
    assert not sparsekit.verify(masked).ok


def test_a_graph_that_is_not_frozen_is_not_ok_and_told_so():
    for resource in (False, True):
        with tf.Graph().as_default() as graph, v1.variable_scope("", use_resource=resource):
            x = v1.placeholder(tf.float32, [None, 8], name="x")
            tf.matmul(x, v1.get_variable("w", [8, 4]), name="fc")
        found = sparsekit.verify(graph.as_graph_def())
        assert not found.ok
        assert found.layers[0].message == "fc: its weight 'w' is a variable; freeze the graph first."


@pytest.mark.parametrize("what", ["no op", "too short", "skipped by the config"])
def test_without_a_layer_nothing_was_shown(what):
    if what == "no op":
        graph_def = frozen((lambda: tf.constant(1.0, name="c"),))
    elif what == "too short":
        graph_def = frozen((conv, np.zeros((3, 3, 2, 8), np.float32)))
    else:
        graph_def = frozen((matmul, sparse((8, 4), 0)))
    found = sparsekit.verify(graph_def, cfg={"skip_types": ["MatMul"]} if what.startswith("skipped") else None)
    assert found.ok is False
    assert found.summary() == "Could not tell: no layer was found that should be sparse."
    assert ("too short" in what) == ("axis-too-short" in str(found))


def test_a_record_says_which_layers_must_be_sparse(tmp_path):
    graph_def = frozen((matmul, sparse((8, 4), 0)), (matmul, np.ones((8, 5), np.float32), False, "dense"))
    assert not sparsekit.verify(graph_def).ok
    only_fc = record_of(tmp_path / "fc.txt", LayerRecord("fc", (8, 4)))
    found = sparsekit.verify(graph_def, record=only_fc)
    assert found.ok
    assert [layer.name for layer in found.layers] == ["fc"]
    both = record_of(tmp_path / "both.txt", LayerRecord("fc", (8, 4)), LayerRecord("dense", (8, 5)))
    assert not sparsekit.verify(graph_def, record=str(both)).ok


def test_a_record_with_no_layer_shows_nothing(tmp_path):
    found = sparsekit.verify(frozen((matmul, sparse((8, 4), 0))), record=record_of(tmp_path / "none.txt"))
    assert not found.ok
    assert "Could not tell" in str(found)


def test_a_record_of_another_model_is_refused(tmp_path):
    graph_def = frozen((matmul, sparse((8, 4), 0)))
    with pytest.raises(
        RecordError, match=r"r\.txt: names the layer 'fx', which is not in the model.*Did you mean 'fc'"
    ):
        sparsekit.verify(graph_def, record=record_of(tmp_path / "r.txt", LayerRecord("fx", (8, 4))))
    with pytest.raises(RecordError, match=r"r\.txt: gives 'fc' the shape \[4, 8\], in the model it is \[8, 4\]"):
        sparsekit.verify(graph_def, record=record_of(tmp_path / "r.txt", LayerRecord("fc", (4, 8))))


def test_a_record_finds_every_use_of_a_shared_weight(tmp_path):
    with tf.Graph().as_default() as graph:
        w = tf.constant(sparse((8, 8), 0), name="w")
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        tf.matmul(tf.matmul(x, w, name="first"), w, name="second")
    record = record_of(tmp_path / "r.txt", LayerRecord("second", (8, 8)))
    assert sparsekit.verify(graph.as_graph_def(), record=record).ok


def test_a_config_says_which_layers_and_patterns_are_meant():
    graph_def = frozen((matmul, sparse((8, 4), 0)), (matmul, np.ones((8, 5), np.float32), False, "dense"))
    found = sparsekit.verify(graph_def, cfg={"skip_layers": ["dense"]})
    assert found.ok
    assert [decision.name for decision in found.skipped] == ["dense"]
    assert "dense: skip-layers" in str(found)
    with pytest.raises(ConfigError, match="skip_layers: 'dence' matches no operation"):
        sparsekit.verify(graph_def, cfg={"skip_layers": ["dence"]})


def test_outputs_say_which_part_is_meant():
    graph_def = frozen((matmul, sparse((8, 4), 0)), (matmul, np.ones((8, 5), np.float32), False, "dense"))
    assert sparsekit.verify(graph_def, outputs=["fc_y"]).ok
    assert not sparsekit.verify(graph_def, outputs=["fc_y:0", "dense_y"]).ok
    with pytest.raises(GraphError, match=r"no operation 'fc_z' in the graph.*Did you mean 'fc_y'"):
        sparsekit.verify(graph_def, outputs="fc_z")


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 8), (2, 4), (1, 2)])
def test_other_patterns_by_config_and_by_record(tmp_path, n, m):
    graph_def = frozen((matmul, sparse((16, 5), 0, n, m)))
    pattern = f"{n}:{m}"
    found = sparsekit.verify(graph_def, cfg={"pattern": pattern})
    assert found.ok
    assert found.layers[0].pattern == Pattern(n, m)
    assert found.layers[0].groups == 16 // m * 5
    record = record_of(tmp_path / "r.txt", LayerRecord("fc", (16, 5), Pattern(n, m)))
    assert sparsekit.verify(graph_def, record=record).ok
    # One more weight than the pattern allows.
    one_more = frozen((matmul, sparse((16, 5), 0, n + 1, m)))
    assert not sparsekit.verify(one_more, cfg={"pattern": pattern}).ok
    assert not sparsekit.verify(one_more, record=record).ok
    # 4:8 allows what 2:4 does not.
    assert sparsekit.verify(graph_def).ok == (pattern != "4:8")


def test_a_half_weight_can_be_verified_by_record(tmp_path):
    """Freezing tools fold casts: what was pruned in float32 may be stored in half."""
    graph_def = frozen((matmul, sparse((8, 4), 0).astype(np.float16)))
    assert sparsekit.verify(graph_def, record=record_of(tmp_path / "r.txt", LayerRecord("fc", (8, 4)))).ok
    assert "weight-dtype" in str(sparsekit.verify(graph_def))


def slow_count(weight: np.ndarray, axis: int, n: int, m: int) -> tuple[int, int, int]:
    """Groups, violations and non-zeros, counted one by one."""
    groups = violations = nonzeros = 0
    for position in np.ndindex(*(size for i, size in enumerate(weight.shape) if i != axis)):
        line = [weight[(*position[:axis], k, *position[axis:])] for k in range(weight.shape[axis])]
        for start in range(0, len(line), m):
            count = sum(1 for value in line[start : start + m] if value != 0)
            groups += 1
            violations += count > n
            nonzeros += count
    return groups, violations, nonzeros


LAYOUTS = {
    "matmul": (matmul, 2, 0),
    "matmul_t": (lambda weight: matmul(weight, True), 2, 1),
    "conv": (conv, 4, 2),
    "deconv": (deconv, 4, 3),
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_number_is_that_of_a_slow_count(data):
    build, rank, axis = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    n, m = data.draw(st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 2), (3, 5)]))
    shape = tuple(data.draw(st.integers(1, 5 if rank == 4 else 9)) for _ in range(rank))
    shape = (*shape[:axis], data.draw(st.integers(n + 1, 13)), *shape[axis + 1 :])
    rng = np.random.RandomState(data.draw(st.integers(0, 10**6)))
    weight = rng.randn(*shape).astype(data.draw(st.sampled_from([np.float32, np.float64])))
    weight[rng.rand(*shape) < data.draw(st.sampled_from([0.0, 0.4, 0.7, 1.0]))] = data.draw(
        st.sampled_from([0.0, -0.0])
    )
    holes = data.draw(st.sampled_from([0, 0, 1, 3]))
    for _ in range(holes):
        weight[tuple(rng.randint(size) for size in shape)] = rng.choice([np.nan, np.inf, -np.inf])

    found = sparsekit.verify(frozen((build, weight)), cfg={"pattern": f"{n}:{m}"})

    (layer,) = found.layers
    groups, violations, nonzeros = slow_count(weight, axis, n, m)
    assert (layer.shape, layer.axis, layer.groups, layer.violations) == (shape, axis, groups, violations)
    assert layer.density == nonzeros / weight.size
    assert layer.finite == (not holes)
    assert layer.ok == found.ok == (not violations and not holes)
