"""What 2:4 sparsity costs and what retraining wins back, on a small network and several seeds.

Rows: the dense network; the same with as much extra training as the retrained one gets (control); masks without
retraining (magnitude, random, inverted); and AMCT's flow with retraining (``amct_flow.retrain``).
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import sparsekit

try:
    import sklearn  # noqa: F401
except ImportError:
    raise SystemExit("The demo needs scikit-learn: pip install 'sparsekit[demo]'") from None

import amct_flow
from network import OUTPUT, build, evaluate, freeze, load_digits, minimize, tf1, train

import sparsekit.compat.amct_tensorflow as amct

DENSE_EPOCHS, EXTRA_EPOCHS = 40, 20
ROWS = (
    "dense",
    "dense, same extra training (control)",
    "2:4 magnitude, one-shot",
    "2:4 magnitude, retrained",
    "2:4 random, one-shot",
    "2:4 inverted, one-shot",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many networks to train (default: 5)")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="where the models go")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1")
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    amct.set_logging_level(print_level="error", save_level="info")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="tensorflow")

    console = Console()
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    steps = arguments.seeds * (DENSE_EPOCHS + 2 * EXTRA_EPOCHS + 4)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps)
        # Backwards, so that the files of seed 0 are the ones that stay.
        for seed in reversed(range(arguments.seeds)):
            progress.update(task, description=f"seed {seed}: 6 networks")
            for row, pb in models(seed, output, lambda: progress.advance(task)):
                scores[row].append(evaluate(pb, load_digits(seed)))
        progress.update(task, completed=steps)

    print_scores(console, scores)
    pruned, record = output / "user_model_pruned.pb", output / "record.txt"
    console.print("\nThe plan (seed 0):")
    console.print(str(sparsekit.plan(build(training=False).graph, outputs=[OUTPUT])), highlight=False, soft_wrap=True)
    console.print("\nThe verification of the retrained model, from its weights alone (seed 0):")
    console.print(str(sparsekit.verify(pruned, record=record)), highlight=False, soft_wrap=True)
    console.print("\nThe files (seed 0):")
    for path in (output / "dense.pb", output / "masked.pb", pruned, record, amct_flow.LOG_FILE):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    done = TextColumn("{task.percentage:>3.0f} %")
    return Progress(TextColumn("{task.description}"), BarColumn(), done, TimeElapsedColumn(), console=console)


def models(seed: int, output: Path, advance: Callable[[], Any]) -> Iterator[tuple[str, Path]]:
    """Train and prune one network; a frozen pb for every row."""
    data = load_digits(seed)
    dense = output / "dense.ckpt"

    model = build(training=True, seed=seed)
    train(model, minimize(model, 2e-3), data, DENSE_EPOCHS, save_to=dense, seed=seed, on_epoch=advance)
    yield "dense", freeze_dense(dense, output / "dense.pb")

    model = build(training=True, seed=seed)
    with model.graph.as_default():
        saver = tf1.train.Saver(tf1.global_variables())
    control = output / "control.ckpt"
    train(
        model,
        minimize(model, 1e-3),
        data,
        EXTRA_EPOCHS,
        save_to=control,
        restore=lambda session: saver.restore(session, str(dense)),
        seed=seed + 1,
        on_epoch=advance,
    )
    yield ROWS[1], freeze_dense(control, output / "control.pb")

    for row, criterion in ((ROWS[2], "magnitude"), (ROWS[4], "random"), (ROWS[5], "inverted")):
        yield row, one_shot(dense, criterion, output / f"one_shot_{criterion}.pb")
        advance()

    yield ROWS[3], amct_flow.retrain(data, dense, output, EXTRA_EPOCHS, seed=seed + 1, on_epoch=advance)


def freeze_dense(checkpoint: Path, pb: Path) -> Path:
    model = build(training=False)
    with model.graph.as_default():
        saver = tf1.train.Saver(tf1.global_variables())
    return freeze(model, lambda session: saver.restore(session, str(checkpoint)), pb)


def one_shot(checkpoint: Path, criterion: str, pb: Path) -> Path:
    """Masks chosen from the dense weights, no training after: prune, restore, freeze, strip."""
    model = build(training=False)
    with model.graph.as_default():
        # Made before the masks are inserted, so that it restores the dense checkpoint.
        saver = tf1.train.Saver(tf1.global_variables())
    sparsekit.prune(model.graph, {"criterion": criterion}, outputs=[OUTPUT])
    masked = freeze(model, lambda session: saver.restore(session, str(checkpoint)), pb)
    return sparsekit.save(sparsekit.strip(masked), pb)


def print_scores(console: Console, scores: dict[str, list[tuple[float, float]]]) -> None:
    seeds = len(scores[ROWS[0]])
    table = Table(title=f"Digits, 597 test images; mean ± standard deviation over {seeds} seeds")
    table.add_column("network")
    table.add_column("accuracy %", justify="right")
    table.add_column("cross-entropy", justify="right")
    for row in ROWS:
        accuracy, cross_entropy = np.array(scores[row]).T
        table.add_row(row, _spread(100 * accuracy, 1), _spread(cross_entropy, 3))
    console.print(table)


def _spread(values: np.ndarray, digits: int) -> str:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f}"


if __name__ == "__main__":
    main()
