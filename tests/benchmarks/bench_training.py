"""What masks cost a training step, beside tensorflow-model-optimization (tfmot) in the same run.

Every number is CPU time on one thread, from several processes (instances) whose variants are interleaved; medians.

Run: python tests/benchmarks/bench_training.py [--instances N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROUNDS, STEPS = 15, 20
WIDTH, BATCH = 1024, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure()))
        return
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--worker"]
    runs = []
    for _ in range(arguments.instances):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    report(runs)


def report(runs: list[dict[str, float]]) -> None:
    from sparsekit.table import text_table

    def median(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    def cost(name: str, base: str) -> str:
        percents = [100 * (run[name] / run[base] - 1) for run in runs]
        return f"{statistics.median(percents):+.1f} % ({min(percents):+.1f}..{max(percents):+.1f})"

    rows = [
        ("MLP 3x1024, dense step, ms", f"{1e3 * median('mlp dense'):.2f}", ""),
        ("MLP, static masks", cost("mlp masked", "mlp dense"), ""),
        ("MLP, zeros in the variables, gradients masked", cost("mlp in-place", "mlp dense"), "<= static masks"),
        ("MLP, zeros written after every update", cost("mlp project", "mlp dense"), ""),
        ("MLP, a multiply and a masked gradient written by hand", cost("mlp by hand", "mlp dense"), ""),
        ("not due: static masks against written by hand", cost("mlp masked", "mlp by hand"), "about 0"),
    ]
    if "keras dense" in runs[0]:

        def against_tfmot(name: str) -> str:
            ratios = [(run[name] - run["mlp dense"]) / (run["keras tfmot"] - run["keras dense"]) for run in runs]
            return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}..{max(ratios):.2f})"

        rows += [
            ("MLP, tfmot m_by_n on its Keras 2 twin", cost("keras tfmot", "keras dense"), ""),
            ("static masks, added time against tfmot's", against_tfmot("mlp masked"), "<= 1.5x"),
            ("zeros in the variables, added time against tfmot's", against_tfmot("mlp in-place"), "<= 0.7x"),
            (
                "choosing all masks, tfmot's time against ours",
                f"{statistics.median(run['tfmot choose'] / run['choose'] for run in runs):.0f}x",
                ">= 10x",
            ),
        ]
    else:
        rows.append(("tfmot is not installed: its rows are left out", "", ""))
    rows += [
        (
            "choosing all masks, in dense steps",
            f"{statistics.median(run['choose'] / run['mlp dense'] for run in runs):.2f}",
            "<= 1",
        ),
        ("MLP, masks chosen at every batch", cost("mlp every batch", "mlp dense"), "<= +100 % over static"),
        ("conv net, dense step, ms", f"{1e3 * median('conv dense'):.2f}", ""),
        ("conv net, static masks", cost("conv masked", "conv dense"), "<= +3 %"),
    ]
    header = (f"training, CPU time, one thread, median of n={len(runs)} instances (range)", "measured", "limit")
    print(text_table(header, rows), end="")


def measure() -> dict[str, float]:
    """Seconds of CPU a step, for every variant."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    variants: dict[str, Callable[[int], Any]] = {
        "mlp dense": session_steps(mlp, None),
        "mlp masked": session_steps(mlp, {}),
        "mlp in-place": session_steps(mlp, {"masking": "in-place"}),
        "mlp project": session_steps(mlp, {"masking": "project"}),
        "mlp by hand": session_steps(mlp, None, by_hand=True),
        "mlp every batch": session_steps(mlp, {"update_freq": 1}),
        "conv dense": session_steps(conv_net, None),
        "conv masked": session_steps(conv_net, {}),
        "choose": choosing(),
        **tfmot_variants(),
    }
    for run in variants.values():
        run(3)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, run in variants.items():
            start = time.process_time()
            run(STEPS)
            seconds[name].append((time.process_time() - start) / STEPS)
    return {name: statistics.median(values) for name, values in seconds.items()}


def mlp(x: Any, weight: Callable[[Any], Any]) -> Any:
    import tensorflow as tf

    for layer in range(3):
        x = tf.nn.relu(tf.matmul(x, weight(tf.compat.v1.get_variable(f"w{layer}", [WIDTH, WIDTH]))))
    return tf.reduce_mean(tf.square(x))


def conv_net(x: Any, weight: Callable[[Any], Any]) -> Any:
    import tensorflow as tf

    x = tf.reshape(x, [-1, 32, 32, 1])
    for layer, (inputs, width) in enumerate([(1, 16), (16, 32), (32, 32), (32, 64)]):
        kernel = weight(tf.compat.v1.get_variable(f"k{layer}", [3, 3, inputs, width]))
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1 if layer % 2 else 2, "SAME"))
    return tf.reduce_mean(tf.square(x))


def session_steps(
    network: Callable[..., Any], config: dict[str, Any] | None, by_hand: bool = False
) -> Callable[[int], None]:
    """Training steps of a TF1 graph, dense (config None), masked by sparsekit or by hand."""
    import numpy as np
    import tensorflow as tf

    import sparsekit

    tf1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        x = tf.constant(np.random.RandomState(0).randn(BATCH, WIDTH).astype(np.float32))
        loss = network(x, _masked_by_hand if by_hand else lambda variable: variable)
        if config is not None:
            result = sparsekit.prune(graph, config, outputs=[loss])
        train_op = tf1.train.GradientDescentOptimizer(1e-3).minimize(loss)
        if config is not None and config.get("masking") == "project":
            train_op = result.project(train_op)
        session = tf1.Session(config=_one_thread())
        session.run(tf1.global_variables_initializer())
    step = session.make_callable(train_op)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def _masked_by_hand(variable: Any) -> Any:
    import tensorflow as tf

    mask = tf.compat.v1.get_variable(
        f"{variable.op.name}_mask", variable.shape, initializer=tf.compat.v1.ones_initializer(), trainable=False
    )
    return variable * mask


def choosing() -> Callable[[int], None]:
    """Choosing the masks of the three layers of the MLP, as it is done inside the graph."""
    import tensorflow as tf

    from sparsekit.masking import keep_tensor
    from sparsekit.pattern import Pattern

    return _kernel(lambda weight: tf.cast(keep_tensor(weight, 0, Pattern(2, 4)), tf.float32))


def _kernel(choose: Callable[[Any], Any]) -> Callable[[int], None]:
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        weights = [tf1.get_variable(f"w{layer}", [WIDTH, WIDTH]) for layer in range(3)]
        # Fetched, since a pure op that is only waited for would be optimized away.
        op = tf.add_n([tf.reduce_max(choose(tf.identity(weight))) for weight in weights])
        session = tf1.Session(config=_one_thread())
        session.run(tf1.global_variables_initializer())
    step = session.make_callable(op)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def tfmot_variants() -> dict[str, Callable[[int], None]]:
    """tfmot's own way, on Keras 2, which is all it supports; nothing where it is not installed."""
    try:
        import tensorflow_model_optimization as tfmot
        from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils
    except ImportError:
        return {}
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

    data = np.random.RandomState(0).randn(BATCH, WIDTH).astype(np.float32)

    def steps_of(wrap: Callable[[Any], Any], callbacks: list[Any]) -> Callable[[int], None]:
        layers = [keras.layers.Dense(WIDTH, activation="relu", use_bias=False) for _ in range(3)]
        model = wrap(keras.Sequential([keras.Input([WIDTH]), *layers]))
        model.compile(keras.optimizers.SGD(1e-3), "mse")
        batch = tf.data.Dataset.from_tensors((data, np.zeros_like(data))).cache().repeat()

        def run(steps: int) -> None:
            model.fit(batch, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=callbacks)

        return run

    def prune(model: Any) -> Any:
        return tfmot.sparsity.keras.prune_low_magnitude(model, sparsity_m_by_n=(2, 4))

    def tfmot_mask(weight: Any) -> Any:
        flat = pruning_utils.weights_rearrange(weight)
        mask = pruning_utils.generate_m_by_n_mask(flat, (2, 4))
        return pruning_utils.m_by_n_sparsity_mask_prepare(mask, weight.shape)

    return {
        "keras dense": steps_of(lambda model: model, []),
        "keras tfmot": steps_of(prune, [tfmot.sparsity.keras.UpdatePruningStep()]),
        "tfmot choose": _kernel(tfmot_mask),
    }


def _one_thread() -> Any:
    import tensorflow as tf

    return tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)


if __name__ == "__main__":
    main()
