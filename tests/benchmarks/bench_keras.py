"""What masks cost a training step of Keras 3, in `fit`, beside tensorflow-model-optimization (tfmot) on Keras 2.

Every number is CPU time on one thread, from several processes (instances) whose variants are interleaved; medians.

Run: python tests/benchmarks/bench_keras.py [--instances N]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instances import Instances, Variant, in_turns, one_thread, run_instances, timed

WIDTH, BATCH = 1024, 64
# Masks are chosen once in every round. Every variant is several equal models.
ROUNDS, PERIOD, MODELS = 4, 30, 3
WEIGHTS = 3 * WIDTH**2
COPIED_BYTES = 2 * 4 * (16 << 20)


def main() -> None:
    # TensorFlow's fastest matrix product: a slow step would hide what masks add.
    instances = run_instances(measure, __doc__, {"TF_ENABLE_ONEDNN_OPTS": "1"})
    if instances is not None:
        report(instances)


def report(instances: Instances) -> None:
    from sparsekit.table import text_table

    cost = instances.cost
    rows = [_dense("MLP 3x1024", "dense", instances), ("MLP, masks (in-place)", cost("masked", "dense"), "")]
    if instances.has("tfmot"):
        rows += [
            ("MLP, tfmot m_by_n on its Keras 2 twin", cost("tfmot", "tfmot dense"), ""),
            ("masks, added time against tfmot's", instances.ratio(_against_tfmot), "<= 0.6x"),
        ]
    else:
        rows.append(("tfmot is not installed: its rows are left out", "", ""))
    rows += [
        *_choices("MLP", "", instances),
        _dense("MLP with jit_compile", "xla dense", instances),
        ("MLP with jit_compile, masks (project)", cost("xla masked", "xla dense"), "<= +5 %"),
        *_choices("MLP with jit_compile", "xla ", instances),
        _dense("conv net", "conv dense", instances),
        ("conv net, masks (in-place)", cost("conv masked", "conv dense"), "<= +3 %"),
        (
            f"MLP, bound at {_speed(instances):.0f} GB/s: 12 bytes a weight, or 4 where the gradient is cached",
            f"{_bound(instances, 12, 'dense')}; {_bound(instances, 4, 'dense')}",
            "",
        ),
        (
            "MLP with jit_compile, bound: 4 bytes a weight, fused with the update",
            _bound(instances, 4, "xla dense"),
            "",
        ),
    ]
    title = f"Keras 3, CPU time, one thread, n={len(instances.runs)} instances of {MODELS} models: median (range)"
    print(text_table((title, "measured", "limit"), rows), end="")


def _dense(net: str, name: str, instances: Instances) -> tuple[str, str, str]:
    return f"{net}, dense step, ms", f"{1e3 * instances.median(name):.2f}", ""


def _choices(net: str, kind: str, instances: Instances) -> list[tuple[str, str, str]]:
    def of_one(run: Mapping[str, float]) -> float:
        return (run[f"{kind}every step"] - run[f"{kind}masked"]) / run[f"{kind}dense"]

    average = instances.cost(f"{kind}every {PERIOD} steps", f"{kind}masked")
    return [
        (f"{net}, choosing all masks, in dense steps", instances.ratio(of_one), "<= 1x"),
        (f"{net}, masks chosen every {PERIOD} steps, over static ones", average, "<= +3 %"),
    ]


def _against_tfmot(run: Mapping[str, float]) -> float:
    return (run["masked"] - run["dense"]) / (run["tfmot"] - run["tfmot dense"])


def _speed(instances: Instances) -> float:
    return COPIED_BYTES / instances.median("copy") / 1e9


def _bound(instances: Instances, bytes_per_weight: int, dense: str) -> str:
    """What moving so many bytes takes, in percent of a dense step."""
    seconds = bytes_per_weight * WEIGHTS / COPIED_BYTES * instances.median("copy")
    return f"{100 * seconds / instances.median(dense):+.1f} %"


def measure() -> dict[str, float]:
    """Seconds of CPU a step, for every variant."""
    import keras
    import numpy as np

    one_thread()
    source, target = np.ones((2, COPIED_BYTES // 8), np.float32)
    variants = {"copy": [timed(lambda: np.copyto(target, source))]}
    for _ in range(MODELS):
        built = tfmot_variants()
        for kind, jit in (("", False), ("xla ", True)):
            for name, config in _CONFIGS.items():
                built[kind + name] = pruned_steps(mlp(keras), config, jit)
        for name in ("dense", "masked"):
            built[f"conv {name}"] = pruned_steps(conv_net(keras), _CONFIGS[name], False)
        for name, variant in built.items():
            variants.setdefault(name, []).append(variant)
    return in_turns(variants, ROUNDS, PERIOD)


_CONFIGS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "masked": {},
    f"every {PERIOD} steps": {"update_freq": PERIOD},
    "every step": {"update_freq": 1},
}


def mlp(keras: Any) -> Any:
    """Of Keras 3 or 2."""
    layers = [keras.layers.Dense(WIDTH, activation="relu", use_bias=False) for _ in range(3)]
    return keras.Sequential([keras.Input([WIDTH]), *layers])


def conv_net(keras: Any) -> Any:
    layers = [
        keras.layers.Conv2D(width, 3, strides, "same", activation="relu", use_bias=False)
        for width, strides in ((16, 2), (32, 1), (32, 2), (64, 1))
    ]
    return keras.Sequential([keras.Input([WIDTH]), keras.layers.Reshape([32, 32, 1]), *layers])


def pruned_steps(model: Any, config: dict[str, Any] | None, jit: bool) -> Variant:
    import keras

    import sparsekit

    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=jit)
    return fitted(keras, model, [] if config is None else [sparsekit.prune(model, config).callback])


def tfmot_variants() -> dict[str, Variant]:
    """tfmot's own way, on Keras 2, which is all it supports; nothing where it is not installed."""
    try:
        import tensorflow_model_optimization as tfmot
    except ImportError:
        return {}
    import tf_keras

    def steps_of(wrap: Callable[[Any], Any], callbacks: Sequence[Any]) -> Variant:
        model = wrap(mlp(tf_keras))
        model.compile(tf_keras.optimizers.SGD(1e-3), "mse")
        return fitted(tf_keras, model, callbacks)

    prune = tfmot.sparsity.keras.prune_low_magnitude
    return {
        "tfmot dense": steps_of(lambda model: model, []),
        "tfmot": steps_of(
            lambda model: prune(model, sparsity_m_by_n=(2, 4)), [tfmot.sparsity.keras.UpdatePruningStep()]
        ),
    }


def fitted(keras: Any, model: Any, callbacks: Sequence[Any]) -> Variant:
    """Steps of an epoch of `fit`, with what callbacks do between them, without what they do before and after."""
    import numpy as np
    import tensorflow as tf

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 0:
                self.started = time.process_time()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.spent = time.process_time() - self.started

    clock = Clock()
    x = np.random.RandomState(0).randn(BATCH, WIDTH).astype(np.float32)
    batches = tf.data.Dataset.from_tensors((x, np.zeros((BATCH, *model.output_shape[1:]), np.float32)))
    batches = batches.cache().repeat()

    def run(steps: int) -> float:
        model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=[clock, *callbacks])
        return clock.spent / steps

    return run


if __name__ == "__main__":
    main()
