"""From a masked frozen graph to the pruned one: mask ops gone, zeros in the weights. Edited as protos."""

from __future__ import annotations

import functools
import logging
from typing import Any

import attrs
import numpy as np

from sparsekit.artefact.rewriting import Edits, rewritten
from sparsekit.errors import ModelError
from sparsekit.gradient import BATCH, MASK
from sparsekit.graph.node import Node, ProtoGraph
from sparsekit.graph.trace import MASK_ATTRIBUTE, Read, Tracer, Untraceable, hands_on
from sparsekit.handler import OpHandler
from sparsekit.masking import SCOPE, MaskDescription
from sparsekit.one_shot import fold, refuse_non_finite
from sparsekit.parts import parts
from sparsekit.pattern import Index, check, keep_mask
from sparsekit.plugins import Registry
from sparsekit.record import Record

_log = logging.getLogger("sparsekit")


@attrs.frozen(eq=False)
class _MaskedLayer:
    """One layer of the masked graph, as its mask ops tell.

    Attributes:
        name: the layer.
        description: of its mask.
        multiplies: the ops that mask it; several where a weight is read several times.
    """

    name: str
    description: MaskDescription
    multiplies: tuple[Node, ...]


def strip_masks(
    masked: ProtoGraph, registry: Registry, record: Record | None = None, outputs: tuple[str, ...] | None = None
) -> Any:
    """Fold every mask into its weight and take the mask ops out.

    Args:
        masked: a view of the masked frozen GraphDef, which is not modified.
        registry: the plugins.
        record: the layers that must be masked, no more and no fewer; None: whatever is.
        outputs: the operations whose results are used; what they give does not change.

    Returns:
        The pruned GraphDef: the dense frozen graph, node for node, with zeros in its weights.

    Raises:
        ModelError: it is not frozen, was changed since, or holds weights that are not finite.
        RecordError: the record does not match.
    """
    layers = _masked_layers(masked)
    _compare(layers, masked, record)
    removed = _inserted(masked, layers)
    for name in outputs or ():
        if name in removed:
            raise ModelError(f"'{name}' is an op of a mask, which strip takes out", where="outputs")
    tracer = Tracer()
    edits = Edits()
    due = 0
    for layer in layers:
        due += _is_due(layer, masked)
        _fold(layer, masked, removed, frozenset(outputs or ()), tracer, registry, edits)
    if due:
        _log.warning(
            "%d of %d layers were due for a new mask when the graph was frozen (update_freq); the stored masks, "
            "those of the last training batch, were used",
            due,
            len(layers),
        )
    edits.removed |= removed
    return rewritten(masked.graph_def, edits)


def _masked_layers(view: ProtoGraph) -> list[_MaskedLayer]:
    multiplies: dict[str, list[Node]] = {}
    for node in view.nodes():
        described = node.attr(MASK_ATTRIBUTE) is not None
        layer, found, name = node.name.rpartition(f"/{SCOPE}/")
        # Folded, the state beside it is gone as well.
        named = bool(found) and name.startswith("masked")
        named = named and (node.op == "Const" or view.node(f"{layer}/{SCOPE}/{MASK}") is not None)
        if (described or named) and not (described and node.op == "Mul"):
            raise ModelError(
                f"its mask is no longer the multiply that was inserted but a {node.op}",
                where=node.name,
                hint="The graph was optimized after it was frozen. Strip it first, then optimize.",
            )
        if described:
            multiplies.setdefault(layer, []).append(node)
    layers = []
    for name, nodes in multiplies.items():
        try:
            description = MaskDescription.from_text(str(nodes[0].attr(MASK_ATTRIBUTE)))
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"its mask is described in an unknown way ({error})",
                where=nodes[0].name,
                hint="Strip it with the version of sparsekit that pruned it.",
            ) from error
        layers.append(_MaskedLayer(name, description, tuple(nodes)))
    return layers


def _compare(layers: list[_MaskedLayer], view: ProtoGraph, record: Record | None) -> None:
    """The record and the graph must name the same layers."""
    if record is None:
        if not layers:
            raise ModelError(
                "holds no masks",
                where="the masked graph",
                expected="a frozen graph that sparsekit.prune masked before",
                hint="Freeze the graph that was pruned, not one built anew.",
            )
        return
    shapes = {layer.name: _constant_shape(view, layer, MASK) for layer in layers}
    record.match(shapes, "graph", "has no mask in the graph")
    unnamed = shapes.keys() - {entry.name for entry in record.layers}
    if unnamed:
        raise record.mismatch(f"does not name {', '.join(sorted(unnamed))}, which the graph masks", "graph")


def _inserted(view: ProtoGraph, layers: list[_MaskedLayer]) -> set[str]:
    """The names of all nodes that hold or make masks."""
    names = {layer.name for layer in layers}
    return {node.name for node in view.nodes() if node.name.rpartition(f"/{SCOPE}/")[0] in names}


def _fold(
    layer: _MaskedLayer,
    view: ProtoGraph,
    removed: set[str],
    outputs: frozenset[str],
    tracer: Tracer,
    registry: Registry,
    edits: Edits,
) -> None:
    """Let one mask be folded into its weight when the graph is written."""
    reads = [_read(multiply, tracer) for multiply in layer.multiplies]
    variable = next((leaf for leaf in reads[0].leaves if leaf.op != "Const"), None)
    if variable is not None:
        raise ModelError(
            f"its weight '{variable.name}' is a variable",
            where=layer.name,
            expected="a frozen graph",
            hint="Freeze it with tf.compat.v1.graph_util.convert_variables_to_constants.",
        )
    alone = not any(_read_by_others(leaf, removed, outputs) for read in reads for leaf in read.leaves)
    for multiply, read in zip(layer.multiplies, reads, strict=True):
        edits.inputs[multiply.name] = multiply.definition.input[0]  # type: ignore[attr-defined]
        if alone:
            edits.change(read, functools.partial(_pruned, layer, read, view, registry))
    if not alone:
        # Somebody else reads the dense weight (a loss that was frozen with the graph): it must stay for them.
        leaf = reads[0].leaves[0].name
        name = f"{leaf}_pruned"
        while view.node(name) or any(name == added for _, added, _ in edits.added):
            name += "_"
        edits.added.append((leaf, name, functools.partial(_pruned, layer, reads[0], view, registry)))
        edits.inputs |= {multiply.name: name for multiply in layer.multiplies}


def _read(multiply: Node, tracer: Tracer) -> Read:
    read = tracer.read(multiply.inputs[0])
    if read is None or isinstance(read, Untraceable):
        why = read.message if read else f"its weight comes from '{multiply.inputs[0].node.name}'"
        raise ModelError(why, where=multiply.name, expected="the graph as it was frozen")
    return read


def _is_due(layer: _MaskedLayer, view: ProtoGraph) -> bool:
    """Whether the masked graph would choose the mask again at its next forward pass, though it has one."""
    count, period = int(_constant(view, layer, BATCH)), layer.description.update_freq
    return count != 0 and bool(period) and count % period == 0


def _pruned(layer: _MaskedLayer, read: Read, view: ProtoGraph, registry: Registry) -> np.ndarray:
    """The weight with the mask folded in.

    It is the stored one. Only where no batch was ever trained is there none: then it is what the masked graph
    chooses at every forward pass.
    """
    weight = read.value()
    assert weight is not None  # its leaves are constants
    if not weight.flags.writeable:  # now, so that the stored bytes are gone before those of the mask are read
        weight = weight.copy()
    refuse_non_finite(weight, layer.name, read.leaves[0].name)
    axis, pattern = layer.description.axis, layer.description.pattern
    if int(_constant(view, layer, BATCH)) == 0:
        score = registry.criterion(layer.description.criterion).score(weight, axis)

        def mask(part: Index) -> np.ndarray:
            return keep_mask(score[part], axis, pattern)
    else:
        stored = _stored_mask(layer, view, weight.shape)

        def mask(part: Index) -> np.ndarray:
            return stored[part] != 0

    node = view.node(layer.name)
    handler = (registry.handler(node.op) if node else None) or OpHandler()
    return fold(weight, mask, handler, axis, pattern, overwrite=True)


def _stored_mask(layer: _MaskedLayer, view: ProtoGraph, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of the last training batch, of the weight's shape and dtype."""
    mask = _constant(view, layer, MASK)
    axis, pattern = layer.description.axis, layer.description.pattern
    if mask.shape != shape:
        raise ModelError(
            f"its mask has shape {list(mask.shape)}, its weight {list(shape)}",
            where=layer.name,
            expected="the graph as it was frozen",
        )
    only_0_and_1 = all(((mask[part] == 0) | (mask[part] == 1)).all() for part in parts(shape))
    if not only_0_and_1 or check(mask, axis, pattern).violations:
        raise ModelError(
            f"its stored mask is no {pattern} mask along axis {axis}",
            where=layer.name,
            hint="The mask variable was overwritten; restore it from the checkpoint of the training run.",
        )
    return mask


def _constant(view: ProtoGraph, layer: _MaskedLayer, name: str) -> np.ndarray:
    value = _constant_node(view, layer, name).constant()
    assert value is not None
    return value


def _constant_shape(view: ProtoGraph, layer: _MaskedLayer, name: str) -> tuple[int, ...]:
    return tuple(dim.size for dim in _constant_node(view, layer, name).attr("value").tensor_shape.dim)


def _constant_node(view: ProtoGraph, layer: _MaskedLayer, name: str) -> Node:
    path = f"{layer.name}/{SCOPE}/{name}"
    node = view.node(path)
    if node is None or node.op != "Const":
        raise ModelError(
            f"is {'a ' + node.op if node else 'missing'}",
            where=path,
            expected="a constant",
            hint="Freeze the graph with tf.compat.v1.graph_util.convert_variables_to_constants before it is stripped.",
        )
    return node


def _read_by_others(leaf: Node, removed: set[str], outputs: frozenset[str]) -> bool:
    """Whether the weight also goes where no mask is: into another op, or out of the graph."""
    nodes = [leaf]
    while nodes:
        node = nodes.pop()
        readers = node.view.readers(node)
        # What nobody reads was kept because it is a result.
        if node.name in outputs or not readers:
            return True
        for reader, _ in readers:
            if reader.name in removed:
                continue
            if not hands_on(reader.op):
                return True
            nodes.append(reader)
    return False
