"""What masks cost a training step, beside tensorflow-model-optimization (tfmot) in the same run.

Every number is CPU time on one thread, from several processes (instances) whose variants are interleaved; medians.

Run: python tests/benchmarks/bench_training.py [--instances N]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench_keras import BATCH, WIDTH, tfmot_variants
from instances import Instances, Variant, in_turns, one_thread, run_instances, timed

ROUNDS, STEPS = 15, 20


def main() -> None:
    instances = run_instances(measure, __doc__)
    if instances is not None:
        report(instances)


def report(instances: Instances) -> None:
    from sparsekit.table import text_table

    median, cost = instances.median, instances.cost
    rows = [
        ("MLP 3x1024, dense step, ms", f"{1e3 * median('mlp dense'):.2f}", ""),
        ("MLP, static masks", cost("mlp masked", "mlp dense"), ""),
        ("MLP, zeros in the variables, gradients masked", cost("mlp in-place", "mlp dense"), "<= static masks"),
        ("MLP, zeros written after every update", cost("mlp project", "mlp dense"), ""),
        ("MLP, a multiply and a masked gradient written by hand", cost("mlp by hand", "mlp dense"), ""),
        ("MLP, static masks against those written by hand", cost("mlp masked", "mlp by hand"), "about 0"),
    ]
    if instances.has("tfmot"):

        def against_tfmot(name: str) -> str:
            return instances.ratio(lambda run: (run[name] - run["mlp dense"]) / (run["tfmot"] - run["tfmot dense"]))

        rows += [
            ("MLP, tfmot m_by_n on its Keras 2 twin", cost("tfmot", "tfmot dense"), ""),
            ("static masks, added time against tfmot's", against_tfmot("mlp masked"), "<= 1.5x"),
            ("zeros in the variables, added time against tfmot's", against_tfmot("mlp in-place"), "<= 0.7x"),
            (
                "choosing all masks, tfmot's time against ours",
                instances.ratio(lambda run: run["tfmot choose"] / run["choose"]),
                ">= 10x",
            ),
        ]
    else:
        rows.append(("tfmot is not installed: its rows are left out", "", ""))
    rows += [
        (
            "choosing all masks, in dense steps",
            instances.ratio(lambda run: run["choose"] / run["mlp dense"]),
            "<= 1x",
        ),
        ("MLP, masks chosen at every batch, over static ones", cost("mlp every batch", "mlp masked"), "<= +100 %"),
        ("conv net, dense step, ms", f"{1e3 * median('conv dense'):.2f}", ""),
        ("conv net, static masks", cost("conv masked", "conv dense"), "<= +3 %"),
    ]
    title = f"training, CPU time, one thread, median of n={len(instances.runs)} instances (range)"
    print(text_table((title, "measured", "limit"), rows), end="")


def measure() -> dict[str, float]:
    """Seconds of CPU a step, for every variant."""
    one_thread()
    variants = {
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
        **tfmot_choosing(),
    }
    return in_turns(variants, ROUNDS, STEPS)


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


def session_steps(network: Callable[..., Any], config: dict[str, Any] | None, by_hand: bool = False) -> Variant:
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
    return timed(session.make_callable(train_op))


def _masked_by_hand(variable: Any) -> Any:
    import tensorflow as tf

    mask = tf.compat.v1.get_variable(
        f"{variable.op.name}_mask", variable.shape, initializer=tf.compat.v1.ones_initializer(), trainable=False
    )
    return variable * mask


def choosing() -> Variant:
    """Choosing the masks of the three layers of the MLP, as it is done inside the graph."""
    import tensorflow as tf

    from sparsekit.live.mask import keep_tensor
    from sparsekit.pattern import Pattern

    return _kernel(lambda weight: tf.cast(keep_tensor(weight, 0, Pattern(2, 4)), tf.float32))


def _kernel(choose: Callable[[Any], Any]) -> Variant:
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default():
        weights = [tf1.get_variable(f"w{layer}", [WIDTH, WIDTH]) for layer in range(3)]
        # Fetched, since a pure op that is only waited for would be optimized away.
        op = tf.add_n([tf.reduce_max(choose(tf.identity(weight))) for weight in weights])
        session = tf1.Session(config=_one_thread())
        session.run(tf1.global_variables_initializer())
    return timed(session.make_callable(op))


def tfmot_choosing() -> dict[str, Variant]:
    """The same by tfmot's own kernel; nothing where it is not installed."""
    try:
        from tensorflow_model_optimization.python.core.sparsity.keras import pruning_utils
    except ImportError:
        return {}

    def tfmot_mask(weight: Any) -> Any:
        flat = pruning_utils.weights_rearrange(weight)
        mask = pruning_utils.generate_m_by_n_mask(flat, (2, 4))
        return pruning_utils.m_by_n_sparsity_mask_prepare(mask, weight.shape)

    return {"tfmot choose": _kernel(tfmot_mask)}


def _one_thread() -> Any:
    import tensorflow as tf

    return tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)


if __name__ == "__main__":
    main()
