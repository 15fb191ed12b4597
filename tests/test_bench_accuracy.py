"""What `make bench-accuracy` says: end to end on the smallest network, and its verdicts on numbers that are known."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from accuracy.networks import BENCHMARKS, run_digits
from accuracy.plot import ROWS, svg
from accuracy.report import markdown
from accuracy.results import Results, targets
from accuracy.rows import DEFAULT, DENSE, MAGNITUDE, RETRAINED, WITH_SAMPLES, WITHOUT_SAMPLES, Row
from accuracy.scoring import bernoulli_divergence, correlation, divergence, f1, lost_energy

RANDOM = Row(WITHOUT_SAMPLES, {"criterion": "random"})
LEAST_SQUARES = Row(WITH_SAMPLES, {"criterion": "magnitude", "repair": ["least-squares"]})
UNKNOWN = Row(WITH_SAMPLES, {"repair": ["by-magic"]})
RETRAINED_3 = Row(RETRAINED, {}, 3)


def test_on_a_narrow_network_magnitude_beats_random_and_samples_and_training_beat_magnitude():
    rows = (DENSE, MAGNITUDE, RANDOM, DEFAULT, LEAST_SQUARES, UNKNOWN, RETRAINED_3)
    found = {row.key: scores for row, scores in run_digits("mlpn", 1, rows)}
    assert list(found) == [row.key for row in rows]
    assert found[DENSE.key]["accuracy"] > 90 and found[DENSE.key]["kl"] == 0
    assert found[MAGNITUDE.key]["accuracy"] - found[RANDOM.key]["accuracy"] > 25
    assert found[LEAST_SQUARES.key]["kl"] < 0.5 * found[MAGNITUDE.key]["kl"]
    assert found[DEFAULT.key]["kl"] < found[LEAST_SQUARES.key]["kl"]
    assert found[DEFAULT.key]["layer error"] < found[LEAST_SQUARES.key]["layer error"]
    assert found[RETRAINED_3.key]["accuracy"] > found[MAGNITUDE.key]["accuracy"]
    assert found[UNKNOWN.key] is None


def results_of(default_accuracy: float) -> Results:
    """Of mlpn: a dense network with 95 %, and the defaults."""
    results = Results()
    results.begin("mlpn", "versions")
    for row in next(benchmark for benchmark in BENCHMARKS if benchmark.name == "mlpn").rows:
        for seed in (-1, 1):
            accuracy = {DENSE.key: 95.0, DEFAULT.key: default_accuracy}.get(row.key, 50.0) + seed
            results.add("mlpn", row.key, None if row == MAGNITUDE else {"accuracy": accuracy, "kl": 0.02 + seed / 100})
    return results


@pytest.mark.parametrize(("accuracy", "verdict"), [(94.5, "met"), (93.75, "MISSED by 0.25")])
def test_a_missed_target_says_by_how_much_and_what_was_not_measured_is_not_met(accuracy, verdict):
    said = {target.network: str(target) for target in targets(results_of(accuracy))}
    assert said["mlpn"].endswith(f"{accuracy:.2f} of 95.00: {verdict}")
    assert said["basic-pitch"].endswith("not measured")


def test_the_table_shows_every_row_by_its_config_and_those_that_are_not_available():
    lines = markdown(results_of(94.5)).splitlines()
    assert "| dense | 95.0 ± 1.4 | - | 0.0200 ± 0.0141 | - | - |" in lines
    assert "| **`defaults`** | 94.5 ± 1.4 | - | 0.0200 ± 0.0141 | - | - |" in lines
    assert '| `criterion = "wanda", repair = ["least-squares"]` | 50.0 ± 1.4 | - | 0.0200 ± 0.0141 | - | - |' in lines
    assert "| `defaults` | not available |  |  |  |  |" in lines


def test_the_plot_is_xml_with_a_point_for_every_row_that_was_measured():
    picture = ElementTree.fromstring(svg(results_of(94.5)))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "defaults (admm)" in texts and "mlpn" in texts and "magnitude" not in texts
    legend = 3
    points = len(list(picture.iter("{http://www.w3.org/2000/svg}circle"))) - legend
    assert points == len(ROWS) - 1


def test_table_and_plot_can_be_written_when_only_the_dense_network_was_measured():
    results = Results()
    results.begin("crepe", "versions")
    results.add("crepe", DENSE.key, {"accuracy": 96.0, "kl": 0.0})
    assert "| dense | 96.00 | - | 0.0000 | - | - |" in markdown(results).splitlines()
    ElementTree.fromstring(svg(results))


def test_results_come_back_from_their_file(tmp_path):
    results = results_of(94.5)
    results.write(tmp_path / "accuracy.json")
    again = Results.read(tmp_path / "accuracy.json")
    assert (again.scores, again.versions) == (results.scores, results.versions)
    assert Results.read(tmp_path / "none.json").known() == []


def test_the_measures_are_what_their_names_say():
    logits = np.array([[0.0, np.log(3.0)]], np.float32)
    uniform = np.zeros_like(logits)
    assert divergence(logits, logits) == 0
    assert divergence(uniform, logits) == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert bernoulli_divergence(np.array([0.5]), np.array([0.25])) == pytest.approx(divergence(uniform, logits))
    assert np.isfinite(bernoulli_divergence(np.array([1.0]), np.array([0.0])))
    assert lost_energy(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(0.2)
    assert correlation(np.array([1.0, 2.0, 3.0]), np.array([6.0, 4.0, 2.0])) == pytest.approx(-1)
    assert f1(np.array([1, 1, 0], bool), np.array([1, 0, 0], bool)) == pytest.approx(2 / 3)
