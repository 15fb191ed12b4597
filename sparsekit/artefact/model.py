"""Models at rest, of whatever kind: the graph to plan on, the weights that are stored, and how to write them anew."""

from __future__ import annotations

import abc
import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from numpy.typing import NDArray
from tensorflow.core.protobuf import saved_model_pb2

from sparsekit.artefact.added_bias import AddedBias
from sparsekit.artefact.bundle import patch
from sparsekit.artefact.bundle_copy import copy_without
from sparsekit.artefact.deployed import DeployedLayer
from sparsekit.artefact.graph_def import load_graph, save_graph_def
from sparsekit.artefact.rewriting import Edits, rewritten
from sparsekit.artefact.saved_model import VARIABLES, MetaGraph, SavedModel, VariableKeys
from sparsekit.artefact.variable_removal import without_variables
from sparsekit.errors import MissingFileError, ModelError, SaveError
from sparsekit.graph.node import Node, ProtoGraph
from sparsekit.graph.trace import Read
from sparsekit.reading import size_of, source_of
from sparsekit.writing import copy_folder, staged_folder

Array: TypeAlias = NDArray[Any]
Change: TypeAlias = tuple[Read, Callable[[Array], Array]]
"""A stored weight, and what becomes of its value; the value that is passed may be overwritten where it can."""


# A stored tensor belongs to one weight, which is read a few times. One that is a part of many could make a small file
# last for ever.
_MOST_READS = 64
_NO_NUMBERS = (None, "string", "resource", "variant")
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
        changes_later: changed values are only computed when it is saved.
        main_outputs: those of ``outputs`` that one run asks for: several signatures often compute the same.
        holds_more: whether the graph may hold more than its outputs need: savers, initializers, losses.
        entered_elsewhere: whether functions that the graph does not call may be called by a loader.
    """

    source: str
    graph_def: Any
    outputs: tuple[str, ...] | None = None
    main_outputs: tuple[str, ...] | None = None
    holds_more: bool = False
    entered_elsewhere: bool = False
    changes_later = False

    @functools.cached_property
    def view(self) -> ProtoGraph:
        """The graph as planning sees it."""
        return ProtoGraph(self.graph_def)

    @functools.cached_property
    def _reads(self) -> Counter[tuple[str, str]]:
        return Counter()

    def _count(self, read: Read) -> None:
        """Count a reading of a weight.

        Raises:
            ModelError: a part of it was read very often.
        """
        for leaf in read.leaves:
            self._reads[leaf.location] += 1
            if self._reads[leaf.location] > _MOST_READS:
                raise ModelError("is a part of too many weights", where=leaf.path, expected="a few at most")

    @abc.abstractmethod
    def obstacle(self, read: Read) -> str:
        """Why the values of a weight cannot be told, "" if they can."""

    @abc.abstractmethod
    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        """Every stored copy of a weight: (its place, its value), one in memory at a time.

        Raises:
            ModelError, MissingFileError: a copy cannot be read.
        """

    @property
    @abc.abstractmethod
    def inputs(self) -> Mapping[str, str]:
        """What one run is fed with: the names that users know, and those of the tensors."""

    @abc.abstractmethod
    def load(self, session: Any, graph_def: Any, folder: Path) -> None:
        """Put the model into a session's graph, its weights too.

        Args:
            session: a ``tf.compat.v1.Session`` on an empty graph.
            graph_def: what to load in place of the model's own graph: it computes the same.
            folder: an empty folder for what loading takes.
        """

    @abc.abstractmethod
    def graph_obstacle(self) -> str:
        """Why nodes cannot be taken out of its graph, "" if they can."""

    def bias_obstacle(self) -> str:
        """Why no biases can be added to its graph, "" if they can."""
        return ""

    @abc.abstractmethod
    def with_biases(self, biases: Sequence[AddedBias]) -> Model:
        """The model with biases added to its graph; this one is not modified."""

    @abc.abstractmethod
    def changed(self, changes: Iterable[Change], edits: Edits | None = None) -> Model:
        """The model with other values, and with edits of its main graph; this one is not modified.

        Args:
            changes: what becomes of stored weights.
            edits: nodes that go, and new constants. Variables among these nodes are not stored any more.

        Raises:
            ModelError: a value cannot be read, or a node that stays uses one that goes.
        """

    def _changed_value(self, read: Read, change: Callable[[Array], Array]) -> Array:
        ((_, value),) = self.values(read)
        return change(value)

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
    graph = load_graph(model)
    return FrozenGraph(graph.graph_def, source_of(model), graph)


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
        view: of the GraphDef, where there is one already.
    """

    def __init__(self, graph_def: Any, source: str = "the graph", view: ProtoGraph | None = None) -> None:
        self.graph_def = graph_def
        self.source = source
        if view is not None:
            self.view = view

    def obstacle(self, read: Read) -> str:
        variable = next((leaf for leaf in read.leaves if leaf.op != "Const"), None)
        if variable:
            return f"its weight '{variable.path}' is a variable; freeze the graph first"
        return _no_numbers(read)

    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        self._count(read)
        value = read.value()
        if value is None:
            raise ModelError(self.obstacle(read), where=self.source)
        yield "", value

    @property
    def inputs(self) -> Mapping[str, str]:
        nodes = [node for node in self.view.nodes() if node.op.startswith("Placeholder")]
        return {node.name: f"{node.name}:0" for node in nodes}

    def load(self, session: Any, graph_def: Any, folder: Path) -> None:
        with session.graph.as_default():
            tf.import_graph_def(graph_def, name="")

    def graph_obstacle(self) -> str:
        return ""

    def changed(self, changes: Iterable[Change], edits: Edits | None = None) -> FrozenGraph:
        edits = attrs.evolve(edits, values=dict(edits.values)) if edits else Edits()
        for read, change in changes:
            edits.change(read, functools.partial(self._changed_value, read, change))
        return FrozenGraph(rewritten(self.graph_def, edits), self.source)

    def with_biases(self, biases: Sequence[AddedBias]) -> FrozenGraph:
        return FrozenGraph(rewritten(self.graph_def, Edits(biases=tuple(biases))), self.source) if biases else self

    def save(self, path: str | os.PathLike[str]) -> Path:
        return save_graph_def(self.graph_def, path)


class SavedModelFolder(Model):
    """A SavedModel: weights in its variables bundle, where the two kinds of loaders may read different copies, or
    constants in its graph.

    Args:
        saved_model: the folder as it was read.
        changes: what becomes of weights when it is saved.
        edited: its MetaGraphDef as it is saved; None: as it was read.
        forgotten: keys of the bundle that are not saved.
        biases: added to its graph when it is saved.
    """

    changes_later = True
    holds_more = True
    entered_elsewhere = True

    def __init__(
        self,
        saved_model: SavedModel,
        changes: tuple[Change, ...] = (),
        edited: Any = None,
        forgotten: Collection[str] = (),
        biases: tuple[AddedBias, ...] = (),
    ) -> None:
        self._saved_model = saved_model
        self._meta_graph = _served(saved_model)
        self._changes = changes
        self._edited = edited
        self._forgotten = frozenset(forgotten)
        self._biases = biases
        self.source = str(saved_model.folder)
        self.graph_def = (edited or self._meta_graph).graph_def
        if edited is None:
            self.view = self._meta_graph.view
        self.outputs, self.main_outputs = _signature_outputs(self._meta_graph)

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
        return _no_numbers(read)

    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        obstacle = self.obstacle(read)
        if obstacle:
            raise ModelError(obstacle, where=self.source)
        self._count(read)
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

    @property
    def inputs(self) -> Mapping[str, str]:
        signatures = self._meta_graph.proto.signature_def
        main = next(
            (s for _, s in _signatures(signatures) if set(_tensor_nodes(s)) == set(self.main_outputs or ())), None
        )
        return {} if main is None else {key: tensor.name for key, tensor in sorted(main.inputs.items())}

    def load(self, session: Any, graph_def: Any, folder: Path) -> None:
        proto = saved_model_pb2.SavedModel(saved_model_schema_version=1)
        copy = proto.meta_graphs.add()
        copy.CopyFrom(self._meta_graph.proto)
        copy.graph_def.CopyFrom(graph_def)
        (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
        for part in ("variables", "assets"):
            if (self._saved_model.folder / part).is_dir():
                (folder / part).symlink_to(Path(os.path.realpath(self._saved_model.folder)) / part)
        tf.compat.v1.saved_model.load(session, list(copy.meta_info_def.tags), str(folder))

    def graph_obstacle(self) -> str:
        if self._meta_graph.proto.HasField("object_graph_def"):
            return "is a SavedModel of TensorFlow 2, whose objects and functions hold its variables too"
        if len(self._saved_model.meta_graphs) > 1:
            tags = " and ".join(str(list(meta_graph.tags)) for meta_graph in self._saved_model.meta_graphs)
            return f"holds several graphs ({tags}), which share their variables"
        return ""

    def bias_obstacle(self) -> str:
        several = len(self._saved_model.meta_graphs) > 1
        return "the SavedModel holds several graphs, which share the weight" if several else ""

    def with_biases(self, biases: Sequence[AddedBias]) -> SavedModelFolder:
        all_biases = (*self._biases, *biases)
        return SavedModelFolder(self._saved_model, self._changes, self._edited, self._forgotten, all_biases)

    def changed(self, changes: Iterable[Change], edits: Edits | None = None) -> SavedModelFolder:
        changes = (*self._changes, *changes)
        if edits is None:
            return SavedModelFolder(self._saved_model, changes, biases=self._biases)
        nodes = (self.view.node(name) for name in edits.removed)
        variables = {node.name for node in nodes if node is not None and node.op in VARIABLES}
        self._refuse_shared({key for name in variables for key in self._keys[name].keys}, variables)
        for read, _ in changes:
            names = {leaf.name for leaf in read.leaves if leaf.op != "Const"}
            self._refuse_shared({key for name in names for key in self._keys[name].keys}, names)
        forgotten = {key for name in variables for key in self._keys[name].keys}
        return SavedModelFolder(self._saved_model, changes, without_variables(self._meta_graph, edits), forgotten)

    def _refuse_shared(self, keys: Collection[str], variables: Collection[str]) -> None:
        """What changes for these variables must not change for another one."""
        for name, found in self._keys.items():
            if name not in variables:
                for key in found.keys:
                    if key in keys:
                        raise ModelError(f"'{name}' is restored from '{key}' too", where=self.source)

    def save(self, path: str | os.PathLike[str]) -> Path:
        _refuse_destination(Path(path), self._saved_model.folder)
        _check_copyable(self._saved_model.folder)
        with staged_folder(path) as copy:
            copy_folder(self._saved_model.folder, copy, self._is_left_out)
            variables = copy / "variables" / "variables"
            if self._forgotten:
                assert self._saved_model.bundle is not None
                copy_without(self._saved_model.bundle, variables, self._forgotten)
            if not all(read.is_constant for read, _ in self._changes):
                patch(variables, self._patches())
            self._write_graphs(copy)
            # Its hash of the variables is no longer theirs; loaders do without it.
            (copy / "fingerprint.pb").unlink(missing_ok=True)
        return Path(path)

    def _is_left_out(self, file: Path) -> bool:
        """Whether the file is written anew instead of being copied: the bundle, where entries leave it."""
        bundle = file.name.startswith(("variables.index", "variables.data-"))
        return bool(self._forgotten) and bundle and file.parent == self._saved_model.folder / "variables"

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

    def _write_graphs(self, copy: Path) -> None:
        edits = Edits(biases=self._biases)
        for read, change in self._changes:
            if read.is_constant:
                edits.change(read, functools.partial(self._changed_value, read, change))
        if not edits.values and not edits.biases and self._edited is None:
            return
        proto = type(self._saved_model.proto)()
        proto.CopyFrom(self._saved_model.proto)
        meta_graph = proto.meta_graphs[self._saved_model.meta_graphs.index(self._meta_graph)]
        if self._edited is not None:
            meta_graph.CopyFrom(self._edited)
        if edits.values or edits.biases:
            meta_graph.graph_def.CopyFrom(rewritten(self.graph_def, edits))
        file = copy / self._saved_model.file.name
        if file.suffix == ".pb":
            file.write_bytes(proto.SerializeToString(deterministic=True))
        else:
            file.write_text(text_format.MessageToString(proto), encoding="utf-8")


def _no_numbers(read: Read) -> str:
    """Why a weight is no array of numbers, "" if it is."""
    dtype = read.leaves[0].attr("dtype")
    return f"its weight '{read.leaves[0].path}' holds no numbers ({dtype})" if dtype in _NO_NUMBERS else ""


def _check_copyable(folder: Path) -> None:
    """Links are followed where a SavedModel is copied; they must not lead to much, nor to what never ends.

    Raises:
        ModelError: a folder is there twice (a link that leads back, say), or what is neither folder nor file.
        MissingFileError: a folder is gone.
    """
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        real = os.path.realpath(inside)
        if real in seen:
            raise ModelError("is a folder that links lead to twice", where=str(inside), expected="a SavedModel")
        seen.add(real)
        for path in _entries(inside):
            if path.is_dir():
                waiting.append(path)
            else:
                size_of(str(path), "a file of a SavedModel")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise MissingFileError(f"cannot be read any more ({error.strerror})", where=str(folder)) from error


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


def _signature_outputs(meta_graph: MetaGraph) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """What all signatures return, and what the default one does (or the first): a graph that was saved in training
    holds much besides."""
    by_signature = {
        key: set(_tensor_nodes(signature)) for key, signature in _signatures(meta_graph.proto.signature_def)
    }
    names = set().union(*by_signature.values())
    present = {node.name for node in meta_graph.graph_def.node}
    if not names or not names <= present:
        return None, None
    main = by_signature.get("serving_default") or next(found for found in by_signature.values() if found)
    return tuple(sorted(names)), tuple(sorted(main))


def _signatures(signatures: Any) -> list[tuple[str, Any]]:
    """Those that are for callers."""
    return [(key, signature) for key, signature in sorted(signatures.items()) if not key.startswith("__")]


def _tensor_nodes(signature: Any) -> list[str]:
    names = (tensor.name.partition(":")[0] for tensor in signature.outputs.values())
    return [name for name in names if name]
