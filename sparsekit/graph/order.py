"""NodeDefs by what they read: names in their inputs, nodes after their inputs, loops and branches of TensorFlow 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BACKWARD = ("NextIteration", "RefNextIteration")
"""The ops through which alone a graph may go round in a circle."""

_ENTERS = ("Enter", "RefEnter")
_EXITS = ("Exit", "RefExit")
_SWITCHES = ("Switch", "RefSwitch")
_MERGES = ("Merge", "RefMerge")


def input_node(text: str) -> str:
    """The node that an input of a NodeDef names: of "name", "name:1", "name:output:1" or "^name" its name."""
    return text.removeprefix("^").partition(":")[0]


def in_order(nodes: Mapping[str, Any], also: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """The names of the nodes, each after those that it reads or waits for; in a loop, as its first turn has them.

    Args:
        nodes: the NodeDefs of a graph or of a function, by their names. What else they read (arguments of a function)
            counts as there from the start.
        also: what else must come before a node: see `last_turns`.

    Returns:
        The names; without those that depend on themselves other than through the NextIteration of a loop.
    """
    waiting = dict.fromkeys(nodes, 0)
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, node in nodes.items():
        before = [read for read in map(input_node, node.input) if read in nodes and nodes[read].op not in BACKWARD]
        for read in (*before, *(also or {}).get(name, ())):
            waiting[name] += 1
            readers[read].append(name)
    order = []
    ready = [name for name, count in waiting.items() if not count]
    while ready:
        name = ready.pop()
        order.append(name)
        for reader in readers[name]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return order


def last_turns(nodes: Mapping[str, Any]) -> dict[str, list[str]]:
    """For the Exits of every loop its NextIterations: what lies behind a loop comes after all of its body."""
    loop_of: dict[str, str] = {}  # by Switch and Merge
    for name, node in nodes.items():
        if node.op in _SWITCHES and len(node.input) > 1:
            value, condition = map(input_node, node.input[:2])
            if condition in nodes and nodes[condition].op == "LoopCond":
                loop_of[name] = loop_of[value] = condition
    turns: dict[str, list[str]] = {}
    for name, node in nodes.items():
        for read in map(input_node, node.input):
            if node.op in _MERGES and name in loop_of and read in nodes and nodes[read].op in BACKWARD:
                turns.setdefault(loop_of[name], []).append(read)
    exits = {name: input_node(node.input[0]) for name, node in nodes.items() if node.op in _EXITS and node.input}
    return {name: turns.get(loop_of[read], []) for name, read in exits.items() if read in loop_of}


def in_v1_control_flow(nodes: Mapping[str, Any]) -> set[str]:
    """The nodes that lie in a loop (between Enter and Exit) or in a branch (between Switch and Merge).

    They may run more than once, or not at all, in a run of the graph.

    Args:
        nodes: the NodeDefs of a graph, by their names.
    """
    depth: dict[str, int] = {}
    for name in in_order(nodes):
        node = nodes[name]
        read = [input_node(text) for text in node.input]
        behind = max((depth.get(other, 0) for other in read), default=0)
        ops = {nodes[other].op for other in read if other in nodes}
        if node.op in _ENTERS or (node.op in _SWITCHES and "LoopCond" not in ops):
            behind += 1
        elif node.op in _EXITS or (node.op in _MERGES and not ops.intersection(BACKWARD)):
            behind -= 1
        depth[name] = max(behind, 0)
    return {name for name, count in depth.items() if count}
