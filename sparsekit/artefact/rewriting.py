"""A GraphDef written anew with other constants, without some nodes. The input is never modified."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from tensorflow.core.framework import graph_pb2, tensor_pb2

from sparsekit.errors import ModelError


@attrs.define
class Edits:
    """What changes in a graph."""

    values: dict[tuple[str, str], np.ndarray] = attrs.Factory(dict)
    """New values of constants, by location: (function name, "" for the main graph; node name)."""
    removed: set[str] = attrs.Factory(set)
    """Nodes of the main graph that go."""
    inputs: dict[str, str] = attrs.Factory(dict)
    """For a removed node, what its readers read instead."""
    added: list[tuple[str, str, np.ndarray]] = attrs.Factory(list)
    """New constants of the main graph: (the constant to stand beside, name, value)."""


def rewritten(graph_def: Any, edits: Edits) -> Any:
    """A new GraphDef with the edits made.

    Raises:
        ModelError: a node that stays reads a node that goes.
    """
    result = graph_pb2.GraphDef()
    result.versions.CopyFrom(graph_def.versions)
    beside: dict[str, list[tuple[str, np.ndarray]]] = {}
    for leaf, name, value in edits.added:
        beside.setdefault(leaf, []).append((name, value))
    for node in graph_def.node:
        if node.name in edits.removed:
            continue
        _copy(node, result.node, edits.values.get(("", node.name)))
        _redirect(result.node[-1], edits)
        for name, value in beside.get(node.name, ()):
            _copy(node, result.node, value)
            result.node[-1].name = name
    if graph_def.HasField("library"):
        _copy_library(graph_def.library, result.library, edits)
    return result


def _copy_library(library: Any, result: Any, edits: Edits) -> None:
    edited = {function for function, _ in edits.values if function}
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


def _copy(node: Any, nodes: Any, value: np.ndarray | None) -> None:
    """Append a copy of a node; of a constant with a new value, the old value is never copied."""
    if value is None:
        nodes.add().CopyFrom(node)
        return
    copy = nodes.add(name=node.name, op=node.op, device=node.device, input=node.input)
    for key, attribute in node.attr.items():
        if key != "value":
            copy.attr[key].CopyFrom(attribute)
    old = node.attr["value"].tensor
    tensor = tensor_pb2.TensorProto(dtype=old.dtype, tensor_content=np.ascontiguousarray(value).tobytes())
    tensor.version_number = old.version_number
    if tuple(d.size for d in old.tensor_shape.dim) == value.shape:
        tensor.tensor_shape.CopyFrom(old.tensor_shape)
    else:
        for size in value.shape:
            tensor.tensor_shape.dim.add(size=size)
    copy.attr["value"].tensor.CopyFrom(tensor)
    if node.HasField("experimental_debug_info"):
        copy.experimental_debug_info.CopyFrom(node.experimental_debug_info)
    if node.HasField("experimental_type"):
        copy.experimental_type.CopyFrom(node.experimental_type)


def _redirect(node: Any, edits: Edits) -> None:
    for index, text in enumerate(node.input):
        name = text.removeprefix("^").partition(":")[0]
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
