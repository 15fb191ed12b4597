"""Deployment targets: what a plugin says about a product, and what a call that names one makes of it.

A target is optional. Named, it never changes a mask: it says whether the product gets anything out of
the sparsity, once, before the work starts, and which of the pruned layers are eligible there.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from sparsekit.errors import (
    PluginError,
    TargetError,
    UnsupportedTargetError,
    UnsupportedTargetWarning,
    near_matches,
)

if TYPE_CHECKING:
    from sparsekit.planning import LayerDecision

TARGET_VARIABLE = "SPARSEKIT_TARGET"
"""Environment variable: the target of calls whose argument and config name none."""


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):  # ("x") for ("x",) would become a tuple of letters
        raise PluginError(f"the string {values!r}", where="TargetProfile", expected="a tuple of strings")
    return tuple(values)


def _refuse_unless_kebab_case(name: str, where: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise PluginError("its name", where=where, expected="lower-case words joined by hyphens")


@attrs.frozen(kw_only=True)
class LayerRule:
    """Something that a target asks of a pruned layer before its sparsity counts.

    Attributes:
        name: a stable code for machines, kebab-case, such as "contraction-alignment".
        message: a sentence for people: what the target asks, such as "Weights must be int8."
        source: where the fact comes from; general knowledge is called so.
        holds: from the decision on the layer to whether the layer does as asked. None: that is decided later, when
            the model is converted. It reads the decision only, answers alike every time and for every layer: one
            whose weight was not found has neither shape nor axis.

    Raises:
        PluginError: its name is no code, or its message or source is empty.
    """

    name: str
    message: str
    source: str
    holds: Callable[[LayerDecision], bool | None] = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        where = f"layer rule {self.name!r}"
        _refuse_unless_kebab_case(self.name, where)
        if not (self.message and self.source):
            raise PluginError("an empty field", where=where, expected="a message and a source")


@attrs.frozen
class TargetVerdict:
    """What a target makes of one pruned layer. Prints as a sentence.

    Eligible means that nothing known stands between the layer and the target's gain. How large the gain is, if any,
    is for a measurement to say.

    Attributes:
        eligible: there is no objection.
        objections: the rules that do not hold, a missing gain among them.
        conditions: the rules that the conversion decides on.
    """

    eligible: bool
    objections: tuple[LayerRule, ...] = ()
    conditions: tuple[LayerRule, ...] = ()

    def __str__(self) -> str:
        if self.objections:
            return f"not eligible: {_joined(self.objections)}"
        return f"eligible if met at conversion: {_joined(self.conditions)}" if self.conditions else "eligible"


def _joined(rules: Iterable[LayerRule]) -> str:
    return "; ".join(rule.message.rstrip(".") for rule in rules)


@attrs.frozen(kw_only=True)
class TargetProfile:
    """One product family and what it gains, as a plugin's ``sparsekit_targets`` hook returns it.

    Users may write any of the profile's names (`names`), in the spelling they like. Products whose answer
    differs need profiles of their own.

    Attributes:
        name: profile name in kebab-case, unique among all plugins, such as "acme-edge-2".
        vendor: who makes it; a warning suggests other products of the same vendor.
        title: how the vendor's document names the product family.
        products: names of the products in it.
        chips: names of the chips in them.
        aliases: further names that people type: short forms, titles in other languages. Not listed to users.
        gains: whether n:m sparsity brings a gain at all.
        patterns: the patterns, such as "2:4", that bring it; without meaning where ``gains`` is False.
        reason: why, or on what basis, and under which conditions; sentences for people.
        sources: where each fact comes from; what is general knowledge is called so.
        rules: what it asks of each layer.

    Raises:
        PluginError: the profile contradicts itself or lacks what users are shown.
    """

    name: str
    vendor: str
    title: str
    products: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    chips: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    aliases: tuple[str, ...] = attrs.field(default=(), converter=_strings)
    gains: bool
    patterns: tuple[str, ...] = attrs.field(default=("2:4",), converter=_strings)
    reason: str
    sources: tuple[str, ...] = attrs.field(converter=_strings)
    rules: tuple[LayerRule, ...] = ()

    def __attrs_post_init__(self) -> None:
        where = f"target profile {self.name!r}"
        _refuse_unless_kebab_case(self.name, where)
        if not (self.vendor and self.title and self.reason and self.sources):
            raise PluginError("an empty field", where=where, expected="a vendor, title, reason and sources")
        if not all(_folded(name) for name in self.names):
            raise PluginError("a product, chip or alias without letters", where=where)
        if self.gains and not self.patterns:
            raise PluginError("a gain from no pattern", where=where, expected="patterns or gains=False")
        if len({rule.name for rule in self.rules}) < len(self.rules):
            raise PluginError("two rules with one name", where=where, expected="a name of its own for every rule")

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a user may write for it."""
        return (self.name, self.title, *self.products, *self.chips, *self.aliases)

    def gains_from(self, pattern: str) -> bool:
        """Whether the pattern, such as "2:4", brings a gain on this target."""
        return self.gains and pattern in self.patterns

    def judge(self, decision: LayerDecision) -> TargetVerdict:
        """Whether the layer, pruned as the decision says, is eligible for the gain.

        Raises:
            PluginError: a rule fails or answers with something else than True, False or None.
        """
        missing = self._missing_gain(decision)
        if missing is not None:
            return TargetVerdict(False, objections=(missing,))
        answers = [(rule, self._ask(rule, decision)) for rule in self.rules]
        objections = tuple(rule for rule, holds in answers if holds is False)
        conditions = tuple(rule for rule, holds in answers if holds is None)
        return TargetVerdict(not objections, objections, conditions)

    def _missing_gain(self, decision: LayerDecision) -> LayerRule | None:
        """The objection that comes before all rules."""
        source = "; ".join(self.sources)
        if not self.gains:
            return LayerRule(name="gain", message=self.reason, source=source, holds=_does_not_hold)
        if decision.pattern is not None and not self.gains_from(str(decision.pattern)):
            asked = f"The pattern must be {' or '.join(self.patterns)}."
            return LayerRule(name="gaining-pattern", message=asked, source=source, holds=_does_not_hold)
        return None

    def _ask(self, rule: LayerRule, decision: LayerDecision) -> bool | None:
        where = f"target profile {self.name!r}, rule {rule.name!r}"
        try:
            holds = rule.holds(decision)
        except Exception as error:
            raise PluginError(f"{type(error).__name__} on layer {decision.name!r}: {error}", where=where) from error
        if holds is not None and not isinstance(holds, bool):
            found = f"{holds!r} for layer {decision.name!r}"
            raise PluginError(found, where=where, expected="True, False or None")
        return holds


def _does_not_hold(decision: LayerDecision) -> bool:
    return False


@attrs.frozen
class ChosenTarget:
    """The target of one call.

    Attributes:
        asked: the name as the user wrote it.
        origin: where the name was written, for messages.
        profile: the profile that answers to it.
    """

    asked: str
    origin: str
    profile: TargetProfile


def choose_target(
    call: str | None, config: str | None, environ: Mapping[str, str], profiles: Sequence[TargetProfile]
) -> ChosenTarget | None:
    """The target of a call: its argument, else the config's, else the environment's, else none.

    Args:
        call: the argument ``target`` of the call.
        config: the config's key ``target``.
        environ: the environment; an empty ``SPARSEKIT_TARGET`` counts as unset.
        profiles: the profiles of all plugins.

    Raises:
        TargetError: see `resolve_target`; the message says where the name was written.
    """
    candidates = (
        (call, "argument `target`"),
        (config, "config key `target`"),
        (environ.get(TARGET_VARIABLE, "").strip() or None, f"environment variable {TARGET_VARIABLE}"),
    )
    for asked, origin in candidates:
        if asked is not None:
            return ChosenTarget(asked, origin, resolve_target(asked, profiles, origin=origin))
    return None


def resolve_target(asked: str, profiles: Sequence[TargetProfile], *, origin: str = "") -> TargetProfile:
    """The profile that answers to a profile name, title, product, chip or alias.

    The whole name has to match; case, spaces, hyphens, underscores and slashes do not count, unless two
    profiles differ in nothing else: then the exact spelling decides. Where several profiles answer and
    gain the same, the first is as good as any.

    Args:
        asked: the name as the user wrote it.
        profiles: the profiles of all plugins.
        origin: where the name was written, for the message.

    Raises:
        TargetError: no name, a name that nothing answers to, or one whose profiles gain differently.
    """
    if not isinstance(asked, str) or not _folded(asked):
        raise TargetError(f"no target name in {asked!r}", where=origin, hint=_LIST_HINT)
    found = [profile for profile in profiles if asked in profile.names] or [
        profile for profile in profiles if _folded(asked) in map(_folded, profile.names)
    ]
    if not found:
        near = near_matches(asked, (name for profile in profiles for name in profile.names))
        raise TargetError(f"unknown target {asked!r}", where=origin, hint=f"{near} {_LIST_HINT}".lstrip())
    if len({frozenset(profile.patterns) if profile.gains else None for profile in found}) > 1:
        raise TargetError(
            f"{asked!r} names targets that gain differently: " + ", ".join(profile.name for profile in found),
            where=origin,
            hint="Write one of these names.",
        )
    return found[0]


_LIST_HINT = "Run `sparsekit targets` for the names of all targets."


def _folded(name: str) -> str:
    return re.sub(r"[\s\-_/]", "", unicodedata.normalize("NFKC", name).casefold())


def warn_or_refuse(
    chosen: ChosenTarget | None,
    profiles: Sequence[TargetProfile],
    *,
    patterns: Iterable[str],
    strict: bool,
    stacklevel: int = 2,
) -> None:
    """Say, once, that the chosen target gains nothing from a pattern; under ``strict`` refuse instead.

    Args:
        chosen: the target of the call; None has nothing to say.
        profiles: the profiles of all plugins, for those to suggest.
        patterns: the patterns that the call would prune to, such as "2:4".
        strict: raise instead of warning.
        stacklevel: the line that the warning names, counted as if the caller of this function warned
            itself: 1 is the caller, 2 the caller's caller.

    Raises:
        UnsupportedTargetError: ``strict``, and the target gains nothing from a pattern.

    Warns:
        UnsupportedTargetWarning: the same without ``strict``; one warning, however many patterns.
    """
    if chosen is None:
        return
    useless = [pattern for pattern in dict.fromkeys(patterns) if not chosen.profile.gains_from(pattern)]
    if not useless:
        return
    message = unsupported_message(chosen, profiles, useless)
    if strict:
        hint = "Nothing was changed; without strict_target=True it is pruned all the same."
        raise UnsupportedTargetError(message, where=chosen.origin, hint=hint)
    warnings.warn(f"{chosen.origin}: {message} Pruning goes on.", UnsupportedTargetWarning, stacklevel=stacklevel + 1)


def unsupported_message(chosen: ChosenTarget, profiles: Sequence[TargetProfile], patterns: Sequence[str]) -> str:
    """Which product gains nothing from the patterns, why, and which of the vendor's products do.

    Args:
        chosen: the target.
        profiles: the profiles of all plugins.
        patterns: the patterns that bring it no gain; at least one.
    """
    profile = chosen.profile
    but = f" (it does from {', '.join(profile.patterns)})" if profile.gains else ""
    gaining = [
        other.title for other in profiles if other.vendor == profile.vendor and all(map(other.gains_from, patterns))
    ]
    instead = (
        f"Products of {profile.vendor} that gain: {', '.join(gaining)}."
        if gaining
        else f"No product of {profile.vendor} is known to gain."
    )
    return (
        f"{chosen.asked!r} ({profile.title}) gains nothing from {' and '.join(patterns)} sparsity{but}: "
        f"{profile.reason.rstrip('.')}. {instead}"
    )
