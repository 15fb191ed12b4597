"""Models at rest, of whatever kind: the graph to plan on, the weights that are stored, and how to write them anew."""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsekit.artefact.bundle import patch
from sparsekit.artefact.deployed import DeployedLayer
from sparsekit.artefact.graph_def import load_graph_def, save
from sparsekit.artefact.rewriting import Edits, rewritten
from sparsekit.artefact.saved_model import MetaGraph, SavedModel, VariableKeys
from sparsekit.errors import ModelError, SaveError
from sparsekit.graph.node import Node, ProtoGraph
from sparsekit.graph.trace import Read
from sparsekit.writing import copy_folder, staged_folder

Array: TypeAlias = NDArray[Any]
Change: TypeAlias = tuple[Read, Callable[[Array], Array]]
"""A stored weight, and what becomes of its value."""


_GRAPH_FILES = {"saved_model.pb", "saved_model.pbtxt"}
_OF_A_SAVED_MODEL = _GRAPH_FILES | {
    "fingerprint.pb",
    "keras_metadata.pb",
    "variables",
    "assets",
    "assets.extra",
    "debug",
}


class Model(abc.ABC):
    """A model at rest.

    Attributes:
        source: its path, or what it is, for messages.
        graph_def: the graph that is planned on.
        outputs: the operations whose results are used, None where the model does not say.
    """

    source: str
    graph_def: Any
    outputs: tuple[str, ...] | None = None

    @functools.cached_property
    def view(self) -> ProtoGraph:
        """The graph as planning sees it."""
        return ProtoGraph(self.graph_def)

    @abc.abstractmethod
    def obstacle(self, read: Read) -> str:
        """Why the values of a weight cannot be told, "" if they can."""

    @abc.abstractmethod
    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        """Every stored copy of a weight: (its place, its value), one in memory at a time.

        Raises:
            ModelError, MissingFileError: a copy cannot be read.
        """

    @abc.abstractmethod
    def changed(self, changes: Iterable[Change]) -> Model:
        """The model with other values; this one is not modified."""

    @abc.abstractmethod
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it, in the kind it came in, whole or not at all.

        Returns:
            Where it lies.

        Raises:
            SaveError: it cannot be written there.
        """


def open_model(model: Any) -> Model:
    """The model that a GraphDef, the path of a .pb or .pbtxt, or a SavedModel's folder stands for.

    Raises:
        MissingFileError, ModelError: it cannot be read.
    """
    if isinstance(model, (str, os.PathLike)) and Path(model).is_dir():
        return SavedModelFolder(SavedModel.open(model))
    source = os.fsdecode(model) if isinstance(model, (str, os.PathLike)) else "the graph"
    return FrozenGraph(load_graph_def(model), source)


def read_deployed(model: object) -> list[DeployedLayer] | None:
    """The layers of a .tflite or .onnx file, None for any other model.

    Raises:
        MissingFileError, ModelError: the file cannot be read.
        SparsekitError: the package that reads the format is not installed.
    """
    if not isinstance(model, (str, os.PathLike)):
        return None
    suffix = os.path.splitext(os.fsdecode(model))[1].lower()
    if suffix == ".tflite":
        from sparsekit.artefact.tflite import read_tflite

        return read_tflite(model)
    if suffix == ".onnx":
        from sparsekit.artefact.onnx_model import read_onnx

        return read_onnx(model)
    return None


class FrozenGraph(Model):
    """A GraphDef with its weights as constants.

    Args:
        graph_def: the GraphDef.
        source: where it came from.
    """

    def __init__(self, graph_def: Any, source: str = "the graph") -> None:
        self.graph_def = graph_def
        self.source = source

    def obstacle(self, read: Read) -> str:
        variable = next((leaf for leaf in read.leaves if leaf.op != "Const"), None)
        return f"its weight '{variable.path}' is a variable; freeze the graph first" if variable else ""

    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        value = read.value()
        if value is None:
            raise ModelError(self.obstacle(read), where=self.source)
        yield "", value

    def changed(self, changes: Iterable[Change]) -> FrozenGraph:
        edits = Edits()
        for read, change in changes:
            for _, value in self.values(read):
                edits.values |= {leaf.location: part for leaf, part in read.split(change(value))}
        return FrozenGraph(rewritten(self.graph_def, edits), self.source)

    def save(self, path: str | os.PathLike[str]) -> Path:
        return save(self.graph_def, path)


class SavedModelFolder(Model):
    """A SavedModel: weights in its variables bundle, where the two kinds of loaders may read different copies, or
    constants in its graph.

    Args:
        saved_model: the folder as it was read.
        changes: what becomes of weights when it is saved.
    """

    def __init__(self, saved_model: SavedModel, changes: tuple[Change, ...] = ()) -> None:
        self._saved_model = saved_model
        self._meta_graph = _served(saved_model)
        self._changes = changes
        self.source = str(saved_model.folder)
        self.graph_def = self._meta_graph.graph_def
        self.outputs = _signature_outputs(self._meta_graph)

    @functools.cached_property
    def _keys(self) -> dict[str, VariableKeys]:
        return dict(self._saved_model.weight_keys(self._meta_graph).variables)

    def obstacle(self, read: Read) -> str:
        constants = [leaf for leaf in read.leaves if leaf.op == "Const"]
        if constants and not read.is_constant:
            return f"its weight is put together from the constant '{constants[0].path}' and a variable"
        if constants and len(self._saved_model.meta_graphs) > 1:
            return f"its weight '{constants[0].path}' is a constant, of which every graph of the SavedModel has its own"
        for leaf in read.leaves:
            if leaf.op == "Const":
                continue
            keys = self._keys.get(leaf.name, VariableKeys(doubts=("no stored tensor is restored into it",)))
            if keys.doubts or not keys.keys:
                why = "; ".join(keys.doubts) or "no loader reads a stored tensor for it"
                return f"where its weight '{leaf.path}' is stored is not certain: {why}"
            if len(read.leaves) > 1 and len(keys.keys) > 1:
                return f"the parts of its weight '{leaf.path}' are stored in several copies"
        return ""

    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        obstacle = self.obstacle(read)
        if obstacle:
            raise ModelError(obstacle, where=self.source)
        if read.concat_axis is not None:
            parts = [value for leaf in read.leaves for _, value in self._copies(leaf)]
            yield "", np.concatenate(parts, read.concat_axis)
            return
        yield from self._copies(read.leaves[0])

    def _copies(self, leaf: Node) -> Iterator[tuple[str, Array]]:
        if leaf.op == "Const":
            value = leaf.constant()
            assert value is not None
            yield "", value
            return
        assert self._saved_model.bundle is not None
        for key in self._keys[leaf.name].keys:
            yield key, self._saved_model.bundle.read(key)

    def changed(self, changes: Iterable[Change]) -> SavedModelFolder:
        return SavedModelFolder(self._saved_model, (*self._changes, *changes))

    def save(self, path: str | os.PathLike[str]) -> Path:
        _refuse_destination(Path(path), self._saved_model.folder)
        with staged_folder(path) as copy:
            copy_folder(self._saved_model.folder, copy)
            if not all(read.is_constant for read, _ in self._changes):
                patch(copy / "variables" / "variables", self._patches())
            self._rewrite_constants(copy)
            # Its hash of the variables is no longer theirs; loaders do without it.
            (copy / "fingerprint.pb").unlink(missing_ok=True)
        return Path(path)

    def _patches(self) -> Iterator[tuple[str, Array]]:
        seen: dict[str, str] = {}
        for read, change in self._changes:
            if read.is_constant:
                continue
            if read.concat_axis is not None:
                ((_, whole),) = self.values(read)
                for leaf, part in read.split(change(whole)):
                    yield self._keys[leaf.name].keys[0], part
                continue
            (leaf,) = read.leaves
            for key, value in self._copies(leaf):
                if key in seen:
                    raise ModelError(
                        f"'{seen[key]}' and '{leaf.path}' are both restored from '{key}'", where=self.source
                    )
                seen[key] = leaf.path
                yield key, change(value)

    def _rewrite_constants(self, copy: Path) -> None:
        edits = Edits()
        for read, change in self._changes:
            if read.is_constant:
                ((_, value),) = self.values(read)
                edits.values |= {leaf.location: part for leaf, part in read.split(change(value))}
        if not edits.values:
            return
        if self._saved_model.file.suffix != ".pb":
            raise SaveError("holds weights as constants in a text file", where=self.source, expected="saved_model.pb")
        proto = type(self._saved_model.proto)()
        proto.CopyFrom(self._saved_model.proto)
        index = self._saved_model.meta_graphs.index(self._meta_graph)
        proto.meta_graphs[index].graph_def.CopyFrom(rewritten(self.graph_def, edits))
        (copy / self._saved_model.file.name).write_bytes(proto.SerializeToString(deterministic=True))


def _refuse_destination(path: Path, source: Path) -> None:
    """The folder that is written replaces what stood there: nothing else than a SavedModel may be lost by that."""
    final, origin = Path(os.path.realpath(path)), Path(os.path.realpath(source))
    found = ""
    if final != origin and (final in origin.parents or origin in final.parents):
        found = f"lies inside the model that is pruned ({origin}), or holds it"
    elif path.is_dir() and (names := {entry.name for entry in path.iterdir()}):
        strange = sorted(names - _OF_A_SAVED_MODEL)
        if strange or not names & _GRAPH_FILES:
            found = f"is a folder that holds something else than a SavedModel ({', '.join(strange[:3])})"
    if found:
        raise SaveError(
            found,
            where=str(path),
            expected="a new or empty folder, or a SavedModel to be replaced",
            hint="Nothing was changed.",
        )


def _served(saved_model: SavedModel) -> MetaGraph:
    """The graph that is pruned: the only one, or the one with the tag "serve"."""
    return saved_model.meta_graph(None if len(saved_model.meta_graphs) == 1 else ("serve",))


def _signature_outputs(meta_graph: MetaGraph) -> tuple[str, ...] | None:
    """What the signatures return; a graph that was saved in training holds much besides."""
    names = {
        tensor.name.partition(":")[0]
        for key, signature in meta_graph.proto.signature_def.items()
        if not key.startswith("__")
        for tensor in signature.outputs.values()
        if tensor.name
    }
    present = {node.name for node in meta_graph.graph_def.node}
    return tuple(sorted(names)) if names and names <= present else None
