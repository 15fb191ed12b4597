"""Variables taken out of a MetaGraph: out of its graph, savers, initializers and collections.

A TF1-style MetaGraph mentions a variable in many places besides the ops that compute with it. Savers hold the names of
all variables in two constants, their tensors as inputs of a SaveV2 and as outputs of a RestoreV2, and an assignment for
each; initializers depend on assignments; collections hold serialized VariableDefs. Everything here that is not one of
these is left alone, and refused where it reads what goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import attr_value_pb2, node_def_pb2, types_pb2, variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from sparsekit.artefact.rewriting import FREEZE_AND_STRIP, Edits, rewritten
from sparsekit.artefact.saved_model import ASSIGNS, VARIABLES, MetaGraph, init_ops
from sparsekit.artefact.well_formed import check_graph_def
from sparsekit.errors import ModelError
from sparsekit.graph.order import input_node

Proto: TypeAlias = Any

_ASKS_WHETHER_INITIALIZED = ("IsVariableInitialized", "VarIsInitializedOp")
_READS = ("Identity", "ReadVariableOp")
_SAVE, _RESTORE = "SaveV2", "RestoreV2"
_SAVED_FROM = 3  # inputs of a SaveV2: file name, tensor names, slices, then the tensors


def without_variables(meta_graph: MetaGraph, edits: Edits) -> Proto:
    """A MetaGraph with the edits made, in which nothing speaks of the variables that go.

    Args:
        meta_graph: it is not modified.
        edits: of its graph; nodes that go, variables among them. Ops that only save, restore or initialize what goes
            need not be named: they go too. That of ops that report whether such a variable is initialized, the
            answer is yes from now on.

    Returns:
        The new MetaGraphDef.

    Raises:
        ModelError: an op, a signature or a collection uses what goes in a way that is not understood.
    """
    proto = meta_graph_pb2.MetaGraphDef()
    proto.CopyFrom(meta_graph.proto)
    graph = _Graph.of(proto.graph_def, set(edits.removed), meta_graph.where)
    graph.forget(_needed_names(proto, meta_graph.where, edits.removed))
    before = _op_types(proto.graph_def)
    proto.graph_def.CopyFrom(rewritten(proto.graph_def, attrs.evolve(edits, removed=graph.removed)))
    unused = before - _op_types(proto.graph_def)
    ops = [op for op in proto.meta_info_def.stripped_op_list.op if op.name not in unused]
    del proto.meta_info_def.stripped_op_list.op[:]
    proto.meta_info_def.stripped_op_list.op.extend(ops)
    scopes = {name.rpartition("/")[0] for name in edits.removed if graph.nodes[name].op in VARIABLES}
    for name in list(proto.collection_def):
        _clear_collection(name, proto.collection_def, graph.removed, scopes, meta_graph.where)
    check_graph_def(proto.graph_def, meta_graph.where)
    return proto


@attrs.define(eq=False)
class _Graph:
    """A GraphDef that is edited in place, node by node.

    Attributes:
        nodes: by name.
        readers: who reads a node: (reader, index among its inputs), control inputs too.
        inserted: the nodes that go by order.
        removed: these, and all that goes with them.
        where: the graph, for messages.
    """

    nodes: dict[str, Proto]
    readers: dict[str, list[tuple[str, int]]]
    inserted: frozenset[str]
    removed: set[str]
    where: str

    @classmethod
    def of(cls, graph_def: Proto, removed: set[str], where: str) -> _Graph:
        readers: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for node in graph_def.node:
            for index, text in enumerate(node.input):
                readers[input_node(text)].append((node.name, index))
        return cls({node.name: node for node in graph_def.node}, readers, frozenset(removed), removed, where)

    def forget(self, needed: set[str]) -> None:
        """Let nothing outside ``inserted`` save, restore or initialize a variable that goes."""
        self._forget_readers(needed)
        self._forget_sources(needed)
        for node in list(self.nodes.values()):
            if node.name in self.removed:
                continue
            if node.op == _SAVE:
                self._shrink_save(node)
            elif node.op == _RESTORE:
                self._shrink_restore(node)
        self._forget_groups(needed)
        for node in self.nodes.values():
            if node.name not in self.removed:
                self._drop_control_inputs(node)
                self._drop_colocation(node)

    def _forget_readers(self, needed: set[str]) -> None:
        """What takes such a variable outside: assignments and reads for savers or nobody go, questions are answered."""
        for name in self.inserted:
            for reader, index in self.readers[name]:
                node = self.nodes[reader]
                if reader in self.inserted or node.input[index].startswith("^"):
                    continue
                if (node.op in ASSIGNS and index == 0) or node.op == "DisableCopyOnRead":
                    self.removed.add(reader)
                elif node.op in _ASKS_WHETHER_INITIALIZED:
                    _answer_yes(node)
                elif self._is_only_saved(node, needed):
                    self.removed.update(self._chain_to_saver(node))

    def _is_only_saved(self, node: Proto, needed: set[str]) -> bool:
        chain = self._chain_to_saver(node)
        readers = {
            reader for name in chain for reader, index in self.readers[name] if not self._is_control(reader, index)
        }
        ends = readers.difference(chain)
        return node.op in _READS and not needed.intersection(chain) and all(self.nodes[e].op == _SAVE for e in ends)

    def _chain_to_saver(self, node: Proto) -> list[str]:
        """A read and the identities behind it."""
        chain = [node.name]
        for name in chain:
            chain += [
                reader
                for reader, index in self.readers[name]
                if self.nodes[reader].op == "Identity" and not self._is_control(reader, index)
            ]
        return chain

    def _is_control(self, reader: str, index: int) -> bool:
        return self.nodes[reader].input[index].startswith("^")

    def _forget_sources(self, needed: set[str]) -> None:
        """What was computed for nothing but what went outside: restored values, with their names and slices."""
        waiting = [text for name in self.removed - self.inserted for text in self.nodes[name].input]
        while waiting:
            node = self.nodes[input_node(waiting.pop())]
            gone = all(reader in self.removed for reader, _ in self.readers[node.name])
            if gone and node.name not in self.removed and node.name not in needed and node.op not in VARIABLES:
                self.removed.add(node.name)
                waiting += node.input

    def _shrink_save(self, save: Proto) -> None:
        tensors = list(save.input[_SAVED_FROM:])
        kept = [i for i, text in enumerate(tensors) if text.startswith("^") or input_node(text) not in self.removed]
        if len(kept) == len(tensors):
            return
        data = [i for i in kept if not tensors[i].startswith("^")]
        if not data:
            raise self._error(save, "saves nothing but masks", "a saver that saves weights too")
        self._shrink_lists(save, data, len([text for text in tensors if not text.startswith("^")]))
        save.input[_SAVED_FROM:] = [tensors[i] for i in kept]

    def _shrink_restore(self, restore: Proto) -> None:
        by_output: dict[int, list[str]] = defaultdict(list)
        for reader, index in self.readers[restore.name]:
            text = self.nodes[reader].input[index]
            if not text.startswith("^"):
                by_output[_index(text)].append(reader)
        unread = {output for output, readers in by_output.items() if self.removed.issuperset(readers)}
        if not unread:
            return
        count = len(restore.attr["dtypes"].list.type)
        kept = [output for output in range(count) if output not in unread]
        self._shrink_lists(restore, kept, count)
        numbers = {output: number for number, output in enumerate(kept)}
        for reader, index in self.readers[restore.name]:
            text = self.nodes[reader].input[index]
            if reader not in self.removed and not text.startswith("^"):
                number = numbers[_index(text)]
                self.nodes[reader].input[index] = f"{restore.name}:{number}" if number else restore.name

    def _shrink_lists(self, op: Proto, kept: list[int], count: int) -> None:
        """Keep these of the tensors that a saver's op lists: in two constants, its types and its shapes."""
        for text in op.input[1:_SAVED_FROM]:
            constant = self.nodes[input_node(text)]
            values = _strings(constant)
            if values is None or len(values) != count or len(self.readers[constant.name]) != 1:
                raise self._error(
                    op, f"takes its list of tensors from '{constant.name}' ({constant.op})", "a constant of its own"
                )
            tensor = tf.make_tensor_proto([values[i] for i in kept], tf.string, [len(kept)])
            constant.attr["value"].tensor.CopyFrom(tensor)
            for shape in constant.attr["_output_shapes"].list.shape if "_output_shapes" in constant.attr else ():
                shape.CopyFrom(tensor.tensor_shape)
        types = [op.attr["dtypes"].list.type[i] for i in kept]
        op.attr["dtypes"].list.type[:] = types
        if op.op == _RESTORE and "_output_shapes" in op.attr:
            shapes = [op.attr["_output_shapes"].list.shape[i] for i in kept]
            op.attr["_output_shapes"].CopyFrom(_shape_list(shapes))

    def _forget_groups(self, needed: set[str]) -> None:
        """A group of nothing but what goes: goes, and the groups of such groups."""
        waiting = list(self.removed)
        while waiting:
            for reader, _ in self.readers[waiting.pop()]:
                node = self.nodes[reader]
                all_gone = all(input_node(text) in self.removed for text in node.input)
                if node.op == "NoOp" and all_gone and reader not in self.removed and reader not in needed:
                    self.removed.add(reader)
                    waiting.append(reader)

    def _drop_control_inputs(self, node: Proto) -> None:
        """Wait no more for what went with the masks, but for what that waited for."""
        kept: list[str] = []
        for text in node.input:
            name = input_node(text)
            gone = text.startswith("^") and name in self.removed
            if gone and (name not in self.inserted or self.nodes[name].op in ASSIGNS):
                kept += [waited for waited in self._waited_for(name) if waited not in kept and waited not in node.input]
            else:
                kept.append(text)
        if kept != list(node.input):
            node.input[:] = kept

    def _waited_for(self, name: str) -> list[str]:
        """The nearest nodes that stay which a node that goes had to wait for, as control inputs."""
        found = []
        waiting, seen = [name], {name}
        while waiting:
            for text in self.nodes[waiting.pop()].input:
                before = input_node(text)
                if before not in self.removed and text.startswith("^"):
                    found.append(text)
                elif before in self.removed and before not in self.inserted and before not in seen:
                    seen.add(before)
                    waiting.append(before)
        return found

    def _drop_colocation(self, node: Proto) -> None:
        if "_class" not in node.attr:
            return
        places = node.attr["_class"].list.s
        kept = [place for place in places if place.decode().removeprefix("loc:@") not in self.removed]
        if len(kept) < len(places):
            places[:] = kept
        if not kept:
            del node.attr["_class"]

    def _error(self, node: Proto, found: str, expected: str) -> ModelError:
        return ModelError(found, where=f"{self.where}: {node.name}", expected=expected, hint=FREEZE_AND_STRIP)


def _needed_names(proto: Proto, where: str, removed: Iterable[str]) -> set[str]:
    """The ops that loaders ask for by name.

    Raises:
        ModelError: one of them goes.
    """
    saver = proto.saver_def
    names = {saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name, *init_ops(proto)}
    for signature in proto.signature_def.values():
        names |= {tensor.name for tensors in (signature.inputs, signature.outputs) for tensor in tensors.values()}
    needed = {input_node(name) for name in names if name}
    for name in sorted(needed.intersection(removed)):
        raise ModelError(
            f"a signature or the initialisation names '{name}', an op of the mask",
            where=where,
            hint="Export the graph with the outputs of the model only.",
        )
    return needed


def _clear_collection(name: str, collections: Proto, removed: set[str], scopes: set[str], where: str) -> None:
    """Take what goes out of a collection, and an empty collection out of the MetaGraph. ``scopes`` hold nothing that
    stays."""
    collection = collections[name]
    kind = collection.WhichOneof("kind")
    values = list(getattr(collection, kind).value) if kind in ("node_list", "bytes_list") else []
    kept = [value for value in values if _named(value) not in removed]
    if any(isinstance(value, bytes) and f"{scope}/".encode() in value for value in kept for scope in scopes):
        raise ModelError(
            "holds an op of a mask in a form that is not known",
            where=f"{where}: collection '{name}'",
            hint=FREEZE_AND_STRIP,
        )
    if len(kept) == len(values):
        return
    if kept:
        getattr(collection, kind).value[:] = kept
    else:
        del collections[name]


def _named(value: str | bytes) -> str:
    """The node that an entry of a collection stands for, "" where it is none that is known."""
    if isinstance(value, str):
        return input_node(value)
    variable = variable_pb2.VariableDef()
    try:
        variable.ParseFromString(value)
    except DecodeError:
        return ""
    return input_node(variable.variable_name)


def _answer_yes(node: Proto) -> None:
    """What is not there needs no initialization."""
    yes = node_def_pb2.NodeDef(name=node.name, op="Const", device=node.device)
    yes.attr["dtype"].type = types_pb2.DT_BOOL
    yes.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(True))
    if "_output_shapes" in node.attr:
        yes.attr["_output_shapes"].CopyFrom(node.attr["_output_shapes"])
    node.CopyFrom(yes)


def _strings(node: Proto) -> list[bytes] | None:
    """The strings of a constant vector, None where it is none."""
    tensor = node.attr["value"].tensor if node.op == "Const" else None
    if tensor is None or tensor.dtype != types_pb2.DT_STRING:
        return None
    try:
        return list(tf.make_ndarray(tensor).reshape(-1))
    except (ValueError, TypeError):
        return None


def _shape_list(shapes: list[Proto]) -> Proto:
    return attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(shape=shapes))


def _op_types(graph_def: Proto) -> set[str]:
    bodies = (function.node_def for function in graph_def.library.function)
    return {node.op for nodes in (graph_def.node, *bodies) for node in nodes}


def _index(text: str) -> int:
    return int(text.partition(":")[2] or 0)
