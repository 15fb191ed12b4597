"""What the layers of Keras trace to: which of their variables are pruned, along which axis, and why others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import sparsekit

L = keras.layers


def _sequential(shape: tuple[int, ...], *layers: Any, dtype: str = "float32") -> Any:
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def _attention(layer: Any) -> Any:
    x = keras.Input((5, 16))
    return keras.Model(x, layer(x, x))


class Custom(L.Layer):
    """Multiplies by a weight that is stored transposed."""

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(6, shape[-1]), name="w")

    def call(self, x: Any) -> Any:
        return tf.matmul(x, self.w, transpose_b=True)


def _lora(rank: int) -> Any:
    layer = L.Dense(8)
    model = _sequential((16,), layer)
    layer.enable_lora(rank)
    return model


RECURRENT = {("kernel", 0), ("recurrent_kernel", 0)}
# Name: the model; variables that are pruned with their group axes; reasons of those that are not.
LAYERS: dict[str, tuple[Callable[[], Any], set[tuple[str, int]], set[str]]] = {
    "Dense": (lambda: _sequential((16,), L.Dense(8)), {("kernel", 0)}, set()),
    "Dense on three axes": (lambda: _sequential((5, 16), L.Dense(8)), {("kernel", 0)}, set()),
    "TimeDistributed": (lambda: _sequential((5, 8), L.TimeDistributed(L.Dense(8))), {("kernel", 0)}, set()),
    "custom": (lambda: _sequential((8,), Custom()), {("w", 1)}, set()),
    "Conv1D": (lambda: _sequential((9, 8), L.Conv1D(8, 3)), {("kernel", 1)}, set()),
    "Conv1D causal": (lambda: _sequential((9, 8), L.Conv1D(8, 3, padding="causal")), {("kernel", 1)}, set()),
    "Conv2D": (lambda: _sequential((9, 9, 8), L.Conv2D(8, 3)), {("kernel", 2)}, set()),
    "Conv2D in groups": (lambda: _sequential((9, 9, 8), L.Conv2D(8, 3, groups=2)), {("kernel", 2)}, set()),
    "Conv3D": (lambda: _sequential((5, 5, 5, 8), L.Conv3D(8, 3)), {("kernel", 3)}, set()),
    "Conv1DTranspose": (lambda: _sequential((9, 8), L.Conv1DTranspose(6, 3)), {("kernel", 2)}, set()),
    "Conv2DTranspose": (lambda: _sequential((9, 9, 8), L.Conv2DTranspose(6, 3)), {("kernel", 3)}, set()),
    "Conv3DTranspose": (lambda: _sequential((5, 5, 5, 8), L.Conv3DTranspose(6, 3)), {("kernel", 4)}, set()),
    "SeparableConv1D": (
        lambda: _sequential((9, 8), L.SeparableConv1D(8, 3)),
        {("pointwise_kernel", 1)},
        {"no-input-channels"},
    ),
    "SeparableConv2D": (
        lambda: _sequential((9, 9, 8), L.SeparableConv2D(8, 3)),
        {("pointwise_kernel", 2)},
        {"no-input-channels"},
    ),
    "DepthwiseConv2D": (lambda: _sequential((9, 9, 8), L.DepthwiseConv2D(3)), set(), {"no-input-channels"}),
    "EinsumDense": (
        lambda: _sequential((5, 8), L.EinsumDense("abc,cd->abd", output_shape=(None, 6))),
        {("kernel", 0)},
        set(),
    ),
    "MultiHeadAttention": (
        lambda: _attention(L.MultiHeadAttention(2, 8)),
        {("query/kernel", 0), ("key/kernel", 0), ("value/kernel", 0), ("attention_output/kernel", 1)},
        {"weight-dynamic"},
    ),
    "MultiHeadAttention of odd heads": (
        lambda: _attention(L.MultiHeadAttention(2, 6)),
        {("query/kernel", 0), ("key/kernel", 0), ("value/kernel", 0)},
        {"weight-dynamic", "layout-splits-groups"},
    ),
    "LSTM": (lambda: _sequential((5, 8), L.LSTM(8)), RECURRENT, set()),
    "GRU": (lambda: _sequential((5, 8), L.GRU(8)), RECURRENT, set()),
    "SimpleRNN": (lambda: _sequential((5, 8), L.SimpleRNN(8)), RECURRENT, set()),
    "GRU, reset before": (
        lambda: _sequential((5, 8), L.GRU(8, reset_after=False)),
        {("kernel", 0)},
        {"weight-computed", "weight-dynamic"},
    ),
    "Embedding": (
        lambda: _sequential((5,), L.Embedding(20, 8), L.Dense(8), dtype="int32"),
        {("kernel", 0)},
        {"embedding"},
    ),
    "LoRA": (lambda: _lora(8), set(), {"weight-computed", "product-of-weights"}),
}


def _role(variable: str) -> str:
    return "/".join(variable.split("/")[-2:])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("build", "pruned", "reasons"), LAYERS.values(), ids=LAYERS)
def test_every_layer_is_pruned_or_explained(
    build: Callable[[], Any], pruned: set[tuple[str, int]], reasons: set[str], policy: str
) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy(before)
    plan = sparsekit.plan(model)
    found = {(role, axis) for role, axis in pruned for d in plan.pruned if d.weight.endswith(role) and d.axis == axis}
    assert (found, len(plan.pruned)) == (pruned, len(pruned)), str(plan)
    assert {decision.reason for decision in plan.skipped} == reasons, str(plan)
    assert all(decision.message.endswith(".") for decision in plan.skipped)

    result = sparsekit.prune(model)
    for weight in result.weights:
        kept = weight.variable.numpy() != 0
        groups = np.moveaxis(kept, weight.decision.axis, -1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
    result.finalize()
    assert sparsekit.verify(model).ok == bool(pruned)


@pytest.mark.parametrize("layer", [L.LSTM, L.GRU, lambda size: L.Bidirectional(L.LSTM(size))])
def test_recurrent_layers_are_found_where_there_is_a_gpu(
    layer: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _sequential((5, 8), layer(8))
    expected = sparsekit.plan(model).pruned
    assert expected
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["a GPU"])
    assert sparsekit.plan(model).pruned == expected
    assert all(each.use_cudnn == "auto" for each in model._flatten_layers() if hasattr(each, "use_cudnn"))


def test_a_constant_matrix_is_no_weight_of_a_model_that_trains() -> None:
    x = keras.Input((8,))
    matrix = tf.constant(np.random.default_rng(2).standard_normal((16, 8)), tf.float32)
    model = keras.Model(x, keras.ops.matmul(L.Dense(16)(x), matrix))
    result = sparsekit.prune(model)
    assert [decision.reason for decision in result.plan.skipped] == ["weight-not-stored"]
    result.finalize()
    verification = sparsekit.verify(model)
    assert verification.ok
    assert [decision.reason for decision in verification.skipped] == ["weight-not-stored"]


@pytest.mark.parametrize("masking", ["in-place", "forward"])
@pytest.mark.parametrize("layer", ["LSTM", "GRU", "MultiHeadAttention", "Conv2D in groups", "SeparableConv2D"])
def test_layers_that_read_their_weights_in_functions_train_sparse(layer: str, masking: str) -> None:
    model = LAYERS[layer][0]()
    model.compile(keras.optimizers.SGD(0.1, 0.9), "mse")
    result = sparsekit.prune(model, {"masking": masking, "update_freq": 2})
    random = np.random.default_rng(1)
    x = random.standard_normal((16, *model.input_shape[1:])).astype("f")
    y = random.standard_normal((16, *model.output_shape[1:])).astype("f")
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[result.callback])
    kept = model.predict(x, verbose=0)
    result.finalize()
    assert sparsekit.verify(model).ok
    np.testing.assert_allclose(model.predict(x, verbose=0), kept, rtol=1e-5, atol=1e-6)
