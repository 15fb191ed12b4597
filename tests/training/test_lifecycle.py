"""From a dense model to a finalized one, whatever was done to it before, and by its own means afterwards."""

from __future__ import annotations

import logging
import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_nets import SPECS, X, Y, ZerosStay, compiled, kernels, masks_of, net, pruned_net, train

import sparsekit
from sparsekit.errors import ConfigError, GraphError, ModelError

optimizers = keras.optimizers
L = keras.layers


@pytest.mark.parametrize(
    ("when", "masking"),
    [
        ("before compile", "in-place"),
        ("before compile", "forward"),
        ("after compile", "project"),
        ("after a fit", "in-place"),
        ("after a fit", "project"),
        ("after a fit", "forward"),
        ("compiled again", "in-place"),
        ("compiled again", "project"),
    ],
)
def test_pruned_at_any_time_the_masks_hold(when: str, masking: str) -> None:
    model = net()
    if when != "before compile":
        compiled(model, optimizers.SGD(0.1, 0.9))
    if when == "after a fit":
        train(model, epochs=1)  # momentum of weights that are dropped, and functions that know no masks
        model.predict(X, verbose=0)
    dense = kernels(model)
    result = sparsekit.prune(model, {"masking": masking})
    if when in ("before compile", "compiled again"):
        compiled(model, optimizers.SGD(0.1, 0.9))
    masks = masks_of(result)
    assert 0.49 < result.sparsity < 0.51
    by_hand = np.maximum(X @ (dense[0] * masks[0]) + model.layers[0].bias.numpy(), 0)
    by_hand = np.maximum(by_hand @ (dense[1] * masks[1]) + model.layers[1].bias.numpy(), 0)
    expected = by_hand @ (dense[2] * masks[2]) + model.layers[2].bias.numpy()
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, rtol=1e-4, atol=1e-5)
    history = train(model, result.callback, *([] if masking == "forward" else [ZerosStay(result)]), epochs=2)
    assert history["sparsity"] == [result.sparsity] * 2
    assert history["loss"][-1] < history["loss"][0]
    before = model.predict(X, verbose=0)
    result.finalize()
    assert all(np.array_equal(kernel != 0, mask != 0) for kernel, mask in zip(kernels(model), masks, strict=True))
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)


def test_a_second_fit_goes_on_and_one_after_finalize_is_dense() -> None:
    model, result = pruned_net(optimizers.Adam(0.01), {})
    for _ in range(2):
        train(model, result.callback, ZerosStay(result), epochs=1)
    result.finalize()
    assert sparsekit.verify(model).ok
    train(model, epochs=1)
    assert not sparsekit.verify(model).ok


def _described(model: Any) -> Any:
    return (
        type(model),
        [type(layer) for layer in model.layers],
        [(weight.path, weight.shape, weight.trainable) for weight in model.weights],
        [variable.path for variable in model.optimizer.variables],
        type(model.optimizer),
        model.optimizer.get_config(),
        model.get_config(),
        sorted(vars(model)),
        sorted(vars(model.optimizer)),
        [sorted(vars(weight.value)) for weight in model.trainable_weights],
        sorted(model._trackable_children()),
    )


@pytest.mark.parametrize("masking", ["in-place", "project", "forward"])
def test_finalize_leaves_nothing_behind(masking: str) -> None:
    model = compiled(net(), optimizers.Adam(0.01))
    train(model, epochs=1)
    before = _described(model)
    result = sparsekit.prune(model, {"masking": masking, "update_freq": 3})
    train(model, result.callback, epochs=1)
    assert result.finalize() is model
    assert _described(model) == before
    assert result.finalize() is model
    again = sparsekit.prune(model, {"pattern": "1:4", "masking": masking})
    train(model, again.callback, epochs=1)
    again.finalize()
    assert sparsekit.verify(model, cfg={"pattern": "1:4"}).ok


@pytest.mark.parametrize("masking", ["in-place", "project", "forward"])
def test_saved_and_exported_it_is_sparse_in_every_loader(masking: str, tmp_path: Any) -> None:
    model, result = pruned_net(optimizers.Adam(0.01), {"masking": masking})
    train(model, result.callback, epochs=1)
    result.finalize()
    expected = model.predict(X, verbose=0)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert [weight.name for weight in loaded.weights] == [weight.name for weight in model.weights]
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    assert sparsekit.verify(loaded).ok
    assert sparsekit.verify(loaded).layers == sparsekit.verify(model).layers

    model.export(tmp_path / "exported", verbose=False)
    verification = sparsekit.verify(tmp_path / "exported")  # looks at the copies of both loaders
    assert verification.ok
    assert len(verification.layers) >= 3
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(loaded.serve(X), expected, rtol=1e-5, atol=1e-6)


def test_saved_while_it_trains_it_loads_without_sparsekit(tmp_path: Any) -> None:
    model, result = pruned_net(optimizers.Adam(0.01), {"masking": "in-place"})
    train(model, result.callback, epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 10
    for found, expected in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(found, expected)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first = L.Dense(16, activation="relu")
        self._second = L.Dense(3)

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = self.first(inputs)
        return self._second(x + tf.reduce_mean(x, axis=0) if training else x)


@pytest.mark.parametrize("known", ["called", "trained", "signature"])
def test_a_subclassed_model(known: str) -> None:
    model = compiled(Subclassed(), optimizers.Adam(0.01))
    if known == "called":
        model(X[:2])
    if known == "trained":
        train(model, epochs=1)
    signature = SPECS if known == "signature" else None
    result = sparsekit.prune(model, input_signature=signature)
    assert [weight.variable.shape.as_list() for weight in result.weights] == [[8, 16], [16, 3]]
    train(model, result.callback, ZerosStay(result), epochs=1)
    result.finalize()
    assert sparsekit.verify(model, input_signature=signature).ok


def test_a_functional_model_with_several_inputs_in_a_dict() -> None:
    inputs = {"a": keras.Input((8,), name="a"), "b": keras.Input((8,), name="b")}
    shared = L.Dense(8, name="shared")
    outputs = L.Dense(3, name="head")(shared(inputs["a"]) + shared(inputs["b"]))
    model = compiled(keras.Model(inputs, outputs), optimizers.Adam(0.01))
    result = sparsekit.prune(model)
    assert [len(weight.decision.uses) for weight in result.weights] == [2, 1]
    model.fit({"a": X, "b": X}, Y, verbose=0, callbacks=[result.callback, ZerosStay(result)])
    assert sparsekit.verify(result.finalize()).ok


@pytest.mark.parametrize("masking", ["in-place", "project", "forward"])
def test_a_part_is_pruned_and_the_whole_is_trained(masking: str) -> None:
    part = net()
    x = keras.Input((8,))
    whole = compiled(keras.Model(x, L.Dense(3)(part(x))), optimizers.SGD(0.1, 0.9))
    train(whole, epochs=1)  # momentum, and functions that know no masks
    whole.predict(X, verbose=0)
    result = sparsekit.prune(part, {"masking": masking, "update_freq": 4})
    train(whole, result.callback, *([] if masking == "forward" else [ZerosStay(result)]), epochs=2)
    before = whole.predict(X, verbose=0)
    result.finalize()
    np.testing.assert_allclose(whole.predict(X, verbose=0), before, rtol=1e-5, atol=1e-6)
    assert "apply" not in vars(whole.optimizer)
    assert sparsekit.verify(part).ok
    assert whole.layers[-1].kernel.numpy().all()


def test_several_optimizers_of_one_model_move_no_dropped_weight(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    result = sparsekit.prune(model, {"masking": "in-place", "update_freq": 3})
    parts = [model.trainable_variables[:2], model.trainable_variables[2:]]
    steppers = [result.wrap(optimizers.SGD(0.3, 0.9)) for _ in parts]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step() -> None:
        with tf.GradientTape(persistent=True) as tape:
            value = loss(Y, model(X, training=True))
        for optimizer, part in zip(steppers, parts, strict=True):
            optimizer.apply(tape.gradient(value, part), part)

    for _ in range(15):
        step()
        for weight in result.weights:
            assert not weight.variable.numpy()[weight.mask.numpy() == 0].any(), weight.name
    assert sum(int(weight.flips) for weight in result.weights) > 0
    assert sparsekit.verify(result.finalize()).ok
    assert not caplog.text


class OwnStep(keras.Model):
    """A body and a head, each with an optimizer of its own, as adversarial networks have them."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.body = keras.Sequential([keras.Input((8,)), L.Dense(16, "relu")])
        self.head = keras.Sequential([keras.Input((16,)), L.Dense(3)])
        self.held = held

    def call(self, x: Any) -> Any:
        return self.head(self.body(x))

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, self(x), from_logits=True))
        steppers = [self.first, self.second] if self.held is None else self.held()
        for optimizer, part in zip(steppers, (self.body, self.head), strict=True):
            optimizer.apply(tape.gradient(loss, part.trainable_variables), part.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize("when", ["before", "after"])
def test_optimizers_that_only_a_train_step_uses_keep_the_masks(when: str, caplog: pytest.LogCaptureFixture) -> None:
    model = OwnStep(None)
    model.build((None, 8))
    result = sparsekit.prune(model, {"update_freq": 3}) if when == "before" else None
    model.compile()
    model.first, model.second = optimizers.SGD(0.3, 0.9), optimizers.Adam(0.03)
    result = result or sparsekit.prune(model, {"update_freq": 3})
    train(model, result.callback, ZerosStay(result), epochs=2)
    result.finalize()
    assert not caplog.text
    assert sparsekit.verify(model).ok
    assert not [each for each in (model.optimizer, model.first, model.second) if "apply" in vars(each)]


def test_an_optimizer_that_nobody_knows_of_is_seen_and_said(caplog: pytest.LogCaptureFixture) -> None:
    unknown = [optimizers.SGD(0.1), optimizers.SGD(0.1)]
    model = OwnStep(lambda: unknown)
    model.build((None, 8))
    model.compile()
    result = sparsekit.prune(model)
    with caplog.at_level(logging.WARNING):
        history = train(model, result.callback, epochs=2)
    assert history["sparsity"][-1] < 0.1
    assert "dropped weights were not zero any more" in caplog.text
    assert result.sparsity == 0.5


class Losses(keras.callbacks.Callback):
    """Pretends that the second epoch was the best, and keeps its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.best: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["pretended"] = abs(epoch - 1)
        if epoch == 1:
            self.best = kernels(self.model)


@pytest.mark.parametrize("masking", ["in-place", "project"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_the_best_weights_that_are_restored_bring_their_masks(
    ours_first: bool, masking: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, result = pruned_net(optimizers.SGD(0.3, 0.9), {"masking": masking, "update_freq": 3})
    losses = Losses()
    stopping = keras.callbacks.EarlyStopping("pretended", mode="min", patience=2, restore_best_weights=True)
    pair = [result.callback, stopping]
    train(model, losses, *(pair if ours_first else pair[::-1]), epochs=6)
    assert (
        any((best[mask == 0] != 0).any() for best, mask in zip(losses.best, masks_of(result), strict=True))
        == ours_first
    )
    result.finalize()
    for found, best in zip(kernels(model), losses.best, strict=True):
        np.testing.assert_array_equal(found, best)
    assert not caplog.text
    assert sparsekit.verify(model).ok


def test_a_name_that_only_variables_have_names_no_layer(tmp_path: Any) -> None:
    model = net()
    with pytest.raises(ConfigError, match=r"matches no operation of the graph, only variables.*/dense_1/MatMul"):
        sparsekit.prune(model, {"skip_layers": ["*/dense_1/kernel"]})
    model.export(tmp_path / "exported", verbose=False)  # in which the layer is called dense_1_1
    with pytest.raises(ConfigError, match=r"matches no operation of the graph, only variables.*/dense_1_1/MatMul"):
        sparsekit.verify(tmp_path / "exported", cfg={"skip_layers": ["*/dense_1/*"]})


@pytest.mark.parametrize("ours_first", [True, False])
def test_averages_that_are_shown_between_epochs_bring_no_masks(ours_first: bool) -> None:
    model, result = pruned_net(optimizers.Adam(0.01, use_ema=True), {"update_freq": 10, "freeze_step": 20})
    chosen: list[Any] = []

    class Masks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            chosen.append(masks_of(result))

    pair = [result.callback, keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
    train(model, *(pair if ours_first else pair[::-1]), ZerosStay(result), Masks(), epochs=4)
    assert all(map(np.array_equal, chosen[1], chosen[3]))  # none is chosen after step 20
    assert not all(map(np.array_equal, chosen[0], chosen[1]))


def test_overrides_and_skips_name_layers_as_the_plan_does(tmp_path: Any) -> None:
    model = compiled(net())
    name = sparsekit.plan(model).decisions[0].name
    config = {"skip_layers": [name], "override": [{"layers": ["*head*"], "pattern": "1:4", "update_freq": 2}]}
    result = sparsekit.prune(model, config, record=tmp_path / "record.txt")
    assert [str(weight.decision.pattern) for weight in result.weights] == ["2:4", "1:4"]
    assert [weight.shadow is None for weight in result.weights] == [True, False]
    train(model, result.callback, epochs=1)
    result.finalize()
    assert kernels(model)[0].all()
    assert sparsekit.verify(model, cfg=config).ok
    assert result.weights[1].name in (tmp_path / "record.txt").read_text()


def test_layers_are_called_what_keras_calls_them() -> None:
    """TensorFlow numbers scopes: in the graph of the call, dense is dense_1 and dense_1 is dense_1_2."""
    x = keras.Input((8,))
    first, second, third = (L.Dense(8, name=name) for name in ("dense", "dense_1", "dense_2"))
    model = keras.Model(x, third(second(first(second(x)))))
    plan = sparsekit.plan(model, {"skip_layers": ["*/dense_1/*"]})
    assert [(d.weight.split("/")[-2], d.reason) for d in plan.decisions] == [
        ("dense_1", "skip-layers"),
        ("dense", "eligible"),
        ("dense_2", "eligible"),
    ]
    assert [d.name for d in plan.decisions] == [
        f"{model.name}/{layer}/MatMul" for layer in ("dense_1", "dense", "dense_2")
    ]
    assert [len(d.uses) for d in plan.decisions] == [2, 1, 1]


def test_a_subclassed_model_names_its_weights_by_their_paths() -> None:
    model = Subclassed()
    model(X[:2])
    decisions = sparsekit.plan(model).decisions
    assert [d.weight for d in decisions] == [model.first.kernel.path, model._second.kernel.path]
    assert [d.name for d in decisions] == [d.weight.replace("kernel", "MatMul") for d in decisions]


# --- what cannot be done ---------------------------------------------------------------------------------


def test_a_model_is_pruned_once_at_a_time() -> None:
    model, result = pruned_net(optimizers.Adam(0.01), {})
    before = kernels(model)
    with pytest.raises(GraphError, match=r"was pruned before.*finalize"):
        sparsekit.prune(model)
    part = keras.Sequential([keras.Input((8,)), model.layers[0], L.Dense(2)])
    with pytest.raises(GraphError, match="dense_0"):
        sparsekit.prune(part)
    assert all(np.array_equal(a, b) for a, b in zip(kernels(model), before, strict=True))
    train(model, result.callback, ZerosStay(result), epochs=1)


def test_other_layers_of_a_pruned_model_wait_for_finalize() -> None:
    model = net()
    result = sparsekit.prune(model, {"skip_layers": ["*/head/*"]})
    before = kernels(model)
    with pytest.raises(GraphError, match=r"other layers of it were pruned before.*finalize.*override"):
        sparsekit.prune(model, {"skip_layers": ["*/dense_?/*"]})
    assert all(np.array_equal(a, b) for a, b in zip(kernels(model), before, strict=True))
    result.finalize()
    assert len(sparsekit.prune(model, {"skip_layers": ["*/dense_?/*"]}).weights) == 1


def test_training_that_ends_before_masks_are_due_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model, result = pruned_net(optimizers.SGD(0.1), {"start_step": 11})
    train(model, result.callback, epochs=1)
    assert all(kernel.all() for kernel in kernels(result.finalize()))
    assert re.search(r"no masks were chosen.*start_step = 11, and 10 steps", caplog.text)
    caplog.clear()
    model, result = pruned_net(optimizers.SGD(0.1), {"start_step": 10})
    train(model, result.callback, epochs=1)
    result.finalize()
    assert not caplog.text
    assert sparsekit.verify(model).ok


def test_weights_that_are_not_finite_are_refused() -> None:
    model = net()
    kernel = model.layers[1].kernel
    kernel.assign(np.where(np.arange(12) == 3, np.nan, kernel.numpy()))
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(ModelError, match=rf"{model.name}/dense_1/MatMul: 16 of 192 values .* are NaN or infinite"):
        sparsekit.prune(model)
    for weight, expected in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), expected)


def test_the_callback_is_not_for_a_copy_of_the_model() -> None:
    model, result = pruned_net(optimizers.SGD(0.1), {})
    copy = compiled(keras.models.clone_model(model))
    with pytest.raises(GraphError, match=r"holds none of the weights that the model .* has masks for"):
        train(copy, result.callback, epochs=1)


def test_what_is_finalized_keeps_no_masks_and_says_so() -> None:
    model, result = pruned_net(optimizers.Adam(0.01), {})
    callback = result.callback
    result.finalize()
    for use in (result.step, result.settle, lambda: result.wrap(optimizers.SGD()), lambda: train(model, callback)):
        with pytest.raises(GraphError, match=r"is finalized.*prune again"):
            use()


def test_an_optimizer_serves_one_model() -> None:
    model, result = pruned_net(optimizers.Adam(0.01), {})
    other = sparsekit.prune(net(), {})
    with pytest.raises(ConfigError, match="wrapped already, for another model"):
        other.wrap(model.optimizer)
    assert result.wrap(model.optimizer) is model.optimizer
    with pytest.raises(ConfigError, match=r"got SGD.*\.step\(\)"):
        result.wrap(_Other())


def test_a_model_whose_optimizer_serves_another_is_left_as_it_is() -> None:
    first, result = pruned_net(optimizers.Adam(0.01), {})
    second = compiled(net(), first.optimizer)
    before = kernels(second)
    with pytest.raises(ConfigError, match="wrapped already, for another model"):
        sparsekit.prune(second)
    assert all(np.array_equal(a, b) for a, b in zip(kernels(second), before, strict=True))
    result.finalize()
    sparsekit.prune(second).finalize()


class _Other:
    """An optimizer of somebody else."""


_Other.__name__ = "SGD"


def test_a_fit_that_knew_no_masks_is_set_right_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    result = sparsekit.prune(model)
    compiled(model, optimizers.Adam(0.01))
    train(model, epochs=1)  # without the callback
    with caplog.at_level(logging.WARNING):
        result.finalize()
    assert "dropped weights were not zero any more" in caplog.text
    assert "without the callback" in caplog.text
    assert sparsekit.verify(model).ok


def test_nothing_to_prune_is_said_and_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    model = compiled(net(), optimizers.Adam(0.01))
    result = sparsekit.prune(model, {"prune": False})
    assert "No layer was changed" in caplog.text
    assert "sparsity" not in train(model, result.callback, epochs=1)
    assert (result.sparsity, result.finalize()) == (0.0, model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gradient": "ste", "masking": "in-place"}, r"masking: in-place with gradient ste.*expected forward"),
        ({"gradient": "half"}, "masked, ste or sr-ste"),
        ({"masking": "wrapper"}, "auto, forward, in-place or project"),
        ({"start_step": 5, "freeze_step": 3}, "never be chosen"),
        ({"sr_ste_decay": -1.0}, "a number from 0 on"),
        ({"criterion": "admm"}, "cannot choose masks while a model trains"),
    ],
)
def test_configs_that_cannot_be(config: dict[str, Any], message: str) -> None:
    model = net()
    before = kernels(model)
    with pytest.raises(ConfigError, match=message):
        sparsekit.prune(model, config)
    assert all(np.array_equal(a, b) for a, b in zip(kernels(model), before, strict=True))


def test_calibration_has_another_way() -> None:
    with pytest.raises(GraphError, match=r"cannot be calibrated.*model.export"):
        sparsekit.prune(net(), calibration=X)


@pytest.mark.parametrize("config", [{"gradient": "ste"}, {"start_step": 3}, {"freeze_step": 9}], ids=str)
def test_a_live_graph_ignores_no_key(config: dict[str, Any]) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8])
        tf.matmul(x, tf.compat.v1.get_variable("w", [8, 4]))
        with pytest.raises(ConfigError, match=next(iter(config))):
            sparsekit.prune(graph, config)
        assert len(sparsekit.prune(graph, {"masking": "forward"}).plan.pruned) == 1


def test_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(GraphError, match=r"backend jax; expected tensorflow"):
        sparsekit.prune(net())


def test_a_model_that_does_not_know_its_inputs_says_what_to_pass() -> None:
    with pytest.raises(GraphError, match=r"is not built yet.*input_signature"):
        sparsekit.prune(Subclassed())
    with pytest.raises(GraphError, match=r"cannot be called on .*\(ValueError: .*have value 8, but.*input_signature"):
        sparsekit.prune(net(), input_signature=[tf.TensorSpec([None, 5])])
    with pytest.raises(GraphError, match=r"input_signature: got TensorSpec; expected a list.*one for every argument"):
        sparsekit.prune(net(), input_signature=SPECS[0])
    with pytest.raises(GraphError, match=r"\(TypeError: 'Silent' object is not callable\)"):
        sparsekit.prune(Silent(), input_signature=SPECS)


class Silent(tf.Module):
    """Has nothing to call."""


class Branches(keras.Model):
    """Has a layer that only a second argument leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.always = L.Dense(8)
        self.sometimes = L.Dense(8)

    def call(self, inputs: Any, more: Any = None) -> Any:
        return self.always(inputs) if more is None else self.always(inputs) + self.sometimes(more["x"])


def test_layers_that_the_call_does_not_reach_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Branches()
    model(X[:2], {"x": X[:2]})
    with caplog.at_level(logging.WARNING):
        assert len(sparsekit.plan(model).pruned) == 1
    assert "does not read 1 of its weights" in caplog.text
    assert model.sometimes.kernel.path in caplog.text
    assert "input_signature" in caplog.text
    caplog.clear()
    assert len(sparsekit.plan(model, input_signature=[*SPECS, {"x": SPECS[0]}]).pruned) == 2
    assert not caplog.text
