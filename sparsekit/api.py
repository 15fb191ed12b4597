"""The flow in four verbs: plan, prune, strip, verify; and save."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sparsekit.artefact.graph_def import load_graph_def, save
from sparsekit.config import PruneConfig, load_config
from sparsekit.graph.forward import forward_nodes, output_names
from sparsekit.graph.node import ProtoGraph
from sparsekit.live import PruneResult, plan_live, prune_live
from sparsekit.planning import Plan
from sparsekit.plugins import default_registry
from sparsekit.record import Record, read_record
from sparsekit.stripping import strip_masks
from sparsekit.target import choose_target, warn_or_refuse
from sparsekit.verification import Verification, verify_graph

if TYPE_CHECKING:
    import tensorflow as tf

Path: TypeAlias = str | os.PathLike[str]
Config: TypeAlias = PruneConfig | Mapping[str, Any] | Path | None

__all__ = ["plan", "prune", "save", "strip", "verify"]


def plan(graph: tf.Graph, cfg: Config = None, *, outputs: Any = None, target: str | None = None) -> Plan:
    """Decide what :func:`prune` would do, and edit nothing.

    Args:
        graph: a ``tf.Graph``.
        cfg: a PruneConfig, a dict, the path of a TOML file (``.toml``) or of an AMCT text file (any other name),
            or None: 2:4 by magnitude everywhere.
        outputs: the operations whose results are used: names, tensors or operations. None: every op that no
            gradient led to.
        target: a product, chip or profile name; before ``target`` in the config, before the environment variable
            SPARSEKIT_TARGET.

    Returns:
        The plan; it prints as a table.

    Raises:
        ConfigError: the config cannot be used, or names layers, types or criteria that do not exist.
        GraphError: not a graph, or an output that is not in it.
        TargetError: an unknown target.
    """
    config, registry = load_config(cfg), default_registry()
    chosen = choose_target(target, config.target, os.environ, registry.profiles)
    return plan_live(graph, config, output_names(outputs), registry, chosen.profile if chosen else None).plan


def prune(
    graph: tf.Graph,
    cfg: Config = None,
    *,
    outputs: Any = None,
    target: str | None = None,
    record: Path | None = None,
    strict_target: bool = False,
) -> PruneResult:
    """Insert masks into a training or inference graph, in place. Call it before gradients are built.

    The masks are chosen inside the graph at the first training batch (and every ``update_freq`` batches where the
    config says so). In the inference graph the same call makes the same variables, so that a checkpoint of the
    training graph restores into it.

    Args:
        graph, cfg, outputs, target: as for :func:`plan`.
        record: where to write the record of the pruned layers (AMCT's text format); None: nowhere.
        strict_target: raise instead of warning where the target does not gain.

    Returns:
        The plan, the new variables and their initializer.

    Raises:
        ConfigError, GraphError, TargetError: as for :func:`plan`; also a graph that is finalized, was pruned before
            or already has gradients. The graph is as it was.
        UnsupportedTargetError: with ``strict_target``, a target without a gain.
        SaveError: the record cannot be written; the graph is as it was.

    Warns:
        UnsupportedTargetWarning: the target has no gain from the pattern; once a call.
    """
    config, registry = load_config(cfg), default_registry()
    chosen = choose_target(target, config.target, os.environ, registry.profiles)
    planning = plan_live(graph, config, output_names(outputs), registry, chosen.profile if chosen else None)
    patterns = {str(decision.pattern) for decision in planning.plan.pruned} or {str(config.pattern)}
    warn_or_refuse(chosen, registry.profiles, patterns=sorted(patterns), strict=strict_target)
    return prune_live(graph, planning, registry, record)


def strip(masked: Any, *, record: Path | None = None, outputs: Any = None) -> Any:
    """Fold the masks of a masked frozen graph into its weights and take the mask ops out.

    Args:
        masked: a GraphDef or the path of a .pb, frozen with
            ``tf.compat.v1.graph_util.convert_variables_to_constants``. It is not modified.
        record: the record that was written when the graph was pruned: exactly its layers must be masked.
        outputs: operations that must be there.

    Returns:
        The pruned GraphDef: node for node the frozen graph without masks, with zeros in its weights. Its outputs
        are bit-identical to those of the masked graph.

    Raises:
        MissingFileError, ModelError: not a masked frozen graph, or weights that are not finite.
        RecordError: the record cannot be read or does not match.
        GraphError: an output is not in the graph.
    """
    graph_def = load_graph_def(masked)
    names = output_names(outputs)
    if names is not None:
        forward_nodes(ProtoGraph(graph_def), names)
    return strip_masks(graph_def, default_registry(), _record(record), names)


def verify(model: Any, *, record: Path | None = None, cfg: Config = None, outputs: Any = None) -> Verification:
    """Check that the weights of a frozen graph follow their pattern, along the right axis.

    Args:
        model: a GraphDef or the path of a .pb.
        record: the layers that must be sparse. Without one: all that ``cfg`` would prune.
        cfg: as for :func:`plan`.
        outputs: look only at what lies behind these operations.

    Returns:
        The verification; ``.ok`` is the verdict, and it prints as a table.

    Raises:
        MissingFileError, ModelError, RecordError, ConfigError, GraphError: a file or argument cannot be used.
    """
    return verify_graph(
        load_graph_def(model),
        default_registry(),
        record=_record(record),
        config=load_config(cfg),
        outputs=output_names(outputs),
    )


def _record(path: Path | None) -> Record | None:
    return None if path is None else read_record(path)
