"""Whatever keeps the masks, the weights are those of a network whose own layers multiply by them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_nets import (
    SIZES,
    TWO_LAYERS,
    MaskedByHand,
    Optimizer,
    X,
    Y,
    ZerosStay,
    compiled,
    kernels,
    masks_of,
    net,
    pruned_net,
    train,
    trained_by_hand,
)
from tensorflow.python.eager import context

import sparsekit
from sparsekit.errors import ConfigError
from sparsekit.pattern import keep_mask

optimizers = keras.optimizers
MASKINGS = ("in-place", "project", "forward")
ELEMENTWISE: dict[str, Optimizer] = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, 0.9),
    "nesterov": lambda: optimizers.SGD(0.1, 0.9, nesterov=True),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adam": lambda: optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "weight decay": lambda: optimizers.SGD(0.1, 0.9, weight_decay=0.01),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "moving average": lambda: optimizers.Adam(0.01, use_ema=True),
}
MORE: dict[str, Optimizer] = {
    "lion": lambda: optimizers.Lion(1e-3),
    "nadam": lambda: optimizers.Nadam(0.01),
    "adamax": lambda: optimizers.Adamax(0.01),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "adadelta": lambda: optimizers.Adadelta(1.0),
    "ftrl": lambda: optimizers.Ftrl(0.1),
    "clipped values": lambda: optimizers.SGD(0.1, clipvalue=0.01),
}
CLIPPED: dict[str, Optimizer] = {
    "global norm": lambda: optimizers.Adam(0.01, global_clipnorm=0.05),
    "norm": lambda: optimizers.SGD(0.1, 0.9, clipnorm=0.05),
    "accumulation and norm": lambda: optimizers.SGD(0.1, global_clipnorm=0.05, gradient_accumulation_steps=2),
}


def _trained(optimizer: Any, config: dict[str, Any], **options: Any) -> tuple[list[Any], list[Any], Any]:
    """Masks, finalized weights, and the plan."""
    model, result = pruned_net(optimizer, config, TWO_LAYERS, **options)
    watch = [] if config["masking"] == "forward" else [ZerosStay(result)]
    train(model, result.callback, *watch)
    masks, plan = masks_of(result), result.plan
    result.finalize()
    assert sparsekit.verify(model).ok
    for kernel, mask in zip(kernels(model), masks, strict=True):
        assert not kernel[mask == 0].any()
        assert not np.signbit(kernel[mask == 0]).any()
    return masks, [*kernels(model), *(layer.bias.numpy() for layer in model.layers)], plan


def _equal(found: list[Any], expected: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("optimizer", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_fifty_steps_leave_the_very_weights(optimizer: Optimizer) -> None:
    expected = None
    for masking in MASKINGS:
        masks, weights, _ = _trained(optimizer(), {"masking": masking})
        expected = expected or trained_by_hand(optimizer(), masks, TWO_LAYERS)
        assert _equal(weights, expected), masking


@pytest.mark.parametrize("optimizer", MORE.values(), ids=MORE)
def test_fifty_steps_of_a_loop_of_its_own_do(optimizer: Optimizer) -> None:
    """So do all other optimizers that are known to be elementwise: a smaller network is enough."""

    def trained(masking: str | None) -> list[Any]:
        model = net(keras.layers.Dense if masking else MaskedByHand, sizes=SIZES[-1:])
        (layer,), wrapped = model.layers, optimizer()
        if masking is None:
            layer.mask = keep_mask(kernels(model)[0], 0).astype(np.float32)
        else:
            result = sparsekit.prune(model, {"masking": masking})
            result.wrap(wrapped)
        wrapped.build(model.trainable_variables)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @tf.function
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True))
            wrapped.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

        for batch in range(50):
            part = slice(8 * (batch % 10), 8 * (batch % 10) + 8)
            step(X[part], Y[part])
            if masking in ("in-place", "project"):
                assert not layer.kernel.numpy()[masks_of(result)[0] == 0].any(), (masking, batch)
        if masking is None:
            return [kernels(model)[0] * layer.mask, layer.bias.numpy()]
        assert sparsekit.verify(result.finalize()).ok
        return [*kernels(model), layer.bias.numpy()]

    expected = trained(None)
    for masking in MASKINGS:
        assert _equal(trained(masking), expected), masking


@pytest.mark.parametrize("optimizer", CLIPPED.values(), ids=CLIPPED)
def test_clipping_by_norm_sees_no_dropped_gradients(optimizer: Optimizer) -> None:
    expected = None
    for masking in ("in-place", "forward"):
        masks, weights, _ = _trained(optimizer(), {"masking": masking})
        expected = expected or trained_by_hand(optimizer(), masks, TWO_LAYERS)
        assert _equal(weights, expected), masking


def test_clipping_and_projection_leave_zeros_though_the_weights_are_others() -> None:
    _trained(CLIPPED["accumulation and norm"](), {"masking": "project"})


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 5}], ids=["xla", "several steps"])
def test_however_the_steps_run(masking: str, options: dict[str, Any]) -> None:
    _, weights, _ = _trained(optimizers.Adam(0.01), {"masking": masking}, **options)
    for found, wanted in zip(weights, _by_hand_with_adam(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


@functools.cache
def _by_hand_with_adam() -> list[Any]:
    masks = [keep_mask(kernel, 0).astype(np.float32) for kernel in kernels(net(sizes=TWO_LAYERS))]
    return trained_by_hand(optimizers.Adam(0.01), masks, TWO_LAYERS)


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def test_mixed_precision_leaves_the_same_weights_whatever_keeps_the_masks(policy: str) -> None:
    found = []
    for masking in MASKINGS:
        model, result = pruned_net(optimizers.SGD(0.1, 0.9), {"masking": masking}, TWO_LAYERS)
        assert (type(model.optimizer).__name__ == "LossScaleOptimizer") == (policy == "mixed_float16")
        assert {weight.variable.dtype.name for weight in result.weights} == {"float32"}
        losses = train(model, result.callback)["loss"]
        assert losses[-1] < losses[0]
        found.append([*kernels(result.finalize()), *(layer.bias.numpy() for layer in model.layers)])
        assert sparsekit.verify(model).ok
    assert _equal(found[1], found[0])
    assert _equal(found[2], found[0])


def test_an_optimizer_that_was_wrapped_before_it_scaled_losses_counts_a_step_once() -> None:
    model = net()
    result = sparsekit.prune(model, {"start_step": 11})
    compiled(model, optimizers.LossScaleOptimizer(result.wrap(optimizers.SGD(0.1))))
    train(model, result.callback, epochs=1)
    assert int(model.optimizer.inner_optimizer.iterations) == 10
    assert result.sparsity == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_optimizer_and_the_one_that_scales_losses_for_it_are_wrapped_as_one(order: tuple[int, int]) -> None:
    model = net()
    optimizer = optimizers.SGD(0.1)
    both = optimizer, optimizers.LossScaleOptimizer(optimizer)
    result = sparsekit.prune(model, {"start_step": 2})
    for index in order:
        result.wrap(both[index])
    with pytest.raises(ConfigError, match="wrapped already, for another model"):
        sparsekit.prune(net(), {}).wrap(both[1])
    gradients = [keras.ops.ones(variable.shape) for variable in model.trainable_variables]
    both[1].apply(gradients, model.trainable_variables)
    assert result.sparsity == 0
    both[1].apply(gradients, model.trainable_variables)
    assert result.sparsity == 0.5


@pytest.mark.parametrize(
    ("optimizer", "options", "chosen"),
    [
        (lambda: optimizers.SGD(0.1), {}, "in-place (SGD updates every weight by itself)"),
        (lambda: optimizers.SGD(0.1), {"jit_compile": True}, "project (the model is compiled by XLA"),
        (lambda: optimizers.Adafactor(0.01), {}, "project (Adafactor is not known to update every weight by itself)"),
        (lambda: optimizers.Lamb(0.01), {}, "project (Lamb is not known"),
        (
            lambda: optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=4),
            {},
            "project (Adam overwrites weights with their moving averages)",
        ),
        pytest.param(
            lambda: optimizers.Muon(0.01),
            {},
            "project (Muon is not known",
            marks=pytest.mark.skipif(not hasattr(optimizers, "Muon"), reason="this Keras has no Muon"),
        ),
    ],
    ids=["sgd", "xla", "adafactor", "lamb", "overwriting averages", "muon"],
)
def test_the_plan_says_what_was_chosen_and_it_holds(optimizer: Optimizer, options: Any, chosen: str) -> None:
    assert chosen in str(sparsekit.plan(compiled(net(), optimizer(), **options)))
    _, _, plan = _trained(optimizer(), {"masking": "auto"}, **options)
    assert f"Masking: {chosen}" in plan.masking
    assert plan.masking in str(plan)


def test_an_optimizer_of_the_users_own_is_not_known_by_its_name() -> None:
    class Adam(optimizers.Adam):
        """Centers its gradients, as papers do."""

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            super().update_step(gradient - keras.ops.mean(gradient), variable, learning_rate)

    model, result = pruned_net(Adam(0.01), {})
    assert "project (Adam is not known" in result.plan.masking
    train(model, result.callback, ZerosStay(result), epochs=1)


def test_before_there_is_an_optimizer_the_plan_says_what_step_does() -> None:
    assert "Masking: project (after every step of any optimizer)" in str(sparsekit.plan(net()))
    assert "Masking: forward (as configured)" in str(sparsekit.plan(net(), {"masking": "forward"}))


def test_zeros_stay_whatever_a_constraint_makes_of_them() -> None:
    def at_least_a_little(kernel: Any) -> Any:
        return keras.ops.maximum(kernel, 0.01)

    model = compiled(net(kernel_constraint=at_least_a_little), optimizers.Adam(0.01))
    result = sparsekit.prune(model, {"masking": "in-place", "update_freq": 4})
    train(model, result.callback, ZerosStay(result), epochs=1)
    least = np.float32(0.01)
    assert all(kernel[mask != 0].min() >= least for kernel, mask in zip(kernels(model), masks_of(result), strict=True))
    assert sparsekit.verify(result.finalize()).ok


@pytest.mark.parametrize("masking", ["in-place", "forward"])
def test_averages_that_began_before_the_masks_are_masked_too(masking: str) -> None:
    model = compiled(net(), optimizers.Adam(0.01, use_ema=True))
    train(model, epochs=1)  # all weights are in the averages now
    result = sparsekit.prune(model, {"masking": masking})
    train(model, result.callback, epochs=1)
    if masking == "in-place":
        assert not any(kernel[mask == 0].any() for kernel, mask in zip(kernels(model), masks_of(result), strict=True))
    assert sparsekit.verify(result.finalize()).ok


def test_an_optimizer_that_in_place_cannot_serve_is_warned_of_and_set_right(caplog: pytest.LogCaptureFixture) -> None:
    model, result = pruned_net(optimizers.Lamb(0.01), {"masking": "in-place"})
    assert "Lamb is not known to update every weight by itself" in caplog.text
    train(model, result.callback, epochs=1)
    assert sparsekit.verify(result.finalize()).ok


@pytest.mark.parametrize("masking", MASKINGS)
def test_what_is_not_a_number_stays_out_where_the_mask_drops(masking: str) -> None:
    model, result = pruned_net(optimizers.SGD(0.1), {"masking": masking})
    (mask, *_), (kernel, *_) = masks_of(result), [layer.kernel for layer in model.layers]
    expected = kernels(model)[0] * mask - np.float32(0.1) * mask

    model.optimizer.apply([np.where(mask, 1, np.nan).astype(np.float32)], [kernel])
    if masking == "forward":
        assert not np.isnan(keras.ops.convert_to_numpy(model(X))).any()
    result.finalize()

    assert np.array_equal(kernels(model)[0], expected)


def test_a_mask_meets_a_gradient_where_it_was_just_computed() -> None:
    """A product of mask and learning rate would be one more pass over all weights."""
    model, _ = pruned_net(optimizers.SGD(0.1), {"masking": "in-place"})
    context.enable_graph_collection()
    with context.collect_graphs(optimized=True) as graphs:
        train(model, epochs=1)

    products = []
    for nodes in [nodes for graph in graphs for nodes in (graph.node, *(f.node_def for f in graph.library.function))]:
        ops = {node.name: node.op for node in nodes}
        products += [[ops.get(name.split(":")[0]) for name in node.input] for node in nodes if "Mul" in node.op]
    assert sum("MatMul" in str(factors[0]) for factors in products) >= 3, products
    assert ["ReadVariableOp", "ReadVariableOp"] not in products
