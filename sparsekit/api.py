"""The flow in four verbs: plan, prune, strip, verify; and report, sensitivity, save, and diff."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import attrs

from sparsekit.artefact.graph_def import is_graph_def, save_graph_def
from sparsekit.artefact.model import FrozenGraph, Model, open_model, read_deployed
from sparsekit.collection import collection_paused
from sparsekit.config import PruneConfig
from sparsekit.config_files import load_config
from sparsekit.deployed_plan import plan_deployed
from sparsekit.difference import Difference, compare
from sparsekit.errors import ConfigError, GraphError, ModelError, SaveError
from sparsekit.graph.forward import forward_nodes, output_names
from sparsekit.layer_sensitivity import Sensitivity
from sparsekit.live.pruning import plan_live, prune_live
from sparsekit.one_shot import prune_model
from sparsekit.planning import Plan, Planning, make_plan
from sparsekit.plugins import default_registry
from sparsekit.reading import source_of
from sparsekit.record import Record, read_record
from sparsekit.reporting.facts import Estimate, Report
from sparsekit.reporting.gather import gather, gather_deployed
from sparsekit.result import PruneResult
from sparsekit.stripping import strip_masks
from sparsekit.target import ChosenTarget, TargetProfile, choose_target, warn_or_refuse
from sparsekit.training.masked_model import MaskedModel, told
from sparsekit.training.optimizers import chosen_masking
from sparsekit.training.tracing import TracedModel, is_trainable, trace
from sparsekit.verification import Verification, verify_deployed, verify_model
from sparsekit.writing import staged, write_whole

Path: TypeAlias = str | os.PathLike[str]
Config: TypeAlias = PruneConfig | Mapping[str, Any] | Path | None

__all__ = ["diff", "plan", "prune", "report", "save", "sensitivity", "strip", "verify"]


def plan(
    model: Any,
    cfg: Config = None,
    *,
    outputs: Any = None,
    target: str | None = None,
    input_signature: Any = None,
) -> Plan:
    """Decide what :func:`prune` would do, and edit nothing.

    Args:
        model: a ``tf.Graph``, a GraphDef, the path of a frozen .pb or .pbtxt, or the folder of a SavedModel; or of a
            .tflite or .onnx file, which cannot be pruned itself: its plan says what it should be made from; or a model
            of Keras 3, a ``tf.Module`` or a ``tf.function``, which is called once on symbols.
        cfg: a PruneConfig, a dict, the path of a TOML file (``.toml``) or of an AMCT text file (any other name),
            or None: 2:4 by magnitude everywhere.
        outputs: the operations whose results are used: names, tensors or operations. None: every op that no
            gradient led to.
        target: a product, chip or profile name; before ``target`` in the config, before the environment variable
            SPARSEKIT_TARGET.
        input_signature: what a model of Keras 3, a ``tf.Module`` or a ``tf.function`` is called with: a list with a
            ``tf.TensorSpec``, or a structure of these, for every argument. None where the model knows: a built Keras
            model, a ``tf.function`` with a signature.

    Returns:
        The plan; it prints as a table. Of a model that trains eagerly, it says how zeros are kept.

    Raises:
        ConfigError: the config cannot be used, or names layers, types or criteria that do not exist.
        GraphError: not a graph, or an output that is not in it; a model that cannot be called on ``input_signature``.
        MissingFileError, ModelError: a file cannot be read.
        TargetError: an unknown target.
    """
    with _naming(model):
        settings = _Settings.of(cfg, target, input_signature)
        deployed = read_deployed(model)
        if deployed is not None:
            return plan_deployed(deployed, settings.config, settings.profile)
        made = _decide(model, settings, outputs)[0].plan
        if is_trainable(model):
            choice = chosen_masking(settings.config, model, getattr(model, "optimizer", None))
            made = told(made, str(choice))
        return made


def report(
    model: Any,
    cfg: Config = None,
    *,
    outputs: Any = None,
    target: str | None = None,
    estimates: Iterable[Estimate] = (),
    input_signature: Any = None,
    sensitivity: Sensitivity | None = None,
) -> Report:
    """The plan together with what it means: per layer and in total, weights, density, groups, multiply-adds.

    Args:
        model: as for :func:`plan`. Of a live graph, whose weights are in no one place, only the shapes are told. Or
            what :func:`prune` made of a model at rest, with the accounts of its calibration; ``cfg``, ``outputs`` and
            ``target`` were said there.
        cfg, outputs, target, input_signature: as for :func:`plan`.
        estimates: what tools or devices say of the model; shown as theirs.
        sensitivity: what :func:`sensitivity` measured; shown layer by layer.

    Returns:
        The report; it prints as text, and its ``save`` writes a page.

    Raises:
        ConfigError, GraphError, MissingFileError, ModelError, TargetError: as for :func:`plan`; also weights that
            cannot be read, and what was made of a live graph.
    """
    if isinstance(model, PruneResult):
        return attrs.evolve(model.report(), estimates=tuple(estimates), sensitivity=sensitivity)
    with _naming(model):
        settings = _Settings.of(cfg, target, input_signature)
        deployed = read_deployed(model)
        if deployed is not None:
            made = plan_deployed(deployed, settings.config, settings.profile)
            facts = gather_deployed(made, deployed)
        else:
            planning, opened = _decide(model, settings, outputs)
            made, facts = planning.plan, gather(planning, opened, default_registry())
        return Report(source_of(model), made, facts, tuple(estimates), sensitivity=sensitivity)


def sensitivity(model: Any, cfg: Config = None, *, calibration: Any, outputs: Any = None) -> Sensitivity:
    """Prune each layer of a model at rest alone, by magnitude, and measure what that changes. Nothing is edited.

    Args:
        model: a GraphDef, the path of a frozen .pb or .pbtxt, or the folder of a SavedModel.
        cfg: which layers, and with which pattern, as for :func:`plan`. Criteria do not count, nor does ``keep_dense``.
        calibration: samples of the model's inputs, as for :func:`prune`. Some dozens of them are used, always the same.
        outputs: the operations whose results are used and compared. None: those of the model. Of results that are not
            floats none is compared.

    Returns:
        Every layer with the errors at its own outputs and at those of the model, the worst first. It prints as a table;
        its ``to_config`` leaves the worst layers dense.

    Raises:
        ConfigError, GraphError, MissingFileError, ModelError: as for :func:`plan`; also a live graph, and weights that
            are not finite.
        CalibrationError: the samples do not fit the model.
    """
    from sparsekit.calibration.sensitivity import sensitivity_of

    with _naming(model):
        settings = _Settings.of(cfg, None)
        planning, opened = _decide(model, settings, outputs)
        if opened is None:
            raise GraphError("a live graph", where="sensitivity", expected="a model at rest", hint="Freeze it first.")
        registry, names = default_registry(), output_names(outputs)
        return sensitivity_of(opened, planning.layers, calibration, settings.config, registry, names)


def prune(
    model: Any,
    cfg: Config = None,
    *,
    outputs: Any = None,
    target: str | None = None,
    record: Path | None = None,
    strict_target: bool = False,
    calibration: Any = None,
    session: Any = None,
    resume: Path | None = None,
    beam: Sequence[str] | None = None,
    input_signature: Any = None,
) -> PruneResult | MaskedModel:
    """Prune a live graph or a model that trains eagerly for retraining, or a model at rest in one shot.

    A ``tf.Graph``, training or inference, is edited in place: masks are inserted. Call it before gradients are built.
    The masks are chosen inside the graph at the first training batch (and every ``update_freq`` batches where the
    config says so). In the inference graph the same call makes the same variables, so that a checkpoint of the
    training graph restores into it.

    Of a model of Keras 3, a ``tf.Module`` or a ``tf.function``, the variables that feed its layers are masked while it
    trains, as its own classes, before or after it was compiled or trained; see :class:`MaskedModel`.

    Of a model at rest (a GraphDef, a frozen .pb or .pbtxt, a SavedModel's folder) the weights are pruned without
    retraining: masks are chosen from them and zeros written in their place, nothing else changes. It is not modified;
    the result holds the pruned one.

    Args:
        model, cfg, outputs, target, input_signature: as for :func:`plan`.
        record: where to write the record of the pruned layers (AMCT's text format); None: nowhere.
        strict_target: raise instead of warning where the target does not gain.
        calibration: samples of the model's inputs: an iterable or generator of batches (dicts of input name
            to array, or arrays for a single input), a ``tf.data.Dataset``, a dict of arrays with all samples, or the
            path of an .npz with such arrays (or a pattern with ``*``, or a list of paths). Masks and weights are then
            chosen so that every layer's outputs on the samples stay what they are, layer by layer (``criterion``,
            ``effort``, ``repair``, ``guard``, ``target_path``, ``order`` in the config); biases that follow layers take
            what their means lose, and are added to a model at rest where there are none. The samples should be of those
            that the model was trained on, not those that it is judged by.
            Of a live graph, the result's ``start`` loads what was chosen into the session that trains.
        session: of a live graph, with calibration: a session with the dense weights, restored or trained. It is read
            and stays as it is; as it does not see the masks, training takes a new one.
        resume: with calibration, a folder that keeps every layer as soon as it is solved. The same call with the same
            folder goes on where an earlier one was stopped, to the same bytes. It stays; remove it when you are done.
        beam: with calibration, options of an Apache Beam pipeline, such as ``["--runner=FlinkRunner", ...]``, that
            collects the sums and solves the layers (config: ``order = "one-pass"``). The model and the samples are then
            paths, and with any other runner than the DirectRunner there is ``resume``; all workers must see them.
            Needs ``pip install 'sparsekit[beam]'``.

    Returns:
        The plan; for a live graph the new variables and their initializer, for a model at rest the pruned one. For a
        model that trains eagerly a :class:`MaskedModel`, with all that its training needs.

    Raises:
        ConfigError, GraphError, TargetError, MissingFileError, ModelError: as for :func:`plan`; also a live graph that
            is finalized, was pruned before or already has gradients, a session that is closed, of another graph or
            without values, weights that are not finite, and what is asked for that this kind of model cannot do. The
            graph is as it was.
        UnsupportedTargetError: with ``strict_target``, a target without a gain.
        CalibrationError: the samples do not fit the model, ``resume`` is the folder of another run, or the pipeline
            failed.
        SaveError: the record or ``resume`` cannot be written; the graph is as it was.

    Warns:
        UnsupportedTargetWarning: the target has no gain from the pattern; once a call.
    """
    registry = default_registry()
    with _naming(model):
        settings = _Settings.of(cfg, target, input_signature)
        if calibration is not None:
            config = settings.config.calibrated(beam is not None)
            if session is not None and settings.config.keep_dense is None:
                config = attrs.evolve(config, keep_dense=0.0)  # retraining makes good what a tiny layer loses
            settings = attrs.evolve(settings, config=config)
        elif resume is not None or beam is not None:
            name = "beam" if resume is None else "resume"
            raise ConfigError("there are no calibration samples", where=name, expected="calibration=...")
        if is_trainable(model):
            _refuse_for_trainable(calibration=calibration, session=session)
        planning, opened = _decide(model, settings, outputs)
        patterns = {str(decision.pattern) for decision in planning.plan.pruned} or {"2:4"}
        warn_or_refuse(settings.chosen, registry.profiles, patterns=sorted(patterns), strict=strict_target)
        if isinstance(opened, TracedModel):
            text = Record.of(planning.plan).to_text().encode()
            with nullcontext() if record is None else staged(record, text):
                return MaskedModel(model, opened, planning, settings.config, registry)
        _check_session(session, live=opened is None, calibrated=calibration is not None)
        if opened is None:
            _refuse_for_live(settings.config)
            if resume is not None or beam is not None:
                name = "beam" if resume is None else "resume"
                raise ConfigError("does not go with a live graph", where=name, expected="a model at rest")
            if calibration is None:
                return prune_live(model, planning, registry, record)
            from sparsekit.calibration.live import prune_live_calibrated

            names = output_names(outputs)
            return prune_live_calibrated(
                model, planning, calibration, session, settings.config, registry, names, record
            )
        if calibration is None:
            with collection_paused():
                pruned = prune_model(opened, planning.layers, registry)
            again = functools.partial(report, model, cfg, outputs=outputs, target=target)
            result = PruneResult(planning.plan, model=pruned, reporting=again)
        else:
            from sparsekit.calibration.layerwise import prune_calibrated

            calibrated = prune_calibrated(
                opened, planning, calibration, settings.config, registry, output_names(outputs), resume, beam
            )
            made = calibrated.planning
            facts = gather(made, opened, registry, calibrated.changes)
            accounted = Report(source_of(model), made.plan, facts, accounts=calibrated.accounts)
            result = PruneResult(
                made.plan,
                model=calibrated.model,
                accounts=calibrated.accounts,
                normalizations=calibrated.normalizations,
                reporting=lambda: accounted,
            )
    if record is not None:
        write_whole(record, Record.of(result.plan).to_text().encode())
    return result


def _refuse_for_trainable(**arguments: Any) -> None:
    for name, argument in arguments.items():
        if argument is not None:
            raise GraphError(
                "a model that trains eagerly cannot be calibrated",
                where=name,
                expected="a model at rest",
                hint="Retrain it; or export it (model.export, tf.saved_model.save) and prune the SavedModel.",
            )


def _refuse_for_live(config: PruneConfig) -> None:
    """What only models that train eagerly can do must not be ignored."""
    asked = {"gradient": config.gradient != "masked", "start_step": config.start_step > 0}
    asked["freeze_step"] = config.freeze_step is not None
    for key, is_asked in asked.items():
        if is_asked:
            raise ConfigError(
                f"{getattr(config, key)!r} for a live tf.Graph",
                where=f"{config.source}: {key}",
                expected="a model of Keras 3, a tf.Module or a tf.function",
            )


def _check_session(session: Any, *, live: bool, calibrated: bool) -> None:
    """A session belongs to the calibration of a live graph, and to nothing else."""
    if live and calibrated and session is None:
        raise GraphError(
            "calibration samples for a live graph, without a session",
            where="session",
            expected="a session with the dense weights",
            hint="Restore the dense checkpoint in one and pass it: prune(graph, ..., session=session).",
        )
    if session is not None and not (live and calibrated):
        raise GraphError(
            "a session without calibration samples" if live else "a session for a model at rest",
            where="session",
            expected="None: a session is needed to calibrate a live graph",
        )


@attrs.frozen
class _Settings:
    """The config, and the target that it, the caller or the environment chose."""

    config: PruneConfig
    chosen: ChosenTarget | None
    input_signature: Any = None

    @classmethod
    def of(cls, cfg: Config, target: str | None, input_signature: Any = None) -> _Settings:
        config = load_config(cfg)
        chosen = choose_target(target, config.target, os.environ, default_registry().profiles)
        return cls(config, chosen, input_signature)

    @property
    def profile(self) -> TargetProfile | None:
        return self.chosen.profile if self.chosen else None


@collection_paused()
def _decide(model: Any, settings: _Settings, outputs: Any) -> tuple[Planning, Model | None]:
    """The plan of a live graph or of a model at rest, the latter opened."""
    registry, names = default_registry(), output_names(outputs)
    config, profile = settings.config, settings.profile
    if not (isinstance(model, (str, os.PathLike)) or is_graph_def(model) or is_trainable(model)):
        return plan_live(model, config, names, registry, profile), None
    opened = _open(model, settings.input_signature)
    return make_plan(opened.view, config, names or opened.outputs, registry, profile, opened.obstacle), opened


def _open(model: Any, input_signature: Any) -> Model:
    return trace(model, input_signature) if is_trainable(model) else open_model(model)


@contextmanager
def _naming(model: Any) -> Iterator[None]:
    """Errors about a node of a model name its file, too; one that is too large for this machine ends in an error."""
    try:
        yield
    except MemoryError as error:
        raise ModelError("takes more memory than there is", where=source_of(model)) from error
    except ModelError as error:
        path = source_of(model)
        if isinstance(model, (str, os.PathLike)) and path not in error.where and repr(path) not in error.where:
            error.where = f"{path}: {error.where}"
        raise


@collection_paused()
def strip(masked: Any, *, record: Path | None = None, outputs: Any = None) -> Any:
    """Fold the masks of a masked model into its weights and take the mask ops out.

    Args:
        masked: a GraphDef or the path of a .pb or .pbtxt, frozen with
            ``tf.compat.v1.graph_util.convert_variables_to_constants``; or the folder of a SavedModel that was exported
            from a TF1-style graph (``tf.compat.v1.saved_model``). It is not modified.
        record: the record that was written when the graph was pruned: exactly its layers must be masked.
        outputs: operations that must be there. Of a SavedModel, what its signatures return is kept in any case.

    Returns:
        What :func:`save` writes. Of a frozen graph the pruned GraphDef: node for node the frozen graph without masks,
        with zeros in its weights. Of a SavedModel the pruned one, to be saved as a folder: its graph, savers,
        collections and variables know no masks any more, all else is as it was; the folder that it was read from is
        read again for that. Outputs are equal to those of the masked model, frozen ones bit for bit.

    Raises:
        MissingFileError, ModelError: not a masked frozen graph or SavedModel, or weights that are not finite.
        RecordError: the record cannot be read or does not match.
        GraphError: an output is not in the graph.
    """
    opened = open_model(masked)
    names = output_names(outputs)
    if names is not None:
        forward_nodes(opened.view, names)
    read = _record(record)
    with _naming(masked):
        pruned = strip_masks(opened, default_registry(), read, names)
    return pruned.graph_def if isinstance(pruned, FrozenGraph) else pruned


def save(model: Any, path: Path, second: Path | None = None) -> Path:
    """Write what :func:`strip` returned, or any GraphDef; whole or not at all.

    Missing parent folders are made. A GraphDef becomes a binary .pb, or text where the path ends in .pbtxt; a
    SavedModel its folder, which may replace another SavedModel.

    Args:
        model: a GraphDef, or the model that ``strip`` made of a SavedModel.
        path: where it goes.
        second: of a GraphDef, another name for the same file: a hard link, or a copy where links are not possible.

    Returns:
        Where it lies.

    Raises:
        SaveError: it is no such model, cannot be written there, or is larger than the 2 GB that a .pb can hold.
        MissingFileError, ModelError: of a SavedModel, the folder that it was read from cannot be read any more.
    """
    if not isinstance(model, Model):
        return save_graph_def(model, path, second)
    if second is not None:
        raise SaveError("a folder gets no second name", where=os.fsdecode(second), expected="a GraphDef")
    return model.save(path)


@collection_paused()
def verify(
    model: Any,
    *,
    record: Path | None = None,
    cfg: Config = None,
    outputs: Any = None,
    target: str | None = None,
    input_signature: Any = None,
) -> Verification:
    """Check that the weights of a model at rest follow their pattern, along the right axis.

    Args:
        model: a GraphDef, the path of a frozen .pb or .pbtxt, or the folder of a SavedModel, of which every copy of a
            weight is looked at that a loader would serve; or the path of a .tflite or .onnx file, whose layers are
            looked at along the contraction axis of that format, zero points subtracted. Or a finalized model that
            trains eagerly.
        record: the layers that must be sparse. Without one: all that ``cfg`` would prune. Files in a deployment format
            keep no names: there all layers must be, and of ``cfg`` only the pattern counts.
        cfg: as for :func:`plan`.
        outputs: look only at what lies behind these operations.
        target: as for :func:`plan`; what it makes of each layer is added, the verdict stays that of the weights.
        input_signature: as for :func:`plan`.

    Returns:
        The verification; ``.ok`` is the verdict, and it prints as a table.

    Raises:
        MissingFileError, ModelError, RecordError, ConfigError, GraphError, TargetError: a file or argument cannot be
            used.
    """
    settings = _Settings.of(cfg, target, input_signature)
    with _naming(model):
        deployed = read_deployed(model)
        if deployed is not None:
            return verify_deployed(deployed, settings.config, settings.profile)
        opened = _open(model, input_signature)
        # What is no variable stays as it is in training; in a file it may be a weight that cannot be seen.
        exempt = {"stored_obstacle": opened.obstacle} if isinstance(opened, TracedModel) else {}
        return verify_model(
            opened,
            default_registry(),
            record=_record(record),
            config=settings.config,
            outputs=output_names(outputs),
            target=settings.profile,
            **exempt,
        )


def diff(a: Any, b: Any) -> Difference:
    """Say what differs between two models at rest, and where: their structure, and their values bit by bit.

    Args:
        a, b: both GraphDefs or paths of .pb or .pbtxt files; both folders of SavedModels, every graph, stored tensor
            and file of which is compared; or both paths of .tflite or of .onnx files, of which the weights of layers
            are.

    Returns:
        The difference; ``.identical`` and ``.only_weights`` are the verdicts, and it prints as tables.

    Raises:
        MissingFileError, ModelError: a model cannot be read, or they are of two kinds.
    """
    return compare(a, b)


def _record(path: Path | None) -> Record | None:
    return None if path is None else read_record(path)
