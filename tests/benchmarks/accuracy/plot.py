"""The divergence from the dense network by method, a panel for every network, as an SVG.

Written by hand, so that nothing but text comes out: colours that can be read on white and on black, no background.
"""

from __future__ import annotations

import math
import statistics
from html import escape

from accuracy.networks import Benchmark
from accuracy.results import Results
from accuracy.rows import DEFAULT, MAGNITUDE, WITH_SAMPLES, WITHOUT_SAMPLES, Row

ROWS = (
    Row(WITHOUT_SAMPLES, {"criterion": "random"}),
    MAGNITUDE,
    *(
        Row(WITH_SAMPLES, {"criterion": criterion, "repair": repair})
        for criterion, repair in (
            ("wanda", []),
            ("magnitude", ["scale-shift"]),
            ("magnitude", ["batch-norm"]),
            ("magnitude", ["least-squares"]),
            ("wanda", ["least-squares"]),
            ("sparsegpt", []),
            ("sparsegpt", ["least-squares"]),
        )
    ),
    DEFAULT,
    Row(WITH_SAMPLES, {"target_path": "dense"}),
    Row(WITH_SAMPLES, {"keep_dense": 0.0}),
    Row(WITH_SAMPLES, {"min_weights": 1024}),
)
MEASURE = "kl"

TEXT = "#7d8590"
COLOURS = {WITHOUT_SAMPLES: "#d9694f", WITH_SAMPLES: "#3f8fd2", "default": "#2da160"}
LABELS, PANEL, GAP, LINE = 196, 214, 16, 21
ACROSS = 3
HEAD, BLOCK_HEAD, BLOCK_FOOT, FOOT = 26, 34, 22, 26


def svg(results: Results) -> str:
    """The picture of everything that was measured."""
    benchmarks = [benchmark for benchmark in results.known() if any(_values(results, benchmark, row) for row in ROWS)]
    rows = [row for row in ROWS if any(_values(results, benchmark, row) for benchmark in benchmarks)]
    blocks = [benchmarks[start : start + ACROSS] for start in range(0, len(benchmarks), ACROSS)]
    block_height = BLOCK_HEAD + len(rows) * LINE + BLOCK_FOOT
    width, height = LABELS + ACROSS * (PANEL + GAP), HEAD + len(blocks) * block_height + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12" fill="{TEXT}">',
        "<title>Divergence from the dense network by method</title>",
        *_legend(),
    ]
    for number, block in enumerate(blocks):
        top = HEAD + number * block_height + BLOCK_HEAD
        for index, row in enumerate(rows):
            weight = "bold" if row == DEFAULT else "normal"
            parts.append(
                f'<text x="{LABELS - 10}" y="{_y(top, index) + 4}" text-anchor="end" fill="{_colour(row)}" '
                f'font-weight="{weight}">{escape(_short(row))}</text>'
            )
        for index, benchmark in enumerate(block):
            parts += _panel(results, benchmark, rows, LABELS + index * (PANEL + GAP), top)
    parts.append(
        f'<text x="{LABELS + (width - LABELS) / 2}" y="{height - 8}" text-anchor="middle">'
        "divergence from the dense network in nats, logarithmic, less is better; bars: least to most over seeds</text>"
    )
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> list[str]:
    parts, x = [], LABELS + 5
    for name, colour in COLOURS.items():
        text = {"default": "the defaults, with calibration samples"}.get(name, name)
        parts.append(f'<circle cx="{x}" cy="14" r="4.5" fill="{colour}"/><text x="{x + 10}" y="18">{text}</text>')
        x += 10 + 6.4 * len(text) + 16
    return parts


def _panel(results: Results, benchmark: Benchmark, rows: list[Row], left: float, top: float) -> list[str]:
    scores = {index: _values(results, benchmark, row) for index, row in enumerate(rows)}
    shown = [value for values in scores.values() for value in values]
    low, high = math.log10(min(shown)) - 0.12, math.log10(max(shown)) + 0.12
    bottom = top + len(rows) * LINE

    def x(value: float) -> float:
        return round(left + PANEL * (math.log10(value) - low) / (high - low), 1)

    parts = [
        f'<text x="{left + PANEL / 2}" y="{top - 8}" text-anchor="middle" font-weight="bold" font-size="13">'
        f"{escape(benchmark.name)}</text>",
        f'<rect x="{left}" y="{top}" width="{PANEL}" height="{bottom - top}" fill="none" '
        f'stroke="{TEXT}" stroke-opacity="0.35"/>',
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = x(10.0**power)
        parts.append(f'<line x1="{at}" y1="{top}" x2="{at}" y2="{bottom}" stroke="{TEXT}" stroke-opacity="0.35"/>')
        parts.append(f'<text x="{at}" y="{bottom + 14}" text-anchor="middle" font-size="11">{10.0**power:g}</text>')
    for index, values in scores.items():
        y, colour = _y(top, index), _colour(rows[index])
        if not values:
            parts.append(f'<text x="{left + PANEL / 2}" y="{y + 4}" text-anchor="middle" font-size="10">-</text>')
            continue
        mean, start = x(statistics.fmean(values)), left + 1
        parts.append(
            f'<line x1="{start}" y1="{y}" x2="{mean}" y2="{y}" stroke="{colour}" stroke-width="1" opacity="0.45"/>'
        )
        if len(values) > 1:
            parts.append(
                f'<line x1="{x(min(values))}" y1="{y}" x2="{x(max(values))}" y2="{y}" stroke="{colour}" '
                'stroke-width="3" stroke-linecap="round" opacity="0.6"/>'
            )
        parts.append(f'<circle cx="{mean}" cy="{y}" r="4.5" fill="{colour}"/>')
    return parts


def _values(results: Results, benchmark: Benchmark, row: Row) -> list[float]:
    # A logarithm has no place for a network that differs in nothing.
    return [max(value, 1e-9) for value in results.values(benchmark.name, row, MEASURE)]


def _y(top: float, index: int) -> float:
    return top + (index + 0.5) * LINE


def _colour(row: Row) -> str:
    return COLOURS["default" if row == DEFAULT else row.group]


def _short(row: Row) -> str:
    """The config in few words, for people who see the picture alone."""
    if row == DEFAULT:
        return "defaults (admm)"
    config = dict(row.config or {})
    if "criterion" in config or row == MAGNITUDE:
        repair = " + ".join(config.get("repair", []))
        return f"{config.get('criterion', 'magnitude')}{f' + {repair}' if repair else ''}"
    return ", ".join(f"{key} = {value}" for key, value in config.items())
