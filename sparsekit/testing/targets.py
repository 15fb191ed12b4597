"""Does a target profile keep its promises? See :class:`sparsekit.target.TargetProfile`."""

from __future__ import annotations

import attrs
import tensorflow as tf

from sparsekit.config import PruneConfig
from sparsekit.errors import ConfigError, PluginError, TargetError
from sparsekit.handler import OpHandler
from sparsekit.live.pruning import plan_live
from sparsekit.pattern import Pattern
from sparsekit.planning import LayerDecision
from sparsekit.plugins import Plugin, Registered, default_registry
from sparsekit.target import TargetProfile, resolve_target


def check_target(profile: TargetProfile) -> None:
    """Check a target profile: its texts, its names beside all installed profiles, and its rules on layers.

    Args:
        profile: the profile.

    Raises:
        AssertionError: it breaks the contract; the message says how.
    """
    if not isinstance(profile, TargetProfile):
        raise AssertionError(f"A target is an instance of sparsekit.TargetProfile, not {profile!r}.")
    who = f"Target profile '{profile.name}'"
    _check_texts(profile, who)
    _check_names(profile, who)
    decisions = _decisions() if profile.rules else []
    for decision in (*decisions, *(attrs.evolve(decision, deployed=True) for decision in decisions)):
        _check_rules(profile, decision, who)


def _check_texts(profile: TargetProfile, who: str) -> None:
    texts = {
        **{field: getattr(profile, field) for field in ("vendor", "title", "reason")},
        **{f"names[{index}]": name for index, name in enumerate(profile.names)},
        **{f"sources[{index}]": source for index, source in enumerate(profile.sources)},
        **{f"the source of rule '{rule.name}'": rule.source for rule in profile.rules},
    }
    for field, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise AssertionError(f"{who}: {field} must be text for people, not {text!r}.")
    sentences = {"reason": profile.reason}
    sentences |= {f"the message of rule '{rule.name}'": rule.message for rule in profile.rules}
    for field, text in sentences.items():
        if not (isinstance(text, str) and text.endswith(".")):
            raise AssertionError(f"{who}: {field} must be whole sentences, with a full stop; it says {text!r}.")
    if not isinstance(profile.gains, bool):
        raise AssertionError(f"{who}: gains must be True or False, not {profile.gains!r}.")
    for pattern in profile.patterns if profile.gains else ():
        try:
            canonical = str(Pattern.parse(pattern))
        except ConfigError as error:
            raise AssertionError(f"{who}: a gain from no pattern: {error}.") from error
        if canonical != pattern:
            raise AssertionError(f"{who}: pattern {pattern!r} never matches; write it as {canonical!r}.")


def _check_names(profile: TargetProfile, who: str) -> None:
    """A name that other installed profiles answer to as well must mean the same gain everywhere."""
    others = [other for other in default_registry().profiles if other.name != profile.name]
    for name in profile.names:
        try:
            resolve_target(name, [*others, profile])
        except TargetError as error:
            raise AssertionError(f"{who}: users cannot ask for it as {name!r}: {error}") from error
    found = resolve_target(profile.name, [*others, profile])
    if found is not profile:
        raise AssertionError(f"{who}: '{found.name}' answers to its name already; choose another one.")


def _check_rules(profile: TargetProfile, decision: LayerDecision, who: str) -> None:
    kind = f"a {decision.status} decision (reason '{decision.reason}', shape {decision.shape}, axis {decision.axis})"
    try:
        first, second = profile.judge(decision), profile.judge(decision)
    except PluginError as error:
        raise AssertionError(
            f"{who}: a rule gives no answer on {kind}: {error}. It must answer for every layer; a layer whose weight "
            "was not found has neither shape nor axis."
        ) from error
    if first != second:
        raise AssertionError(f"{who}: its rules judge {kind} as '{first}', and the second time as '{second}'.")


class _FirstAxis(OpHandler):
    """For the layers below."""

    def group_axis(self, node: object) -> int:
        return 0


def _decisions() -> list[LayerDecision]:
    """What a plan says of real layers: pruned ones with whole groups, a tail and a shared weight, and skipped ones."""
    graph = tf.Graph()
    with graph.as_default():
        v1 = tf.compat.v1
        data = v1.placeholder(tf.float32, [None, 16], name="data")
        hidden = [data @ v1.get_variable(f"weight{size}", [16, size]) for size in (1, 6, 32)]
        shared = v1.get_variable("shared", [6, 6])
        tail = hidden[1] @ shared @ shared
        double = tf.cast(hidden[2], tf.float64) @ v1.get_variable("double", [32, 3], tf.float64)
        short = hidden[0] @ v1.get_variable("short", [1, 8])
        no_weight = data @ tf.transpose(data)
        outputs = tuple(tensor.op.name for tensor in (tail, double, short, no_weight))
    # The type is read off, not named: this is about decisions, whatever the op.
    entry: Registered[OpHandler] = Registered(_FirstAxis(), Plugin("sparsekit", "", "testing", None))
    registry = attrs.evolve(default_registry(), handlers={no_weight.op.type: entry})
    plans = [
        plan_live(graph, PruneConfig(pattern=Pattern.parse(pattern)), outputs, registry, None).plan
        for pattern in ("2:4", "1:2")
    ]
    return [decision for plan in plans for decision in plan.decisions]
