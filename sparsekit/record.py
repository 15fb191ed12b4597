"""The record of which layers were pruned, in AMCT's text form: ScaleOffsetRecord."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from google.protobuf import text_format

from sparsekit._amct_messages import Field, enum_values, new_message, parse
from sparsekit.errors import ConfigError, RecordError, near_matches
from sparsekit.pattern import PATTERN_2_4, Pattern
from sparsekit.reading import read_text

if TYPE_CHECKING:
    from sparsekit.planning import Plan

_NOTHING_PRUNED = "# No layer is pruned."
_MAX_DIMENSION = 2**63 - 1  # ints are int64


def _must(test: Callable[[Any], bool], expected: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not test(value):
            raise RecordError(f"{attribute.name} {value!r}", expected=expected)

    return validate


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not re.search("[\ud800-\udfff]", value)


def _is_shape(value: tuple[Any, ...]) -> bool:
    return bool(value) and all(type(size) is int and 0 < size <= _MAX_DIMENSION for size in value)


def _to_shape(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value)


@attrs.frozen
class LayerRecord:
    """One pruned layer.

    Args:
        name: the op's name.
        shape: the shape of its weight, for example (3, 3, 16, 32); positive ints.
        pattern: its sparsity pattern.

    Raises:
        RecordError: the name is empty or not text, or the shape is not one of positive ints.
    """

    name: str = attrs.field(validator=_must(_is_name, "the name of a layer"))
    shape: tuple[int, ...] = attrs.field(
        converter=_to_shape, validator=_must(_is_shape, "one or more positive whole numbers")
    )
    pattern: Pattern = PATTERN_2_4


def _to_layers(value: Iterable[LayerRecord]) -> tuple[LayerRecord, ...]:
    return tuple(value)


@attrs.frozen
class Record:
    """The layers that were pruned, in order.

    Args:
        layers: one entry for each layer.
        source: the file that it came from, for messages; not compared.

    Raises:
        RecordError: two entries have the same name.
    """

    layers: tuple[LayerRecord, ...] = attrs.field(converter=_to_layers)
    source: str = attrs.field(default="record", eq=False)

    def __attrs_post_init__(self) -> None:
        names = set()
        for layer in self.layers:
            if layer.name in names:
                raise RecordError("the layer is recorded twice", where=layer.name)
            names.add(layer.name)

    @classmethod
    def of(cls, plan: Plan) -> Record:
        """The record of the layers that a plan prunes."""
        return cls(tuple(LayerRecord(d.name, d.shape or (), d.pattern or PATTERN_2_4) for d in plan.pruned))

    def match(self, shapes: Mapping[str, tuple[int, ...] | None], model: str, absent: str) -> None:
        """Check that every recorded layer is in a model, with the shape that was recorded.

        Args:
            shapes: the model's layers, with the shapes of their weights (None: not known).
            model: what the model is, for messages, such as "graph".
            absent: what is wrong with a layer that is not in ``shapes``.

        Raises:
            RecordError: a layer is missing or has another shape.
        """
        for layer in self.layers:
            if layer.name not in shapes:
                hint = near_matches(layer.name, shapes)
                raise self.mismatch(f"names the layer '{layer.name}', which {absent}", model, hint)
            shape = shapes[layer.name]
            if shape is not None and shape != layer.shape:
                found = f"gives '{layer.name}' the shape {list(layer.shape)}, in the {model} it is {list(shape)}"
                raise self.mismatch(found, model)

    def mismatch(self, found: str, model: str, hint: str = "") -> RecordError:
        """The error for a record that belongs to another model."""
        expected = f"the record that was written when this very {model} was pruned"
        return RecordError(found, where=self.source, expected=expected, hint=hint)

    def to_text(self) -> str:
        """The record as AMCT writes it; a pattern other than 2:4 adds an attribute that AMCT lacks."""
        if not self.layers:
            return f"{_NOTHING_PRUNED}\n"
        message = new_message("ScaleOffsetRecord")
        kinds = enum_values("AttrType")
        for layer in self.layers:
            node = message.prune_record.add().selective_prune
            node.name = layer.name
            node.attr.add(name="mask_shape", type=kinds.index("INTS"), ints=layer.shape)
            if layer.pattern != PATTERN_2_4:
                node.attr.add(name="pattern", type=kinds.index("STRING"), s=str(layer.pattern))
        # as_utf8: protobuf 4 escapes what is not ASCII unless told so, protobuf 7 does not.
        text: str = text_format.MessageToString(message, as_utf8=True)
        return text


def read_record(path: str | os.PathLike[str]) -> Record:
    """The record in a file, ours or AMCT's. Quantization records beside the sparsity ones are passed over.

    Args:
        path: the file.

    Raises:
        RecordError: the file cannot be read or parsed, is empty, is of channel sparsity, or an entry is
            incomplete or contradictory; the message names the file and the line.
        MissingFileError: there is no such file.
    """
    source = os.fsdecode(path)
    text = read_text(Path(source), RecordError)
    message, root = parse(text, "ScaleOffsetRecord", source, RecordError)
    if not root.fields and _NOTHING_PRUNED not in text.splitlines():
        raise RecordError("the record is empty", where=f"{source}:1", hint="Write it again: it may have been cut off.")
    layers: dict[str, LayerRecord] = {}
    for entry, field in zip(message.prune_record, root.named("prune_record"), strict=True):
        layer = _read_layer(entry, field, source)
        if layer.name in layers:
            raise RecordError(f"the layer '{layer.name}' is recorded twice", where=f"{source}:{field.line}")
        layers[layer.name] = layer
    return Record(tuple(layers.values()), source)


def _read_layer(entry: Any, field: Field, source: str) -> LayerRecord:
    for channel in field.named("producer", "consumer"):
        found = f"a record of channel sparsity ({channel.name}), which is not supported"
        raise RecordError(found, where=f"{source}:{channel.line}", expected="selective_prune (2:4 sparsity)")
    if not entry.HasField("selective_prune"):
        raise RecordError("a prune_record without selective_prune", where=f"{source}:{field.line}")
    node, (inner,) = entry.selective_prune, field.named("selective_prune")
    where = f"{source}:{inner.line}"
    if not node.name:
        raise RecordError("selective_prune without a name", where=where)
    attributes: dict[str, tuple[Any, str]] = {}
    for attribute, written in zip(node.attr, inner.named("attr"), strict=True):
        at = f"{source}:{written.line}"
        if attribute.name in attributes:
            raise RecordError(f"the attribute '{attribute.name}' of '{node.name}' stands twice", where=at)
        attributes[attribute.name] = attribute, at
    if "mask_shape" not in attributes:
        raise RecordError(f"the layer '{node.name}' has no mask_shape", where=where)
    shape = _read_shape(*attributes["mask_shape"])
    pattern = _read_pattern(*attributes["pattern"]) if "pattern" in attributes else PATTERN_2_4
    return LayerRecord(node.name, shape, pattern)


def _read_shape(attribute: Any, where: str) -> tuple[int, ...]:
    _check_type(attribute, "INTS", where)
    shape = tuple(attribute.ints)
    if not _is_shape(shape):
        expected = "one or more positive whole numbers (ints)"
        raise RecordError(f"mask_shape {list(shape)}", where=where, expected=expected)
    return shape


def _read_pattern(attribute: Any, where: str) -> Pattern:
    _check_type(attribute, "STRING", where)
    try:
        return Pattern.parse(attribute.s)
    except ConfigError as error:
        raise RecordError(error.found, where=where, expected=error.expected, hint=error.hint) from None


def _check_type(attribute: Any, expected: str, where: str) -> None:
    found = enum_values("AttrType")[attribute.type]
    if found != expected:
        raise RecordError(f"{attribute.name} is of type {found}", where=where, expected=expected)
