"""Scores by network, row and measure, a list with one number for every seed; kept in a file between runs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import attrs

from accuracy.networks import BENCHMARKS, Benchmark, Scores
from accuracy.rows import DEFAULT, DENSE, Row

NOT_AVAILABLE = "not available"


@attrs.define(eq=False)
class Results:
    """What was measured.

    Attributes:
        scores: by network and row; a row that is not available is an empty list.
        versions: of what each network was measured with.
    """

    scores: dict[str, dict[str, list[dict[str, float]]]] = attrs.field(factory=dict)
    versions: dict[str, str] = attrs.field(factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Those of earlier runs; none where there is no file."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"scores": self.scores, "versions": self.versions}, indent=1) + "\n")

    def begin(self, name: str, versions: str) -> None:
        """Forget what was measured of a network."""
        self.scores[name], self.versions[name] = {}, versions

    def add(self, name: str, key: str, scores: Scores) -> None:
        of_row = self.scores[name].setdefault(key, [])
        if scores is not None:
            # Six digits are more than any seed repeats, and keep the file small.
            of_row.append({measure: float(f"{value:.6g}") for measure, value in scores.items()})

    def values(self, name: str, row: Row, measure: str) -> list[float]:
        """One number for every seed; empty where there is none."""
        return [scores[measure] for scores in self.scores.get(name, {}).get(row.key, []) if measure in scores]

    def seeds(self, name: str) -> int:
        return len(self.scores.get(name, {}).get(DENSE.key, []))

    def known(self) -> list[Benchmark]:
        """The networks that were measured."""
        return [benchmark for benchmark in BENCHMARKS if self.seeds(benchmark.name)]

    def shown(self, name: str, row: Row, measure: str, digits: int) -> str:
        """Mean and standard deviation over the seeds."""
        if not self.scores.get(name, {}).get(row.key):
            return NOT_AVAILABLE
        values = self.values(name, row, measure)
        if not values:
            return "-"
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"


@attrs.frozen
class Target:
    """What the default of one-shot pruning with samples is to reach.

    Attributes:
        network: of which network.
        text: the demand.
        found: what was measured, None where it was not.
        short: by how much it is missed; 0 or less: it is met.
    """

    network: str
    text: str
    found: str | None
    short: float

    def __str__(self) -> str:
        verdict = "not measured" if self.found is None else "met" if self.short <= 0 else f"MISSED by {self.short:.4g}"
        return f"{self.text}: {self.found or '-'}: {verdict}"


def targets(results: Results) -> list[Target]:
    """The demands on the defaults, and what became of them."""

    def mean(name: str, measure: str, row: Row = DEFAULT) -> float | None:
        values = results.values(name, row, measure)
        return statistics.fmean(values) if values else None

    def close_to_dense(name: str, most: float) -> Target:
        text = f"{name}: accuracy of the defaults within {most:g} points of dense"
        dense, found = mean(name, "accuracy", DENSE), mean(name, "accuracy")
        if dense is None or found is None:
            return Target(name, text, None, 0.0)
        return Target(name, text, f"{found:.2f} of {dense:.2f}", dense - found - most)

    def at_least(name: str, measure: str, least: float) -> Target:
        text, found = f"{name}: {measure} of the defaults at least {least:g}", mean(name, measure)
        return Target(name, text, None, 0.0) if found is None else Target(name, text, f"{found:.4f}", least - found)

    return [
        close_to_dense("cnn", 1.5),
        close_to_dense("mlpn", 1.0),
        at_least("basic-pitch", "f1", 0.985),
        close_to_dense("crepe", 1.0),
        at_least("crepe", "correlation", 0.997),
    ]
