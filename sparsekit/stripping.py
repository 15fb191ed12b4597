"""From a masked model at rest to the pruned one: mask ops gone, zeros in the weights."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import attrs
import numpy as np

from sparsekit.artefact.model import Array, Change, Model
from sparsekit.artefact.rewriting import FREEZE_AND_STRIP, Edits
from sparsekit.errors import ModelError
from sparsekit.graph.forward import reached
from sparsekit.graph.node import Node, ProtoGraph
from sparsekit.graph.order import input_node
from sparsekit.graph.trace import MASK_ATTRIBUTE, Read, Tracer, Untraceable, hands_on
from sparsekit.handler import OpHandler
from sparsekit.live.gradient import BATCH, IN_PLACE, MARKS, MASK, READS, ZEROS
from sparsekit.live.mask import SCOPE, MaskDescription
from sparsekit.one_shot import fold, refuse_non_finite
from sparsekit.parts import parts
from sparsekit.pattern import check, keep_mask
from sparsekit.plugins import Registry
from sparsekit.progress import track
from sparsekit.record import Record
from sparsekit.table import first_of

_log = logging.getLogger("sparsekit")

_SHOWN = 5


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
    model: Model, registry: Registry, record: Record | None = None, outputs: tuple[str, ...] | None = None
) -> Model:
    """Fold every mask into its weight and take the mask ops out.

    Args:
        model: the masked model; it is not modified. Masks and weights are constants of a frozen graph, or variables
            of a SavedModel that was exported from a TF1-style graph.
        registry: the plugins.
        record: the layers that must be masked, no more and no fewer; None: whatever is.
        outputs: the operations whose results are used, besides those that the model itself names; what they give
            does not change.

    Returns:
        The pruned model: the dense one, node for node, with zeros in its weights. Of a SavedModel these are written
        when it is saved.

    Raises:
        ModelError: it is not frozen or exported, was changed since, or holds weights that are not finite.
        RecordError: the record does not match.
    """
    view = model.view
    layers = _masked_layers(view)
    if layers and (obstacle := model.graph_obstacle()):
        raise ModelError(
            f"{obstacle}; masks cannot be taken out of it",
            where=model.source,
            expected="a frozen graph, or a SavedModel with one graph, exported in TF1 style",
            hint=FREEZE_AND_STRIP,
        )
    _compare(layers, model, record)
    inserted = _inserted(view, layers)
    for name in outputs or ():
        if name in inserted:
            raise ModelError(f"'{name}' is an op of a mask, which strip takes out", where="outputs")
    fold = _Folding(model, registry, inserted, frozenset((*(outputs or ()), *(model.outputs or ()))))
    fold.edits.unmarked = {node.name: MARKS for node in view.nodes() if node.attr(READS) is not None}
    for layer in track(layers, "Checking masks"):
        fold.layer(layer)
    if fold.due:
        _log.warning(
            "%d of %d layers were due for a new mask when the graph was frozen or exported (update_freq); the stored "
            "masks, those of the last training batch, were used",
            fold.due,
            len(layers),
        )
    if fold.moved:
        _log.warning(
            "dropped weights of %s were not zero in the masked graph, which computed with them; they are zero now. "
            "They were written past the masks: averages that were restored as the weights, momentum of a checkpoint "
            "that was trained otherwise, or values that were loaded later. Restore such into a graph that was pruned "
            'with masking = "forward", or run result.initializer after it.',
            first_of([f"'{layer}'" for layer in fold.moved], _SHOWN),
        )
    return model.changed(fold.changes, fold.edits)


def _masked_layers(view: ProtoGraph) -> list[_MaskedLayer]:
    multiplies: dict[str, list[Node]] = {}
    for node in view.nodes():
        described = node.attr(MASK_ATTRIBUTE) is not None
        layer, found, name = node.name.rpartition(f"/{SCOPE}/")
        # Folded, the state beside it is gone as well.
        named = bool(found) and name.startswith("masked")
        named = named and (node.op == "Const" or view.node(f"{layer}/{SCOPE}/{MASK}") is not None)
        if (described or named) and not (described and node.op in ("Mul", "IdentityN")):
            raise ModelError(
                f"its mask is no longer the op that was inserted but a {node.op}",
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


def _compare(layers: list[_MaskedLayer], model: Model, record: Record | None) -> None:
    """The record and the graph must name the same layers."""
    if record is None:
        if not layers:
            raise ModelError(
                f"holds no masks{_masks_in_functions(model.view)}",
                where=model.source,
                expected="a frozen graph or SavedModel that sparsekit.prune masked before",
                hint="Freeze or export the graph that was pruned, not one built anew.",
            )
        return
    shapes = {layer.name: _state(model, layer, MASK).shape for layer in layers}
    record.match(shapes, "graph", "has no mask in the graph")
    unnamed = shapes.keys() - {entry.name for entry in record.layers}
    if unnamed:
        raise record.mismatch(f"does not name {', '.join(sorted(unnamed))}, which the graph masks", "graph")


def _masks_in_functions(view: ProtoGraph) -> str:
    for name, function in view.library.items():
        if any(MASK_ATTRIBUTE in node.attr for node in function.node_def):
            return f" but in its function '{name}', where they cannot be taken out"
    return ""


def _inserted(view: ProtoGraph, layers: list[_MaskedLayer]) -> set[str]:
    """The names of all nodes that hold or make masks."""
    names = {layer.name for layer in layers}
    return {node.name for node in view.nodes() if node.name.rpartition(f"/{SCOPE}/")[0] in names}


class _Folding:
    """What becomes of a model whose masks are folded, layer by layer.

    Args:
        model, registry: as for :func:`strip_masks`.
        inserted: the nodes that hold or make masks.
        outputs: the operations whose results are used.

    Attributes:
        changes: what becomes of stored weights.
        edits: what becomes of the graph.
        due: how many masks were due to be chosen again.
        moved: the layers that computed with weights which their mask drops.
    """

    def __init__(self, model: Model, registry: Registry, inserted: set[str], outputs: frozenset[str]) -> None:
        self._model = model
        self._view = model.view
        self._registry = registry
        self._outputs = outputs
        self._tracer = Tracer()
        self._used = _behind(self._view, outputs) if model.holds_more else None
        self.changes: list[Change] = []
        self.edits = Edits(removed=set(inserted))
        self.due = 0
        self.moved: list[str] = []

    def layer(self, layer: _MaskedLayer) -> None:
        """Fold one mask into its weight."""
        reads = [_read(multiply, self._tracer) for multiply in layer.multiplies]
        _refuse_unreadable(self._model, reads[0], layer.name)
        (_, weight), *copies = self._model.values(reads[0])
        if copies:
            raise ModelError("its weight is stored in several copies", where=layer.name, hint=FREEZE_AND_STRIP)
        refuse_non_finite(weight, layer.name, reads[0].leaves[0].name)
        mask, due = _mask(layer, self._model, weight, self._registry)
        self.due += due
        if _is_taken_as_it_is(layer, self._model) and any(
            weight[part][~mask[part]].any() for part in parts(weight.shape)
        ):
            self.moved.append(layer.name)
        node = self._view.node(layer.name)
        handler = (self._registry.handler(node.op) if node else None) or OpHandler()
        # Of a SavedModel it is needed again when it is saved: eight of its values in a byte.
        change = functools.partial(_folded, handler=handler, packed=np.packbits(mask), layer=layer.description)
        others = [self._read_by_others(leaf) for read in reads for leaf in read.leaves]
        other = next((found for found in others if found is not None), None)
        for multiply in layer.multiplies:
            self.edits.inputs[multiply.name] = multiply.definition.input[0]  # type: ignore[attr-defined]
        if other is None:
            # Of a resource variable there are several reads, of one stored weight.
            by_place = {tuple(leaf.location for leaf in read.leaves): read for read in reads}
            self.changes += [(read, change) for read in by_place.values()]
        elif reads[0].is_constant:
            self._add_constant(layer, reads[0].leaves[0].name, functools.partial(change, weight))
        else:
            raise ModelError(
                f"its weight '{reads[0].leaves[0].name}' is read without the mask too, by '{other}'",
                where=layer.name,
                expected="a weight of which the outputs depend through its mask alone",
                hint=FREEZE_AND_STRIP,
            )

    def _add_constant(self, layer: _MaskedLayer, leaf: str, pruned: Callable[[], Array]) -> None:
        """Somebody else reads the dense weight (a loss that was frozen with the graph): it must stay for them."""
        name = f"{leaf}_pruned"
        while self._view.node(name) or any(name == added for _, added, _ in self.edits.added):
            name += "_"
        self.edits.added.append((leaf, name, pruned))
        self.edits.inputs |= {multiply.name: name for multiply in layer.multiplies}

    def _read_by_others(self, leaf: Node) -> str | None:
        """Where the weight goes without a mask, into another op or out of the graph; None: nowhere."""
        nodes = [leaf] if self._is_used(leaf) else []
        while nodes:
            node = nodes.pop()
            readers = [reader for reader, _ in node.view.readers(node) if self._is_used(reader)]
            # What nobody reads was kept because it is a result.
            if node.name in self._outputs or not readers:
                return node.name
            for reader in readers:
                if reader.name in self.edits.removed:
                    continue
                if not hands_on(reader.op):
                    return reader.name
                nodes.append(reader)
        return None

    def _is_used(self, node: Node) -> bool:
        return self._used is None or node.name in self._used


def _folded(weight: Array, handler: OpHandler, packed: Array, layer: MaskDescription) -> Array:
    mask = np.unpackbits(packed, count=weight.size).reshape(weight.shape).view(np.bool_)
    return fold(weight, lambda part: mask[part], handler, layer.axis, layer.pattern)


def _behind(view: ProtoGraph, outputs: frozenset[str]) -> set[str]:
    """The names of the nodes that run when the outputs are asked for.

    Raises:
        ModelError: there are no outputs.
    """
    if not outputs:
        raise ModelError(
            "has no signature",
            where="the SavedModel",
            hint="Name the operations whose results are used: outputs=[...].",
        )

    def before(name: str) -> list[str]:
        node = view.node(name)
        return [input_node(text) for text in node.definition.input] if node else []

    return reached(outputs, before)


def _read(multiply: Node, tracer: Tracer) -> Read:
    read = tracer.read(multiply.inputs[0])
    if read is None or isinstance(read, Untraceable):
        why = read.message if read else f"its weight comes from '{multiply.inputs[0].node.name}'"
        raise ModelError(why, where=multiply.name, expected="the graph as it was frozen or exported")
    return read


def _mask(layer: _MaskedLayer, model: Model, weight: Array, registry: Registry) -> tuple[Array, bool]:
    """The mask to fold, and whether it was due to be chosen again.

    It is the stored one. Only where no batch was ever trained is there none: then it is what the masked graph
    chooses at every forward pass.
    """
    description = layer.description
    state = {name: _state(model, layer, name) for name in (BATCH, MASK)}
    count = int(_stored(model, state[BATCH]))
    if count == 0:
        criterion = registry.criterion(description.criterion)
        score = criterion.score(weight, description.axis)
        return keep_mask(score, description.axis, description.pattern), False
    mask = _stored(model, state[MASK])
    if mask.shape != weight.shape:
        raise ModelError(
            f"its mask has shape {list(mask.shape)}, its weight {list(weight.shape)}",
            where=layer.name,
            expected="the graph as it was frozen or exported",
        )
    only_0_and_1 = all(((mask[part] == 0) | (mask[part] == 1)).all() for part in parts(mask.shape))
    if not only_0_and_1 or check(mask, description.axis, description.pattern).violations:
        raise ModelError(
            f"its stored mask is no {description.pattern} mask along axis {description.axis}",
            where=layer.name,
            hint="The mask variable was overwritten; restore it from the checkpoint of the training run.",
        )
    is_due = bool(description.update_freq) and count % description.update_freq == 0
    return mask != 0, is_due and not _chosen_after_updates(layer, model)


def _is_taken_as_it_is(layer: _MaskedLayer, model: Model) -> bool:
    """Whether the masked graph expects zeros in the variable, so that the forward pass masks nothing."""
    written = _count_of_zeros(layer, model)
    if layer.multiplies[0].attr("_gradient_op_type") == IN_PLACE:
        return written == 0
    return written >= 0 and written == int(_stored(model, _state(model, layer, BATCH)))


def _chosen_after_updates(layer: _MaskedLayer, model: Model) -> bool:
    """Whether the train op wrote zeros, and then chose what was due."""
    return _count_of_zeros(layer, model) >= 0


def _count_of_zeros(layer: _MaskedLayer, model: Model) -> int:
    """What the layer's variable of this name holds (see `LayerMask.zeros`), -1 where there is none."""
    if model.view.node(f"{layer.name}/{SCOPE}/{ZEROS}") is None:
        return -1
    return int(_stored(model, _state(model, layer, ZEROS)))


def _state(model: Model, layer: _MaskedLayer, name: str) -> Read:
    """Where a layer's mask or batch count is stored."""
    path = f"{layer.name}/{SCOPE}/{name}"
    node = model.view.node(path)
    if node is None:
        raise ModelError("is missing", where=path, expected="the state of a mask", hint=FREEZE_AND_STRIP)
    read = Read((node,))
    _refuse_unreadable(model, read, path)
    return read


def _stored(model: Model, read: Read) -> Array:
    (_, value), *copies = model.values(read)
    if copies:
        raise ModelError("is stored in several copies", where=read.leaves[0].name, hint=FREEZE_AND_STRIP)
    return value


def _refuse_unreadable(model: Model, read: Read, where: str) -> None:
    obstacle = model.obstacle(read)
    if obstacle:
        raise ModelError(obstacle, where=where, hint=FREEZE_AND_STRIP)
