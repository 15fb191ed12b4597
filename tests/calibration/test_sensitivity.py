"""What pruning each layer alone changes, against TensorFlow run on models in which only that layer is pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsekit
from sparsekit.cli import main
from sparsekit.config_files import load_config

v1 = tf.compat.v1


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f")


def samples(count: int = 30) -> np.ndarray:
    return normal(count, 6, 6, 8, seed=1)


def two_headed_net() -> Any:
    """A convolution, a transposed one, a dense layer used twice; two outputs of floats and one of integers."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 8], name="x")
        h = tf.nn.relu(tf.nn.conv2d(x, normal(3, 3, 8, 6), 1, "SAME", name="conv") + normal(6))
        up = tf.nn.conv2d_transpose(h, normal(2, 2, 5, 6), tf.stack([tf.shape(h)[0], 12, 12, 5]), 2, name="up")
        kernel = tf.constant(normal(6, 6), name="kernel")
        h = tf.matmul(tf.nn.relu(tf.matmul(tf.reduce_mean(h, [1, 2]), kernel, name="once")), kernel, name="twice")
        tf.add(h, 100.0, name="scores")
        tf.argmax(h, -1, name="classes")
        tf.sigmoid(up, name="map")
    return graph.as_graph_def()


HEADS = ["scores", "classes", "map"]
LAYERS = {"conv": ["conv"], "up": ["up"], "once": ["once", "twice"]}


def fetched(graph_def: Any, names: list[str], x: np.ndarray) -> list[np.ndarray]:
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return [value.astype("d") for value in session.run([f"{name}:0" for name in names], {"x:0": x})]


def share(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    return sum(np.square(b - a).sum() for a, b in zip(after, before, strict=True)) / sum(
        np.square(b).sum() for b in before
    )


def of_outputs(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """Averaged over outputs; each relative to what it varies."""
    return float(np.mean([np.square(b - a).mean() / b.var() for a, b in zip(after, before, strict=True)]))


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_every_error_is_that_of_a_model_in_which_this_layer_alone_was_pruned(pattern: str) -> None:
    dense, x = two_headed_net(), samples()
    found = sparsekit.sensitivity(dense, {"pattern": pattern}, calibration=x, outputs=HEADS)
    assert found.samples == 30 and found.outputs == ("scores:0", "map:0")
    assert {layer.name for layer in found.layers} == set(LAYERS)
    for layer in found.layers:
        own = LAYERS[layer.name]
        assert list(layer.uses) == own
        others = [name for other, names in LAYERS.items() if other != layer.name for name in names]
        alone = sparsekit.prune(dense, {"pattern": pattern, "skip_layers": others}, outputs=HEADS).graph_def
        heads = ["scores", "map"]
        assert layer.output_error == pytest.approx(
            of_outputs(fetched(dense, heads, x), fetched(alone, heads, x)), rel=1e-3
        )
        assert layer.error == pytest.approx(share(fetched(dense, own, x), fetched(alone, own, x)), rel=1e-3)
    all_of_them = sparsekit.prune(dense, {"pattern": pattern}, outputs=HEADS).graph_def
    assert found.together == pytest.approx(
        of_outputs(fetched(dense, heads, x), fetched(all_of_them, heads, x)), rel=1e-3
    )


def test_the_worst_layer_comes_first_in_data_and_in_print() -> None:
    found = sparsekit.sensitivity(two_headed_net(), calibration=samples(), outputs=HEADS)
    errors = [layer.output_error for layer in found.layers]
    assert errors == sorted(errors, reverse=True)  # type: ignore[type-var]
    printed = str(found)
    places = [printed.index(f"\n {layer.name} ") for layer in found.layers]
    assert places == sorted(places)
    assert f"{100 * (found.layers[0].output_error or 0):.3g}%" in printed


def test_the_criterion_of_the_config_does_not_count_and_nothing_stays_dense_by_itself() -> None:
    plain = sparsekit.sensitivity(two_headed_net(), calibration=samples(), outputs=HEADS)
    other = sparsekit.sensitivity(
        two_headed_net(), {"criterion": "wanda", "keep_dense": 1.0}, calibration=samples(), outputs=HEADS
    )
    assert other.layers == plain.layers


def test_outputs_are_those_that_were_asked_for() -> None:
    found = sparsekit.sensitivity(two_headed_net(), calibration=samples(), outputs=["map"])
    assert found.outputs == ("map:0",) and {layer.name for layer in found.layers} == {"conv", "up"}


def test_without_outputs_of_floats_the_layers_own_count_and_that_is_said() -> None:
    found = sparsekit.sensitivity(two_headed_net(), calibration=samples(), outputs=["classes"])
    assert found.outputs == () and found.together is None and "no outputs of floats" in found.summary()
    for layer in found.layers:
        assert layer.output_error is None and layer.error is not None
    errors = [layer.error for layer in found.layers]
    assert errors == sorted(errors, reverse=True)  # type: ignore[type-var]
    assert found.to_config(worst=1).skip_layers == found.layers[0].uses
    kept = sparsekit.prune(two_headed_net(), {"keep_dense": 0.9}, calibration=samples(), outputs=["classes"])
    assert "its own outputs" in next(d.message for d in kept.plan.skipped if d.reason == "kept-dense")


def test_a_layer_that_cannot_be_measured_says_why_and_comes_last() -> None:
    @tf.function
    def call(x: Any) -> Any:
        x = tf.matmul(x, normal(8, 8, seed=3), name="before")
        inner = lambda h: tf.matmul(h, tf.constant(normal(8, 8)), name="inside")  # noqa: E731
        return tf.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, tf.tanh(inner(h))), [0, x])[1]

    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = call.get_concrete_function(tf.TensorSpec([None, 8], name="x"))
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False).graph.as_graph_def()
    before, inside = sparsekit.sensitivity(frozen, calibration=samples()[:, 0, 0]).layers
    assert "before" in before.name and before.output_error
    assert "inside" in inside.name and inside.error is None
    assert (inside.output_error is None) == bool(inside.note)


def test_values_that_are_not_finite_do_not_spoil_the_errors() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8], name="x")
        h = tf.matmul(x, normal(8, 8), name="fc")
        tf.concat([h, tf.math.log(h - h)], 1, name="out")
    (layer,) = sparsekit.sensitivity(graph.as_graph_def(), calibration=normal(20, 8)).layers
    assert layer.output_error == pytest.approx(layer.error, rel=0.2)


def test_many_samples_in_any_batches_are_thinned_out_and_give_the_same_every_time() -> None:
    dense, x = two_headed_net(), samples(500)
    first, second = (sparsekit.sensitivity(dense, calibration=x, outputs=HEADS) for _ in range(2))
    assert first == second and 0 < first.samples <= 64
    assert 0 < sparsekit.sensitivity(dense, calibration=[x], outputs=HEADS).samples <= 64
    assert sparsekit.sensitivity(dense, calibration=[{"x": x[:1]}], outputs=HEADS).samples == 1


def test_a_saved_model_with_functions_and_two_results(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 8))
    h = keras.layers.Flatten()(keras.layers.Conv2D(8, 3, activation="relu")(inputs))
    model = keras.Model(inputs, [keras.layers.Dense(4, name="a")(h), keras.layers.Dense(6, name="b")(h)])
    model.export(tmp_path / "model", verbose=False)
    found = sparsekit.sensitivity(tmp_path / "model", calibration=samples())
    assert len(found.outputs) == 2 and len(found.layers) == 3
    before = model.predict(samples(), verbose=0)
    kernel = model.get_layer("b").kernel
    dense = kernel.numpy()
    mask = np.abs(dense) >= np.sort(np.abs(dense).reshape(-1, 4, 6), 1)[:, 2:3].repeat(4, 1).reshape(dense.shape)
    kernel.assign(dense * mask)
    after = model.predict(samples(), verbose=0)
    (layer,) = (layer for layer in found.layers if layer.shape == dense.shape)
    expected = of_outputs([b.astype("d") for b in before], [a.astype("d") for a in after])
    assert layer.output_error == pytest.approx(expected, rel=1e-3)


# --- configs ---------------------------------------------------------------------------------------------

CONFIGS = st.builds(
    sparsekit.PruneConfig,
    pattern=st.sampled_from(["2:4", "1:4"]),
    criterion=st.sampled_from([None, "wanda"]),
    update_freq=st.integers(0, 9),
    min_weights=st.integers(0, 9),
    skip_outputs=st.booleans(),
    effort=st.sampled_from(["fast", "normal"]),
    repair=st.sampled_from([[], "auto", "least-squares", ["least-squares", "scale-shift", "batch-norm"]]),
    guard=st.booleans(),
    order=st.sampled_from([None, "sequential", "one-pass"]),
    keep_dense=st.none() | st.floats(0, 1) | st.sampled_from([0, 1]),
    target_path=st.sampled_from(["pruned", "dense"]),
    prune=st.booleans(),
    target=st.none() | st.text(st.characters(codec="utf-8"), min_size=1),
    skip_layers=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=3),
    skip_types=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=3),
    override=st.lists(
        st.builds(
            sparsekit.Override,
            layers=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=2),
            types=st.lists(st.just("MatMul"), max_size=1),
            pattern=st.sampled_from([None, "1:4"]),
            update_freq=st.none() | st.integers(0, 9),
            repair=st.sampled_from([None, [], "scale-shift"]),
            prune=st.booleans(),
        ),
        max_size=2,
    ),
)


@settings(deadline=None)
@given(config=CONFIGS)
def test_a_written_config_reads_back(tmp_path_factory: pytest.TempPathFactory, config: sparsekit.PruneConfig) -> None:
    path = tmp_path_factory.mktemp("config") / "c.toml"
    assert load_config(config.save(path)) == config


def test_the_worst_or_all_above_are_left_dense_with_all_their_uses() -> None:
    cfg = {"pattern": "1:4", "skip_types": ["Conv2D"], "override": [{"layers": ["up"], "pattern": "2:4"}]}
    found = sparsekit.sensitivity(two_headed_net(), cfg, calibration=samples(), outputs=HEADS)
    worst, best = found.layers
    assert found.to_config(worst=0) == sparsekit.PruneConfig.from_dict(cfg)
    assert found.to_config(worst=1).skip_layers == worst.uses
    assert found.to_config(above=best.output_error).skip_layers == worst.uses
    assert set(found.to_config(above=0).skip_layers) == {"up", "once", "twice"}
    assert found.to_config(above=1e9).skip_layers == ()
    for wrong in ({}, {"worst": 1, "above": 0.1}, {"worst": -1}, {"above": float("nan")}, {"worst": 1.5}):
        with pytest.raises(sparsekit.ConfigError, match=r"worst|above"):
            found.to_config(**wrong)  # type: ignore[arg-type]


# --- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sparsekit.save(two_headed_net(), "m.pb")
    np.savez("x.npz", x=samples())
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(main, ["sensitivity", "m.pb", "--outputs", ",".join(HEADS), *arguments])
    return ended.exit_code, ended.output


def test_the_command_prints_and_writes_a_config_that_prune_takes(files: Path) -> None:
    (files / "given.toml").write_text('pattern = "1:4"\nskip_layers = ["up"]\n')
    written = ("--config", "given.toml", "--worst", "1", "--write-config", "new.toml", "--report", "page.html")
    status, output = run("--calibration", "x.npz", *written)
    assert status == 0 and "The worst is" in output and "Saved as new.toml." in output and "page.html" in output
    config = load_config("new.toml")
    assert str(config.pattern) == "1:4" and config.skip_layers[0] == "up" and len(config.skip_layers) > 1
    plan = sparsekit.plan("m.pb", "new.toml", outputs=HEADS)
    assert len(plan.pruned) == 1
    assert "Sensitivity" in (files / "page.html").read_text()


def test_the_commands_json_holds_what_the_function_returns(files: Path) -> None:
    status, output = run("--calibration", "x.npz", "--json")
    told = json.loads(output)
    found = sparsekit.sensitivity("m.pb", calibration="x.npz", outputs=HEADS)
    assert status == 0 and told["summary"] == found.summary() and told["together"] == found.together
    assert [(layer["name"], layer["error"], layer["output_error"]) for layer in told["layers"]] == [
        (layer.name, layer.error, layer.output_error) for layer in found.layers
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--calibration", "x.npz", "--worst", "1"), "--write-config"),
        (("--calibration", "x.npz", "--write-config", "c.toml"), "--worst"),
        (("--calibration", "x.npz", "--write-config", "c.toml", "--worst", "1", "--above", "1"), "--above"),
        (
            ("--calibration", "x.npz", "--write-config", "c.cfg", "--worst", "1"),
            "c.cfg: a config in TOML would be read",
        ),
        (("--calibration", "missing.npz"), "missing.npz"),
        ((), "--calibration"),
    ],
)
def test_what_the_command_refuses(files: Path, arguments: tuple[str, ...], said: str) -> None:
    status, output = run(*arguments)
    assert status == 2 and said in output and not list(files.glob("c.*"))


def test_a_live_graph_is_refused() -> None:
    with tf.Graph().as_default() as graph:
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), v1.get_variable("w", [8, 4]), name="fc")
    with pytest.raises(sparsekit.GraphError, match="a model at rest"):
        sparsekit.sensitivity(graph, calibration=normal(4, 8))


def test_what_is_not_finite_is_said() -> None:
    """One sample of infinities, then all of them."""
    plain = sparsekit.sensitivity(two_headed_net(), outputs=HEADS, calibration=samples())
    assert not any(layer.note for layer in plain.layers)
    for rows in (1, 30):
        given = samples()
        given[:rows] = np.inf
        found = sparsekit.sensitivity(two_headed_net(), outputs=HEADS, calibration=given)
        assert all((layer.error is None) == (rows == 30) for layer in found.layers)
        notes = {layer.name: layer.note for layer in found.layers}
        assert notes["conv"].startswith(f"infinite or NaN, so left out: {rows * 216} of 6480 own values, ")
        assert all(note.endswith(" at the outputs") for note in notes.values())
        assert "so left out" in str(found)
