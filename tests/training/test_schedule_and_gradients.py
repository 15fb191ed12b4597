"""When masks are chosen, and what dropped weights learn."""

from __future__ import annotations

import logging
import re
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_nets import SPECS, TWO_LAYERS, X, Y, ZerosStay, kernels, masks_of, net, pruned_net, train

import sparsekit
from sparsekit.pattern import PATTERN_2_4
from sparsekit.pattern import keep_mask as keep
from sparsekit.training.schedule import Schedule

optimizers = keras.optimizers


class Flips(keras.callbacks.Callback):
    """After which steps masks were others than before."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result
        self._before = masks_of(result)
        self.steps: list[int] = []
        self.flips = 0
        self._step = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1
        now = masks_of(self._result)
        flips = sum(int((a != b).sum()) for a, b in zip(now, self._before, strict=True))
        if flips:
            self.steps.append(self._step)
        self.flips += flips
        self._before = now


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 4), st.none() | st.integers(0, 12), st.integers(1, 15))
def test_masks_are_due_as_the_words_say(start: int, period: int, freeze: int | None, step: int) -> None:
    expected = step == start or (period > 0 and step > start and (step - start) % period == 0)
    expected = expected and (freeze is None or step <= freeze)
    due = Schedule(start, period, freeze).due(tf.constant(step, tf.int64))
    # Steps are counted from one; masks that are due at the start were chosen before.
    assert bool(due) == expected


@pytest.mark.parametrize("masking", ["in-place", "project", "forward"])
def test_masks_change_when_the_config_says_and_no_dropped_weight_moves(masking: str) -> None:
    config = {"masking": masking, "update_freq": 4, "start_step": 3, "freeze_step": 16}
    model, result = pruned_net(optimizers.SGD(0.3, 0.9), config)
    assert result.sparsity == 0
    flips = Flips(result)
    train(model, result.callback, flips, *([] if masking == "forward" else [ZerosStay(result)]), epochs=3)
    assert set(flips.steps) <= {3, 7, 11, 15}
    assert {3, 7} <= set(flips.steps)
    assert sum(int(weight.flips) for weight in result.weights) == flips.flips
    assert sparsekit.verify(result.finalize()).ok


@pytest.mark.parametrize(
    ("masking", "options"), [("in-place", {}), ("project", {"steps_per_execution": 5}), ("forward", {})]
)
def test_xla_changes_nothing_about_masks_that_change(masking: str, options: dict[str, Any]) -> None:
    config = {"masking": masking, "update_freq": 4, "start_step": 3, "freeze_step": 16}
    ends = []
    for jit in (False, True):
        optimizer = optimizers.SGD(0.3, 0.9, gradient_accumulation_steps=2)
        model, result = pruned_net(optimizer, config, TWO_LAYERS, jit_compile=jit, **options)
        flips = Flips(result)
        train(model, result.callback, flips, epochs=2)
        masks = masks_of(result)
        state = [*optimizer.momentums, *result.finalize().trainable_variables]
        ends.append((flips, masks, [variable.numpy() for variable in state]))
    (flips, masks, state), (xla_flips, xla_masks, xla_state) = ends
    # Looked at after every call of the train function.
    assert xla_flips.steps == flips.steps == ([1, 2, 3] if options else [3, 7, 11, 15])
    assert xla_flips.flips == flips.flips
    for found, expected in zip(xla_masks, masks, strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(xla_state, state, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_where_masks_are_not_due_xla_copies_no_more_than_for_a_dense_model() -> None:
    def copies(config: dict[str, Any] | None) -> int:
        model, optimizer = net(sizes=TWO_LAYERS), optimizers.SGD(0.1, 0.9)
        optimizer.build(model.trainable_variables)
        if config is not None:
            sparsekit.prune(model, config).wrap(optimizer)

        @tf.function(jit_compile=True)
        def step() -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(X, training=True) ** 2)
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

        step()
        compiled = step.experimental_get_compiler_ir()(stage="optimized_hlo")
        computations = re.split(r"\n\n", compiled)
        always = [lines for lines in computations if not re.match(r"%?\S*while", lines)]
        return len(re.findall(r"f32\[\d+,\d+\]\S* copy\(", "\n".join(always)))

    assert copies({"masking": "in-place", "update_freq": 4}) <= copies(None)


def test_layers_keep_their_own_period() -> None:
    config = {"override": [{"layers": ["*dense_1*"], "update_freq": 2}]}
    model, result = pruned_net(optimizers.SGD(0.3, 0.9), config)
    train(model, result.callback, ZerosStay(result), epochs=3)
    flips = {weight.name.split("/")[1]: int(weight.flips) for weight in result.weights}
    assert {name: count > 0 for name, count in flips.items()} == {
        "dense_0": False,
        "dense_1": True,
        "head": False,
    }


def test_an_optimizer_of_other_variables_counts_no_steps() -> None:
    model, result = pruned_net(optimizers.SGD(0.1), {"start_step": 2})
    other = tf.Variable([1.0, 2.0])
    aside = result.wrap(optimizers.SGD(0.1))
    for _ in range(5):
        aside.apply([tf.ones_like(other)], [other])
    assert result.sparsity == 0
    model.fit(X[:16], Y[:16], batch_size=8, verbose=0, callbacks=[result.callback])
    assert result.sparsity == pytest.approx(0.5)


def test_dropped_values_come_back_as_they_went() -> None:
    """In place they are kept apart: masking in the forward pass, where the variable keeps them, chooses the same."""
    found = []
    for masking in ("in-place", "forward"):
        model, result = pruned_net(optimizers.Adam(0.02), {"masking": masking, "update_freq": 3})
        train(model, result.callback, epochs=3)
        found.append([*masks_of(result), *(int(weight.flips) for weight in result.weights)])
        assert all(0.4 < float(weight.retained()) < 1 for weight in result.weights)
        found[-1] += kernels(result.finalize())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_forward_masked_variables_decay_as_the_optimizer_says() -> None:
    start = kernels(net())
    model, result = pruned_net(optimizers.SGD(0.1, weight_decay=0.5), {"masking": "forward"})
    train(model, result.callback, epochs=1)
    for kernel, mask, before in zip(kernels(model), masks_of(result), start, strict=True):
        np.testing.assert_allclose(kernel[mask == 0], before[mask == 0] * 0.95**10, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 3])
def test_gradients_gathered_before_a_choice_move_no_dropped_weight(steps: int) -> None:
    optimizer = optimizers.SGD(0.3, 0.9, gradient_accumulation_steps=steps)
    model, result = pruned_net(optimizer, {"masking": "in-place", "update_freq": 5})
    train(model, result.callback, ZerosStay(result), epochs=3)
    assert sum(int(weight.flips) for weight in result.weights) > 0


def _by_hand(gradient: str, decay: float, steps: int) -> tuple[list[Any], list[Any]]:
    """Dense weights and masks after SGD in numpy, masks chosen anew after every step."""
    model = net()
    weights = [(layer.kernel.numpy(), layer.bias.numpy()) for layer in model.layers]
    masks = [keep(np.abs(kernel), 0, PATTERN_2_4) for kernel, _ in weights]
    one_hot = np.eye(3)[Y]
    for _ in range(steps):
        inputs = [X]
        for (kernel, bias), mask in zip(weights, masks, strict=True):
            inputs.append(np.maximum(inputs[-1] @ (kernel * mask) + bias, 0))
        logits = inputs[-2] @ (weights[-1][0] * masks[-1]) + weights[-1][1]
        exp = np.exp(logits - logits.max(1, keepdims=True))
        error = (exp / exp.sum(1, keepdims=True) - one_hot) / len(X)
        updated = []
        for i in reversed(range(3)):
            kernel, bias = weights[i]
            to_kernel = inputs[i].T @ error
            if gradient == "masked":
                to_kernel = to_kernel * masks[i]
            elif gradient == "sr-ste":
                to_kernel = to_kernel + decay * ~masks[i] * kernel
            updated.append((kernel - 0.5 * to_kernel, bias - 0.5 * error.sum(0)))
            error = (error @ (kernel * masks[i]).T) * (inputs[i] > 0)
        weights = updated[::-1]
        masks = [keep(np.abs(kernel), 0, PATTERN_2_4) for kernel, _ in weights]
    return [kernel for kernel, _ in weights], masks


@pytest.mark.parametrize(
    ("gradient", "decay", "jit"),
    [
        ("masked", 0.0, False),
        ("ste", 0.0, False),
        ("sr-ste", 2e-4, False),
        ("sr-ste", 0.3, False),
        ("sr-ste", 0.3, True),
    ],
)
def test_dropped_weights_get_the_gradient_of_the_config(gradient: str, decay: float, jit: bool) -> None:
    config = {"masking": "forward", "gradient": gradient, "sr_ste_decay": decay, "update_freq": 1}
    model, result = pruned_net(optimizers.SGD(0.5), config, jit_compile=jit)
    model.fit(X, Y, batch_size=len(X), epochs=8, verbose=0, callbacks=[result.callback])
    expected, masks = _by_hand(gradient, decay, 8)
    for kernel, mask, found, wanted in zip(kernels(model), masks_of(result), expected, masks, strict=True):
        np.testing.assert_allclose(kernel, found, rtol=1e-3, atol=1e-5)
        assert (mask == wanted).mean() > 0.98  # where two weights are all but equal, rounding decides


def test_straight_through_is_done_by_forward_masking_and_keeps_momentum() -> None:
    model, result = pruned_net(optimizers.SGD(0.1, 0.9), {"gradient": "ste", "update_freq": 1})
    assert result.plan.masking == "Masking: forward (gradient ste trains dropped weights)."
    train(model, result.callback, epochs=2)
    momenta = [slot.numpy() for slot in model.optimizer.momentums if len(slot.shape) == 2]
    assert all(slot[mask == 0].any() for slot, mask in zip(momenta, masks_of(result), strict=True))
    assert sparsekit.verify(result.finalize()).ok


@pytest.mark.parametrize(("update_freq", "said"), [(0, "once"), (5, "rarely"), (1, None)])
def test_straight_through_with_few_choices_is_warned_of(
    update_freq: int, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sparsekit.prune(net(), {"gradient": "ste", "update_freq": update_freq})
    assert (f"chosen {said}" in caplog.text) if said else not caplog.text


def test_a_wrapped_optimizer_in_a_loop_of_its_own_does_what_fit_does() -> None:
    config = {"masking": "in-place", "update_freq": 3}
    model, result = pruned_net(optimizers.Adam(0.02), config)
    model.fit(X, Y, batch_size=len(X), epochs=10, verbose=0, callbacks=[result.callback])
    other = net()
    masked = sparsekit.prune(other, config)
    optimizer = masked.wrap(optimizers.Adam(0.02))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            value = loss(Y, other(X, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(value, other.trainable_variables), other.trainable_variables, strict=True)
        )

    for _ in range(10):
        step()
    for a, b in zip(masks_of(masked), masks_of(result), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(kernels(masked.finalize()), kernels(result.finalize()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert "apply" not in vars(optimizer)


def test_a_function_with_a_signature_is_pruned_through_its_variables() -> None:
    w = tf.Variable(tf.random.stateless_normal([8, 4], [1, 2]), name="w")

    @tf.function(input_signature=SPECS)
    def call(x: Any) -> Any:
        return x @ w

    result = sparsekit.prune(call)
    assert result.finalize() is call
    assert int(tf.math.count_nonzero(w)) == 16
    assert sparsekit.verify(call).ok
