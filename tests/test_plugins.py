"""Plugins: found through entry points, third parties first, every complaint names who is to blame."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import attrs
import pytest

from sparsekit.criterion import Criterion
from sparsekit.errors import ConfigError, PluginError
from sparsekit.handler import OpHandler
from sparsekit.hookspecs import hookimpl
from sparsekit.plugins import (
    DISABLE_VARIABLE,
    Plugin,
    build_registry,
    default_registry,
    installed_plugins,
)
from sparsekit.target import TargetProfile

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path, monkeypatch) -> Iterator[Install]:
    """Put a distribution on sys.path: its metadata, its entry points and its module's source."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.delenv(DISABLE_VARIABLE, raising=False)
    modules = []

    def installed(
        name: str, source: str, entry_point: str = "main", attribute: str = "", version: str = "1.5", metadata: str = ""
    ) -> None:
        module = f"plugin_{len(modules)}_{abs(hash(tmp_path)) % 10**8}"
        modules.append(module)
        header = "from sparsekit import Criterion, OpHandler, TargetProfile, hookimpl\n"
        (site / f"{module}.py").write_text(header + textwrap.dedent(source))
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[sparsekit]\n{entry_point} = {module}{attribute}\n")

    default_registry.cache_clear()
    yield installed
    default_registry.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def handler(*op_types: str) -> str:
    """The source of a plugin with one op handler."""
    return f"""
        class Mine(OpHandler):
            op_types = {op_types!r}

            def group_axis(self, node):
                return 0

        @hookimpl
        def sparsekit_op_handlers():
            return [Mine()]
    """


def plugin(distribution: str, entry_point: str = "main", version: str = "1.0", **hooks: object) -> Plugin:
    """A plugin without an installation: an object whose hooks return (or raise) what is given."""

    def hook(result: object) -> Callable[[], object]:
        @hookimpl
        def implementation() -> object:
            if isinstance(result, Exception):
                raise result
            return result

        return implementation

    return Plugin(distribution, version, entry_point, SimpleNamespace(**{name: hook(r) for name, r in hooks.items()}))


class ForMatMul(OpHandler):
    op_types = ("MatMul",)


class ForEinsum(OpHandler):
    op_types = ("Einsum", "XlaEinsum")


class Largest(Criterion):
    name = "largest"


# What comes with sparsekit


def test_the_built_in_plugins_come_through_the_same_entry_points():
    plugins = installed_plugins()
    built_in = [plugin for plugin in plugins if plugin.built_in]
    assert [(p.distribution, p.entry_point) for p in built_in] == [
        ("sparsekit", "criteria"),
        ("sparsekit", "ops"),
        ("sparsekit", "targets"),
    ]
    registry = build_registry(built_in)
    assert {"MatMul", "Conv2D", "Conv2DBackpropInput"} < set(registry.handlers)
    assert set(registry.criteria) == {"magnitude", "random", "inverted", "wanda", "sparsegpt", "admm"}
    assert registry.handler("MatMul") is registry.handlers["MatMul"].value
    assert registry.handler("SparseMatMul") is None
    assert registry.handlers["MatMul"].overrides is None
    assert "sparsekit" in str(registry.handlers["MatMul"].plugin)


def test_the_registry_cannot_be_changed():
    registry = build_registry(installed_plugins())
    with pytest.raises(TypeError):
        registry.handlers["MatMul"] = None
    with pytest.raises(TypeError):
        del registry.criteria["magnitude"]
    with pytest.raises(TypeError):
        registry.targets["mine"] = None
    for field in ("plugins", "handlers", "targets", "criteria"):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(registry, field, {})
    assert isinstance(registry.plugins, tuple)


def test_the_registry_is_built_once(install):
    assert default_registry() is default_registry()


def test_an_unknown_criterion_is_answered_with_near_matches():
    with pytest.raises(
        ConfigError, match=r"unknown criterion 'magnitudes'; expected one of .*Did you mean 'magnitude'"
    ):
        default_registry().criterion("magnitudes")


# Third parties


def test_an_installed_distribution_adds_an_op(install):
    install("acme-ops", handler("AcmeDense", "AcmeConv"))
    registry = default_registry()
    assert {"MatMul", "AcmeDense", "AcmeConv"} <= set(registry.handlers)
    registered = registry.handlers["AcmeDense"]
    assert registered.value is registry.handler("AcmeConv")
    assert str(registered.plugin) == "acme-ops 1.5 (entry point 'main')"
    assert not registered.plugin.built_in


def test_a_third_party_wins_over_a_built_in_handler_and_it_is_said_at_info(install, caplog):
    install("acme-ops", handler("MatMul"))
    with caplog.at_level(logging.INFO, "sparsekit"):
        registry = default_registry()
    registered = registry.handlers["MatMul"]
    assert type(registered.value).__name__ == "Mine"
    assert registered.overrides.distribution == "sparsekit"
    said = [(record.levelno, record.getMessage()) for record in caplog.records if "MatMul" in record.getMessage()]
    assert len(said) == 1
    level, text = said[0]
    assert level == logging.INFO
    assert text.startswith("op type 'MatMul': acme-ops 1.5 (entry point 'main') overrides sparsekit 0.1.0 (entry point")
    # Its neighbours stay.
    assert registry.handlers["Conv2D"].plugin.built_in


def test_an_override_is_used_by_the_verbs(install):
    import tensorflow as tf

    import sparsekit

    install("acme-ops", handler("MatMul").replace("return 0", "return 1"))
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8])
        tf.matmul(x, tf.compat.v1.get_variable("w", [8, 12]), name="fc")
        assert [decision.axis for decision in sparsekit.plan(graph).decisions] == [1]
    default_registry.cache_clear()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(DISABLE_VARIABLE, "acme-ops")
        assert [decision.axis for decision in sparsekit.plan(graph).decisions] == [0]


@pytest.mark.parametrize("order", [1, -1])
def test_a_third_party_wins_in_whatever_order_plugins_are_found(order):
    plugins = [plugin("sparsekit", "ops", sparsekit_op_handlers=[ForMatMul()])]
    plugins += [plugin("acme", sparsekit_op_handlers=[mine := ForMatMul()])]
    registry = build_registry(plugins[::order])
    assert registry.handler("MatMul") is mine
    assert registry.handlers["MatMul"].overrides == plugins[0]


def test_third_parties_override_criteria_and_targets_too():
    profile = TargetProfile(
        name="edge", vendor="Acme", title="Acme Edge", gains=True, reason="measured", sources=("https://acme.test",)
    )
    registry = build_registry(
        [
            plugin("sparsekit", "all", sparsekit_criteria=[Largest()], sparsekit_targets=[profile]),
            plugin("acme", sparsekit_criteria=(mine := Largest() for _ in "1"), sparsekit_targets={profile}),
        ]
    )
    assert registry.criterion("largest") is mine
    assert registry.targets["edge"].plugin.distribution == "acme"
    assert registry.profiles == (profile,)


@pytest.mark.parametrize("order", [1, -1])
def test_two_third_parties_for_one_op_type_are_refused_and_both_named(order):
    plugins = [
        plugin("sparsekit", "ops", sparsekit_op_handlers=[ForMatMul()]),
        plugin("acme-ops", "dense", "2.0", sparsekit_op_handlers=[ForMatMul()]),
        plugin("bolt-ops", "all", "0.3", sparsekit_op_handlers=[ForMatMul()]),
    ]
    with pytest.raises(PluginError) as caught:
        build_registry(plugins[::order])
    message = str(caught.value)
    assert message.startswith("op type 'MatMul' is offered by ")
    assert "acme-ops 2.0 (entry point 'dense')" in message
    assert "bolt-ops 0.3 (entry point 'all')" in message
    assert "expected one plugin for it" in message
    assert f"{DISABLE_VARIABLE}=bolt-ops:all" in message or f"{DISABLE_VARIABLE}=acme-ops:dense" in message


def test_one_plugin_that_offers_an_op_type_twice_is_refused():
    with pytest.raises(PluginError, match=r"'MatMul' is offered by acme 1\.0 .* and by acme 1\.0"):
        build_registry([plugin("acme", sparsekit_op_handlers=[ForMatMul(), ForMatMul()])])


def test_two_installed_distributions_in_conflict_and_the_way_out_that_is_named(install, monkeypatch):
    install("acme-ops", handler("MatMul"))
    install("Bolt.Ops", handler("MatMul"), entry_point="all")
    with pytest.raises(PluginError, match=f"{DISABLE_VARIABLE}=bolt-ops:all"):
        default_registry()
    monkeypatch.setenv(DISABLE_VARIABLE, "bolt-ops:all")
    assert default_registry().handlers["MatMul"].plugin.distribution == "acme-ops"


# What goes wrong


@pytest.mark.parametrize(
    ("source", "attribute", "error"),
    [
        ("import a_module_that_is_not_there", "", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise RuntimeError('no\\nlicence')", "", "RuntimeError: no licence"),
        ("def broken(:", "", "SyntaxError: "),
        ("", ":absent", "AttributeError: "),
    ],
)
def test_a_plugin_that_fails_to_import_is_named_with_the_way_to_switch_it_off(
    install, monkeypatch, source, attribute, error
):
    install("Acme_Ops", source, entry_point="dense", attribute=attribute)
    with pytest.raises(PluginError) as caught:
        default_registry()
    message = str(caught.value)
    assert message.startswith("plugin 'dense' (plugin_0_")
    assert "of distribution acme-ops 1.5: failed to import (" + error in message
    assert message.endswith("leave it out with SPARSEKIT_DISABLE_PLUGINS=acme-ops:dense")
    assert "\n" not in message
    assert caught.value.__cause__ is not None
    monkeypatch.setenv(DISABLE_VARIABLE, "acme-ops:dense")
    assert "MatMul" in default_registry().handlers


@pytest.mark.parametrize(
    "disabled", ["acme-ops", "Acme_Ops", "acme.ops", "acme-ops:dense", " other , acme_ops:dense,", "ACME-OPS"]
)
def test_a_plugin_is_switched_off_by_distribution_or_by_entry_point(install, monkeypatch, disabled):
    install("Acme_Ops", handler("AcmeDense"), entry_point="dense")
    assert "AcmeDense" in default_registry().handlers
    default_registry.cache_clear()
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    assert "AcmeDense" not in default_registry().handlers
    assert "MatMul" in default_registry().handlers


@pytest.mark.parametrize("disabled", ["", ",", "acme", "acme-ops:other", "dense", "acme-ops:"])
def test_other_names_switch_nothing_off(install, monkeypatch, disabled):
    install("Acme_Ops", handler("AcmeDense"), entry_point="dense")
    monkeypatch.setenv(DISABLE_VARIABLE, disabled)
    assert {"AcmeDense", "MatMul"} <= set(default_registry().handlers)


def test_built_in_plugins_can_be_switched_off_too(install, monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "sparsekit:ops")
    assert not default_registry().handlers
    assert default_registry().criteria


def test_a_distribution_that_is_found_twice_counts_once(install, tmp_path, monkeypatch):
    install("acme-ops", handler("AcmeDense"))
    (info,) = (tmp_path / "site").glob("*.dist-info")
    second = tmp_path / "second" / info.name
    second.mkdir(parents=True)
    for file in info.iterdir():
        (second / file.name).write_text(file.read_text())
    sys.path.append(str(second.parent))
    try:
        assert [p.distribution for p in installed_plugins()].count("acme-ops") == 1
        assert "AcmeDense" in default_registry().handlers
    finally:
        sys.path.remove(str(second.parent))


def test_a_broken_installation_without_a_name_does_not_stop_the_others(install):
    install("acme-ops", handler("AcmeDense"), metadata="Metadata-Version: 2.1\n")
    assert default_registry().handlers["AcmeDense"].plugin.distribution


def test_an_entry_point_may_name_an_object(install):
    source = """
        class Holder:
            class Mine(OpHandler):
                op_types = ("AcmeDense",)

            @hookimpl
            def sparsekit_op_handlers(self):
                return [self.Mine()]

        holder = Holder()
    """
    install("acme-ops", source, attribute=":holder")
    assert "AcmeDense" in default_registry().handlers


def test_a_hook_of_an_unknown_name_is_refused():
    with pytest.raises(PluginError) as caught:
        build_registry([plugin("acme", sparsekit_op_handler=[ForMatMul()])])
    message = str(caught.value)
    assert message.startswith(
        "acme 1.0 (entry point 'main'): PluginValidationError: unknown hook 'sparsekit_op_handler'"
    )
    assert "expected hooks as in sparsekit/hookspecs.py" in message
    assert f"{DISABLE_VARIABLE}=acme:main" in message


def test_a_hook_with_arguments_that_the_contract_lacks_is_refused():
    @hookimpl
    def sparsekit_op_handlers(graph: object) -> list[OpHandler]:
        return []

    bad = Plugin("acme", "1.0", "main", SimpleNamespace(sparsekit_op_handlers=sparsekit_op_handlers))
    with pytest.raises(PluginError, match=r"^acme 1\.0 \(entry point 'main'\): .*graph"):
        build_registry([plugin("bolt", sparsekit_criteria=[Largest()]), bad])


@pytest.mark.parametrize(
    ("hook", "result", "says"),
    [
        ("sparsekit_op_handlers", [ForMatMul], "sparsekit_op_handlers returned <class"),
        ("sparsekit_op_handlers", [Largest()], "expected instances of sparsekit.handler.OpHandler"),
        ("sparsekit_op_handlers", "MatMul", "sparsekit_op_handlers returned 'M'"),
        ("sparsekit_op_handlers", {"MatMul": ForMatMul()}, "sparsekit_op_handlers returned 'MatMul'"),
        (
            "sparsekit_op_handlers",
            None,
            r"sparsekit_op_handlers failed \(TypeError: 'NoneType' object is not iterable\)",
        ),
        ("sparsekit_op_handlers", ForMatMul(), r"sparsekit_op_handlers failed \(TypeError: .*not iterable"),
        ("sparsekit_op_handlers", ValueError("boom"), r"sparsekit_op_handlers failed \(ValueError: boom\)"),
        ("sparsekit_criteria", ["largest"], "expected instances of sparsekit.criterion.Criterion"),
        ("sparsekit_criteria", KeyError("x"), "sparsekit_criteria failed"),
        ("sparsekit_targets", [{"name": "edge"}], "expected instances of sparsekit.target.TargetProfile"),
    ],
)
def test_a_hook_that_returns_something_else_or_fails_names_its_plugin(hook, result, says):
    good = plugin("bolt", sparsekit_op_handlers=[ForEinsum()])
    with pytest.raises(PluginError, match=says) as caught:
        build_registry([good, plugin("acme", "dense", "2.0", **{hook: result})])
    message = str(caught.value)
    assert message.startswith("acme 2.0 (entry point 'dense'): ")
    assert message.endswith(f"leave it out with {DISABLE_VARIABLE}=acme:dense")


@pytest.mark.parametrize("op_types", [(), "MatMul", ("",), None, (1,), ("MatMul", None)])
def test_a_handler_that_names_no_op_types_is_refused(op_types):
    odd = ForMatMul()
    odd.op_types = op_types
    with pytest.raises(PluginError, match=r"^acme 1\.0 .*names no op type but .*expected a tuple of names"):
        build_registry([plugin("acme", sparsekit_op_handlers=[odd])])


def test_a_criterion_without_a_name_is_refused():
    with pytest.raises(PluginError, match=r"^acme 1\.0 .*names no criterion"):
        build_registry([plugin("acme", sparsekit_criteria=[Criterion()])])


def test_a_plugin_may_offer_nothing():
    registry = build_registry([plugin("acme", sparsekit_op_handlers=()), Plugin("bolt", "1", "x", ModuleType("bolt"))])
    assert not registry.handlers
    assert [p.distribution for p in registry.plugins] == ["acme", "bolt"]


def test_every_hook_is_called_once():
    calls = []

    @hookimpl
    def sparsekit_op_handlers() -> list[OpHandler]:
        calls.append(1)
        return [ForEinsum()]

    build_registry([Plugin("acme", "1.0", "main", SimpleNamespace(sparsekit_op_handlers=sparsekit_op_handlers))])
    assert len(calls) == 1


def test_the_package_of_a_plugin_is_not_imported_before_it_is_needed(install, tmp_path):
    (tmp_path / "flag").touch()
    install(
        "acme-ops", f"import os; os.remove({str(Path(tmp_path, 'flag'))!r})\n" + textwrap.dedent(handler("AcmeDense"))
    )
    import sparsekit  # noqa: F401

    assert (tmp_path / "flag").exists()
    default_registry()
    assert not (tmp_path / "flag").exists()


def test_a_hook_without_its_decorator_is_refused_rather_than_ignored(install):
    install("forgetful", "def sparsekit_criteria():\n    return ()\n")
    with pytest.raises(PluginError, match=r"forgetful 1\.5 .*sparsekit_criteria is not marked as a hook"):
        build_registry(installed_plugins())
