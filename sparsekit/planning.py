"""The one place that decides: walk the graph, ask the handlers, make a Plan of LayerDecisions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from fnmatch import fnmatchcase
from typing import TypeAlias

import attrs

from sparsekit.config import LayerSettings, Masking, PruneConfig, names_in_use
from sparsekit.errors import ConfigError, ModelError, near_matches
from sparsekit.graph.forward import forward_nodes, last_before_outputs
from sparsekit.graph.node import FunctionView, GraphView, LiveGraph, Node
from sparsekit.graph.trace import VARIABLES, Read, Tracer, Untraceable, WeightSource, hands_on
from sparsekit.handler import OpHandler, WeightSite
from sparsekit.pattern import Pattern
from sparsekit.plugins import Registry
from sparsekit.table import first_of, text_table
from sparsekit.target import TargetProfile, TargetVerdict

TINY = 1024
"""Weights with fewer elements: measured, left dense they took a trained network from .30 to .92 of its task."""


@attrs.frozen
class LayerDecision:
    """What is done to one weight, and why.

    Attributes:
        name: the op that uses the weight (the first of them).
        op_type: its TensorFlow type.
        status: "prune" or "skip".
        reason: a stable code, "eligible" for a pruned layer.
        message: the same as a sentence for people.
        shape: the weight's shape as it is stored; None where no weight was found.
        axis: the group axis on that shape; None where unknown.
        dtype: the weight's dtype as it is stored, "" where no weight was found.
        weight: the name of the variable or constant.
        uses: every op that uses the weight.
        pattern, criterion, update_freq: the settings that hold for this layer.
        deployed: it comes from a file in a deployment format, and its dtype is what the device gets.
        verdict: of the target that was chosen, on a pruned layer.
    """

    name: str
    op_type: str
    status: str
    reason: str
    message: str
    shape: tuple[int, ...] | None = None
    axis: int | None = None
    dtype: str = ""
    weight: str = ""
    uses: tuple[str, ...] = ()
    pattern: Pattern | None = None
    criterion: str = ""
    update_freq: int = 0
    deployed: bool = False
    verdict: TargetVerdict | None = None

    @property
    def pruned(self) -> bool:
        return self.status == "prune"


@attrs.frozen
class Plan:
    """Every layer of a graph with its decision. Prints as a table.

    Attributes:
        decisions: in the order of the graph.
        target: the target profile that was asked for, None if none was.
        worth_leaving_dense: of a model at rest, the pruned layers that are tiny or come last before the outputs. In one
            shot these decide more about accuracy than the rest, and they hardly count for speed.
        masking: of a live graph or a model that trains eagerly, a sentence on how zeros are kept, and why.
    """

    decisions: tuple[LayerDecision, ...]
    target: TargetProfile | None = None
    worth_leaving_dense: tuple[str, ...] = ()
    masking: str = ""

    @property
    def pruned(self) -> tuple[LayerDecision, ...]:
        """The layers that are pruned."""
        return tuple(d for d in self.decisions if d.pruned)

    @property
    def skipped(self) -> tuple[LayerDecision, ...]:
        """The layers that stay dense."""
        return tuple(d for d in self.decisions if not d.pruned)

    def summary(self) -> str:
        """One sentence: how many layers are pruned, how many are not, why not."""
        if not self.decisions:
            return "There is nothing to prune: no op with an op handler was found."
        reasons: dict[str, int] = defaultdict(int)
        for decision in self.skipped:
            reasons[decision.reason] += 1
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        skipped = f"; {len(self.skipped)} stay dense ({why})" if why else ""
        if not self.pruned:
            return f"Nothing is pruned{skipped}."
        weights = sum(math.prod(d.shape or ()) for d in self.pruned)
        pruned = f"{len(self.pruned)} of {len(self.decisions)} layers are pruned, {weights:,} weights{skipped}."
        return f"{pruned}{self._eligible()}"

    def _eligible(self) -> str:
        """How many of the pruned layers the target has a use for, as a sentence with a space before it."""
        if not self.target:
            return ""
        verdicts = [d.verdict for d in self.pruned if d.verdict and d.verdict.eligible]
        conditional = sum(bool(verdict.conditions) for verdict in verdicts)
        later = f", {conditional} of them if conditions are met at conversion" if conditional else ""
        count = f"{len(verdicts)} of the {len(self.pruned)} pruned layers"
        return f" On {self.target.title}, {count} {'is' if len(verdicts) == 1 else 'are'} eligible{later}."

    def __str__(self) -> str:
        rows = [(*first_cells(d), why(d)) for d in self.decisions]
        table = text_table(("layer", "op", "shape", "axis", "status", "reason", "why"), rows) if rows else ""
        target = f"\nTarget: {self.target.title}. {self.target.reason}" if self.target else ""
        text = f"{table}{self.summary()}\n{self.hint()}".rstrip() + target
        return f"{text}\n{self.masking}".rstrip()

    def hint(self) -> str:
        """What the config could leave dense, in two sentences; "" if there is nothing."""
        if not self.worth_leaving_dense:
            return ""
        return (
            f"Worth leaving dense where nothing is retrained (tiny layers and output layers decide accuracy): "
            f"{first_of(self.worth_leaving_dense, 8)}. "
            f"The config keys min_weights = {TINY} and skip_outputs = true do that; with calibration "
            "samples, keep_dense does it within a budget."
        )


def first_cells(decision: LayerDecision) -> tuple[str, ...]:
    """The cells that a layer's row begins with: layer, op, shape, axis, status, reason."""
    return (
        decision.name,
        decision.op_type,
        "x".join(map(str, decision.shape)) if decision.shape is not None else "-",
        "-" if decision.axis is None else str(decision.axis),
        f"{decision.status} {decision.pattern}" if decision.pruned else decision.status,
        decision.reason,
    )


def why(decision: LayerDecision) -> str:
    """The last cell of a layer's row: how a layer of its own is pruned goes without saying."""
    message = "" if decision.pruned and len(decision.uses) < 2 else decision.message
    verdict = f"target: {decision.verdict}" if decision.verdict else ""
    return f"{message} {verdict}".strip()


@attrs.frozen(eq=False)
class PlannedLayer:
    """A layer that is to be pruned, with all that is needed to do it; in a live graph also how its zeros are kept."""

    decision: LayerDecision
    sites: tuple[WeightSite, ...]
    handlers: tuple[OpHandler, ...]
    masking: Masking = "forward"

    @property
    def source(self) -> WeightSource:
        return self.sites[0].source


@attrs.frozen(eq=False)
class Planning:
    """A plan together with what it was made from.

    Attributes:
        plan: what users see.
        layers: the layers to be pruned, in the plan's order.
        sites: for every decision whose weight was found, the places where it enters its ops.
        masking: of a live graph, how zeros are kept, but for layers that cannot do that.
    """

    plan: Plan
    layers: tuple[PlannedLayer, ...]
    sites: dict[LayerDecision, tuple[WeightSite, ...]]
    masking: Masking = "forward"


@attrs.frozen(eq=False)
class _Use:
    """One op with a handler, and what was found about it on its own."""

    node: Node
    handler: OpHandler
    settings: LayerSettings
    site: WeightSite | None
    reason: str = ""
    message: str = ""


def make_plan(
    view: GraphView,
    config: PruneConfig,
    outputs: Sequence[str] | None,
    registry: Registry,
    target: TargetProfile | None = None,
    stored_obstacle: Callable[[Read], str] = lambda read: "",
) -> Planning:
    """Decide what happens to every op that has a handler. Nothing is edited.

    Args:
        view: the graph.
        config: what to prune and how.
        outputs: the operations whose results are used; None: found by itself.
        registry: the plugins.
        target: judges the pruned layers; it changes none.
        stored_obstacle: why a stored weight cannot be rewritten, "" if it can (or is masked in a live graph).

    Raises:
        ModelError: a model at rest is damaged.
        ConfigError: the config names layers, types or criteria that do not exist.
        GraphError: an output is not in the graph.
        PluginError: a rule of the target fails.
    """
    forward = forward_nodes(view, outputs)
    candidates = [
        node
        for top in view.nodes()
        if top in forward
        for node in (_with_inner(top) if view.bodies(top) else (top,))
        if registry.handler(node.op)
    ]
    _check_names(view, config, candidates, registry)
    heads = _heads(view, config, outputs, candidates)
    skipped_heads = heads if config.skip_outputs else set()
    tracer = Tracer()
    groups: dict[object, list[_Use]] = defaultdict(list)
    for node in candidates:
        use = _examine(node, config, registry, tracer, skipped_heads, stored_obstacle)
        if not use.handler.only_explains or _has_variable(use):
            groups[use.site.source.key if use.site else node].append(use)
    readings = _Readings(forward, tracer)
    decided = [_decide(_to_be_told(uses), readings, target) for uses in groups.values()]
    return Planning(
        plan=Plan(
            tuple(decision for decision, _ in decided),
            target,
            () if isinstance(view, LiveGraph) else _worth_leaving_dense(decided, heads),
        ),
        layers=tuple(
            PlannedLayer(decision, tuple(use.site for use in uses if use.site), tuple(use.handler for use in uses))
            for decision, uses in decided
            if decision.pruned
        ),
        sites={decision: sites for decision, uses in decided if (sites := tuple(u.site for u in uses if u.site))},
    )


def _worth_leaving_dense(decided: list[tuple[LayerDecision, list[_Use]]], heads: set[Node]) -> tuple[str, ...]:
    # A network of tiny layers alone has none that hardly counts.
    pruned = [(decision, uses) for decision, uses in decided if decision.pruned]
    chosen = [
        decision.name
        for decision, uses in pruned
        if math.prod(decision.shape or ()) < TINY or any(use.node in heads for use in uses)
    ]
    return tuple(chosen) if len(chosen) < len(pruned) else ()


def _with_inner(node: Node) -> list[Node]:
    """A node and those of every function body that it calls, at any depth."""
    return [node, *(deep for body in node.view.bodies(node) for inner in body.nodes() for deep in _with_inner(inner))]


def _check_names(view: GraphView, config: PruneConfig, candidates: list[Node], registry: Registry) -> None:
    """Every name in the config must mean something: a typing error would silently prune or skip."""
    if config.criterion is not None:
        registry.criterion(config.criterion)
    for override in config.override:
        if override.criterion is not None:
            registry.criterion(override.criterion)
    layers = [node.path for node in candidates]
    mentioned = list(names_in_use(config))
    if not mentioned:
        return
    ops = {node.name: node.op for node in view.nodes()}
    variables = {name for name, op in ops.items() if op in VARIABLES}
    # Layers keep their names, those too that lie in such a scope and are not in the forward graph.
    parts = {
        name for name, op in ops.items() if not registry.handler(op) and not variables.isdisjoint(_with_scopes(name))
    }
    everything = {"layer": {*layers, *(ops.keys() - parts)}, "type": {*registry.handlers, *ops.values()}}
    for where, glob, kind in mentioned:
        if _matches(glob, everything[kind]):
            continue
        near = near_matches(glob, layers if kind == "layer" else registry.handlers)
        raise ConfigError(
            f"'{glob}' matches no {'operation' if kind == 'layer' else 'op type'} of the graph"
            + (", only variables and what lies in their scopes" if kind == "layer" and _matches(glob, parts) else ""),
            where=where,
            expected="names of operations in the graph" if kind == "layer" else "op types such as those with a handler",
            hint=near or ("Layers of this graph: " + ", ".join(layers[:8]) if kind == "layer" and layers else ""),
        )


def _matches(glob: str, names: Set[str]) -> bool:
    return glob in names or any(fnmatchcase(name, glob) for name in names)


def _with_scopes(name: str) -> Iterator[str]:
    """A name, and every scope that it lies in: the reads of a variable lie in its name."""
    parts = name.split("/")
    return ("/".join(parts[: end + 1]) for end in range(len(parts)))


def _heads(view: GraphView, config: PruneConfig, outputs: Sequence[str] | None, candidates: list[Node]) -> set[Node]:
    """The layers behind which no other layer comes; of a live graph where the config wants to know."""
    if isinstance(view, LiveGraph) and not config.skip_outputs:
        return set()
    if isinstance(view, LiveGraph) and outputs is None:
        raise ConfigError(
            "needs to know the outputs of the graph",
            where=f"{config.source}: skip_outputs",
            hint="Pass outputs=: in a training graph much is computed besides.",
        )
    return last_before_outputs(view, outputs, set(candidates))


def _examine(
    node: Node,
    config: PruneConfig,
    registry: Registry,
    tracer: Tracer,
    heads: set[Node],
    stored_obstacle: Callable[[Read], str],
) -> _Use:
    """Look at one op alone: its settings, its weight, its constraints."""
    handler = registry.handler(node.op)
    assert handler is not None
    settings, skipped_by = config.settings_for(node.path, node.op)
    found = _locate(node, handler, tracer)
    if isinstance(found, Untraceable):
        site, reason, message = None, found.reason, f"{node.path}: {found.message}."
    else:
        site = found
        reason, message = _obstacle(site, handler, settings)
        if not reason and _is_product_of_weights(site, tracer):
            reason = "product-of-weights"
            message = f"{node.path}: both its operands are weights, so it is a part of a weight, not a layer."
        if not reason and (stored := stored_obstacle(site.source.read)):
            reason, message = "weight-not-stored", f"{node.path}: {stored}."
    if reason == "already-masked":
        pass  # no setting changes that
    elif skipped_by:
        reason, message = (
            skipped_by.key.replace("_", "-"),
            f"{node.path}: the config leaves it out ({skipped_by}).",
        )
    elif node in heads:
        reason, message = "output-layer", f"{node.path}: no layer comes after it, and the config sets skip_outputs."
    elif not settings.prune:
        reason, message = "not-configured", f"{node.path}: the config does not ask for this layer."
    return _Use(node, handler, settings, site, reason, message)


def _has_variable(use: _Use) -> bool:
    """Whether it reads a variable that may be a layer's weight."""
    return use.site is not None and len(use.site.source.shape) > 1 and use.site.source.leaves[0].op != "Const"


def _to_be_told(uses: list[_Use]) -> list[_Use]:
    """Beside a layer that uses the weight, an op that only explains is one more reader of it."""
    return [use for use in uses if not use.handler.only_explains] or uses


def _locate(node: Node, handler: OpHandler, tracer: Tracer) -> WeightSite | Untraceable:
    """The op's static weight; where there is none, why its usual place holds none."""
    obstacle: Untraceable | None = None
    for weight_input, axis in handler.weight_sites(node):
        source = _traced(node, weight_input, axis, tracer)
        if not isinstance(source, Untraceable):
            return WeightSite(node, weight_input, source)
        obstacle = obstacle or source
    return obstacle or Untraceable("weight-missing", "its handler names no place for a weight")


def _traced(node: Node, weight_input: int, axis: int, tracer: Tracer) -> WeightSource | Untraceable:
    try:
        return tracer.trace(node, weight_input, axis)
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        # Constants that lay a weight out are read on the way; in a damaged model they can be anything.
        if isinstance(node.root, LiveGraph):
            raise
        found = f"the way to its weight makes no sense ({type(error).__name__}: {error})"
        raise ModelError(found, where=node.path, hint="The model is damaged; write it again.") from error


def _is_product_of_weights(site: WeightSite, tracer: Tracer) -> bool:
    """Whether the op multiplies two weights (a low-rank update, say) instead of data and a weight.

    What is constant in a live graph, or in one without inputs, may stand for data; else it was a variable.
    """
    others = [_traced(site.node, i, 0, tracer) for i in range(len(site.node.inputs)) if i != site.input]
    found = [other for other in others if not isinstance(other, Untraceable) and len(other.shape) > 1]
    if not found or any(other.leaves[0].op != "Const" for other in found):
        return bool(found)
    return not isinstance(site.node.root, LiveGraph) and tracer.has_data(site.node.view)


def _obstacle(site: WeightSite, handler: OpHandler, settings: LayerSettings) -> tuple[str, str]:
    """Why a weight that was found cannot be pruned, ("", "") if it can."""
    name, source = site.node.path, site.source
    for constraint in handler.constraints:
        if not constraint.holds(site):
            return constraint.reason, f"{name}: {constraint.message}"
    if source.dtype not in handler.weight_dtypes:
        return (
            "weight-dtype",
            f"{name}: its weight '{source.name}' is stored as {source.dtype}; masks need "
            f"{' or '.join(handler.weight_dtypes)} (a {handler.weight_dtypes[0]} variable behind a cast is fine).",
        )
    size = math.prod(source.shape)
    if size < settings.min_weights:
        return (
            "too-few-weights",
            f"{name}: its weight has {size} elements, fewer than min_weights = {settings.min_weights}.",
        )
    if source.read.out_of_reach and isinstance(site.node.root, LiveGraph):
        return source.read.out_of_reach.reason, f"{name}: {source.read.out_of_reach.message}."
    if any(leaf.in_control_flow for leaf in (*source.leaves, source.tensor.node)):
        return (
            "read-inside-control-flow",
            f"{name}: its weight '{source.name}' is made or read inside a loop or cond; read it before.",
        )
    length = source.shape[source.axis]
    several = source.holds_part_of_axis or handler.sums_over_more(site.node)
    if several and length % settings.pattern.m:
        return (
            "layout-splits-groups",
            f"{name}: its input channels are several axes of {list(source.shape)} in one, and {settings.pattern.m} "
            f"does not divide the innermost, {length}.",
        )
    reason, message = too_short(source.shape, source.axis, settings.pattern)
    return reason, message and f"{name}: {message}"


def too_short(shape: tuple[int, ...], axis: int, pattern: Pattern) -> tuple[str, str]:
    """The code and the sentence for an axis on which no group has more than n members, ("", "") for any other."""
    length = shape[axis]
    if length > pattern.n and 0 not in shape:
        return "", ""
    return (
        "axis-too-short",
        f"{length} input channel(s) along axis {axis} of {list(shape)} hold no group of more than {pattern.n}: "
        f"{pattern} is met without a zero.",
    )


# What holds a weight: (node, index of its output, None for all).
_Output: TypeAlias = tuple[Node, int | None]


@attrs.frozen(eq=False)
class _Reading:
    """What an op makes of a weight that it reads.

    Attributes:
        output: which output of the other op it reads.
        data: its inputs that depend on data: it only hands the weight on where these hold it, too.
        holds: what holds the weight then.
    """

    output: int
    data: tuple[Node, ...]
    holds: tuple[_Output, ...]


class _Readings:
    """What ops make of weights that they read; found once for all layers.

    In a hostile model all weights may share very many readers, so those that are looked at are counted. A network of
    100,000 layers takes some per layer.
    """

    _left = 2_000_000

    def __init__(self, forward: set[Node], tracer: Tracer) -> None:
        self._forward = forward
        self._tracer = tracer
        self._known: dict[tuple[Node, int], _Reading | None] = {}

    def of(self, read: tuple[Node, int], layer: Node) -> _Reading | None:
        """That of one reader, None where it is not in the forward graph or has no result.

        Args:
            read: the reader and the index of its input.
            layer: whose weight is read.

        Raises:
            ModelError: it is one too many.
        """
        self._left -= 1
        if self._left < 0:
            found = "the ops that read its weight are read by too many others, and other layers' too"
            raise ModelError(found, where=layer.path, expected="layers with weights of their own")
        if read not in self._known:
            self._known[read] = self._found(*read)
        return self._known[read]

    def _found(self, reader: Node, index: int) -> _Reading | None:
        if not isinstance(reader.view, FunctionView) and reader not in self._forward:
            return None
        output = reader.inputs[index].index
        passed = [argument for body in reader.view.bodies(reader) for argument in body.arguments(index)]
        if passed:
            return _Reading(output, (), tuple((argument, None) for argument in passed))
        if hands_on(reader.op) or reader.writes:
            return _Reading(output, (), ((reader, None),))
        return None if reader.output_rank == 0 else _Reading(output, self._data(reader), ((reader, None),))

    def _data(self, reader: Node) -> tuple[Node, ...]:
        """What depends on data among its inputs. A scalar (a fed learning rate) is no data for a layer."""
        inputs = (edge.node for edge in reader.inputs)
        return tuple(node for node in inputs if self._tracer.data_source(node) is not None and node.output_rank != 0)


def _decide(uses: list[_Use], readings: _Readings, target: TargetProfile | None) -> tuple[LayerDecision, list[_Use]]:
    """One decision for all ops that use a weight."""
    first = uses[0]
    reason, message = first.reason, first.message
    if len(uses) > 1:
        reason, message = _shared_obstacle(uses)
    if not reason and first.site:
        reason, message = _other_reader(uses, readings)
    source = first.site.source if first.site else None
    decision = LayerDecision(
        name=first.node.path,
        op_type=first.node.op,
        status="skip" if reason else "prune",
        reason=reason or "eligible",
        message=message or _how_pruned(uses),
        shape=source.shape if source else None,
        axis=source.axis if source else None,
        dtype=source.dtype if source else "",
        weight=source.name if source else "",
        uses=tuple(use.node.path for use in uses),
        pattern=first.settings.pattern,
        criterion=first.settings.criterion,
        update_freq=first.settings.update_freq,
    )
    return judged(decision, target), uses


def judged(decision: LayerDecision, target: TargetProfile | None) -> LayerDecision:
    """The decision with what the target makes of the layer."""
    if target is None or not decision.pruned:
        return decision
    return attrs.evolve(decision, verdict=target.judge(decision))


def _shared_obstacle(uses: list[_Use]) -> tuple[str, str]:
    """Ops that share a weight share its mask: all must want the same."""
    names = ", ".join(use.node.path for use in uses)
    obstacles = {use.reason for use in uses}
    weight = uses[0].site.source.name if uses[0].site else "?"
    if len(obstacles) > 1:
        blocked = next(use for use in uses if use.reason)
        return (
            "shared-weight-conflict",
            f"{names} share the weight '{weight}', and one of them cannot be pruned. {blocked.message}",
        )
    if uses[0].reason:
        return uses[0].reason, uses[0].message
    wanted = {(use.site.source.axis, use.settings) for use in uses if use.site}
    if len(wanted) > 1:
        axes = {use.site.source.axis for use in uses if use.site}
        what = f"group axes {sorted(axes)}" if len(axes) > 1 else "settings"
        return (
            "shared-weight-conflict",
            f"{names} share the weight '{weight}' but need different {what}; one mask cannot serve them.",
        )
    return "", ""


def _other_reader(uses: list[_Use], readings: _Readings) -> tuple[str, str]:
    """A reader in the forward graph that would be changed together with the layer but has no mask of its own.

    Scalars made of weights alone (a regularizer's loss), what has no result (a saver) and what writes a variable (a
    restore, a moving average) do not count.
    """
    leaves = list(dict.fromkeys(leaf for use in uses if use.site for leaf in use.site.source.leaves))
    settled = {use.node for use in uses}
    # What holds the weight, or something made of it alone.
    pending: list[_Output] = [(leaf, None) for leaf in leaves]
    seen = set(pending)
    weights = set(leaves)

    def follow(outputs: Sequence[_Output]) -> None:
        for output in outputs:
            if output not in seen:
                seen.add(output)
                pending.append(output)
                weights.add(output[0])

    while pending:
        node, output = pending.pop()
        if isinstance(node.view, FunctionView):
            follow([(node.view.call, i) for i in node.view.returned_as(node)])
        for read in node.view.readers(node):
            reader, _ = read
            reading = None if reader in settled else readings.of(read, uses[0].node)
            if reading is None or (output is not None and reading.output != output):
                continue
            if not weights.issuperset(reading.data):
                return (
                    "shared-with-other-op",
                    f"{uses[0].node.path}: its weight '{leaves[0].path}' is also used by '{reader.path}' "
                    f"({reader.op}), which has no mask.",
                )
            follow(reading.holds)
    return "", ""


def _how_pruned(uses: list[_Use]) -> str:
    use = uses[0]
    assert use.site is not None
    source = use.site.source
    length, pattern = source.shape[source.axis], use.settings.pattern
    tail = length % pattern.m
    text = (
        f"{use.node.path}: at most {pattern.n} of every {pattern.m} consecutive weights along axis {source.axis} "
        f"of {list(source.shape)} stay, chosen by {use.settings.criterion}"
    )
    if tail:
        left = "stay" if tail <= pattern.n else f"keep {pattern.n}"
        text += f"; the last {tail} of {length} input channels {left}"
    if len(uses) > 1:
        text += f"; one mask for the {len(uses)} ops that use it"
    return text + "."
