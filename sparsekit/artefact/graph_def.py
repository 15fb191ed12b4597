"""Frozen graphs as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError, EncodeError
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from sparsekit.artefact.well_formed import check_graph_def
from sparsekit.errors import ModelError, SaveError
from sparsekit.graph.node import ProtoGraph
from sparsekit.reading import read_proto
from sparsekit.writing import write_whole

TEXT_SUFFIX = ".pbtxt"
_A_PB = "a frozen GraphDef in a binary .pb, or as text in a .pbtxt"
_FREEZE = "Freeze the graph with tf.compat.v1.graph_util.convert_variables_to_constants."


def is_graph_def(model: Any) -> bool:
    """Whether ``model`` is a GraphDef."""
    return isinstance(model, graph_pb2.GraphDef)


def load_graph_def(model: Any) -> Any:
    """A GraphDef as it is, or the GraphDef in a .pb file; it holds together.

    Raises:
        MissingFileError, ModelError: see :func:`load_graph`.
    """
    return load_graph(model).graph_def


def load_graph(model: Any) -> ProtoGraph:
    """A view of a GraphDef, or of the GraphDef in a .pb file; it holds together.

    Raises:
        MissingFileError: there is no such file.
        ModelError: it is not a GraphDef, an empty one, or one that is damaged.
    """
    if is_graph_def(model):
        graph_def, source = model, "the graph"
        if not graph_def.node:
            raise ModelError("holds no nodes", where=source, expected="a frozen GraphDef", hint=_FREEZE)
    elif isinstance(model, (str, os.PathLike)):
        source = os.fsdecode(model)
        graph_def = _parse(read_proto(source, _A_PB, _FREEZE), source)
    else:
        raise ModelError(
            f"got {type(model).__name__}",
            where="model",
            expected="a GraphDef or the path of a frozen .pb",
            hint=_FREEZE if hasattr(model, "as_graph_def") else "",
        )
    return check_graph_def(graph_def, source)


def _parse(data: bytes, source: str) -> Any:
    if not data.strip():
        raise ModelError("is empty", where=source, expected=_A_PB, hint="Write it again: it may have been cut off.")
    graph_def = graph_pb2.GraphDef()
    if source.endswith(TEXT_SUFFIX):
        return _parse_text(data, graph_def, source)
    try:
        graph_def.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(_what_else(data), where=source, expected=_A_PB, hint=_FREEZE) from error
    if not graph_def.node or not all(node.name and node.op for node in graph_def.node):
        raise ModelError(_what_else(data), where=source, expected=_A_PB, hint=_FREEZE)
    return graph_def


def _parse_text(data: bytes, graph_def: Any, source: str) -> Any:
    try:
        text_format.Parse(data.decode("utf-8"), graph_def)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"is not a GraphDef as text ({error})", where=source, expected=_A_PB, hint=_FREEZE) from error
    if not graph_def.node or not all(node.name and node.op for node in graph_def.node):
        raise ModelError("holds no graph", where=source, expected=_A_PB, hint=_FREEZE)
    return graph_def


def _what_else(data: bytes) -> str:
    """What a file is that is no binary GraphDef."""
    for message, name in ((saved_model_pb2.SavedModel(), "SavedModel"), (meta_graph_pb2.MetaGraphDef(), "MetaGraph")):
        try:
            message.ParseFromString(data)
        except DecodeError:
            continue
        graphs = message.meta_graphs if name == "SavedModel" else [message]
        if any(graph.graph_def.node for graph in graphs):
            return f"is a {name}"
    return "is not a binary GraphDef"


def save_graph_def(graph_def: Any, path: str | os.PathLike[str], second: str | os.PathLike[str] | None = None) -> Path:
    """Write a GraphDef as a binary .pb, or as text where the path ends in .pbtxt; whole or not at all.

    Missing parent folders are made.

    Args:
        graph_def: the GraphDef.
        path: where it goes.
        second: another name for the same file: a hard link, or a copy where links are not possible.

    Returns:
        Where it lies.

    Raises:
        SaveError: it is no GraphDef, cannot be written there, or is larger than the 2 GB that a .pb can hold.
    """
    if not hasattr(graph_def, "SerializeToString"):
        raise SaveError(f"got {type(graph_def).__name__}", where=os.fsdecode(path), expected="a GraphDef to save")
    try:
        data = _serialized(graph_def, os.fsdecode(path))
    except (EncodeError, ValueError) as error:
        raise SaveError(
            f"cannot be serialized ({error})", where=os.fsdecode(path), expected="a GraphDef below 2 GB"
        ) from error
    return write_whole(path, data, second)


def _serialized(graph_def: Any, path: str) -> bytes:
    if path.endswith(TEXT_SUFFIX):
        return text_format.MessageToString(graph_def).encode()
    return graph_def.SerializeToString(deterministic=True)
