"""Frozen graphs as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, EncodeError
from tensorflow.core.framework import graph_pb2

from sparsekit.errors import MissingFileError, ModelError, SaveError
from sparsekit.writing import write_whole


def load_graph_def(model: Any) -> Any:
    """A GraphDef as it is, or the GraphDef in a .pb file.

    Raises:
        MissingFileError: there is no such file.
        ModelError: it is not a GraphDef, or an empty one.
    """
    if isinstance(model, graph_pb2.GraphDef):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(
            f"got {type(model).__name__}",
            where="model",
            expected="a GraphDef or the path of a frozen .pb",
            hint="A live tf.Graph is frozen with tf.compat.v1.graph_util.convert_variables_to_constants."
            if hasattr(model, "as_graph_def")
            else "",
        )
    path = Path(model)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError("there is no such file", where=str(path), expected="a frozen .pb") from error
    except OSError as error:
        raise ModelError(
            f"cannot be read ({error.strerror or error})", where=str(path), expected="a frozen .pb"
        ) from error
    graph_def = graph_pb2.GraphDef()
    try:
        graph_def.ParseFromString(data)
    except DecodeError as error:
        raise ModelError("is not a binary GraphDef", where=str(path), expected="a frozen .pb") from error
    if not graph_def.node or not all(node.name and node.op for node in graph_def.node):
        raise ModelError(
            "holds no graph" if data else "is empty",
            where=str(path),
            expected="a frozen GraphDef with nodes, not a SavedModel, MetaGraph or checkpoint",
        )
    return graph_def


def save(graph_def: Any, path: str | os.PathLike[str]) -> Path:
    """Write a GraphDef as a binary .pb, whole or not at all; missing parent folders are made.

    Returns:
        Where it lies.

    Raises:
        SaveError: it cannot be written there, or is larger than the 2 GB that a .pb can hold.
    """
    try:
        data = graph_def.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise SaveError(f"cannot be serialized ({error})", where=str(path), expected="a GraphDef below 2 GB") from error
    return write_whole(path, data)
