"""Discovery: from the entry points of installed distributions to one immutable registry."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import attrs
import pluggy

from sparsekit import hookspecs
from sparsekit.criterion import Criterion
from sparsekit.errors import ConfigError, PluginError, near_matches
from sparsekit.handler import OpHandler
from sparsekit.target import TargetProfile

DISABLE_VARIABLE = "SPARSEKIT_DISABLE_PLUGINS"
"""Environment variable: comma-separated ``distribution`` or ``distribution:entry-point`` names to leave out."""

_BUILT_IN = "sparsekit"
_log = logging.getLogger("sparsekit")
_T = TypeVar("_T")


@attrs.frozen
class Plugin:
    """A loaded plugin.

    Attributes:
        distribution, version: the installed package that it came with.
        entry_point: its name in the entry-point group.
        module: what was loaded.
    """

    distribution: str
    version: str
    entry_point: str
    module: object = attrs.field(repr=False, eq=False)

    @property
    def built_in(self) -> bool:
        return self.distribution == _BUILT_IN

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (entry point '{self.entry_point}')"


@attrs.frozen
class Registered(Generic[_T]):
    """Something a plugin offers: the thing, who offers it, and who stepped aside for it."""

    value: _T
    plugin: Plugin
    overrides: Plugin | None = None


@attrs.frozen
class Registry:
    """Everything the installed plugins offer. A value: built once, passed on, never changed.

    Attributes:
        plugins: in the order of distribution and entry point.
        handlers: by op type.
        targets, criteria: by name.
    """

    plugins: tuple[Plugin, ...] = ()
    handlers: Mapping[str, Registered[OpHandler]] = MappingProxyType({})
    targets: Mapping[str, Registered[TargetProfile]] = MappingProxyType({})
    criteria: Mapping[str, Registered[Criterion]] = MappingProxyType({})

    def handler(self, op_type: str) -> OpHandler | None:
        """The handler for an op type, or None."""
        found = self.handlers.get(op_type)
        return found.value if found else None

    def criterion(self, name: str) -> Criterion:
        """The criterion of that name.

        Raises:
            ConfigError: there is none; near matches are offered.
        """
        found = self.criteria.get(name)
        if found is None:
            raise ConfigError(
                f"unknown criterion '{name}'",
                where="criterion",
                expected="one of " + ", ".join(sorted(self.criteria)),
                hint=near_matches(name, self.criteria),
            )
        return found.value

    def require_live(self, criterion: str, layer: str, place: str, hint: str) -> None:
        """The criterion of a layer must choose masks from the weights alone, while they are trained.

        Args:
            criterion: its name.
            layer: the layer's.
            place: where it would choose, for people.
            hint: what to do instead.

        Raises:
            ConfigError: it cannot, or there is none of that name.
        """
        if not self.criterion(criterion).live:
            raise ConfigError(
                f"criterion '{criterion}' cannot choose masks {place}",
                where=layer,
                expected="one of " + ", ".join(name for name, entry in self.criteria.items() if entry.value.live),
                hint=hint,
            )

    @property
    def profiles(self) -> tuple[TargetProfile, ...]:
        """Every target profile."""
        return tuple(entry.value for entry in self.targets.values())


@functools.cache
def default_registry() -> Registry:
    """The registry of this process, built at its first use."""
    return build_registry(installed_plugins(_disabled(os.environ)))


def installed_plugins(disabled: frozenset[str] = frozenset()) -> list[Plugin]:
    """Load the plugins of every installed distribution.

    Args:
        disabled: ``distribution`` or ``distribution:entry-point`` names to leave out.

    Raises:
        PluginError: one failed to import; names its distribution, its entry point and how to switch it off.
    """
    plugins = {}
    for entry_point in importlib.metadata.entry_points(group=hookspecs.PROJECT):
        # A broken installation has neither name nor version.
        distribution = _normalized((entry_point.dist and entry_point.dist.name) or "unknown")
        version = (entry_point.dist and entry_point.dist.version) or ""
        key = f"{distribution}:{entry_point.name}"
        # An editable install can list a distribution twice.
        if key in plugins or key in disabled or distribution in disabled:
            continue
        try:
            module = entry_point.load()
        except Exception as error:
            raise PluginError(
                f"failed to import ({_one_line(error)})",
                where=f"plugin '{entry_point.name}' ({entry_point.value}) of distribution {distribution} {version}",
                hint=_how_to_disable(key),
            ) from error
        plugins[key] = Plugin(distribution, version, entry_point.name, module)
    return [plugins[key] for key in sorted(plugins)]


def build_registry(plugins: Iterable[Plugin]) -> Registry:
    """Ask every plugin what it offers.

    A third party's offer wins over a built-in one for the same op type or name (said at INFO).

    Raises:
        PluginError: a hook failed, has an unknown name or returned something else than its contract says, or two
            third parties offer the same; both distributions are named.
    """
    plugins = tuple(plugins)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in plugins:
        try:
            manager.register(plugin.module, name=f"{plugin.distribution}:{plugin.entry_point}")
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(
                _one_line(error),
                where=str(plugin),
                expected="hooks as in sparsekit/hookspecs.py",
                hint=_how_to_disable(f"{plugin.distribution}:{plugin.entry_point}"),
            ) from error

    _check_marked(manager, plugins)

    def offers(hook: str, kind: type[_T]) -> Iterator[tuple[_T, Plugin]]:
        return _offers(manager, plugins, hook, kind)

    return Registry(
        plugins=plugins,
        handlers=_index("op type", offers("sparsekit_op_handlers", OpHandler), lambda handler: handler.op_types),
        targets=_index("target", offers("sparsekit_targets", TargetProfile), lambda profile: (profile.name,)),
        criteria=_index("criterion", offers("sparsekit_criteria", Criterion), lambda criterion: (criterion.name,)),
    )


def _check_marked(manager: pluggy.PluginManager, plugins: tuple[Plugin, ...]) -> None:
    """A hook without its decorator would silently not be one."""
    for plugin in plugins:
        found = {caller.name for caller in manager.get_hookcallers(plugin.module) or ()}
        for name in ("sparsekit_op_handlers", "sparsekit_targets", "sparsekit_criteria"):
            if callable(getattr(plugin.module, name, None)) and name not in found:
                raise PluginError(f"{name} is not marked as a hook", where=str(plugin), expected="@sparsekit.hookimpl")


def _offers(
    manager: pluggy.PluginManager, plugins: tuple[Plugin, ...], hook: str, kind: type[_T]
) -> Iterator[tuple[_T, Plugin]]:
    by_name = {f"{plugin.distribution}:{plugin.entry_point}": plugin for plugin in plugins}
    implementations = getattr(manager.hook, hook).get_hookimpls()
    for implementation in sorted(implementations, key=lambda impl: impl.plugin_name):
        plugin = by_name[implementation.plugin_name]
        # Called one by one rather than through the manager: an error, an odd result and a conflict must be able
        # to name the plugin.
        try:
            offered = list(implementation.function())
        except Exception as error:
            raise PluginError(
                f"{hook} failed ({_one_line(error)})",
                where=str(plugin),
                hint=_how_to_disable(implementation.plugin_name),
            ) from error
        for item in offered:
            if not isinstance(item, kind):
                raise PluginError(
                    f"{hook} returned {item!r}",
                    where=str(plugin),
                    expected=f"instances of {kind.__module__}.{kind.__qualname__}",
                    hint=_how_to_disable(implementation.plugin_name),
                )
            yield item, plugin


def _index(
    what: str, offers: Iterable[tuple[_T, Plugin]], keys: Callable[[_T], tuple[Hashable, ...]]
) -> Mapping[Any, Registered[_T]]:
    index: dict[Hashable, Registered[_T]] = {}
    # Built-in plugins first, so that whoever comes later is a third party that overrides them.
    for item, plugin in sorted(offers, key=lambda offer: not offer[1].built_in):
        names = keys(item)
        # ("MatMul") for ("MatMul",) would become the names M, a, t ...
        if not isinstance(names, (tuple, list)) or not names or not all(isinstance(n, str) and n for n in names):
            raise PluginError(
                f"{item!r} names no {what} but {names!r}",
                where=str(plugin),
                expected="a tuple of names",
                hint=_how_to_disable(f"{plugin.distribution}:{plugin.entry_point}"),
            )
        for name in names:
            present = index.get(name)
            if present is None:
                index[name] = Registered(item, plugin)
            elif present.plugin.built_in and not plugin.built_in:
                _log.info("%s '%s': %s overrides %s", what, name, plugin, present.plugin)
                index[name] = Registered(item, plugin, overrides=present.plugin)
            else:
                raise PluginError(
                    f"{what} '{name}' is offered by {present.plugin} and by {plugin}",
                    expected="one plugin for it",
                    hint=_how_to_disable(f"{plugin.distribution}:{plugin.entry_point}"),
                )
    return MappingProxyType(index)


def _disabled(environ: Mapping[str, str]) -> frozenset[str]:
    names = (name.strip() for name in environ.get(DISABLE_VARIABLE, "").split(","))
    split = (name.partition(":") for name in names if name)
    return frozenset(_normalized(distribution) + colon + rest for distribution, colon, rest in split)


def _normalized(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _how_to_disable(key: str) -> str:
    return f"Update or uninstall it, or leave it out with {DISABLE_VARIABLE}={key}"
