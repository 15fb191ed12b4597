"""Progress with an estimate: what is shown, to whom, and how good the estimate is."""

from __future__ import annotations

import pytest
import tensorflow as tf
from calibrated_networks import normal, samples

import sparsekit
from sparsekit import progress
from sparsekit.calibration import cost

v1 = tf.compat.v1


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_the_work_not_the_number_of_parts() -> None:
    clock = Clock()
    estimate = progress.Estimate(1000.0, clock)
    assert estimate.seconds_left() is None
    clock.now += 10
    estimate.advance(100.0)
    assert estimate.seconds_left() == pytest.approx(90)
    clock.now += 30  # within the next part it counts down
    assert estimate.seconds_left() == pytest.approx(60)
    clock.now += 1000
    assert estimate.seconds_left() == 0
    estimate.advance(900.0)
    assert estimate.seconds_left() == 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, ""),
        (0.2, "about 0 s left"),
        (89, "about 89 s left"),
        (90, "about 2 min left"),
        (3569, "about 59 min left"),
        (3599, "about 1 h 00 min left"),
        (7500, "about 2 h 05 min left"),
    ],
)
def test_it_is_told_for_people(seconds: float | None, told: str) -> None:
    assert progress.time_left(seconds) == told


def network(small: int, large: int, columns: int = 8) -> object:
    """A dense layer with few inputs, one with many, and a convolution of many positions."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, small], name="x")
        h = tf.matmul(x, tf.constant(normal(small, large)), name="small")
        h = tf.matmul(h, tf.constant(normal(large, columns)), name="large")
        h = tf.reshape(tf.tile(h, [1, 16 * 16]), [-1, 16, 16, columns])
        tf.nn.conv2d(h, tf.constant(normal(1, 1, columns, 8)), 1, "SAME", name="positions")
    return graph.as_graph_def()


@pytest.mark.parametrize("order", ["sequential", "one-pass"])
def test_the_bar_of_calibration_ends_where_the_work_does(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[tuple[float, list[float]]] = []

    class Recorded(progress.Estimate):
        def __init__(self, work: float) -> None:
            super().__init__(work)
            bars.append((work, []))

        def advance(self, done: float) -> None:
            bars[-1][1].append(done)
            super().advance(done)

    monkeypatch.setattr(progress, "Estimate", Recorded)
    graph_def, given = network(8, 256), samples(100)[:, 0, 0]
    sparsekit.prune(graph_def, {"order": order}, calibration=given)
    assert not bars  # a library call shows nothing
    monkeypatch.setattr(progress, "_stderr_is_a_terminal", lambda: True)
    with progress.shown():
        sparsekit.prune(graph_def, {"order": order}, calibration=given)
    ((work, done),) = bars
    assert sum(done) == pytest.approx(work) and work > 0
    if order == "sequential":
        assert done[1] > 100 * done[0] and done[1] > 10 * done[2]


def test_the_work_grows_with_samples_positions_and_inputs() -> None:
    def work(graph_def: object, count: int) -> dict[str, cost.Cost]:
        seen: dict[str, cost.Cost] = {}
        with pytest.MonkeyPatch.context() as patched:
            known = cost.costs

            def costs(layers: object, samples: int) -> list[cost.Cost]:
                uses = list(layers)  # type: ignore[call-overload]
                found = known(uses, samples)
                seen.update({use[0].site.node.name: one for use, one in zip(uses, found, strict=True)})
                return found

            patched.setattr("sparsekit.calibration.layerwise.costs", costs)
            sparsekit.prune(graph_def, calibration=samples(count)[:, 0, 0])
        return seen

    few, many = work(network(8, 64), 10), work(network(8, 64), 40)
    assert many["large"].sums == 4 * few["large"].sums == 40 * 64**2
    assert many["large"].solution == few["large"].solution > 10 * few["small"].solution / 64
    assert few["positions"].sums == 10 * 256 * 8**2
    larger = work(network(8, 256), 10)
    assert larger["large"].solution > 16 * few["large"].solution
    assert cost.sequential([few["small"], few["large"]])[1] > few["large"].sums + few["large"].solution
