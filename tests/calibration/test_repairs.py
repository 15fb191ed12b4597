"""Repairs through the public API: scale-shift, batch-norm, added biases, the guard, and what little data may do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import sparsekit
from sparsekit.reconstruction import Statistics
from sparsekit.result import LayerAccount, PruneResult

v1 = tf.compat.v1
SCALE_SHIFT = {"criterion": "magnitude", "repair": ["scale-shift"]}


def prune(model: Any, cfg: Any = None, **more: Any) -> Any:
    """Of these small networks every layer, tiny ones too."""
    return sparsekit.prune(model, {"keep_dense": 0, **(cfg or {})}, **more)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f")


def constant(*shape: int, seed: int = 0) -> Any:
    return tf.constant(normal(*shape, seed=seed))


def images(count: int = 200, seed: int = 1) -> np.ndarray:
    """Inputs whose columns depend on each other and have a mean, as a network's do."""
    mixed = normal(count, 6, 6, 4, seed=seed) @ normal(4, 8, seed=2)
    return (np.maximum(mixed, 0) + 0.1 * normal(count, 6, 6, 8, seed=seed + 7)).astype("f")


def fetched(graph_def: Any, names: list[str], x: np.ndarray) -> list[np.ndarray]:
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run([f"{name}:0" for name in names], {"x:0": x})


def bare_net() -> Any:
    """Frozen: layers of four kinds without any bias."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.nn.relu(tf.nn.conv2d(x, constant(3, 3, 8, 8), 1, "SAME", name="conv"))
        shape = tf.stack([tf.shape(h)[0], 6, 6, 5])
        h = tf.nn.relu(tf.nn.conv2d_transpose(h, constant(3, 3, 5, 8), shape, 1, name="up"))
        h = tf.nn.relu(tf.einsum("bhwk,kc->bchw", h, constant(5, 6), name="mixed"))
        tf.nn.relu(tf.matmul(tf.reduce_mean(h, [2, 3]), constant(6, 4), name="fc"), name="out")
    return graph.as_graph_def()


LAYERS = {"conv": -1, "up": -1, "mixed/Einsum": 1, "fc": -1}


def moments(outputs: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every channel."""
    rows = np.moveaxis(outputs.astype("d"), axis, -1).reshape(-1, outputs.shape[axis])
    return rows.mean(0), rows.std(0)


# --- scale-shift -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "admm"])
def test_scale_shift_gives_every_output_channel_the_moments_of_the_dense_network(criterion: str) -> None:
    """target_path "dense" names the whole dense network, so that all layers can be compared with it at once."""
    dense, x = bare_net(), images()
    cfg = {"criterion": criterion, "repair": "scale-shift", "target_path": "dense"}
    result = prune(dense, cfg, calibration=x)
    assert sparsekit.verify(result.graph_def).ok
    names = list(LAYERS)
    wanted = fetched(dense, names, x)
    found = fetched(result.graph_def, [f"{name}/sparsekit/bias" for name in names], x)
    for name, before, after in zip(names, wanted, found, strict=True):
        (mean, deviation), (new_mean, new_deviation) = moments(before, LAYERS[name]), moments(after, LAYERS[name])
        np.testing.assert_allclose(new_deviation, deviation, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(new_mean, mean, atol=1e-3 * deviation.max())
    assert all(account.scaled and account.shifted and account.bias_added for account in result.accounts)


def test_scale_shift_goes_by_the_layers_own_inputs_where_the_config_does() -> None:
    """The second layer's moments are those of its dense weight on what the first, pruned, leaves it."""
    dense, x = bare_net(), images()
    first = {"override": [{"layers": ["up", "mixed/*", "fc"], "prune": False}], **SCALE_SHIFT}
    upstream = prune(dense, first, calibration=x).graph_def
    both = prune(dense, {"skip_layers": ["mixed/*", "fc"], **SCALE_SHIFT}, calibration=x).graph_def
    (wanted,), (found,) = fetched(upstream, ["up"], x), fetched(both, ["up/sparsekit/bias"], x)
    for one, other in zip(moments(wanted, -1), moments(found, -1), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(one).max())
    (of_dense_network,) = fetched(dense, ["up"], x)
    assert np.abs(moments(of_dense_network, -1)[0] - moments(found, -1)[0]).max() > 0.01


def test_scale_shift_takes_the_bias_or_batch_normalization_that_is_there() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.nn.bias_add(tf.nn.conv2d(x, constant(3, 3, 8, 8), 1, "SAME", name="conv"), constant(8), name="biased")
        h = tf.nn.conv2d(tf.nn.relu(h), constant(1, 1, 8, 8), 1, "SAME", name="normed")
        v1.nn.fused_batch_norm(
            h, np.ones(8, "f"), normal(8), normal(8, seed=5), np.ones(8, "f"), is_training=False, name="bn"
        )
    dense, data = graph.as_graph_def(), images()
    cfg = {"target_path": "dense", **SCALE_SHIFT}
    pruned = prune(dense, cfg, calibration=data, outputs=["bn"]).graph_def
    assert sparsekit.diff(dense, pruned).only_weights
    for before, after in zip(
        fetched(dense, ["biased", "bn"], data), fetched(pruned, ["biased", "bn"], data), strict=True
    ):
        for one, other in zip(moments(before, -1), moments(after, -1), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_scale_shift_after_a_score_makes_no_gram_matrix(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a Gram matrix was made")

    monkeypatch.setattr(Statistics, "empty", refuse)
    cfg = {"criterion": criterion, "repair": ["scale-shift"]}
    result = prune(bare_net(), cfg, calibration=images())
    assert sparsekit.verify(result.graph_def).ok
    retained = {
        fact.decision.name: fact.retained for fact in sparsekit.report(bare_net(), {"criterion": criterion}).layers
    }
    for account in result.accounts:
        assert account.retained == pytest.approx(retained[account.name])
        assert account.held_back and account.error_mask > 0 and account.error_after > 0  # type: ignore[operator]
    with pytest.raises(AssertionError, match="Gram"):
        prune(bare_net(), {"criterion": criterion, "repair": ["least-squares"]}, calibration=images())


def test_scale_shift_in_one_pass_goes_by_the_dense_networks_inputs(tmp_path: Path) -> None:
    dense, x = bare_net(), images()
    cfg = {**SCALE_SHIFT, "order": "one-pass", "skip_layers": ["up", "mixed/*", "fc"]}
    result = prune(dense, cfg, calibration=x, resume=tmp_path)
    (wanted,), (found,) = fetched(dense, ["conv"], x), fetched(result.graph_def, ["conv/sparsekit/bias"], x)
    for one, other in zip(moments(wanted, -1), moments(found, -1), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)
    (account,) = result.accounts
    assert account.scaled and account.error_after == pytest.approx(
        np.square(found - wanted).sum() / np.square(wanted).sum(), rel=1e-3
    )
    again = prune(dense, cfg, calibration=x, resume=tmp_path)
    assert sparsekit.diff(result.graph_def, again.graph_def).identical and again.accounts[0].bias_added


def test_the_mask_is_that_of_the_criterion_alone() -> None:
    scaled = prune(bare_net(), SCALE_SHIFT, calibration=images()).graph_def
    alone = prune(bare_net()).graph_def
    weights = {n.name: n for n in alone.node if n.op == "Const"}
    for node in scaled.node:
        if node.op == "Const" and node.name in weights and node.attr["dtype"].type == 1:
            one, other = (tf.make_ndarray(n.attr["value"].tensor) for n in (node, weights[node.name]))
            assert ((one == 0) == (other == 0)).all()


# --- batch-norm ------------------------------------------------------------------------------------------


def normed_net(data_format: str = "NHWC") -> Any:
    with tf.Graph().as_default() as graph:
        h = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        for name in ("a", "b"):
            h = tf.nn.conv2d(h, constant(3, 3, 8, 8, seed=len(name)), 1, "SAME", name=f"{name}/conv")
            h, _, _ = v1.nn.fused_batch_norm(
                h,
                np.ones(8, "f"),
                normal(8),
                tf.constant(normal(8, seed=5), name=f"{name}/mean"),
                tf.constant(np.full(8, 9, "f"), name=f"{name}/variance"),
                is_training=False,
                name=f"{name}/bn",
            )
            h = tf.nn.relu(h)
        tf.identity(h, name="out")
    return graph.as_graph_def()


def stored(graph_def: Any, name: str) -> np.ndarray:
    (node,) = [node for node in graph_def.node if node.name == name]
    return tf.make_ndarray(node.attr["value"].tensor)


@pytest.mark.parametrize(
    "cfg", [{"criterion": "magnitude", "repair": ["batch-norm"]}, {"repair": ["auto", "batch-norm"]}]
)
def test_batch_normalizations_get_the_moments_of_their_inputs_in_the_pruned_network(cfg: dict[str, Any]) -> None:
    """Of the second one, too, whose inputs depend on the first one's new statistics."""
    dense, x = normed_net(), images()
    result = prune(dense, cfg, calibration=x)
    pruned = result.graph_def
    assert sparsekit.diff(dense, pruned).only_weights
    inputs = fetched(pruned, ["a/conv", "b/conv"], x)
    for name, data in zip("ab", inputs, strict=True):
        mean, deviation = moments(data, -1)
        np.testing.assert_allclose(stored(pruned, f"{name}/mean"), mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(stored(pruned, f"{name}/variance"), np.square(deviation), rtol=1e-3)
    assert [(account.name, account.updated) for account in result.normalizations] == [("a/bn", True), ("b/bn", True)]


def test_batch_normalizations_before_all_pruned_layers_stay() -> None:
    dense = normed_net()
    cfg = {"criterion": "magnitude", "repair": ["batch-norm"], "skip_layers": ["a/conv"]}
    result = prune(dense, cfg, calibration=images())
    assert [account.name for account in result.normalizations] == ["b/bn"]
    assert (stored(result.graph_def, "a/mean") == stored(dense, "a/mean")).all()


def test_statistics_that_others_use_stay_and_the_account_says_so() -> None:
    dense = normed_net()
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(dense, name="")
        tf.add(graph.get_tensor_by_name("a/mean:0"), 1.0, name="other")
    dense = graph.as_graph_def()
    cfg = {"criterion": "magnitude", "repair": ["batch-norm"]}
    result = prune(dense, cfg, calibration=images(), outputs=["out", "other"])
    first, second = result.normalizations
    assert not first.updated and first.note == "its mean is used by others too"
    assert second.updated
    for name in ("a/mean", "a/variance"):
        assert (stored(result.graph_def, name) == stored(dense, name)).all()
    assert "its mean is used by others too" in str(result)


def test_few_samples_measure_no_statistics() -> None:
    result = prune(normed_net(), {"criterion": "magnitude", "repair": ["batch-norm"]}, calibration=images(15))
    assert [account.updated for account in result.normalizations] == [False, False]
    assert "15 calibration samples are too few" in str(result)
    assert sparsekit.diff(result.graph_def, prune(normed_net()).graph_def).identical


def test_a_batch_normalization_that_was_folded_is_named() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.multiply(tf.nn.conv2d(x, constant(3, 3, 8, 8), 1, "SAME", name="conv"), constant(8), name="scaled")
        tf.nn.relu(tf.add(h, constant(8), name="moved"), name="out")
    cfg = {"criterion": "magnitude", "repair": ["batch-norm"]}
    (account,) = prune(graph.as_graph_def(), cfg, calibration=images()).normalizations
    assert account.name == "moved" and not account.updated and "folded" in account.note


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras export whose layers have no bias and whose results come from a batch normalization, written out."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 8)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.ReLU(),
            layers.Conv2D(8, 3, groups=2, use_bias=False),
            layers.Flatten(),
            layers.Dense(6, use_bias=False),
            layers.BatchNormalization(scale=False),
        ]
    )
    folder = tmp_path_factory.mktemp("exported") / "model"
    model.export(folder, verbose=False)
    return folder


def served(folder: Path, signature: str, x: np.ndarray) -> np.ndarray:
    (found,) = tf.saved_model.load(folder).signatures[signature](tf.constant(x)).values()
    return np.asarray(found)


def through_a_session(folder: Path, signature: str, x: np.ndarray) -> np.ndarray:
    with v1.Session(graph=tf.Graph()) as session:
        known = v1.saved_model.load(session, ["serve"], str(folder)).signature_def[signature]
        (given,), (found,) = known.inputs.values(), known.outputs.values()
        return np.asarray(session.run(found.name, {given.name: x}))


def through_its_object(folder: Path, x: np.ndarray) -> np.ndarray:
    loaded = tf.saved_model.load(folder)
    return np.asarray(loaded.serve(tf.constant(x)))


LOADERS = [
    lambda folder, x: served(folder, "serving_default", x),
    lambda folder, x: served(folder, "serve", x),
    lambda folder, x: through_its_object(folder, x),
    lambda folder, x: through_a_session(folder, "serving_default", x),
    lambda folder, x: through_a_session(folder, "serve", x),
]


def test_a_normalization_that_is_written_out_is_measured_for_both_loaders(exported: Path, tmp_path: Path) -> None:
    x = images()
    result = prune(exported, {"repair": ["auto", "batch-norm"]}, calibration=x)
    (account,) = result.normalizations
    assert account.updated
    result.save(tmp_path / "out")
    for load in LOADERS:
        results = load(tmp_path / "out", x)
        np.testing.assert_allclose(results.mean(0), 0, atol=1e-3)
        # Keras adds 0.001 to the variance.
        np.testing.assert_allclose(results.std(0), 1, atol=5e-3)
    assert np.abs(LOADERS[0](exported, x).mean(0)).max() > 0.1


# --- biases that are added -------------------------------------------------------------------------------


def test_an_added_bias_is_the_shift_of_the_mean_and_nothing_else() -> None:
    dense, x = bare_net(), images()
    result = prune(dense, {"skip_layers": ["up", "mixed/*", "fc"]}, calibration=x)
    (account,) = result.accounts
    assert account.shifted and account.bias_added and not account.note
    plain, biased, relu = fetched(result.graph_def, ["conv", "conv/sparsekit/bias", "Relu"], x)
    value = stored(result.graph_def, "conv/sparsekit/bias/value")
    assert value.shape == (8,) and (biased == plain + value).all() and (relu == np.maximum(biased, 0)).all()
    (before,) = fetched(dense, ["conv"], x)
    np.testing.assert_allclose(moments(biased, -1)[0], moments(before, -1)[0], atol=1e-3)

    difference = sparsekit.diff(dense, result.graph_def)
    assert {(change.name, change.status) for change in difference.structure} == {
        ("conv/sparsekit/bias", "only in B"),
        ("conv/sparsekit/bias/value", "only in B"),
        ("Relu", "changed"),
    }
    assert len(difference.values) == 1  # the weight


def test_a_grouped_convolution_with_an_added_bias_runs_where_tensorflow_fuses_what_it_can() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.nn.conv2d(x, constant(3, 3, 4, 8), 1, "SAME", name="grouped")
        tf.nn.relu(h, name="out")
    result = prune(graph.as_graph_def(), calibration=images())
    assert result.accounts[0].bias_added
    (found,), (wanted,) = (fetched(g, ["out"], images(seed=3)) for g in (result.graph_def, graph.as_graph_def()))
    assert np.square(found - wanted).sum() < 0.1 * np.square(wanted).sum()


def test_an_added_bias_is_found_when_it_is_pruned_again() -> None:
    first = prune(bare_net(), calibration=images())
    second = prune(first.graph_def, {"pattern": "1:4"}, calibration=images())
    assert all(account.bias_added for account in first.accounts)
    assert all(account.shifted and not account.bias_added for account in second.accounts)
    assert sparsekit.diff(first.graph_def, second.graph_def).only_weights
    assert sparsekit.verify(second.graph_def, cfg={"pattern": "1:4"}).ok


def test_layers_behind_see_the_added_bias() -> None:
    """The second layer keeps the mean that its dense weight has on the inputs that it really gets."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        tf.nn.relu(tf.matmul(tf.matmul(x, constant(8, 8), name="one"), constant(8, 4), name="other"), name="out")
    x = images()[:, 0, 0]
    pruned = prune(graph.as_graph_def(), calibration=x).graph_def
    raw, data, outputs = fetched(pruned, ["one", "one/sparsekit/bias", "other/sparsekit/bias"], x)
    np.testing.assert_allclose(outputs.mean(0), (data @ normal(8, 4)).mean(0), atol=1e-3)
    assert np.abs(outputs.mean(0) - (raw @ normal(8, 4)).mean(0)).max() > 0.01


def test_an_op_that_is_asked_for_by_its_name_gets_no_bias() -> None:
    for outputs in (["out"], ["out", "fc"], None):
        result = prune(bare_net(), calibration=images(), outputs=outputs)
        account = result.accounts[-1]
        expected = outputs is None or "fc" not in outputs
        assert (account.name, account.bias_added) == ("fc", expected)
        assert bool(account.note) is not expected
    assert account.note == ""


def test_a_saved_model_gets_its_biases_in_every_function_that_serves_it(exported: Path, tmp_path: Path) -> None:
    x, fresh = images(), images(50, seed=20)
    result = prune(exported, calibration=x)
    assert [account.bias_added for account in result.accounts] == [True, True, False], result.accounts
    assert result.accounts[-1].shifted
    result.save(tmp_path / "out")
    assert sparsekit.verify(tmp_path / "out").ok
    first, *others = (load(tmp_path / "out", fresh) for load in LOADERS)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)
    dense = LOADERS[0](exported, fresh)
    prune(exported).save(tmp_path / "magnitude")
    lost = {name: np.square(LOADERS[0](tmp_path / name, fresh) - dense).sum() for name in ("out", "magnitude")}
    assert lost["out"] < 0.5 * lost["magnitude"]
    changes = sparsekit.diff(exported, tmp_path / "out").structure
    assert any(change.name.endswith("sparsekit/bias") and "function" in change.where for change in changes)
    again = prune(tmp_path / "out", calibration=x)
    assert all(account.shifted and not account.bias_added for account in again.accounts)


def test_a_saved_model_of_tensorflow_1_gets_its_biases_in_its_main_graph(tmp_path: Path) -> None:
    with v1.Session(graph=tf.Graph()) as session:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        h = tf.nn.relu(tf.matmul(x, v1.get_variable("one", initializer=normal(8, 8)), name="hidden"))
        out = tf.nn.relu(tf.matmul(h, v1.get_variable("two", initializer=normal(8, 4)), name="last"))
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "dense"), {"x": x}, {"out": out})
    x = images()[:, 0, 0]
    result = prune(tmp_path / "dense", calibration=x)
    assert [account.bias_added for account in result.accounts] == [True, True]
    result.save(tmp_path / "out")
    assert sparsekit.verify(tmp_path / "out").ok
    loaded = tf.saved_model.load(tmp_path / "out")
    (eager,) = loaded.signatures["serving_default"](x=tf.constant(x)).values()
    np.testing.assert_allclose(eager, through_a_session(tmp_path / "out", "serving_default", x), rtol=1e-4, atol=1e-5)
    names = {change.name for change in sparsekit.diff(tmp_path / "dense", tmp_path / "out").structure}
    assert {"hidden/sparsekit/bias", "last/sparsekit/bias"} < names


class _Twice(tf.Module):
    """Two functions use one weight; only one of them is a signature."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(normal(8, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, 8], name="x")])
    def __call__(self, x: Any) -> Any:
        return tf.nn.relu(tf.matmul(x, self.kernel, name="fc"))

    @tf.function(input_signature=[tf.TensorSpec([None, 8], name="x")])
    def other(self, x: Any) -> Any:
        return tf.nn.tanh(tf.matmul(x, self.kernel, name="fc"))


def test_a_weight_that_a_function_without_a_signature_may_use_gets_no_bias(tmp_path: Path) -> None:
    module = _Twice()
    tf.saved_model.save(module, str(tmp_path / "dense"), signatures=module.__call__)
    result = prune(tmp_path / "dense", calibration=images()[:, 0, 0])
    (account,) = result.accounts
    assert not account.bias_added and "which no signature calls, may use its weight too" in account.note
    result.save(tmp_path / "out")
    assert sparsekit.diff(tmp_path / "dense", tmp_path / "out").only_weights


def frozen(call: Any) -> Any:
    """A function as a GraphDef, its calls as they are."""
    concrete = tf.function(call).get_concrete_function(tf.TensorSpec([None, 8], name="x"))
    return concrete.graph.as_graph_def()


def test_a_function_with_one_weight_gets_one_bias_however_often_it_is_called() -> None:
    inner = tf.function(lambda x: tf.nn.relu(tf.matmul(x, constant(8, 8), name="fc")))
    graph_def = frozen(lambda x: tf.identity(inner(tf.tanh(inner(x))), name="out"))
    x = images()[:, 0, 0]
    result = prune(graph_def, calibration=x, outputs=["out"])
    assert [account.bias_added for account in result.accounts] == [True] * len(result.accounts)
    assert sparsekit.verify(result.graph_def, outputs=["out"]).ok
    (found,) = fetched(result.graph_def, ["out"], x)
    assert np.isfinite(found).all()


def test_a_function_that_is_called_with_several_weights_gets_none() -> None:
    inner = tf.function(lambda x, w: tf.nn.relu(tf.matmul(x, w, name="fc")))
    graph_def = frozen(lambda x: tf.identity(inner(inner(x, constant(8, 8)), constant(8, 8, seed=3)), name="out"))
    result = prune(graph_def, calibration=images()[:, 0, 0], outputs=["out"])
    assert len(result.accounts) == 2
    for account in result.accounts:
        assert not account.bias_added and "is called with other weights too" in account.note
    assert sparsekit.diff(graph_def, result.graph_def).only_weights


# --- the guard, and errors on held-back samples ----------------------------------------------------------


def dense_layer(size: int, columns: int) -> Any:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, size], name="x")
        tf.nn.relu(tf.matmul(x, constant(size, columns), name="fc"), name="out")
    return graph.as_graph_def()


def opposed(count: int = 64) -> np.ndarray:
    """Two inputs of each group follow the other two in one half of the batches, and oppose them in the other."""
    batches = []
    for number in range(4):
        pairs = normal(count, 8, 1, 2, seed=number) * np.array([[1], [1 - 2 * (number % 2)]])
        batches.append((pairs + normal(count, 8, 2, 2, seed=9 + number) / 10).reshape(count, 32).astype("f"))
    return np.stack(batches)


def test_the_guard_rejects_a_fit_that_does_not_hold_on_held_back_samples() -> None:
    cfg = {"criterion": "magnitude", "repair": ["least-squares"], "guard": True}
    rejected = prune(dense_layer(32, 8), cfg, calibration=list(opposed()))
    (account,) = rejected.accounts
    assert "left alone by the guard" in account.note and not account.shifted and account.damping == 0
    assert account.error_after == account.error_mask and account.held_back and not account.worse
    assert sparsekit.diff(rejected.graph_def, prune(dense_layer(32, 8)).graph_def).identical
    kept = prune(bare_net(), {"guard": True}, calibration=images())
    assert not any(account.note for account in kept.accounts)
    assert sparsekit.diff(kept.graph_def, prune(bare_net(), calibration=images()).graph_def).identical


@pytest.mark.parametrize("order", ["sequential", "one-pass"])
def test_the_guard_rejects_scale_shift_where_that_loses_more(order: str) -> None:
    """What the smallest weights give has little to do with what it should be: amplified, it is further off."""
    cfg = {"criterion": "inverted", "repair": ["scale-shift"], "order": order}
    (account,) = prune(dense_layer(32, 8), cfg, calibration=normal(300, 32)).accounts
    assert account.scaled and account.worse
    guarded = prune(dense_layer(32, 8), {**cfg, "guard": True}, calibration=normal(300, 32))
    (account,) = guarded.accounts
    assert not account.scaled and account.error_after == account.error_mask
    assert "with mean and deviation restored" in account.note
    alone = prune(dense_layer(32, 8), {"criterion": "inverted"})
    assert sparsekit.diff(guarded.graph_def, alone.graph_def).identical


@pytest.mark.parametrize(
    "cfg", [{}, {"guard": True}, SCALE_SHIFT, {"criterion": "magnitude", "repair": "least-squares"}]
)
def test_errors_are_those_of_samples_that_were_not_seen(cfg: dict[str, Any]) -> None:
    """Few samples for many inputs: on the samples themselves a fit looks much better than it is."""
    dense = dense_layer(48, 40)
    mixing = normal(20, 48, seed=3)
    draw = lambda count, seed: (normal(count, 20, seed=seed) @ mixing + normal(count, 48, seed=seed + 1)).astype("f")  # noqa: E731
    x, fresh = draw(64, 1), draw(2000, 5)
    result = prune(dense, cfg, calibration=x)
    (account,) = result.accounts
    assert account.held_back
    (before,), (after,) = fetched(dense, ["fc"], fresh), fetched(result.graph_def, ["fc/sparsekit/bias"], fresh)
    real = np.square(after - before).sum() / np.square(before).sum()
    (before,), (after,) = fetched(dense, ["fc"], x), fetched(result.graph_def, ["fc/sparsekit/bias"], x)
    fitted = np.square(after - before).sum() / np.square(before).sum()
    assert 0.9 * real < account.error_after < 1.5 * real  # type: ignore[operator]
    if cfg is not SCALE_SHIFT:
        assert fitted < 0.8 * real


@pytest.mark.parametrize("order", ["sequential", "one-pass"])
@pytest.mark.parametrize("repair", [[], ["least-squares"], ["scale-shift"]], ids=str)
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "admm"])
def test_errors_are_shares_of_all_energy_and_count_the_mean_that_no_bias_takes(
    criterion: str, repair: list[str], order: str
) -> None:
    dense, x = dense_layer(32, 24), normal(600, 32, seed=1) @ normal(32, 32, seed=2) / 6 + 1
    lost = {}
    for kind, how in {"magnitude": [], "mask": [], "after": repair}.items():
        cfg = {"criterion": "magnitude" if kind == "magnitude" else criterion, "repair": how, "order": order}
        result = prune(dense, cfg, calibration=x)
        (account,) = result.accounts
        name = "fc/sparsekit/bias" if account.bias_added else "fc"
        (before,), (after,) = fetched(dense, ["fc"], x), fetched(result.graph_def, [name], x)
        lost[kind] = np.square(after - before).sum() / np.square(before).sum()
    assert account.error_after == pytest.approx(lost["after"], rel=0.15)  # held back samples lose a little more
    if account.error_before is not None:
        assert account.error_before == pytest.approx(lost["magnitude"], rel=0.01)
    if criterion != "admm":
        assert account.error_mask == pytest.approx(lost["mask"], rel=0.01)


@pytest.mark.parametrize("repair", [[], ["auto"]], ids=str)
@pytest.mark.parametrize("criterion", ["wanda", "admm", "magnitude"])
def test_errors_beside_the_dense_path_can_be_compared(criterion: str, repair: list[str]) -> None:
    """What the best weights would lose, too, is not counted: the layers before are pruned."""
    with tf.Graph().as_default() as graph:
        h = tf.nn.relu(tf.matmul(v1.placeholder(tf.float32, [None, 32], name="x"), constant(32, 16), name="first"))
        tf.matmul(h, constant(16, 4), name="second")
    cfg = {"criterion": criterion, "repair": repair, "target_path": "dense"}
    x = (normal(64, 12, seed=1) @ normal(12, 32, seed=2) + 1).astype("f")
    for account in prune(graph.as_graph_def(), cfg, calibration=x).accounts:
        assert account.error_mask > 0 and account.error_after >= 0 and not account.worse  # type: ignore[operator]
        if not account.damping:
            assert account.error_after == pytest.approx(account.error_mask)
        elif account.name == "second":
            assert account.error_after < 0.9 * account.error_mask  # type: ignore[operator]


@pytest.mark.parametrize("x", [np.ones((40, 32), "f"), normal(1, 32)], ids=["constant", "one sample"])
@pytest.mark.parametrize("criterion", ["magnitude", "admm"])
def test_where_nothing_can_be_learned_the_account_says_what_magnitude_loses(x: np.ndarray, criterion: str) -> None:
    dense = dense_layer(32, 24)
    result = prune(dense, {"criterion": criterion}, calibration=x)
    (before,), (after,) = fetched(dense, ["fc"], x), fetched(result.graph_def, ["fc"], x)
    lost = np.square(after - before).sum() / np.square(before).sum()
    (account,) = result.accounts
    assert lost > 0.01 and not account.shifted
    assert [account.error_before, account.error_mask, account.error_after] == pytest.approx([lost] * 3, rel=1e-3)


def test_layers_that_got_worse_are_named_with_the_way_to_leave_them_out() -> None:
    account = LayerAccount("body/fc", "admm", error_before=0.2, error_mask=0.1, error_after=0.15)
    result = PruneResult(sparsekit.plan(bare_net()), model=object(), accounts=(account,))  # type: ignore[arg-type]
    assert account.worse and 'skip_layers = ["body/fc"]' in str(result) and "repair = []" in str(result)


# --- little to go by -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize(
    "cfg",
    [
        {"criterion": "admm"},
        {"criterion": "sparsegpt"},
        {"criterion": "wanda"},
        {"criterion": "wanda", "repair": []},
        {"criterion": "magnitude"},
        SCALE_SHIFT,
        {"criterion": "sparsegpt", "repair": ["least-squares", "scale-shift"]},
    ],
    ids=str,
)
def test_few_samples_are_never_worse_than_magnitude_on_fresh_ones(cfg: dict[str, Any], count: int) -> None:
    dense = dense_layer(32, 24)
    plain = prune(dense).graph_def
    mixing = normal(12, 32, seed=3)
    for seed in range(3):
        every = (np.abs(normal(1000, 12, seed=seed)) @ mixing + normal(1000, 32, seed=seed + 9)).astype("f")
        pruned = prune(dense, cfg, calibration=every[:count])
        assert sparsekit.verify(pruned.graph_def).ok
        fresh = every[count:]
        name = "fc/sparsekit/bias" if pruned.accounts[0].bias_added else "fc"
        (wanted,), (found,), (magnitude,) = (
            fetched(g, [n], fresh) for g, n in ((dense, "fc"), (pruned.graph_def, name), (plain, "fc"))
        )
        lost, by_magnitude = np.square(found - wanted).sum(), np.square(magnitude - wanted).sum()
        assert lost <= by_magnitude * (1 + 1e-6), (lost / by_magnitude, pruned.accounts)
        if count < 4:
            assert pruned.accounts[0].note


@pytest.mark.parametrize("x", [np.zeros((40, 6, 6, 8), "f"), np.ones((40, 6, 6, 8), "f"), images(1), images(2)])
@pytest.mark.parametrize(
    "repair", ["auto", "least-squares", "scale-shift", "batch-norm", ["scale-shift", "batch-norm"]]
)
@pytest.mark.parametrize("criterion", ["admm", "magnitude"])
def test_constant_inputs_and_single_samples_are_no_trouble(x: np.ndarray, repair: Any, criterion: str) -> None:
    for net in (bare_net(), normed_net()):
        result = prune(net, {"criterion": criterion, "repair": repair}, calibration=x)
        assert sparsekit.verify(result.graph_def).ok
        for node in result.graph_def.node:
            if node.op == "Const" and node.attr["dtype"].type == 1:
                assert np.isfinite(tf.make_ndarray(node.attr["value"].tensor)).all()
        name = "out"
        assert np.isfinite(fetched(result.graph_def, [name], images(5))[0]).all()


@pytest.mark.parametrize("cfg", [{}, SCALE_SHIFT, {"criterion": "magnitude", "repair": ["batch-norm"]}])
def test_what_is_not_finite_is_refused_with_the_name_of_the_layer(cfg: dict[str, Any]) -> None:
    x = images()
    x[3, 0, 0, 0] = np.inf
    with pytest.raises(sparsekit.SparsekitError, match=r"^conv: .*calibration (inputs|samples).*NaN or infin"):
        prune(bare_net(), cfg, calibration=x)


# --- the config ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        (["scale_shift"], "repair: unknown repair 'scale_shift'.*Did you mean 'scale-shift'"),
        (["mean"], "unknown repair 'mean'; expected auto, least-squares, scale-shift, batch-norm"),
        (["auto", "auto"], "repair: 'auto' twice"),
        (["auto", "least-squares"], "repair: 'auto' and 'least-squares'"),
        (["scale-shift", "auto"], "repair: 'auto' and 'scale-shift'"),
        (3, "repair: 3"),
    ],
)
def test_lists_of_repairs_that_cannot_be_meant_are_errors(repair: Any, message: str) -> None:
    with pytest.raises(sparsekit.ConfigError, match=message):
        sparsekit.plan(bare_net(), {"repair": repair})
    with pytest.raises(sparsekit.ConfigError, match=message):
        sparsekit.plan(bare_net(), {"override": [{"layers": ["conv"], "repair": repair}]})


def test_repairs_may_differ_from_layer_to_layer() -> None:
    cfg = {"criterion": "magnitude", "repair": [], "override": [{"layers": ["up"], "repair": "scale-shift"}]}
    result = prune(bare_net(), cfg, calibration=images())
    assert [account.name for account in result.accounts if account.scaled] == ["up"]
    with pytest.raises(sparsekit.ConfigError, match="'batch-norm' for some layers"):
        sparsekit.plan(bare_net(), {"override": [{"layers": ["conv"], "repair": "batch-norm"}]})
