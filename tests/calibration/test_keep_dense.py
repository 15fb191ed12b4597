"""Layers that stay dense within a budget of multiply-adds: those that decide, and never more than the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsekit
from sparsekit.cli import main

v1 = tf.compat.v1


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f")


def samples(count: int = 64, inputs: int = 64) -> np.ndarray:
    return normal(count, inputs, seed=1)


def graph_of(build: Any, shape: list[int | None]) -> Any:
    with tf.Graph().as_default() as graph:
        build(v1.placeholder(tf.float32, shape, name="x"))
    return graph.as_graph_def()


def decisive_net() -> Any:
    """A gate of 64 x 2 weights, 1 % of the multiply-adds, that the outputs are multiplied with; all its weights are of
    one size, so a mask alone takes half of it. The other layers hardly notice theirs: half of their rows is tiny."""
    easy = normal(64, 64) * np.where(np.arange(64) % 4 < 2, 1, 1e-4)[:, None].astype("f")
    gate = np.sign(normal(64, 2, seed=3)) * 0.5

    def build(x: Any) -> Any:
        h = x
        for i in range(3):
            h = tf.tanh(tf.matmul(h, easy * 0.1, name=f"body{i}"))
        factor = tf.matmul(x, gate.astype("f"), name="gate")
        return tf.multiply(tf.matmul(h, easy[:, :10], name="head"), factor[:, :1] * factor[:, 1:], name="out")

    return graph_of(build, [None, 64])


def kept(plan: sparsekit.Plan) -> list[str]:
    return [decision.name for decision in plan.skipped if decision.reason == "kept-dense"]


def outputs(graph_def: Any, name: str = "out", x: np.ndarray | None = None) -> np.ndarray:
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(f"{name}:0", {"x:0": samples() if x is None else x})


def lost(dense: Any, pruned: Any) -> float:
    before = outputs(dense)
    return float(np.square(outputs(pruned) - before).sum() / np.square(before).sum())


def test_a_tiny_layer_that_decides_stays_dense_and_the_outputs_stay() -> None:
    dense = decisive_net()
    result = sparsekit.prune(dense, calibration=samples())
    every = sparsekit.prune(dense, {"keep_dense": 0}, calibration=samples())
    assert kept(result.plan) == ["gate"] and result.kept_dense == ("gate",)
    assert kept(every.plan) == [] and every.kept_dense == ()
    assert lost(dense, result.graph_def) < 0.1 * lost(dense, every.graph_def)
    assert "gate" not in [account.name for account in result.accounts]


def test_the_plan_says_why_and_what_it_cost() -> None:
    dense = decisive_net()
    (decision,) = (d for d in sparsekit.prune(dense, calibration=samples()).plan.skipped)
    work = {layer.decision.name: layer.multiply_adds or 0 for layer in sparsekit.report(dense).layers}
    share = work["gate"] / sum(work.values())
    (alone,) = (found for found in sparsekit.sensitivity(dense, calibration=samples()).layers if found.name == "gate")
    assert alone.output_error is not None
    for said in (f"{100 * share:.3g}%", f"{100 * alone.output_error:.3g}%", "keep_dense leaves 1%"):
        assert said in decision.message


def test_a_kept_layer_is_as_it_was_and_not_in_the_record(tmp_path: Path) -> None:
    dense = decisive_net()
    result = sparsekit.prune(dense, record=tmp_path / "record.txt", calibration=samples())
    changed = [change.name for change in sparsekit.diff(dense, result.graph_def).values]
    assert "gate/b" not in changed and "body0/b" in changed
    assert sparsekit.verify(result.graph_def, record=tmp_path / "record.txt").ok
    assert sparsekit.verify(result.graph_def, cfg={"skip_layers": list(result.kept_dense)}).ok


def test_who_verifies_without_the_record_is_told_what_may_be_the_reason() -> None:
    result = sparsekit.prune(decisive_net(), calibration=samples())
    found = sparsekit.verify(result.graph_def)
    assert not found.ok and "Without a zero: gate" in found.summary() and "record" in found.summary()
    assert "Without a zero" not in sparsekit.verify(decisive_net()).summary()  # nothing is pruned there


@pytest.mark.parametrize("record", [True, False])
def test_the_command_says_how_to_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: bool) -> None:
    monkeypatch.chdir(tmp_path)
    sparsekit.save(decisive_net(), "m.pb")
    np.savez("x.npz", x=samples())
    arguments = ["prune", "m.pb", "--calibration", "x.npz", "-o", "out.pb", "--record", "r.txt"]
    ended = CliRunner().invoke(main, arguments if record else arguments[:-2])
    assert ended.exit_code == 0
    command = ended.output.splitlines()[-1].removeprefix("To verify: sparsekit ")
    if record:
        assert CliRunner().invoke(main, command.split()).exit_code == 0
    else:
        assert "--record FILE" in command
        skipped = ended.output.split("skip_layers = ")[1].splitlines()[0].rstrip(".")
        (tmp_path / "c.toml").write_text(f"skip_layers = {skipped}\n")
        assert CliRunner().invoke(main, ["verify", "out.pb", "--config", "c.toml"]).exit_code == 0
    assert CliRunner().invoke(main, ["verify", "out.pb"]).exit_code == 1


def test_without_calibration_nothing_is_kept() -> None:
    for cfg in (None, {"keep_dense": 0.5}):
        assert not kept(sparsekit.prune(decisive_net(), cfg).plan)
        assert not kept(sparsekit.plan(decisive_net(), cfg))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "1%", True])
def test_a_budget_is_a_share(value: Any) -> None:
    with pytest.raises(sparsekit.ConfigError, match="keep_dense"):
        sparsekit.PruneConfig(keep_dense=value)


def test_an_output_layer_is_kept_where_it_fits_and_not_where_it_does_not() -> None:
    def build(x: Any) -> Any:
        h = tf.nn.relu(tf.matmul(x, normal(64, 64), name="body"))
        return tf.matmul(h, normal(64, 10, seed=2), name="out")

    dense = graph_of(build, [None, 64])
    share = 10 / 74
    assert kept(sparsekit.prune(dense, {"keep_dense": 1.01 * share}, calibration=samples()).plan) == ["out"]
    assert kept(sparsekit.prune(dense, {"keep_dense": 0.99 * share}, calibration=samples()).plan) == []
    assert kept(sparsekit.prune(dense, calibration=samples()).plan) == []


def test_shapes_that_are_open_before_the_model_runs_count_as_they_are_then() -> None:
    def build(x: Any) -> Any:
        h = tf.nn.relu(tf.nn.conv2d(x, normal(3, 3, 4, 16), 1, "SAME", name="body"))
        h = tf.nn.relu(tf.nn.conv2d(h, normal(1, 1, 16, 4), 1, "SAME", name="small"))
        return tf.matmul(tf.reduce_mean(h, [1, 2]), normal(4, 5), name="out")

    dense = graph_of(build, [None, None, None, 4])
    assert sparsekit.report(dense).totals.multiply_adds_unknown
    x = normal(16, 8, 8, 4)
    assert kept(sparsekit.prune(dense, calibration=x).plan) == ["out"]
    body, small, out = 64 * 36 * 16, 64 * 64, 20
    whole = body + small + out
    for budget, layers in ((small + 1.5 * out, 2), (small + 0.5 * out, 1)):  # one of the two, where both do not fit
        assert len(kept(sparsekit.prune(dense, {"keep_dense": budget / whole}, calibration=x).plan)) == layers


@settings(deadline=None, max_examples=30)
@given(
    widths=st.lists(st.integers(3, 40), min_size=2, max_size=5),
    budget=st.sampled_from([0.35, 0.5, 0.2, 0.05, 0.01, 0.0, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_budget_is_never_exceeded_and_without_a_use_not_spent(widths: list[int], budget: float, seed: int) -> None:
    def build(x: Any) -> Any:
        h, inputs = x, 16
        for i, width in enumerate(widths):
            h = tf.nn.relu(tf.matmul(h, normal(inputs, width, seed=seed + i), name=f"fc{i}"))
            inputs = width
        return tf.matmul(h, np.eye(inputs, 4, dtype="f"), name="out")  # its mask changes nothing

    dense = graph_of(build, [None, 16])
    cfg = {"keep_dense": budget, "criterion": "magnitude"}
    plan = sparsekit.prune(dense, cfg, calibration=samples(16, 16)).plan
    prunable = {d.name: d.shape[0] * d.shape[1] for d in sparsekit.plan(dense).pruned if d.shape}
    spent = sum(prunable[name] for name in kept(plan))
    assert spent <= budget * sum(prunable.values())
    assert "out" not in kept(plan)
    if budget == 1.0:
        found = sparsekit.sensitivity(dense, calibration=samples(16, 16)).layers
        least = 0.001 * sum(layer.output_error or 0 for layer in found)
        assert set(kept(plan)) == {layer.name for layer in found if (layer.output_error or 0) > least}


def test_json_tells_the_kept_layers_and_the_whole_account(tmp_path: Path) -> None:
    sparsekit.save(decisive_net(), tmp_path / "m.pb")
    np.savez(tmp_path / "x.npz", x=samples())
    arguments = ["prune", str(tmp_path / "m.pb"), "--calibration", str(tmp_path / "x.npz")]
    ended = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out.pb"), "--json"])
    told = json.loads(ended.stdout)
    assert [d["name"] for d in told["decisions"] if d["reason"] == "kept-dense"] == ["gate"]
    for account in told["accounts"]:
        assert list(account) == [field.name for field in attrs.fields(sparsekit.LayerAccount)]
        assert 0.5 < account["retained"] <= 1


def test_retained_is_the_share_of_the_dense_weights_that_stay() -> None:
    dense = decisive_net()
    result = sparsekit.prune(dense, calibration=samples())
    constants = [
        {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in graph.node if n.op == "Const"}
        for graph in (dense, result.graph_def)
    ]
    for account in result.accounts:
        before, after = (values[f"{account.name}/b"].astype("d") for values in constants)
        expected = np.abs(before)[after != 0].sum() / np.abs(before).sum()
        assert account.retained == pytest.approx(expected, rel=1e-6)
        assert f"{100 * expected:.1f}%" in str(result)


# --- the report of what was pruned -----------------------------------------------------------------------


def test_the_report_of_a_result_tells_what_was_written() -> None:
    result = sparsekit.prune(decisive_net(), calibration=samples())
    report = sparsekit.report(result)
    assert report.plan == result.plan and report.accounts == result.accounts
    written = {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in result.graph_def.node if n.op == "Const"}
    retained = {account.name: account.retained for account in result.accounts}
    for layer in report.layers:
        weight = written[layer.decision.weight]
        assert layer.stored is not None and layer.planned is not None
        assert layer.planned.density == pytest.approx(np.count_nonzero(weight) / weight.size)
        assert layer.retained == (pytest.approx(retained[layer.decision.name]) if layer.decision.pruned else 1.0)
        assert layer.mask[0][:8] == "".join("#" if value else "." for value in weight[:8, 0])
    assert "error by magnitude" in str(report)


def test_the_report_of_a_saved_model_that_was_pruned_tells_its_new_weights(tmp_path: Path) -> None:
    class Net(tf.Module):
        def __init__(self) -> None:
            self.w = tf.Variable(normal(64, 8))

        @tf.function(input_signature=[tf.TensorSpec([None, 64], name="x")])
        def __call__(self, x: Any) -> Any:
            return tf.matmul(x, self.w)

    net = Net()
    tf.saved_model.save(net, str(tmp_path / "model"), signatures=net.__call__.get_concrete_function())
    result = sparsekit.prune(tmp_path / "model", calibration=samples())
    (layer,) = sparsekit.report(result).layers
    result.save(tmp_path / "out")
    (stored,) = sparsekit.report(tmp_path / "out").layers
    assert layer.planned == stored.stored and layer.mask == stored.mask and layer.stored != layer.planned


def test_without_calibration_it_is_the_report_of_the_model_that_was_pruned(tmp_path: Path) -> None:
    sparsekit.save(decisive_net(), tmp_path / "m.pb")
    result = sparsekit.prune(tmp_path / "m.pb", {"pattern": "1:4"})
    assert sparsekit.report(result) == sparsekit.report(tmp_path / "m.pb", {"pattern": "1:4"})
    with tf.Graph().as_default() as graph:
        tf.matmul(v1.placeholder(tf.float32, [None, 8]), v1.get_variable("w", [8, 4]), name="fc")
        with pytest.raises(sparsekit.GraphError, match="live graph"):
            sparsekit.report(sparsekit.prune(graph))


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: bool) -> None:
    monkeypatch.chdir(tmp_path)
    sparsekit.save(decisive_net(), "m.pb")
    np.savez("x.npz", x=samples())
    arguments = ["prune", "m.pb", "-o", "m.pb", "--report", "page.html"]  # in place of the model itself
    ended = CliRunner().invoke(main, arguments + ["--calibration", "x.npz"] * calibrated)
    assert ended.exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert (">Calibration</h2>" in page) == calibrated and ("kept-dense" in page) == calibrated
