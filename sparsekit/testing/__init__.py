"""The conformance kit: what a plugin promises, checked on real graphs. For the plugin's own test suite.

Plain functions that raise AssertionError with what the contract wants; they need no test framework, and the plugin
need not be installed. sparsekit's own plugins go through the same functions::

    def test_my_dense():
        check_handler(MyDense(), build_my_dense, violating={"transposed-data": build_transposed})


    def test_the_rest():
        check_plugin(my_package)
"""

from __future__ import annotations

from sparsekit.errors import PluginError
from sparsekit.plugins import Plugin, Registry, build_registry
from sparsekit.testing._graphs import Layer
from sparsekit.testing.criteria import check_criterion
from sparsekit.testing.handlers import check_handler
from sparsekit.testing.targets import check_target

__all__ = ["Layer", "check_criterion", "check_handler", "check_plugin", "check_target"]


def check_plugin(plugin: object) -> Registry:
    """Check a plugin's hooks, and every target and criterion that they offer.

    Handlers need graphs: give each of them, with a build function, to :func:`check_handler`.

    Args:
        plugin: the module or object that the entry point names.

    Returns:
        What it offers, as a registry of this plugin alone.

    Raises:
        AssertionError: a hook is misspelt, fails or returns something else, or an offer breaks its contract.
    """
    try:
        registry = build_registry([Plugin("under-test", "0", "sparsekit.testing", plugin)])
    except PluginError as error:
        raise AssertionError(f"The registry refuses the plugin: {error}") from error
    if not (registry.handlers or registry.targets or registry.criteria):
        raise AssertionError(
            f"{plugin!r} offers nothing. Its hooks have the names in sparsekit/hookspecs.py and the decorator "
            "@sparsekit.hookimpl."
        )
    for target in registry.profiles:
        check_target(target)
    for criterion in registry.criteria.values():
        check_criterion(criterion.value)
    return registry
