"""The tables, in Markdown."""

from __future__ import annotations

from accuracy.networks import Benchmark
from accuracy.results import NOT_AVAILABLE, Results, targets
from accuracy.rows import DEFAULT

INTRODUCTION = """\
# Accuracy of pruned networks

Written by `make bench-accuracy`. A row is what `sparsekit.prune` was told beside its defaults. *Weights alone* saw no
samples; *with calibration samples* saw samples like those of the training, chosen before anything was scored, and
never those that are scored; *retrained* went on from the dense network with static masks, the control with as much
training and no masks. Nothing was chosen by its score: all rows are shown.{not_available}

- Mean ± standard deviation over seeds; a seed is another split, network, calibration and test set (digits), or another
  draw of sounds for calibration and test (basic-pitch, crepe). Where there is no ±, there was one.
- accuracy: percent; of crepe, pitches within 50 cents. f1: decisions about notes and onsets at the package's thresholds
  (0.3, 0.5) beside the dense network's; against the truth: about notes beside those that were played.
- kl: mean divergence from the dense network's probabilities, in nats; of basic-pitch and crepe, summed over the outputs
  of a frame. output error: energy of the difference from the dense network's outputs, in percent of theirs.
- layer error: the same of every layer's own outputs, on the calibration samples; the mean over layers.
- A retrained network may be as good as the dense one and yet far from it in kl: compare it with its control.

![Divergence from the dense network by method](accuracy.svg)
"""


def markdown(results: Results) -> str:
    """Everything that was measured."""
    absent = any(not scores for rows in results.scores.values() for scores in rows.values())
    remark = f'\n"{NOT_AVAILABLE.capitalize()}" is a row whose config this version refuses.' if absent else ""
    parts = [INTRODUCTION.format(not_available=remark), "## Targets\n"]
    parts.append("".join(f"- {target}\n" for target in targets(results)))
    return "\n".join([*parts, *(_table(results, benchmark) for benchmark in results.known())])


def _table(results: Results, benchmark: Benchmark) -> str:
    name, seeds = benchmark.name, results.seeds(benchmark.name)
    title = f"## {name}: {benchmark.title}\n\n{seeds} seed{'s' * (seeds != 1)}; {results.versions[name]}\n\n"
    titles = ["", *(measure.name for measure in benchmark.measures)]
    lines = [_line(titles), _line(["---", *("---:" for _ in benchmark.measures)])]
    group = ""
    for row in benchmark.rows:
        if row.group != group:
            group = row.group
            lines.append(_line([f"**{group}**", *("" for _ in benchmark.measures)]))
        label = row.label if row.config is None else f"`{row.label}`"
        label = f"**{label}**" if row == DEFAULT else label
        if not results.scores[name].get(row.key):
            lines.append(_line([label, NOT_AVAILABLE, *("" for _ in benchmark.measures[1:])]))
            continue
        lines.append(_line([label, *(results.shown(name, row, m.name, m.digits) for m in benchmark.measures)]))
    return title + "".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
