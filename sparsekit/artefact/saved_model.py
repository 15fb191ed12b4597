"""SavedModel folders: their graphs, their variables, and which stored tensors end in which variable.

Two kinds of loaders read a SavedModel, and not the same tensors of it:

- Session loaders (``tf.compat.v1.saved_model.load``, TensorFlow Serving) run the restore op of the graph's saver.
- ``tf.saved_model.load`` builds its own variables from the object graph, restores them by the names of their attributes
  and hands them to the functions that captured them. It does so where the SavedModel has one MetaGraph with an object
  graph, else it runs the restore op too.

Keras 3's ``model.export()`` stores every weight once for either, so that only the union of both maps is the weight.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.framework import graph_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

from sparsekit.artefact.bundle import Bundle
from sparsekit.artefact.slices import stored_key
from sparsekit.artefact.well_formed import check_graph_def
from sparsekit.errors import MissingFileError, ModelError
from sparsekit.graph.node import ArgumentNode, Edge, FunctionView, Node, ProtoGraph, ProtoNode
from sparsekit.graph.order import input_node
from sparsekit.reading import read_proto

_T = TypeVar("_T")

_A_SAVED_MODEL = "the folder of a SavedModel"
_BUNDLE = Path("variables", "variables")
VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
ASSIGNS = ("Assign", "AssignVariableOp")
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"
_INIT_OP = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
# A restore function is a call deep; a chain of calls or identities longer than this is no work of an exporter.
_MAX_DEPTH = 100
_MAX_STEPS = 1_000


@attrs.frozen(eq=False)
class MetaGraph:
    """One of the graphs of a SavedModel.

    Attributes:
        proto: the MetaGraphDef.
        tags: its tags, sorted.
        where: it, for messages.
        view: of its main graph.
    """

    proto: Any
    tags: tuple[str, ...]
    where: str
    view: ProtoGraph

    @property
    def graph_def(self) -> Any:
        """Its main graph, a GraphDef."""
        return self.proto.graph_def


@attrs.frozen
class VariableKeys:
    """Which stored tensors are restored into a variable of the main graph.

    Attributes:
        session: keys whose values a Session loader restores into it; none: it stays uninitialized there.
        objects: keys whose values ``tf.saved_model.load`` serves in its place; none: no signature captures it.
        doubts: why these may not be all, or cannot be written: sentences for people. Leave such a variable alone.
    """

    session: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them, sorted: they hold one weight and have to stay equal."""
        return tuple(sorted({*self.session, *self.objects}))


@attrs.frozen(eq=False)
class WeightKeys:
    """The stored tensors behind every variable of a main graph.

    Attributes:
        variables: by the variable's node name.
        captures: the keys that each function of the object graph captured, in the order of the last inputs of a call;
            None for what is no variable, or one whose key is not known. Functions that no signature calls are served by
            ``tf.saved_model.load`` alone and occur in no main graph.
    """

    variables: Mapping[str, VariableKeys]
    captures: Mapping[str, tuple[str | None, ...]]

    @property
    def unmapped(self) -> dict[str, tuple[str, ...]]:
        """Why it is not proven where a variable is stored, by the variable's node name."""
        return {name: found.doubts for name, found in self.variables.items() if found.doubts}

    def restored_from(self, key: str) -> tuple[str, ...]:
        """The variables that ``key`` is restored into by either loader. Several may be one weight."""
        return tuple(name for name, found in self.variables.items() if key in found.keys)

    def differing(self, bundle: Bundle, variables: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
        """Variables whose stored copies are not byte for byte the same, with the keys of the copies.

        Args:
            bundle: the bundle that holds them; its tensors are read.
            variables: node names of the variables to look at; all of them where None. Those in doubt are passed over.

        Raises:
            MissingFileError, ModelError: a tensor cannot be read.
        """
        found = {}
        for name in self.variables if variables is None else variables:
            known = self.variables[name]
            first, *others = known.keys or ("",)
            if not known.doubts and not all(bundle.equal(first, other) for other in others):
                found[name] = known.keys
        return found


@attrs.frozen(eq=False)
class SavedModel:
    """A SavedModel folder; its graphs hold together.

    Attributes:
        folder: the folder.
        file: the file in it that holds the graphs.
        proto: the SavedModel proto.
        meta_graphs: its graphs.
        bundle: its variables, None where it has none.
    """

    folder: Path
    file: Path
    proto: Any
    meta_graphs: tuple[MetaGraph, ...]
    bundle: Bundle | None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> SavedModel:
        """Read a SavedModel's graphs and the index of its variables.

        Args:
            folder: the folder with ``saved_model.pb`` or ``saved_model.pbtxt`` in it.

        Raises:
            MissingFileError: there is no such folder, or no SavedModel in it, or a file of its variables is missing.
            ModelError: it is not a SavedModel, has no graph, or is damaged; the message names the file and node.
        """
        folder = Path(folder)
        file = _model_file(folder)
        proto = _parse(file)
        meta_graphs = []
        for meta_graph in proto.meta_graphs:
            tags = tuple(sorted(meta_graph.meta_info_def.tags))
            where = f"{file}, tags {list(tags)}" if len(proto.meta_graphs) > 1 else str(file)
            view = check_graph_def(meta_graph.graph_def, where)
            meta_graphs.append(MetaGraph(meta_graph, tags, where, view))
        return cls(folder, file, proto, tuple(meta_graphs), _bundle(folder))

    def meta_graph(self, tags: Iterable[str] | None = None) -> MetaGraph:
        """The graph of these tags; without tags the only one.

        Raises:
            ModelError: there is none, or there are several.
        """
        wanted = None if tags is None else tuple(sorted(tags))
        found = [meta_graph for meta_graph in self.meta_graphs if wanted in (None, meta_graph.tags)]
        if len(found) == 1:
            return found[0]
        known = " or ".join(str(list(meta_graph.tags)) for meta_graph in self.meta_graphs)
        asked = "" if wanted is None else f" with the tags {list(wanted)}"
        raise ModelError(f"has {len(found) or 'no'} graphs{asked}", where=str(self.file), expected=f"the tags {known}")

    @property
    def loads_by_objects(self) -> bool:
        """Whether ``tf.saved_model.load`` restores by the object graph; if not, by the restore op as a Session does."""
        return len(self.meta_graphs) == 1 and self.meta_graphs[0].proto.HasField("object_graph_def")

    def weight_keys(self, meta_graph: MetaGraph) -> WeightKeys:
        """Which stored tensors either loader restores into the variables of ``meta_graph``.

        Raises:
            MissingFileError, ModelError: the graph, its functions or its object graph do not hold together.
        """
        graph = ProtoGraph(meta_graph.graph_def)
        session = _session_keys(graph, meta_graph)
        captures: dict[str, tuple[str | None, ...]] = {}
        objects = session
        if self.loads_by_objects:
            keys = _keys_of_objects(meta_graph, self.bundle)
            captures = _captures(meta_graph, keys)
            objects = _captured_keys(graph, meta_graph, keys)
        return WeightKeys(_by_variable(graph, session, objects, self.bundle), captures)


# The folder


def _model_file(folder: Path) -> Path:
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError as error:
        raise MissingFileError("there is no such folder", where=str(folder), expected=_A_SAVED_MODEL) from error
    except NotADirectoryError as error:
        hint = f"Name the folder, {folder.parent}." if folder.name.startswith("saved_model.pb") else ""
        raise ModelError("is a file", where=str(folder), expected=_A_SAVED_MODEL, hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"cannot be read ({reason})", where=repr(str(folder)), expected=_A_SAVED_MODEL) from error
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        if name in names:
            return folder / name
    if "saved_model.cpb" in names:
        raise ModelError("is split into chunks (saved_model.cpb)", where=str(folder), expected="a saved_model.pb")
    raise MissingFileError("there is no saved_model.pb in it", where=str(folder), expected=_A_SAVED_MODEL)


def _parse(file: Path) -> Any:
    """The SavedModel in a file. It has a graph."""
    proto = saved_model_pb2.SavedModel()
    try:
        data = read_proto(file, "a SavedModel")
        if file.suffix == ".pbtxt":
            text_format.Parse(data.decode("utf-8"), proto)
        else:
            proto.ParseFromString(data)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(_what_else(data), where=str(file), expected="a SavedModel") from error
    if not proto.meta_graphs or not any(meta_graph.graph_def.node for meta_graph in proto.meta_graphs):
        found = "has no graphs" if proto.meta_graphs else _what_else(data)
        raise ModelError(found, where=str(file), expected="a SavedModel with a graph")
    return proto


def _what_else(data: bytes) -> str:
    """What a file is that is no SavedModel with a graph."""
    graph_def = graph_pb2.GraphDef()
    try:
        graph_def.ParseFromString(data)
    except DecodeError:
        return "is not a SavedModel"
    return "is a GraphDef" if any(node.op for node in graph_def.node) else "is not a SavedModel"


def _bundle(folder: Path) -> Bundle | None:
    """The variables. Loaders take a model for one without variables where it has no folder of them."""
    try:
        names = os.listdir(folder / _BUNDLE.parent)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        where = str(folder / _BUNDLE.parent)
        raise ModelError(f"cannot be read ({error.strerror or error})", where=where) from error
    return Bundle.open(folder / _BUNDLE) if names else None


# What was found for a variable


@attrs.define(eq=False)
class _Found:
    """Keys and doubts that one loader's way gave for a variable."""

    keys: set[str] = attrs.field(factory=set)
    doubts: list[str] = attrs.field(factory=list)


def _by_variable(
    graph: ProtoGraph, session: Mapping[str, _Found], objects: Mapping[str, _Found], bundle: Bundle | None
) -> dict[str, VariableKeys]:
    """Both ways put together. Nodes of one shared name are one variable."""
    same: dict[object, list[str]] = defaultdict(list)
    variables = [node for node in graph.nodes() if node.op in VARIABLES]
    for node in variables:
        same[_identity(node)].append(node.name)
    found = {}
    for node in variables:
        names = same[_identity(node)]
        ways = [way[name] for way in (session, objects) for name in names if name in way]
        restored = sorted({key for name in names if name in session for key in session[name].keys})
        captured = sorted({key for name in names if name in objects for key in objects[name].keys})
        doubts = [doubt for way in ways for doubt in way.doubts]
        for key in sorted({*restored, *captured}):
            doubts += _unfit(key, node, bundle)
        if not restored and not captured and not doubts:
            doubts = ["no stored tensor is restored into it"]
        found[node.name] = VariableKeys(tuple(restored), tuple(captured), tuple(dict.fromkeys(doubts)))
    return found


def _identity(node: Node) -> object:
    """What two nodes share that stand for one variable."""
    return tuple(_safely(node, lambda: (node.attr("container", ""), node.attr("shared_name", "") or node.name)))


def _unfit(key: str, node: Node, bundle: Bundle | None) -> Iterator[str]:
    """Why a stored tensor cannot be this variable's, or cannot be written."""
    if bundle is None or key not in bundle.entries:
        yield f"there is no stored tensor '{key}'"
        return
    entry = bundle.entries[key]
    dtype, shape = _safely(node, lambda: (node.attr("dtype"), node.attr("shape")))
    if entry.slices:
        yield f"'{key}' is stored in {entry.slices} slices (a partitioned variable)"
    if entry.dtype != dtype:
        yield f"'{key}' is {entry.dtype}, the variable {dtype}"
    if isinstance(shape, tuple) and not (
        len(shape) == len(entry.shape) and all(b in (-1, a) for a, b in zip(entry.shape, shape, strict=True))
    ):
        yield f"'{key}' has the shape {list(entry.shape)}, the variable {list(shape)}"


# The way of Session loaders


def _session_keys(graph: ProtoGraph, meta_graph: MetaGraph) -> dict[str, _Found]:
    """What running the restore op, then the initialisation op, leaves in each variable."""
    found: dict[str, _Found] = defaultdict(_Found)
    saver = meta_graph.proto.saver_def
    if saver.restore_op_name:
        filename = saver.filename_tensor_name.partition(":")[0]
        for variable, value, conditional in _assignments(graph, saver.restore_op_name, meta_graph):
            way = found[variable.name]
            key = _restored_key(value, filename)
            if conditional or key is None:
                how = "in a branch or loop" if conditional else f"from '{value.node.path}' ({value.node.op})"
                way.doubts.append(f"the restore op assigns it {how}, not as stored")
            else:
                way.keys.add(key)
    for name in init_ops(meta_graph.proto):
        for variable, _, _ in _assignments(graph, name, meta_graph):
            found[variable.name].doubts.append(f"the initialisation op '{name}' assigns it after it was restored")
    return dict(found)


def init_ops(proto: Any) -> set[str]:
    """The ops that loaders of a MetaGraphDef run after restoring."""
    names = []
    if _INIT_OP in proto.signature_def:
        names += [output.name for output in proto.signature_def[_INIT_OP].outputs.values()]
    for collection in _INIT_COLLECTIONS:
        if collection in proto.collection_def:
            names += proto.collection_def[collection].node_list.value
    return {name.partition(":")[0] for name in names}


def _assignments(graph: ProtoGraph, name: str, meta_graph: MetaGraph) -> Iterator[tuple[Node, Edge, bool]]:
    """What running the op ``name`` assigns: (variable, value, whether it depends on a condition).

    Raises:
        ModelError: there is no such op, or its functions call each other without end.
    """
    start = graph.node(name)
    if start is None:
        raise ModelError("is not in the graph", where=f"{meta_graph.where}: {name}", expected="the op that loaders run")
    for node in _needed(start, meta_graph):
        if node.op not in ASSIGNS:
            continue
        target, value = _first_inputs(node, 2)
        variable = _origin(target).node
        if variable.op in VARIABLES and variable.view is graph:
            yield variable, _origin(value), _is_conditional(node)


def _needed(start: Node, meta_graph: MetaGraph) -> Iterator[Node]:
    """Every node that runs when ``start`` does, those in the functions that are called too."""
    library = meta_graph.graph_def.library.function
    # Each function may be called from a few places, but not so often that calls multiply level by level.
    budget = 10 * (len(meta_graph.graph_def.node) + sum(len(f.node_def) + 1 for f in library)) + 1_000
    seen = {start}
    waiting = [(start, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node
        inside = [(inner, depth + 1) for body in _bodies(node) for inner in body.nodes()]
        budget -= 1 + len(inside)
        if budget < 0 or depth > _MAX_DEPTH:
            raise ModelError("its functions call each other without end", where=f"{meta_graph.where}: {start.name}")
        for other in (*((before, depth) for before in _before(node)), *inside):
            if other[0] not in seen:
                seen.add(other[0])
                waiting.append(other)


def _before(node: Node) -> Iterator[Node]:
    """What runs before a node: its data and control inputs."""
    if isinstance(node, ProtoNode):
        for text in node.definition.input:
            before = node.view.node(input_node(text))
            if before is None:
                raise ModelError(f"reads '{text}', which is not there", where=node.path)
            yield before


def _is_conditional(node: Node) -> bool:
    """Whether a node lies in the body of anything but a plain call."""
    view = node.view
    while isinstance(view, FunctionView):
        if view.role != "f":
            return True
        view = view.call.view
    return False


def _restored_key(value: Edge, filename: str) -> str | None:
    """The key whose tensor, whole or one slice, ``value`` is as it was stored, None if it is anything else."""
    if value.node.op != "RestoreV2":
        return None
    prefix, names, slices = (_origin(edge) for edge in _first_inputs(value.node, 3))
    name, part = _string(names.node, value.index), _string(slices.node, value.index)
    if prefix.node.name != filename or name is None or part is None:
        return None
    return stored_key(name, part)


def _string(node: Node, index: int) -> str | None:
    """One string of a constant vector of strings, None where it is none."""
    tensor = _safely(node, lambda: node.attr("value")) if node.op == "Const" else None
    if getattr(tensor, "dtype", None) != types_pb2.DT_STRING or index >= len(tensor.string_val):  # type: ignore[union-attr]
        return None
    return str(tensor.string_val[index].decode("utf-8", "backslashreplace"))  # type: ignore[union-attr]


def _origin(edge: Edge) -> Edge:
    """Where a value comes from, through identities and out of the functions that it was passed to.

    Raises:
        ModelError: it goes round in a circle.
    """
    for _ in range(_MAX_STEPS):
        node = edge.node
        if isinstance(node, ArgumentNode):
            caller, index = node.outside()
            inputs = _inputs(caller)
            if index >= len(inputs):
                raise ModelError(f"passes {len(inputs)} inputs to a function that takes more", where=caller.path)
            edge = inputs[index]
        elif node.op == "Identity" and _inputs(node):
            edge = _inputs(node)[0]
        else:
            return edge
    raise ModelError("its value goes round in a circle", where=edge.node.path)


# The way of tf.saved_model.load


def _keys_of_objects(meta_graph: MetaGraph, bundle: Bundle | None) -> dict[int, str]:
    """The key of each variable of the object graph, by its number there.

    The checkpoint has an object graph of its own, which numbers differently: the names on the way from the root lead to
    the same object in both.
    """
    objects = meta_graph.proto.object_graph_def.nodes
    stored = _stored_objects(bundle)
    if not objects or not stored:
        return {}
    keys = {}
    partner = {0: 0}
    ambiguous = set()
    waiting = [0]
    while waiting:
        number = waiting.pop()
        saved, tracked = objects[number], stored[partner[number]]
        if saved.WhichOneof("kind") == "variable":
            values = [attribute.checkpoint_key for attribute in tracked.attributes if attribute.name == _VALUE]
            if len(values) == 1:
                keys[number] = values[0]
        others = _children(tracked, len(stored), meta_graph)
        for name, child in _children(saved, len(objects), meta_graph).items():
            if name not in others:
                continue
            if child not in partner:
                partner[child] = others[name]
                waiting.append(child)
            elif partner[child] != others[name]:
                ambiguous.add(child)
    return {number: key for number, key in keys.items() if number not in ambiguous}


def _stored_objects(bundle: Bundle | None) -> Any:
    """The nodes of the checkpoint's own object graph."""
    if bundle is None or _OBJECTS not in bundle.entries:
        return []
    proto = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        proto.ParseFromString(bundle.read_string(_OBJECTS))
    except DecodeError as error:
        raise ModelError("is no object graph", where=f"{bundle.prefix}.index: {_OBJECTS}") from error
    return proto.nodes


def _children(node: Any, count: int, meta_graph: MetaGraph) -> dict[str, int]:
    """A node's children by name, within the ``count`` nodes that there are."""
    children = {child.local_name: child.node_id for child in node.children}
    for name, number in children.items():
        if not 0 <= number < count:
            raise ModelError(f"its object '{name}' is number {number} of {count}", where=meta_graph.where)
    return children


def _captures(meta_graph: MetaGraph, keys: Mapping[int, str]) -> dict[str, tuple[str | None, ...]]:
    """What every function of the object graph captured, as keys."""
    functions = meta_graph.proto.object_graph_def.concrete_functions
    return {name: tuple(keys.get(number) for number in f.bound_inputs) for name, f in functions.items()}


def _captured_keys(graph: ProtoGraph, meta_graph: MetaGraph, keys: Mapping[int, str]) -> dict[str, _Found]:
    """The keys of the objects that stand in a loaded function where the main graph passes a variable to it.

    An exporter writes a call of every signature into the main graph. Its last inputs are what the function captured,
    in the order in which the object graph lists the same captures.
    """
    found: dict[str, _Found] = defaultdict(_Found)
    objects = meta_graph.proto.object_graph_def
    for call in graph.nodes():
        for _, name in _safely(call, call.calls):
            if name not in objects.concrete_functions:
                continue
            bound = objects.concrete_functions[name].bound_inputs
            passed = [_origin(edge).node for edge in _inputs(call)]
            fits = name in graph.library and len(graph.library[name].signature.input_arg) == len(passed) >= len(bound)
            for number, variable in zip(bound, passed[len(passed) - len(bound) :], strict=False):
                if variable.op not in VARIABLES:
                    continue
                way = found[variable.name]
                doubt = _doubt(number, objects.nodes, keys) if fits else f"'{call.name}' does not fit its function"
                if doubt:
                    way.doubts.append(doubt)
                else:
                    way.keys.add(keys[number])
    return dict(found)


def _doubt(number: int, objects: Any, keys: Mapping[int, str]) -> str:
    """Why it is not known what ``tf.saved_model.load`` restores into an object; "" where it is."""
    if not 0 <= number < len(objects) or objects[number].WhichOneof("kind") != "variable":
        return f"object {number}, which tf.saved_model.load serves in its place, is no variable"
    if number not in keys:
        return f"object {number}, which tf.saved_model.load serves in its place, has no key in the checkpoint"
    if objects[number].variable.experimental_distributed_variable_components:
        return f"object {number}, which tf.saved_model.load serves in its place, is distributed"
    if objects[number].saveable_objects or objects[number].registered_saver:
        return f"object {number}, which tf.saved_model.load serves in its place, is restored by a function of its own"
    return ""


# Protos that nobody vouches for


def _inputs(node: Node) -> tuple[Edge, ...]:
    return _safely(node, lambda: node.inputs)


def _first_inputs(node: Node, count: int) -> tuple[Edge, ...]:
    inputs = _inputs(node)
    if len(inputs) < count:
        raise ModelError(f"has {len(inputs)} inputs", where=node.path, expected=f"{count}")
    return inputs[:count]


def _bodies(node: Node) -> Sequence[FunctionView]:
    return _safely(node, lambda: node.view.bodies(node))


def _safely(node: Node, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelError(f"cannot be read ({error})", where=node.path) from error
