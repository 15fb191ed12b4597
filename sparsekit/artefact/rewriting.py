"""A GraphDef written anew with other constants, without some nodes, with some biases. The input is never modified."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
from google.protobuf.message import Message
from tensorflow.core.framework import graph_pb2

from sparsekit.artefact.added_bias import AddedBias, added_biases
from sparsekit.errors import ModelError
from sparsekit.graph.order import input_node
from sparsekit.graph.trace import Read

# Up to this many bytes it does not matter that an old value is copied before the new one replaces it.
_SMALL = 1 << 12

FREEZE_AND_STRIP = "Freeze the graph with tf.compat.v1.graph_util.convert_variables_to_constants and strip that."
"""The next step for a graph out of which masks cannot be taken."""


@attrs.define
class Edits:
    """What changes in a graph. New values are asked for when they are written, one at a time."""

    values: dict[tuple[str, str], Callable[[], np.ndarray]] = attrs.Factory(dict)
    """New values of constants, by location: (function name, "" for the main graph; node name)."""
    removed: set[str] = attrs.Factory(set)
    """Nodes of the main graph that go."""
    inputs: dict[str, str] = attrs.Factory(dict)
    """For a removed node, what its readers read instead."""
    added: list[tuple[str, str, Callable[[], np.ndarray]]] = attrs.Factory(list)
    """New constants of the main graph: (the constant to stand beside, name, value)."""
    unmarked: dict[str, tuple[str, ...]] = attrs.Factory(dict)
    """Attributes that go, by the node of the main graph that loses them."""
    biases: tuple[AddedBias, ...] = ()
    """What is added to the outputs of ops that stay."""

    def change(self, read: Read, value: Callable[[], np.ndarray]) -> None:
        """Give the constants that a weight is read from a new value; ``value`` is called once."""
        if read.concat_axis is None:
            self.values[read.leaves[0].location] = value
            return
        split: dict[tuple[str, str], np.ndarray] = {}

        def part(location: tuple[str, str]) -> np.ndarray:
            if not split:
                split.update((leaf.location, cut) for leaf, cut in read.split(value()))
            return split.pop(location)

        self.values |= {leaf.location: functools.partial(part, leaf.location) for leaf in read.leaves}


def rewritten(graph_def: Any, edits: Edits) -> Any:
    """A new GraphDef with the edits made.

    Raises:
        ModelError: a node that stays reads a node that goes.
    """
    result = graph_pb2.GraphDef()
    for field, content in graph_def.ListFields():
        if field.name not in ("node", "library"):
            _copy_field(field.name, content, result)
    beside: dict[str, list[tuple[str, Callable[[], np.ndarray]]]] = {}
    for leaf, name, value in edits.added:
        beside.setdefault(leaf, []).append((name, value))
    values = {name: value for (function, name), value in edits.values.items() if not function}
    for node in graph_def.node:
        old_name = node.name
        if old_name in edits.removed:
            continue
        _copy(node, result.node, values.get(old_name))
        if edits.removed:
            _redirect(result.node[-1], edits)
        for attribute in edits.unmarked.get(old_name, ()):
            result.node[-1].attr.pop(attribute, None)
        for name, value in beside.get(old_name, ()):
            _copy(node, result.node, value)
            result.node[-1].name = name
    added_biases(result.node, _biases_in("", edits))
    if graph_def.HasField("library"):
        _copy_library(graph_def.library, result.library, edits)
    return result


def _copy_field(name: str, content: Any, result: Any) -> None:
    if isinstance(content, Message):
        getattr(result, name).CopyFrom(content)
    else:
        setattr(result, name, content)


def _biases_in(function: str, edits: Edits) -> dict[str, AddedBias]:
    return {bias.location[1]: bias for bias in edits.biases if bias.location[0] == function}


def _copy_library(library: Any, result: Any, edits: Edits) -> None:
    edited = {function for function, _ in (*edits.values, *(bias.location for bias in edits.biases)) if function}
    if not edited:
        result.CopyFrom(library)
        return
    result.gradient.extend(library.gradient)
    if hasattr(library, "registered_gradients"):
        result.registered_gradients.extend(library.registered_gradients)
    for function in library.function:
        copy = result.function.add()
        copy.CopyFrom(function)
        if function.signature.name in edited:
            del copy.node_def[:]
            for node in function.node_def:
                _copy(node, copy.node_def, edits.values.get((function.signature.name, node.name)))
            added_biases(copy.node_def, _biases_in(function.signature.name, edits), copy.ret)


def _copy(node: Any, nodes: Any, value: Callable[[], np.ndarray] | None) -> None:
    """Append a copy of a node; of a constant with a large new value, the old value is never copied."""
    if value is None:
        nodes.add().CopyFrom(node)
        return
    shape, content = _content(value)
    if len(content) <= _SMALL and _fits(node.attr["value"].tensor, shape, content):
        copy = nodes.add()
        copy.CopyFrom(node)
        copy.attr["value"].tensor.tensor_content = content
        return
    copy = nodes.add()
    copy.name, copy.op, copy.device = node.name, node.op, node.device
    copy.input.extend(node.input)
    attributes, new_attributes = node.attr, copy.attr
    for key in attributes:
        if key != "value":
            new_attributes[key].CopyFrom(attributes[key])
    old, new = attributes["value"].tensor, new_attributes["value"].tensor
    # Set where it stays: a message that is made first and copied then would be in memory twice.
    new.dtype = old.dtype
    new.version_number = old.version_number
    new.tensor_content = content
    if tuple(d.size for d in old.tensor_shape.dim) == shape:
        new.tensor_shape.CopyFrom(old.tensor_shape)
    else:
        for size in shape:
            new.tensor_shape.dim.add(size=size)
    if node.HasField("experimental_debug_info"):
        copy.experimental_debug_info.CopyFrom(node.experimental_debug_info)
    if node.HasField("experimental_type"):
        copy.experimental_type.CopyFrom(node.experimental_type)


def _fits(old: Any, shape: tuple[int, ...], content: bytes) -> bool:
    """Whether nothing changes in a tensor but its bytes."""
    return len(old.tensor_content) == len(content) and tuple([d.size for d in old.tensor_shape.dim]) == shape


def _content(value: Callable[[], np.ndarray]) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes; the array itself is gone when it returns."""
    array = value()
    return array.shape, array.tobytes()


def _redirect(node: Any, edits: Edits) -> None:
    for index, text in enumerate(node.input):
        name = input_node(text)
        if name not in edits.removed:
            continue
        if name not in edits.inputs or text.startswith("^"):
            raise ModelError(
                f"reads '{text}', an op of the mask",
                where=node.name,
                expected="masks to be read by masked layers alone",
                hint="Freeze the graph with the outputs of the model only, or export it without its training ops.",
            )
        node.input[index] = edits.inputs[name]
