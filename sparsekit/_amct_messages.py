"""AMCT's protobuf messages and its text format, read with the lines on which things stand.

The descriptors are assembled here, in a pool of their own, so that no generated code ties the package to a
protoc version. Names and numbers are those of AMCT's public documents and its open PyTorch edition.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import attrs
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from sparsekit.errors import SparsekitError, near_matches

# number, label (or the name of a oneof), type, name, default. AttrProto's numbers are not published
# and are ours: text shows names.
_MESSAGES = {
    "AMCTRetrainConfig": """
        1 optional uint32 batch_num 1
        2 optional RetrainDataQuantConfig retrain_data_quant_config
        3 optional RetrainWeightQuantConfig retrain_weight_quant_config
        4 repeated string skip_layers
        5 repeated RetrainOverrideLayer override_layer_configs
        6 repeated string skip_layer_types
        7 repeated RetrainOverrideLayerType override_layer_types
        8 optional PruneConfig prune_config
        9 repeated string regular_prune_skip_layers
        10 repeated string regular_prune_skip_types
        11 repeated string quant_skip_layers
        12 repeated string quant_skip_types""",
    "RetrainOverrideLayer": """
        1 required string layer_name
        2 optional RetrainDataQuantConfig retrain_data_quant_config
        3 optional RetrainWeightQuantConfig retrain_weight_quant_config
        4 optional PruneConfig prune_config""",
    "RetrainOverrideLayerType": """
        1 required string layer_type
        2 optional RetrainDataQuantConfig retrain_data_quant_config
        3 optional RetrainWeightQuantConfig retrain_weight_quant_config
        4 optional PruneConfig prune_config""",
    "PruneConfig": """
        1 pruner FilterPruner filter_pruner
        2 pruner NOutOfMPruner n_out_of_m_pruner""",
    "FilterPruner": """
        1 pruner BalancedL2NormFilterPruner balanced_l2_norm_filter_prune""",
    "BalancedL2NormFilterPruner": """
        1 required float prune_ratio
        2 optional bool ascend_optimized true""",
    "NOutOfMPruner": """
        1 pruner L1SelectivePruner l1_selective_prune""",
    "L1SelectivePruner": """
        1 optional NOutOfMType n_out_of_m_type M4N2
        2 optional uint32 update_freq 0""",
    "RetrainDataQuantConfig": """
        13 quantizer ActULQquantize ulq_quantize""",
    "ActULQquantize": """
        1 optional ClipMaxMin clip_max_min
        2 optional bool fixed_min
        3 optional DataType dst_type INT8""",
    "ClipMaxMin": """
        3 required float clip_max
        5 required float clip_min""",
    "RetrainWeightQuantConfig": """
        1 quantizer ARQRetrain arq_retrain
        2 quantizer WtsULQRetrain ulq_retrain""",
    "ARQRetrain": """
        1 optional DataType dst_type INT8
        2 optional bool channel_wise""",
    "WtsULQRetrain": """
        1 optional DataType dst_type INT8
        2 optional bool channel_wise""",
    "ScaleOffsetRecord": """
        1 repeated MapFiledEntry record
        2 repeated PruneRecord prune_record""",
    "MapFiledEntry": """
        1 optional string key""",
    "PruneRecord": """
        1 repeated PruneNode producer
        2 repeated PruneNode consumer
        3 optional PruneNode selective_prune""",
    "PruneNode": """
        1 required string name
        2 repeated AttrProto attr""",
    "AttrProto": """
        1 optional string name
        2 optional AttrType type
        3 optional float f
        4 optional int64 i
        5 optional string s
        6 repeated float floats
        7 repeated int64 ints
        8 repeated string strings""",
}
_ENUMS = {
    "NOutOfMType": ("M4N2",),
    "DataType": ("INT4", "INT8", "INT16"),
    "AttrType": ("UNDEFINED", "FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS"),
}
# Quantization results: nothing here reads them, and what they hold differs between AMCT's editions.
_OPEN_MESSAGES = {"MapFiledEntry"}


@functools.cache
def _pool() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="sparsekit/amct.proto", syntax="proto2")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, lines in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for line in lines.strip().splitlines():
            _add_field(message, *line.split())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: Any, number: str, label: str, kind: str, name: str, default: str = "") -> None:
    proto = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number), label=proto.LABEL_OPTIONAL)
    if label in ("required", "repeated"):
        field.label = proto.Label.Value(f"LABEL_{label.upper()}")
    elif label != "optional":
        if label not in [oneof.name for oneof in message.oneof_decl]:
            message.oneof_decl.add(name=label)
        field.oneof_index = len(message.oneof_decl) - 1
    if kind in _MESSAGES:
        field.type, field.type_name = proto.TYPE_MESSAGE, f".{kind}"
    elif kind in _ENUMS:
        field.type, field.type_name = proto.TYPE_ENUM, f".{kind}"
    else:
        field.type = proto.Type.Value(f"TYPE_{kind.upper()}")
    if default:
        field.default_value = default


@functools.cache
def _message_class(name: str) -> Any:
    descriptor = _pool().FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_pool()).GetPrototype(descriptor)  # protobuf 3.20, which TF 2.16 allows


def new_message(name: str) -> Any:
    """An empty message of the type ``name``."""
    return _message_class(name)()


def enum_values(name: str) -> tuple[str, ...]:
    """The names of the enum ``name``; a value's number is its place."""
    return _ENUMS[name]


@attrs.define
class Field:
    """One field as written in a text file.

    Args:
        name: the field's name; empty for the file itself.
        line: the line it starts on, from 1.
        fields: the fields inside it, in order; one for each element of a repeated field.
    """

    name: str
    line: int
    fields: list[Field] = attrs.Factory(list)

    def named(self, *names: str) -> list[Field]:
        """The fields directly inside that have one of these names, in the file's order."""
        return [field for field in self.fields if field.name in names]

    def walk(self) -> Iterator[Field]:
        """The fields at any depth, in the file's order."""
        todo = self.fields[::-1]  # not recursive: the text may be nested deeper than Python recurses
        while todo:
            field = todo.pop()
            yield field
            todo.extend(reversed(field.fields))


_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<word>[\w.+-]+)
    |(?P<open>[{<])
    |(?P<close>[}>])
    |(?P<other>[\[\]:,;\n])""",
    re.VERBOSE,
)


def outline(text: str) -> Field:
    """The fields of a protobuf text and their lines, without knowing any message; never fails.

    Of a text that is not valid it gives what it makes out.
    """
    root = Field("", 1)
    # For each message around this one: itself, the name of the field being read in it, that name's line, and
    # whether that field's value is a [list].
    stack: list[tuple[Field, str, int, bool]] = []
    message, name, name_line, in_list = root, "", 1, False
    line, previous, value_follows = 1, "", False
    for token in _TOKEN.finditer(text):
        kind, value = token.lastgroup or "", token[0]
        if kind == "comment":
            continue
        if value == "\n":
            line += 1
            continue
        if kind == "open":
            field = Field(name, line if in_list else name_line)
            message.fields.append(field)
            stack.append((message, name, name_line, in_list))
            message, name, in_list = field, "", False
        elif kind == "close" and stack:
            message, name, name_line, in_list = stack.pop()
        elif value in "[]":
            in_list = value == "["
        elif kind == "string" and previous == "string":
            pass  # "two" "strings" in a row are one value
        elif kind in ("word", "string") and (value_follows or in_list):
            message.fields.append(Field(name, line if in_list else name_line))
        elif kind == "word":
            name, name_line = value, line
        value_follows, previous = value == ":", kind
    return root


def parse(text: str, name: str, source: str, error: type[SparsekitError], hint: str = "") -> tuple[Any, Field]:
    """A protobuf text as a message, and its outline; the two have the same shape.

    Required fields may be missing, and quantization records may hold unknown fields.

    Args:
        text: the text.
        name: the message's type.
        source: the file that holds the text.
        error: the class to raise.
        hint: what to say in addition of a text that is not valid.

    Raises:
        SparsekitError: of class ``error``: the text is not valid, or a field or enum value is unknown.
    """
    message = new_message(name)
    try:
        text_format.Parse(text, message, allow_unknown_field=True)
    except text_format.ParseError as reason:
        raise _refused(text, reason, source, error, hint) from None
    except (ValueError, RecursionError) as reason:  # numbers or nesting beyond what the interpreter takes
        raise error(f"not valid protobuf text: {reason}", where=source, hint=hint) from None
    root = outline(text)
    _refuse_unknown_fields(root, message.DESCRIPTOR, source, error)
    return message, root


def _refuse_unknown_fields(parent: Field, descriptor: Any, source: str, error: type[SparsekitError]) -> None:
    for field in parent.fields:
        known = descriptor.fields_by_name.get(field.name)
        if known is None:
            names = list(descriptor.fields_by_name)
            hint = near_matches(field.name, names) or f"The fields are {', '.join(names)}."
            found = f"{parent.name or 'this file'} has no field '{field.name}'"
            raise error(found, where=f"{source}:{field.line}", hint=hint)
        if known.message_type is not None and known.message_type.name not in _OPEN_MESSAGES:
            _refuse_unknown_fields(field, known.message_type, source, error)


def _refused(
    text: str, reason: text_format.ParseError, source: str, error: type[SparsekitError], hint: str
) -> SparsekitError:
    """The error for a text that protobuf refuses: its words without the copy of the line before them."""
    lines = text.split("\n")
    line = min(max(1, reason.GetLine() or 1), len(lines))
    words = str(reason).removeprefix(f"{reason.GetLine()}:{reason.GetColumn()} : ")
    for copy in (lines[line - 1], ""):  # empty after the last line
        words = words.removeprefix(f"'{copy}': ")
    words = textwrap.shorten(words.rstrip("."), 300, placeholder=" ...")
    where = f"{source}:{line}"
    enum = re.fullmatch(r'Enum type "(\w+)" has no value (?:named|with number) (\S+)', words)
    if enum:
        return error(f"unknown value {enum[2]}", where=where, expected=" or ".join(enum_values(enum[1])))
    column = f" (column {reason.GetColumn()})" if reason.GetColumn() else ""
    return error(f"not valid protobuf text: {words}{column}", where=where, hint=hint)
