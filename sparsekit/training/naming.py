"""The names of Keras in the graph of a traced call.

TensorFlow numbers a scope that is entered again, and Keras enters every layer's scope twice: in the graph, the layer
``dense`` is ``dense_1``, and ``dense_1`` is ``dense_1_2``. Who names a layer in a config means the name in Keras.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import attrs

from sparsekit.graph.order import input_node


@attrs.frozen
class KerasNames:
    """What Keras calls a model and its variables; nothing for a model of another kind.

    Attributes:
        model: its name.
        variables: their paths, by the id of the ``tf.Variable``.
    """

    model: str = ""
    variables: Mapping[int, str] = attrs.Factory(dict)

    @classmethod
    def of(cls, model: Any) -> KerasNames:
        """Those of a model or layer of Keras."""
        return cls(model.name, {id(variable.value): variable.path for variable in model.variables})


def renamed(graph_def: Any, names: Mapping[str, str]) -> None:
    """Rename nodes of a graph in place, and what refers to them.

    Args:
        graph_def: a GraphDef.
        names: new names by old ones; no two nodes may end with one name.
    """
    for node in graph_def.node:
        node.name = names.get(node.name, node.name)
        for index, text in enumerate(node.input):
            read = input_node(text)
            if read in names:
                node.input[index] = text.replace(read, names[read], 1)


def layer_names(graph_def: Any, model: str, paths: Mapping[str, str]) -> dict[str, str]:
    """New names for nodes inside of layers: what the layers are called in Keras in place of the scopes in the graph.

    What a scope is called in Keras is learned from the variables that are read in it. One for which they disagree keeps
    its name.

    Args:
        graph_def: the traced call.
        model: what Keras calls the model, the outermost scope.
        paths: how Keras names variables, by the names of the nodes that stand for them.

    Returns:
        New names by old ones, of those nodes that get another one.
    """
    layers = _layers(graph_def, model, paths)
    wanted = {node.name: _in_keras(node.name, layers) for node in graph_def.node if node.name not in paths}
    wanted = {old: new for old, new in wanted.items() if new != old}
    taken = {node.name for node in graph_def.node} - wanted.keys()
    names: dict[str, str] = {}
    for old, new in wanted.items():
        # A layer that is called twice has two ops of one name.
        numbered = itertools.chain([new], (f"{new}_{number}" for number in itertools.count(1)))
        name = next(name for name in numbered if name not in taken)
        taken.add(name)
        names[old] = name
    return names


def _in_keras(name: str, layers: Mapping[str, str]) -> str:
    scopes = name.split("/")
    return "/".join(layers.get("/".join(scopes[: depth + 1]), scope) for depth, scope in enumerate(scopes))


def _layers(graph_def: Any, model: str, paths: Mapping[str, str]) -> dict[str, str]:
    """The names of layers by the whole scopes that stand for them."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in graph_def.node:
        scopes = node.name.split("/")[:-1]
        if scopes and _stands_for(scopes[0], model):
            found[scopes[0]].add(model)
        for variable in map(input_node, node.input):
            # The path of a layer that is older than its functional model does not begin with that.
            layers = paths.get(variable, "").split("/")[:-1]
            first = next((i for i, scope in enumerate(scopes) if layers and _stands_for(scope, layers[0])), len(scopes))
            for depth, (scope, layer) in enumerate(zip(scopes[first:], layers, strict=False), first + 1):
                if not _stands_for(scope, layer):
                    break
                found["/".join(scopes[:depth])].add(layer)
    return {scope: layers.pop() for scope, layers in found.items() if len(layers) == 1}


def _stands_for(scope: str, layer: str) -> bool:
    return re.fullmatch(re.escape(layer) + r"(_\d+)?", scope) is not None
