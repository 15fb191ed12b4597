"""A trainable model as the graph of one call, with its variables in place: what planning and verification look at."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from sparsekit.artefact.added_bias import AddedBias
from sparsekit.artefact.model import Change, Model
from sparsekit.artefact.rewriting import Edits
from sparsekit.errors import GraphError, ModelError
from sparsekit.graph.trace import Read
from sparsekit.training.distribution import identity, require_unsplit, whole
from sparsekit.training.naming import KerasNames, layer_names, renamed

_log = logging.getLogger("sparsekit")

Array: TypeAlias = npt.NDArray[Any]

_SIGNATURE = "Pass input_signature=[tf.TensorSpec(shape, dtype), ...], one for every argument of a call."


def is_trainable(model: object) -> bool:
    """Whether it is a model of Keras 3, a ``tf.Module`` or a ``tf.function``."""
    return is_keras(model) or isinstance(model, tf.Module) or hasattr(model, "get_concrete_function")


def trace(model: Any, input_signature: Sequence[Any] | None = None) -> TracedModel:
    """Call the model once, on symbols.

    Args:
        model: see `is_trainable`.
        input_signature: what it is called with, a (nested) ``tf.TensorSpec`` for every argument, as ``tf.function``
            takes it; None where the model knows: built Keras models, a ``tf.function`` with a signature.

    Raises:
        GraphError: the model does not know what it is called with, or cannot be called with it; its weights are split.
    """
    if not isinstance(input_signature, (list, tuple, type(None))):
        raise GraphError(
            f"got {type(input_signature).__name__}", where="input_signature", expected="a list", hint=_SIGNATURE
        )
    if is_keras(model) and sys.modules["keras"].backend.backend() != "tensorflow":
        found = f"runs on Keras' backend {sys.modules['keras'].backend.backend()}"
        raise GraphError(found, where=name_of(model), expected="tensorflow", hint="Set KERAS_BACKEND=tensorflow.")
    if is_keras(model):
        require_unsplit(name_of(model), model.variables)
    arguments = list(input_signature) if input_signature is not None else _known_signature(model)
    call = model.python_function if hasattr(model, "python_function") else model
    try:
        if is_keras(model):
            _build_in_scope(model, arguments)
        with _portable(model):
            concrete = tf.function(lambda *inputs: call(*inputs)).get_concrete_function(*arguments)
    except Exception as error:  # the user's own code runs here
        raise GraphError(
            f"cannot be called on {_shown(arguments)} ({type(error).__name__}: {_cause(error)})",
            where=name_of(model),
            hint=_SIGNATURE,
        ) from error
    names = KerasNames.of(model) if is_keras(model) else KerasNames()
    _warn_of_unread(model, concrete.graph, names.variables)
    return TracedModel(name_of(model), concrete, names)


def _build_in_scope(model: Any, arguments: Sequence[Any]) -> None:
    """Layers that have no weights yet make them under the strategy of the model, as in Keras' own loop.

    The trace itself is not in its scope: layers may ask there what replica they compute for.
    """
    strategy = getattr(model, "_distribute_strategy", None)
    if strategy is None or all(layer.built for layer in model._flatten_layers()):
        return
    tensor = sys.modules["keras"].KerasTensor
    with strategy.scope():
        model(*tf.nest.map_structure(lambda spec: tensor(spec.shape, spec.dtype), arguments))


@contextlib.contextmanager
def _portable(model: Any) -> Iterator[None]:
    """While this lasts, recurrent layers of Keras compute as they do on every device.

    Where there is a GPU they would hand all their weights, packed into one, to a single op. It is the same computation,
    and reads the same variables.
    """
    layers = model._flatten_layers() if is_keras(model) else []
    before = {layer: layer.use_cudnn for layer in layers if getattr(layer, "use_cudnn", False)}
    try:
        for layer in before:
            layer.use_cudnn = False
        yield
    finally:
        for layer, value in before.items():
            layer.use_cudnn = value


def _warn_of_unread(model: Any, graph: Any, paths: Mapping[int, str]) -> None:
    """A layer that the call does not reach is in no plan: an argument that was left out may lead to it."""
    read = {identity(variable) for variable in graph.variables}
    unread = [
        paths.get(id(whole(weight)), weight.name)
        for weight in getattr(model, "trainable_variables", ())
        if len(weight.shape) > 1 and identity(weight) not in read
    ]
    if unread:
        _log.warning(
            "%s: the call does not read %d of its weights (%s%s): their layers are in no plan and stay dense. Where an "
            "argument of the call leads to them: %s",
            name_of(model),
            len(unread),
            ", ".join(unread[:3]),
            ", ..." if len(unread) > 3 else "",
            _SIGNATURE,
        )


class TracedModel(Model):
    """A model as the graph of one call. Its weights are live: reading one reads the variable.

    Args:
        source: what the model is called.
        concrete: the traced call.
        names: what Keras calls it and its variables.

    Attributes:
        variables: the ``tf.Variable`` behind every variable node of the graph, by the node's name.
    """

    def __init__(self, source: str, concrete: Any, names: KerasNames) -> None:
        self.source = source
        graph = concrete.graph
        by_handle = {id(variable.handle): whole(variable) for variable in graph.variables}
        captured = {
            inside.op.name: by_handle[id(outside)] for outside, inside in graph.captures if id(outside) in by_handle
        }
        self.graph_def, self.variables = _with_variables(graph.as_graph_def(), captured, names)

    def obstacle(self, read: Read) -> str:
        for leaf in read.leaves:
            if leaf.name not in self.variables:
                return f"its weight '{leaf.path}' is no variable of the model"
        return f"its weight '{read.leaves[0].path}' is one of several parts" if len(read.leaves) > 1 else ""

    def values(self, read: Read) -> Iterator[tuple[str, Array]]:
        obstacle = self.obstacle(read)
        if obstacle:
            raise ModelError(obstacle, where=self.source)
        yield "", np.asarray(self.variables[read.leaves[0].name].numpy())

    @property
    def inputs(self) -> Mapping[str, str]:
        nodes = [node for node in self.view.nodes() if node.op == "Placeholder"]
        return {node.name: f"{node.name}:0" for node in nodes}

    def load(self, session: Any, graph_def: Any, folder: Path) -> None:
        raise ModelError("cannot be run in a session", where=self.source, hint="Export it and prune the SavedModel.")

    def graph_obstacle(self) -> str:
        return "it was traced from Python code"

    def with_biases(self, biases: Sequence[AddedBias]) -> Model:
        raise ModelError(self.graph_obstacle(), where=self.source)

    def changed(self, changes: Iterable[Change], edits: Edits | None = None) -> Model:
        raise ModelError("holds its weights in variables", where=self.source)

    def save(self, path: str | os.PathLike[str]) -> Path:
        raise ModelError("is saved by its own means", where=self.source, hint="Call .finalize(), then model.save().")


def _with_variables(graph_def: Any, captured: Mapping[str, Any], keras_names: KerasNames) -> tuple[Any, dict[str, Any]]:
    """The graph with variables in place of the placeholders that stand for them, named as users know them."""
    paths = keras_names.variables
    nodes = {node.name: node for node in graph_def.node}
    taken = nodes.keys() - captured.keys()
    names: dict[str, str] = {}
    for inside, variable in captured.items():
        # TensorFlow's name has an index behind it.
        name = paths.get(id(variable)) or variable.name.partition(":")[0]
        while name in taken:
            name += "_"
        taken.add(name)
        names[inside] = name
        node = nodes[inside]
        node.op = "VarHandleOp"
        node.attr.clear()
        node.attr["dtype"].type = variable.dtype.base_dtype.as_datatype_enum
        node.attr["shape"].CopyFrom(attr_value_pb2.AttrValue(shape=variable.shape.as_proto()))
        node.attr["shared_name"].s = name.encode()
    renamed(graph_def, names)
    known = {names[inside]: paths[id(variable)] for inside, variable in captured.items() if id(variable) in paths}
    renamed(graph_def, layer_names(graph_def, keras_names.model, known))
    return graph_def, {names[inside]: variable for inside, variable in captured.items()}


def retrace(model: Any) -> None:
    """Let a Keras model compile its functions anew: what they were traced with has changed."""
    for name in ("test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    # This one may be about to be called.
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)


def _known_signature(model: Any) -> list[Any]:
    if is_keras(model):
        return _keras_signature(model)
    call = model if hasattr(model, "get_concrete_function") else inspect.getattr_static(model, "__call__", None)
    signature = getattr(call, "input_signature", None)
    if signature is None:
        raise GraphError("does not know what it is called with", where=name_of(model), hint=_SIGNATURE)
    return list(signature)


def _keras_signature(model: Any) -> list[Any]:
    structure = getattr(model, "_inputs_struct", None)
    if structure is None and getattr(model, "inputs", None):
        structure = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    if structure is not None:
        return [tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), structure)]
    shapes = getattr(model, "_build_shapes_dict", None) if model.built else None
    if not shapes:
        state = "is not built yet" if not model.built else "does not know its inputs"
        hint = f"Call it on a batch, or: {_SIGNATURE[0].lower()}{_SIGNATURE[1:]}"
        raise GraphError(state, where=name_of(model), hint=hint)
    # What a subclassed model was built with says shapes only; the number of samples is free.
    return [
        _of_shape(shape, lambda lengths: tf.TensorSpec([None, *lengths[1:]], model.compute_dtype))
        for shape in shapes.values()
    ]


def _of_shape(shape: Any, make: Callable[[Sequence[int | None]], Any]) -> Any:
    if isinstance(shape, Mapping):
        return {key: _of_shape(value, make) for key, value in shape.items()}
    if shape and isinstance(shape[0], (list, tuple)):
        return type(shape)(_of_shape(value, make) for value in shape)
    return make(shape)


def is_keras(model: object) -> bool:
    """Whether it is a model or layer of Keras 3."""
    # Whoever has such a model has imported Keras.
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.Layer)


def name_of(model: Any) -> str:
    """What a model is called in messages."""
    name = getattr(model, "name", None) or getattr(model, "__name__", None)
    return f"the model '{name}'" if isinstance(name, str) else f"the {type(model).__name__}"


def _cause(error: Exception) -> str:
    """What it says, without the lines of code that TensorFlow puts before and the escapes that Keras puts around it."""
    text = re.sub(r"\x1b\[\d+m", "", str(error))
    *_, last = re.split(r'(?m)^ *File ".*", line \d+.*\n.*\n', text)
    return " ".join((last.strip() or text).split()).removeprefix(f"{type(error).__name__}: ")[:400]


def _shown(arguments: Iterable[Any]) -> str:
    return ", ".join(str(argument) for argument in arguments) or "nothing"
