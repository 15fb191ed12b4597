"""What differs between two models, and where: structure, and values bit by bit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import tensorflow as tf

from sparsekit.artefact.bundle import Bundle
from sparsekit.artefact.comparing import ValueChange, brief, compare_arrays, differing_fields, encoded
from sparsekit.artefact.deployed import DeployedLayer
from sparsekit.artefact.graph_def import load_graph_def
from sparsekit.artefact.model import read_deployed
from sparsekit.artefact.saved_model import MetaGraph, SavedModel
from sparsekit.errors import ModelError
from sparsekit.reading import source_of
from sparsekit.table import first_of, text_table

_T = TypeVar("_T")

_FINGERPRINT = "fingerprint.pb"
_CHUNK = 1 << 20
_DETAILS_SHOWN = 4


@attrs.frozen
class StructureChange:
    """Something that is in one model alone, or is not the same in both.

    Attributes:
        where: what holds it: "graph", "function 'f'", "variables", "folder"; of a SavedModel with several graphs,
            with the tags before it.
        kind: what it is: "node", "function", "signature", "variable", "file" and so on.
        name: its name.
        status: "only in A", "only in B" or "changed".
        details: what changed in it, each as "field: before -> after".
    """

    where: str
    kind: str
    name: str
    status: str
    details: tuple[str, ...] = ()


@attrs.frozen
class Difference:
    """How model B differs from model A. Prints as tables and a sentence.

    How constants are encoded, the order of nodes and a SavedModel's fingerprint do not count: loaders do not see them.

    Attributes:
        structure: what is in one of them alone or not the same in both.
        values: constants and stored tensors of one dtype and shape whose values differ.
        notes: sentences about what differs without meaning anything, or was not looked at.
        whole: everything was compared. False for files in a deployment format, of which only the weights of layers
            are read.
    """

    structure: tuple[StructureChange, ...] = ()
    values: tuple[ValueChange, ...] = ()
    notes: tuple[str, ...] = ()
    whole: bool = True

    @property
    def identical(self) -> bool:
        """Nothing differs."""
        return not self.structure and not self.values

    @property
    def only_weights(self) -> bool:
        """Something differs, and all of it is values of floating-point tensors."""
        return self.whole and not self.identical and not self.structure and all(map(_is_float, self.values))

    def summary(self) -> str:
        """One sentence."""
        if self.identical:
            return "Nothing differs." if self.whole else "No weight of a layer differs."
        values = _counted(self.values)
        if not self.whole and self.values:
            structure = f" {len(self.structure)} layers differ in more." if self.structure else ""
            return f"Weights changed: {values}.{structure}"
        if not self.structure:
            what = "weights" if self.only_weights else "values"
            return f"Only {what} changed: {values}; structure is identical."
        places = "1 place" if len(self.structure) == 1 else f"{len(self.structure):,} places"
        return f"Structure differs in {places}{f'; values changed: {values}' if values else ''}."

    def __str__(self) -> str:
        structure = [
            (s.where, s.kind, s.name, s.status, first_of(s.details, _DETAILS_SHOWN, "; ", "; and "))
            for s in self.structure
        ]
        values = [
            (
                v.where,
                v.name,
                v.dtype,
                "x".join(map(str, v.shape)) or "-",
                f"{v.changed:,} of {v.size:,}",
                f"{v.became_zero:,}",
                f"{v.zeros_before:,} -> {v.zeros_after:,}",
                "-" if v.largest is None else f"{v.largest:.6g}",
                _remark(v),
            )
            for v in self.values
        ]
        tables = [
            text_table(("where", "what", "name", "status", "details"), structure) if structure else "",
            text_table(
                ("where", "values of", "dtype", "shape", "changed", "became zero", "zeros", "largest change", ""),
                values,
            )
            if values
            else "",
        ]
        return "".join(tables) + " ".join([self.summary(), *self.notes])


def _is_float(change: ValueChange) -> bool:
    return "float" in change.dtype


def _counted(values: tuple[ValueChange, ...]) -> str:
    """How many values of how many tensors changed, "" if none did."""
    if not values:
        return ""
    size, changed, zero, signs = (
        sum(getattr(v, name) for v in values) for name in ("size", "changed", "became_zero", "zero_signs")
    )
    tensors = f"{len(values):,} tensor{'s' if len(values) > 1 else ''}"
    if changed == zero:
        return f"{tensors}, {zero:,} of {size:,} values became zero"
    signed = f", {signs:,} zeros changed their sign" if signs else ""
    return f"{tensors}, {changed:,} of {size:,} values changed, {zero:,} of them became zero{signed}"


def _remark(change: ValueChange) -> str:
    signs = f"{change.zero_signs:,} zeros changed their sign" if change.zero_signs else ""
    zeros = "only zeros were written" if change.only_zeros else ""
    return ", ".join(filter(None, (zeros, signs)))


def compare(a: Any, b: Any) -> Difference:
    """Compare two models of one kind.

    Args:
        a, b: GraphDefs, paths of .pb or .pbtxt files, folders of SavedModels, or paths of .tflite or .onnx files.

    Raises:
        ModelError: they are of two kinds, or one of them cannot be read.
        MissingFileError: a file is not there.
    """
    first, second = _Opened.of(a), _Opened.of(b)
    if first.kind != second.kind:
        raise ModelError(
            f"one is {first.kind}, the other {second.kind}",
            where=f"{first.source}, {second.source}",
            expected=_ONE_KIND,
        )
    found = _Found()
    if isinstance(first.content, SavedModel):
        _compare_saved_models(first.content, second.content, found)
    elif isinstance(first.content, list):
        _compare_deployed(first, second, found)
    else:
        _compare_graphs(first.content, second.content, "", found)
    if found.encodings:
        constants = "1 constant is" if found.encodings == 1 else f"{found.encodings:,} constants are"
        found.notes.append(f"{constants} encoded in another way, with the same values.")
    return Difference(tuple(found.structure), tuple(found.values), tuple(found.notes), found.whole)


_ONE_KIND = "two GraphDefs (.pb, .pbtxt), two folders of SavedModels, two .tflite or two .onnx files"


@attrs.frozen(eq=False)
class _Opened:
    """A model that was read.

    Attributes:
        kind: what it is, with its article.
        source: its path, or what it is, for messages.
        content: a SavedModel, a GraphDef or a list of DeployedLayers.
    """

    kind: str
    source: str
    content: Any

    @classmethod
    def of(cls, model: Any) -> _Opened:
        source = source_of(model)
        if isinstance(model, (str, os.PathLike)) and Path(model).is_dir():
            return cls("a SavedModel", source, SavedModel.open(model))
        layers = read_deployed(model)
        if layers is not None:
            return cls(f"a {os.path.splitext(source)[1].lower()} file", source, layers)
        return cls("a GraphDef", source, load_graph_def(model))


@attrs.define(eq=False)
class _Found:
    """What was found so far."""

    structure: list[StructureChange] = attrs.Factory(list)
    values: list[ValueChange] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)
    encodings: int = 0
    whole: bool = True

    def pairs(
        self, where: str, kind: str, before: Mapping[str, _T], after: Mapping[str, _T]
    ) -> Iterator[tuple[str, _T, _T]]:
        """What is in both by name; what is in one alone is noted down."""
        for name, one in before.items():
            if name in after:
                yield name, one, after[name]
            else:
                self.structure.append(StructureChange(where, kind, name, "only in A"))
        self.structure += [StructureChange(where, kind, name, "only in B") for name in after if name not in before]

    def changed(self, where: str, kind: str, name: str, details: Iterable[str]) -> None:
        """Note down what changed in something, if anything did."""
        texts = tuple(details)
        if texts:
            self.structure.append(StructureChange(where, kind, name, "changed", texts))

    def arrays(self, before: Any, after: Any, **names: str) -> bool:
        """Note down how two arrays of one dtype and shape differ; whether they do."""
        change = compare_arrays(before, after, **names)
        if change.changed:
            self.values.append(change)
        return bool(change.changed)


# Graphs


def _compare_graphs(before: Any, after: Any, prefix: str, found: _Found) -> None:
    """Two GraphDefs; ``prefix`` comes before "graph" and the functions' names."""
    where = f"{prefix}graph"
    found.changed(where, "graph", "", differing_fields(before, after, but=("node", "library")))
    found.changed(where, "library", "", differing_fields(before.library, after.library, but=("function",)))
    _compare_nodes(before.node, after.node, where, found)
    libraries = ({f.signature.name: f for f in graph.library.function} for graph in (before, after))
    for name, old, new in found.pairs(where, "function", *libraries):
        if encoded(old) != encoded(new):
            found.changed(where, "function", name, differing_fields(old, new, but=("node_def",)))
            _compare_nodes(old.node_def, new.node_def, f"{prefix}function '{name}'", found)


def _compare_nodes(before: Any, after: Any, where: str, found: _Found) -> None:
    nodes = {node.name: node for node in before}, {node.name: node for node in after}
    for name, old, new in found.pairs(where, "node", *nodes):
        if encoded(old) != encoded(new):
            details = [*differing_fields(old, new, but=("attr",)), *_compare_attributes(old, new, where, found)]
            found.changed(where, "node", name, details)
    orders = ([name for name in names if name in others] for names, others in (nodes, nodes[::-1]))
    if next(orders) != next(orders):
        found.notes.append(f"The nodes are in another order ({where}).")


def _compare_attributes(before: Any, after: Any, where: str, found: _Found) -> Iterator[str]:
    """How attributes of two nodes differ. Tensors of one dtype and shape go to the values instead."""
    for key in sorted({*before.attr, *after.attr}):
        old, new = before.attr.get(key), after.attr.get(key)
        if encoded(old) == encoded(new):
            continue
        tensors = [side.tensor for side in (old, new) if side is not None and side.HasField("tensor")]
        texts = [_described(side) for side in (old, new)]
        if len(tensors) < 2 or texts[0] != texts[1]:
            yield f"attr '{key}': {texts[0]} -> {texts[1]}"
            continue
        name = before.name if key == "value" else f"{before.name} ({key})"
        arrays = [_array(tensor, f"{where}: {name}") for tensor in tensors]
        dtype = tf.as_dtype(tensors[0].dtype).name
        found.encodings += not found.arrays(*arrays, where=where, name=name, dtype=dtype)


def _described(attribute: Any) -> str:
    """An attribute for people; of a tensor its dtype and shape."""
    if attribute is None or not attribute.HasField("tensor"):
        return brief(attribute)
    tensor = attribute.tensor
    try:
        dtype = tf.as_dtype(tensor.dtype).name
    except TypeError:
        dtype = f"dtype {tensor.dtype}"
    return f"{dtype} {[dim.size for dim in tensor.tensor_shape.dim]}"


def _array(tensor: Any, where: str) -> Any:
    try:
        return tf.make_ndarray(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(f"its value cannot be read ({error})", where=where) from error


# SavedModels


def _compare_saved_models(before: SavedModel, after: SavedModel, found: _Found) -> None:
    found.changed("folder", "SavedModel", "", differing_fields(before.proto, after.proto, but=("meta_graphs",)))
    several = max(len(before.meta_graphs), len(after.meta_graphs)) > 1
    for tags, old, new in found.pairs("folder", "meta graph", _by_tags(before), _by_tags(after)):
        _compare_meta_graphs(old.proto, new.proto, f"{tags}: " if several else "", found)
    _compare_bundles(before.bundle, after.bundle, found)
    _compare_files(before, after, found)


def _by_tags(model: SavedModel) -> dict[str, MetaGraph]:
    by_tags: dict[str, MetaGraph] = {}
    for meta_graph in model.meta_graphs:
        if str(list(meta_graph.tags)) in by_tags:
            raise ModelError(f"has two graphs with the tags {list(meta_graph.tags)}", where=str(model.file))
        by_tags[str(list(meta_graph.tags))] = meta_graph
    return by_tags


def _compare_meta_graphs(before: Any, after: Any, prefix: str, found: _Found) -> None:
    where = f"{prefix}meta graph"
    found.changed(where, "meta graph", "", differing_fields(before, after, but=("graph_def", "signature_def")))
    for name, old, new in found.pairs(where, "signature", dict(before.signature_def), dict(after.signature_def)):
        found.changed(where, "signature", name, differing_fields(old, new))
    _compare_graphs(before.graph_def, after.graph_def, prefix, found)


def _compare_bundles(before: Bundle | None, after: Bundle | None, found: _Found) -> None:
    """Two bundles of variables, one tensor of each in memory at a time. Where in them a tensor lies does not count."""
    entries = (bundle.entries if bundle else {} for bundle in (before, after))
    for key, old, new in found.pairs("variables", "variable", *entries):
        assert before is not None and after is not None
        kinds = [f"{e.dtype} {list(e.shape)}{f' in {e.slices} slices' if e.slices else ''}" for e in (old, new)]
        if kinds[0] != kinds[1]:
            found.changed("variables", "variable", key, [f"{kinds[0]} -> {kinds[1]}"])
        elif old.is_array:
            found.arrays(before.read(key), after.read(key), where="variables", name=key, dtype=old.dtype)
        elif not old.slices and not _equal(before.raw(key), after.raw(key)):
            found.changed("variables", "variable", key, [f"{old.size:,} bytes of {old.dtype} -> {new.size:,} others"])


def _compare_files(before: SavedModel, after: SavedModel, found: _Found) -> None:
    """What else lies in the folders."""
    files = _other_files(before), _other_files(after)
    prints = [names.pop(_FINGERPRINT, None) for names in files]
    if all(prints):
        if not _equal(*(_bytes(path) for path in prints if path)):
            found.notes.append("The fingerprints differ, as they do whenever a model is written; loaders ignore them.")
    elif any(prints):
        found.notes.append(f"Only {'A' if prints[0] else 'B'} has a fingerprint; loaders do without.")
    for name, old, new in found.pairs("folder", "file", *files):
        if not _equal(_bytes(old), _bytes(new)):
            sizes = [path.stat().st_size for path in (old, new)]
            found.changed("folder", "file", name, [f"{sizes[0]:,} bytes -> {sizes[1]:,} others"])


def _other_files(model: SavedModel) -> dict[str, Path]:
    """The regular files of a SavedModel's folder besides its graphs and variables, by their path in it."""
    known = {model.file}
    if model.bundle is not None:
        known.add(Path(f"{model.bundle.prefix}.index"))
        known |= {model.bundle.shard_path(entry) for entry in model.bundle.entries.values()}
    found: dict[str, Path] = {}
    seen = set()
    for folder, inner, names in os.walk(model.folder, followlinks=True):
        # A link may lead back to where it lies.
        seen.add(os.path.realpath(folder))
        inner[:] = sorted(name for name in inner if os.path.realpath(os.path.join(folder, name)) not in seen)
        paths = (Path(folder, name) for name in sorted(names))
        found.update((p.relative_to(model.folder).as_posix(), p) for p in paths if p not in known and p.is_file())
    return found


def _bytes(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from iter(lambda: file.read(_CHUNK), b"")
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror or error})", where=str(path)) from error


def _equal(before: Iterator[bytes], after: Iterator[bytes]) -> bool:
    """Whether two files, read in pieces of one size, hold the same."""
    ends = object()
    return all(next(after, ends) == piece for piece in before) and next(after, ends) is ends


# Files in a deployment format


def _compare_deployed(before: _Opened, after: _Opened, found: _Found) -> None:
    """The weights of layers, zero points subtracted; nothing else of such files is read."""
    layers = ({layer.name: layer for layer in model.content} for model in (before, after))
    for name, old, new in found.pairs("file", "layer", *layers):
        _compare_layers(name, old, new, found)
    same = _equal(*(_bytes(Path(model.source)) for model in (before, after)))
    if not found.structure and not found.values and not same:
        found.changed("file", "bytes", "", ["something else than the weights of layers"])
    # An .onnx file may hold data in files beside it.
    found.whole = same and before.source.lower().endswith(".tflite")
    if not found.whole:
        found.notes.append("Only the weights of layers were compared.")


def _compare_layers(name: str, before: DeployedLayer, after: DeployedLayer, found: _Found) -> None:
    fields = ("op_type", "shape", "axis", "dtype", "obstacle", "exempt", "note")
    pairs = [(field, getattr(before, field), getattr(after, field)) for field in fields]
    details = [f"{field}: {old} -> {new}" for field, old, new in pairs if old != new]
    found.changed("file", "layer", name, details)
    if before.readable and after.readable and before.shape == after.shape and before.dtype == after.dtype:
        values = before.values(), after.values()
        if values[0].dtype == values[1].dtype:
            found.arrays(*values, where="file", name=name, dtype=before.dtype)
