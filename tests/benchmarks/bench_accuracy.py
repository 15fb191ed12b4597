"""What pruning costs in accuracy, on networks trained here and on trained networks that others made.

Run ``python tests/benchmarks/bench_accuracy.py [digits] [basic-pitch] [crepe] [--seeds N]``; without a word, all of
them. Writes a table and a plot; parts that are not measured keep what an earlier run found. It ends with the targets
and exit status 1 where one of those that were measured is missed.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import queue
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="digits, basic-pitch, crepe (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="of the networks trained here (default: 5)")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="where the table and the plot go")
    arguments = parser.parse_args()
    # One thread a process: small networks gain nothing from more, and the numbers do not depend on the machine.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[variable] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    from accuracy.networks import BENCHMARKS
    from accuracy.plot import svg
    from accuracy.report import markdown
    from accuracy.results import Results, targets

    known = sorted({benchmark.part for benchmark in BENCHMARKS})
    if unknown := set(arguments.parts) - set(known):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    wanted = [benchmark for benchmark in BENCHMARKS if benchmark.part in (arguments.parts or known)]

    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "accuracy.json"
    results = Results.read(kept)
    tasks = []
    for benchmark in wanted:
        seeds = min(arguments.seeds, benchmark.seeds or arguments.seeds)
        tasks += [(benchmark.name, seed) for seed in range(seeds)]
    # The longest first, or one process would be left alone with one at the end; then seed by seed.
    tasks.sort(key=lambda task: (task[0] not in ("crepe", "basic-pitch"), task[1]))
    done: dict[tuple[str, int], list[tuple[str, Any]]] = {}
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(arguments.jobs, maxtasksperchild=1) as pool:
        said = manager.Queue()
        run = pool.map_async(functools.partial(measure, said=said), tasks, chunksize=1)
        while not (run.ready() and said.empty()):
            try:
                task, key, score = said.get(timeout=1)
            except queue.Empty:
                continue
            done.setdefault(task, []).append((key, score))
            results.begin(task[0], _versions())
            for name, seed in sorted(done):
                if name == task[0]:
                    for row, scores in done[name, seed]:
                        results.add(name, row, scores)
            # Written anew each time: what was measured stays when the rest is interrupted.
            results.write(kept)
            (arguments.output / "accuracy.md").write_text(markdown(results))
            (arguments.output / "accuracy.svg").write_text(svg(results))
        run.get()  # raises what a process raised

    print(f"\nWritten: {arguments.output / 'accuracy.md'}, accuracy.svg, accuracy.json\n")
    names = {benchmark.name for benchmark in wanted}
    found = targets(results)
    for target in found:
        print(target)
    sys.exit(any(target.short > 0 and target.network in names for target in found))


def measure(task: tuple[str, int], said: Any) -> None:
    """All rows of one network with one seed; runs in a process of its own, and says each row as it has it."""
    import logging
    import warnings

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from accuracy.networks import BENCHMARKS

    name, seed = task
    (benchmark,) = (benchmark for benchmark in BENCHMARKS if benchmark.name == name)
    begun = time.monotonic()
    for number, (row, score) in enumerate(benchmark.run(seed, benchmark.rows), 1):
        said.put((task, row.key, score))
        first = benchmark.measures[0].name
        text = "not available" if score is None else f"{first} {score[first]:.4g}, kl {score['kl']:.4g}"
        now = f"{number}/{len(benchmark.rows)}, {time.monotonic() - begun:.0f} s"
        print(f"{name} seed {seed} ({now}): {row.group or 'reference'}, {row.label}: {text}", flush=True)


def _versions() -> str:
    return ", ".join(f"{package} {metadata.version(package)}" for package in ("sparsekit", "tensorflow", "numpy"))


if __name__ == "__main__":
    main()
