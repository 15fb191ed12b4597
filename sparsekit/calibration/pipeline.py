"""Calibration in one pass as an Apache Beam pipeline: samples in shards, sums by layer, layers solved in parallel.

Driver and workers share files: the model, the samples, and a folder in which solved layers are put. The bytes of the
result are those of one process on a machine of the same kind: shards are the same whoever adds them up, and their sums
are added along one tree, see `OrderedSum`.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import numpy.typing as npt

from sparsekit.artefact.model import Model, open_model
from sparsekit.calibration.collecting import Collected, Collector
from sparsekit.calibration.files import FileBatch, npz_paths, read_npz
from sparsekit.calibration.keeping import with_layers_kept
from sparsekit.calibration.layerwise import Calibrated, in_order_of_graph, slots_of
from sparsekit.calibration.layout import Layout
from sparsekit.calibration.network import Network, opened
from sparsekit.calibration.one_pass import (
    OnePassLayer,
    Sums,
    added,
    collector_of,
    grouped,
    prune_in_one_pass,
    shards,
    sums_of_shard,
    timed,
)
from sparsekit.calibration.ordered_sum import OrderedSum
from sparsekit.calibration.resuming import FinishedLayers, facts_of_files, facts_of_run, model_digest
from sparsekit.calibration.samples import Batch, Samples, file_batches, read_batch
from sparsekit.calibration.solving import SolvedLayer
from sparsekit.calibration.treatment import Treatment, solve_planned, uses_in_a_run
from sparsekit.config import PruneConfig
from sparsekit.errors import CalibrationError, SparsekitError
from sparsekit.planning import Planning, make_plan
from sparsekit.plugins import Registry, default_registry

try:
    import apache_beam as beam_
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.utils.shared import Shared
except ImportError as error:
    raise SparsekitError(
        f"Apache Beam is not installed ({error})", where="beam", hint="Install it: pip install 'sparsekit[beam]'."
    ) from error

Array: TypeAlias = npt.NDArray[Any]

_LOCAL = "DirectRunner"


def prune_in_a_pipeline(
    model: Model,
    planning: Planning,
    samples: Any,
    config: PruneConfig,
    registry: Registry,
    outputs: Sequence[str] | None,
    resume: str | os.PathLike[str] | None,
    options: Sequence[str],
) -> Calibrated:
    """What `prune_calibrated` does in one pass, by a pipeline.

    Args:
        model: the model, opened from a path that all workers see.
        planning: the layers to be pruned.
        samples: .npz files that all workers see: a path, a pattern or a list of them.
        config: effort, repairs, target. With ``keep_dense`` the samples are also read here, once.
        registry: the plugins; workers use those that are installed where they run.
        outputs: the operations whose results are used; None: those of the model.
        resume: a folder that all workers see; None with the DirectRunner alone.
        options: of the pipeline, ``--runner`` among them.

    Raises:
        CalibrationError: the samples do not fit the model, the folder is of another run, or the pipeline failed.
        ModelError, SaveError, MissingFileError: as for `prune_calibrated`.
    """
    paths = npz_paths(samples)
    if paths is None or not os.path.exists(model.source):
        raise CalibrationError(
            "samples in memory" if paths is None else "a model in memory", where="beam", expected="files"
        )
    if "batch-norm" in config.repair:
        raise CalibrationError(
            "'batch-norm', which takes one batch normalization after the other",
            where="repair",
            expected="other repairs",
        )
    pipeline_options = PipelineOptions(list(options))
    runner = pipeline_options.view_as(StandardOptions).runner or _LOCAL
    if resume is None and runner != _LOCAL:
        raise CalibrationError(
            f"{runner} without a folder for solved layers", where="resume", expected="one that all workers see"
        )
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(opened(model, outputs, slots_of(planning.layers)))
        if config.keep_dense:
            with contextlib.closing(Samples(paths, network.inputs)) as all_samples:
                planning = with_layers_kept(planning, model, network, all_samples, config.keep_dense, registry)
        folder = resume if resume is not None else stack.enter_context(tempfile.TemporaryDirectory())
        facts = facts_of_run(model, network.outputs, planning.layers, facts_of_files(paths), config, registry)
        finished = FinishedLayers.open(folder, facts)
        batches = file_batches(paths, network.inputs)
        first = read_batch(batches[0], read_npz(batches[0].path), network.inputs)
        treatment = Treatment(model, network, first.feeds, config, registry)
        work = _Work(
            os.path.abspath(model.source),
            model_digest(model),
            config,
            None if outputs is None else tuple(outputs),
            tuple(attrs.evolve(batch, path=os.path.abspath(batch.path)) for batch in batches),
            os.path.abspath(folder),
        )

        def solve(missing: Sequence[OnePassLayer]) -> Iterator[tuple[OnePassLayer, SolvedLayer]]:
            if missing:
                _run(work.of(missing), pipeline_options, runner)
            for layer in missing:
                solved = layer.load(finished)
                if solved is None:
                    raise CalibrationError(
                        f"the pipeline ended without the layer '{layer.name}'",
                        where=os.fsdecode(folder),
                        hint="Do all workers see this folder?",
                    )
                yield layer, solved

        count = sum(batch.samples for batch in batches)
        ordered = in_order_of_graph(model, planning.layers)
        accounts = tuple(prune_in_one_pass(ordered, network, treatment, count, finished, solve))
    return Calibrated(treatment.result(), planning, accounts, (), treatment.changes)


@attrs.frozen(eq=False)
class _LayerWork:
    """What a worker must know of a layer.

    Attributes:
        layout: as matrices.
        use: which of its sites (of the plan) a run computes, the first of them.
        centered: a shift of its mean outputs can be stored.
    """

    layout: Layout
    use: int
    centered: bool


@attrs.frozen(eq=False)
class _Work:
    """All that workers get, beside what they read from files.

    Attributes:
        model: its path.
        digest: of the model that the driver planned on.
        config, outputs: what it was planned with.
        batches: of all samples.
        folder: where solved layers go.
        groups: the names of the layers whose sums are collected together.
        layers: by name.
    """

    model: str
    digest: str
    config: PruneConfig
    outputs: tuple[str, ...] | None
    batches: tuple[FileBatch, ...]
    folder: str
    groups: tuple[tuple[str, ...], ...] = ()
    layers: Mapping[str, _LayerWork] = attrs.field(factory=dict)

    def of(self, layers: Sequence[OnePassLayer]) -> _Work:
        """The work for these layers."""
        groups = grouped(layers, len(self.shards))
        return attrs.evolve(
            self,
            groups=tuple(tuple(layer.name for layer in group) for group in groups),
            layers={
                layer.name: _LayerWork(layer.layout, _place(layer), not isinstance(layer.place, str))
                for layer in layers
            },
        )

    @property
    def shards(self) -> list[range]:
        return shards(len(self.batches))


def _place(layer: OnePassLayer) -> int:
    return next(index for index, site in enumerate(layer.layer.sites) if site is layer.uses[0].site)


def _run(work: _Work, options: PipelineOptions, runner: str) -> None:
    parts = [(shard, group) for shard in range(len(work.shards)) for group in range(len(work.groups))]
    shared = Shared()
    try:
        with beam_.Pipeline(_runner(runner), options=options) as pipeline:
            (
                pipeline
                | "Shards" >> beam_.Create(parts)
                | "Spread" >> beam_.Reshuffle()
                | "Collect" >> beam_.ParDo(_Collect(work, shared))
                | "Add" >> beam_.CombinePerKey(_Add(len(work.shards)))
                | "Solve" >> beam_.ParDo(_Solve(work, shared))
            )
    except Exception as error:
        raise CalibrationError(
            f"the pipeline failed ({_reason(error)})",
            where=runner,
        ) from error


def _runner(name: str) -> Any:
    """Beam's own choice for the DirectRunner tries to download another one first, and knows no running mode there."""
    if name != _LOCAL:
        return name
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    return FnApiRunner()


def _reason(error: Exception) -> str:
    """Of an error of ours its own sentence: Beam hands it on as a cause, or as the text of a traceback."""
    inner: BaseException | None = error
    ours = ""
    while inner is not None:
        ours = str(inner) if isinstance(inner, SparsekitError) else ours
        inner = inner.__cause__ or inner.__context__
    text = str(error)
    told = [ours] if ours else re.findall(r"sparsekit\.errors\.\w+: (.*?)(?: \[while running.*)?$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip()]
    return told[0] if told else f"{type(error).__name__}: {lines[-1] if lines else ''}"[:400]


# --- what runs on workers --------------------------------------------------------------------------------


class _Opened:
    """The model of the work, planned as the driver planned it. One for a process.

    Attributes:
        layers: of the plan, by name.
    """

    def __init__(self, work: _Work) -> None:
        self.model = open_model(work.model)
        if model_digest(self.model) != work.digest:
            raise CalibrationError("is not the model that was planned on", where=work.model)
        self.registry = default_registry()
        view, outputs = self.model.view, work.outputs or self.model.outputs
        plan = make_plan(view, work.config, outputs, self.registry, None, self.model.obstacle)
        self.layers = {layer.decision.name: layer for layer in plan.layers}
        self._work = work
        self._lock = threading.Lock()
        self._running = contextlib.ExitStack()
        weakref.finalize(self, self._running.close)  # at the latest when the process ends, while TensorFlow is there
        self._network: Network | None = None

    @property
    def network(self) -> Network:
        """Runs the model; opened for the first who asks."""
        with self._lock:
            if self._network is None:
                self._network = self._running.enter_context(opened(self.model, self._work.outputs))
            return self._network


class _Collect(beam_.DoFn):  # type: ignore[misc]
    """From (shard, group) to (layer, (shard, sums)) for every layer of the group."""

    def __init__(self, work: _Work, shared: Shared) -> None:
        self._work = work
        self._shared = shared

    def setup(self) -> None:
        self._opened: _Opened = self._shared.acquire(lambda: _Opened(self._work))
        self._collectors: dict[str, Collector] = {}
        self._read: tuple[str, dict[str, Array]] = "", {}

    def process(self, element: tuple[int, int]) -> Iterator[tuple[str, tuple[int, Sums]]]:
        shard, group = element
        names = self._work.groups[group]
        batches = (self._batch(self._work.batches[index]) for index in self._work.shards[shard])
        sums = sums_of_shard(self._opened.network, [self._collector(name) for name in names], batches)
        for name, of_layer in zip(names, sums, strict=True):
            yield name, (shard, of_layer)

    def _collector(self, name: str) -> Collector:
        if name not in self._collectors:
            layer, network = self._opened.layers[name], self._opened.network
            uses = uses_in_a_run(layer, network, self._opened.registry)
            self._collectors[name] = collector_of(network, uses, layer)
        return self._collectors[name]

    def _batch(self, batch: FileBatch) -> Batch:
        if self._read[0] != batch.path:
            self._read = batch.path, read_npz(batch.path)
        return read_batch(batch, self._read[1], self._opened.network.inputs)


class _Add(beam_.CombineFn):  # type: ignore[misc]
    """The sums of all shards of a layer as one, with the same bits in whatever order they come."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def create_accumulator(self) -> OrderedSum[Sums]:
        return OrderedSum(added)

    def add_input(self, accumulator: OrderedSum[Sums], element: tuple[int, Sums]) -> OrderedSum[Sums]:
        accumulator.insert(*element)
        return accumulator

    def merge_accumulators(self, accumulators: Sequence[OrderedSum[Sums]]) -> OrderedSum[Sums]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: OrderedSum[Sums]) -> Sums:
        return accumulator.total(self._shards)


class _Solve(beam_.DoFn):  # type: ignore[misc]
    """From (layer, sums) to a file with what becomes of the layer."""

    def __init__(self, work: _Work, shared: Shared) -> None:
        self._work = work
        self._shared = shared

    def setup(self) -> None:
        self._opened: _Opened = self._shared.acquire(lambda: _Opened(self._work))

    def process(self, element: tuple[str, Sums]) -> Iterator[str]:
        name, sums = element
        begun = time.process_time()
        layer, known = self._opened.layers[name], self._work.layers[name]
        solved = solve_planned(
            self._opened.model,
            layer,
            layer.sites[known.use],
            Collected(known.layout, sums),
            self._work.config,
            self._opened.registry,
            known.centered,
        )
        FinishedLayers(self._work.folder).save(name, timed(solved, begun))
        yield name
