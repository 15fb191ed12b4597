"""Targets: who answers to a name, which name counts, and what is said when nothing is gained."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import attrs
import pytest

import sparsekit.target
from sparsekit.errors import PluginError, TargetError, UnsupportedTargetError, UnsupportedTargetWarning
from sparsekit.pattern import Pattern
from sparsekit.planning import LayerDecision
from sparsekit.table import to_json
from sparsekit.target import (
    ChosenTarget,
    LayerRule,
    TargetProfile,
    TargetVerdict,
    choose_target,
    resolve_target,
    unsupported_message,
    warn_or_refuse,
)


def _profile(name: str, *, gains: bool = True, vendor: str = "Acme", **fields: Any) -> TargetProfile:
    fields = {"title": f"{name} title", "reason": f"{name} reason.", "sources": ("a document",)} | fields
    return TargetProfile(name=name, vendor=vendor, gains=gains, **fields)


FAST = _profile(
    "acme-fast",
    title="Acme Fast/Faster series",
    products=("Fast Board 2",),
    chips=("F_90-A",),
    aliases=("快速系列",),
)
SLOW = _profile("acme-slow", gains=False, title="Acme Slow series", chips=("S1",), reason="It is dense.")
WIDE = LayerRule(
    name="wide",
    message="The group axis must have 16 members.",
    source="a document",
    holds=lambda layer: None if layer.shape is None or layer.axis is None else layer.shape[layer.axis] >= 16,
)
INT8 = LayerRule(
    name="int8",
    message="Weights must be int8.",
    source="another document",
    holds=lambda layer: layer.dtype == "int8" if layer.deployed else None,
)
OTHER = _profile("other-fast", vendor="Other", title="Other Fast series")
ALL = (FAST, SLOW, OTHER)


@pytest.mark.parametrize(
    "asked",
    [
        "acme-fast",
        "Acme Fast/Faster series",
        "Fast Board 2",
        "F_90-A",
        "快速系列",
        "ACME_FAST",
        "acme fast faster SERIES",
        "fastboard2",
        " f90a ",
        "\uff26\uff19\uff10\uff21",  # full width, as a Chinese keyboard types F90A
    ],
)
def test_every_name_of_a_profile_answers_in_any_spelling(asked: str) -> None:
    assert resolve_target(asked, ALL) is FAST


@pytest.mark.parametrize("asked", ["F_90", "F_90-A1", "acme", "Fast Board"])
def test_part_of_a_name_is_not_the_name(asked: str) -> None:
    with pytest.raises(TargetError, match="unknown target"):
        resolve_target(asked, ALL)


def test_an_unknown_name_gets_near_names_and_the_command_that_lists_all() -> None:
    with pytest.raises(TargetError) as error:
        resolve_target("acme-fsat", ALL)
    assert "unknown target 'acme-fsat'" in str(error.value)
    assert "Did you mean 'acme-fast'" in str(error.value)
    assert "sparsekit targets" in str(error.value)


def test_near_names_come_from_chips_and_products_too() -> None:
    with pytest.raises(TargetError, match="Did you mean 'Fast Board 2'"):
        resolve_target("Fast Bord 2", ALL)


def test_a_name_without_near_names_still_gets_the_command() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'zzz'\. Run `sparsekit targets`"):
        resolve_target("zzz", ALL)


@pytest.mark.parametrize("asked", ["", "  ", "-/_", 310])
def test_no_name_is_an_error(asked: Any) -> None:
    with pytest.raises(TargetError, match="no target name"):
        resolve_target(asked, ALL)


def test_a_name_of_two_profiles_with_one_verdict_gives_the_first() -> None:
    first, second = _profile("first", chips=("X1",)), _profile("second", chips=("x-1",))
    assert resolve_target("X 1", (first, second)) is first
    assert resolve_target("X 1", (second, first)) is second


@pytest.mark.parametrize("differing", [{"gains": False}, {"patterns": ("1:4",)}])
def test_a_name_of_two_profiles_with_two_verdicts_is_an_error_that_names_them(differing: Any) -> None:
    profiles = (_profile("first", chips=("X1",)), _profile("second", chips=("X1",), **differing))
    with pytest.raises(TargetError, match=r"'X1' names targets that gain differently: first, second"):
        resolve_target("X1", profiles)


def test_the_exact_spelling_decides_between_names_that_differ_in_a_hyphen_only() -> None:
    hyphen, plain = _profile("hyphen", chips=("X4-1",)), _profile("plain", gains=False, chips=("X41",))
    assert resolve_target("X4-1", (plain, hyphen)) is hyphen
    assert resolve_target("X41", (hyphen, plain)) is plain
    with pytest.raises(TargetError, match="hyphen, plain"):
        resolve_target("x4 1", (hyphen, plain))


def test_the_call_beats_the_config_which_beats_the_environment() -> None:
    environ = {"SPARSEKIT_TARGET": "other-fast"}
    origins = [
        choose_target("acme-fast", "acme-slow", environ, ALL),
        choose_target(None, "acme-slow", environ, ALL),
        choose_target(None, None, environ, ALL),
    ]
    assert origins == [
        ChosenTarget("acme-fast", "argument `target`", FAST),
        ChosenTarget("acme-slow", "config key `target`", SLOW),
        ChosenTarget("other-fast", "environment variable SPARSEKIT_TARGET", OTHER),
    ]


@pytest.mark.parametrize("environ", [{}, {"SPARSEKIT_TARGET": ""}, {"SPARSEKIT_TARGET": " "}])
def test_without_a_name_there_is_no_target(environ: dict[str, str]) -> None:
    assert choose_target(None, None, environ, ALL) is None


@pytest.mark.parametrize(
    ("call", "config", "variable", "origin"),
    [
        ("nope", "acme-fast", "acme-fast", "argument `target`"),
        ("", "acme-fast", "acme-fast", "argument `target`"),
        (None, "nope", "acme-fast", "config key `target`"),
        (None, "", "acme-fast", "config key `target`"),
        (None, None, "nope", "environment variable SPARSEKIT_TARGET"),
    ],
)
def test_an_error_says_where_the_name_was_written(
    call: str | None, config: str | None, variable: str, origin: str
) -> None:
    with pytest.raises(TargetError) as error:
        choose_target(call, config, {"SPARSEKIT_TARGET": variable}, ALL)
    assert error.value.where == origin
    assert str(error.value).startswith(origin)


def _chosen(asked: str) -> ChosenTarget:
    chosen = choose_target(asked, None, {}, ALL)
    assert chosen is not None
    return chosen


def test_the_message_names_product_reason_and_the_vendors_products_that_gain() -> None:
    assert unsupported_message(_chosen("s-1"), ALL, ["2:4"]) == (
        "'s-1' (Acme Slow series) gains nothing from 2:4 sparsity: It is dense. "
        "Products of Acme that gain: Acme Fast/Faster series."
    )


def test_the_message_says_so_where_no_product_of_the_vendor_gains() -> None:
    assert unsupported_message(_chosen("s1"), (SLOW, OTHER), ["2:4"]).endswith("No product of Acme is known to gain.")


def test_the_message_names_the_patterns_that_would_gain() -> None:
    message = unsupported_message(_chosen("acme-fast"), ALL, ["1:4", "4:8"])
    assert "gains nothing from 1:4 and 4:8 sparsity (it does from 2:4)" in message
    assert "No product of Acme is known to gain." in message


def _call(asked: str, *patterns: str, strict: bool = False) -> None:  # stands for a function of the API
    warn_or_refuse(_chosen(asked), ALL, patterns=patterns, strict=strict)


def test_a_target_without_a_gain_warns_once_a_call_and_names_the_line_of_the_user() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _call("S1", "2:4", "1:4", "2:4")
        line = sys._getframe().f_lineno - 1
    assert [(w.category, w.filename, w.lineno) for w in seen] == [(UnsupportedTargetWarning, __file__, line)]
    assert str(seen[0].message).startswith(
        "argument `target`: 'S1' (Acme Slow series) gains nothing from 2:4 and 1:4 sp"
    )
    assert str(seen[0].message).endswith("Pruning goes on.")


def test_stacklevel_one_names_the_caller_itself() -> None:
    with pytest.warns(UnsupportedTargetWarning) as seen:
        warn_or_refuse(_chosen("S1"), ALL, patterns=["2:4"], strict=False, stacklevel=1)
        line = sys._getframe().f_lineno - 1
    assert [(w.filename, w.lineno) for w in seen] == [(__file__, line)]


def test_strict_refuses_instead_of_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnsupportedTargetError, match="It is dense") as error:
            _call("S1", "2:4", strict=True)
    assert error.value.where == "argument `target`"
    assert "strict_target=True" in error.value.hint


def test_a_pattern_without_a_gain_warns_on_a_target_that_gains_from_another() -> None:
    with pytest.warns(UnsupportedTargetWarning, match=r"from 1:4 sparsity \(it does from 2:4\)"):
        _call("acme-fast", "2:4", "1:4")


@pytest.mark.parametrize("strict", [True, False])
def test_a_target_that_gains_and_no_target_at_all_are_silent(strict: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _call("acme-fast", "2:4", strict=strict)
        warn_or_refuse(None, ALL, patterns=["2:4"], strict=strict)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"name": "Acme Fast"}, "joined by hyphens"),
        ({"sources": ()}, "a vendor, title, reason and sources"),
        ({"reason": ""}, "a vendor, title, reason and sources"),
        ({"chips": "S1"}, "a tuple of strings"),
        ({"products": ("-",)}, "without letters"),
        ({"gains": True, "patterns": ()}, "a gain from no pattern"),
        ({"rules": (WIDE, attrs.evolve(WIDE, message="Wider."))}, "a name of its own for every rule"),
    ],
)
def test_a_profile_that_contradicts_the_contract_is_refused(fields: Any, complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint):
        attrs.evolve(SLOW, **fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"name": "Wide Rule"}, "layer rule 'Wide Rule': its name; expected lower-case words joined by hyphens"),
        ({"source": ""}, "a message and a source"),
        ({"message": ""}, "a message and a source"),
    ],
)
def test_a_rule_without_a_code_a_message_or_a_source_is_refused(fields: Any, complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint):
        attrs.evolve(WIDE, **fields)


def _layer(channels: int | None = 16, pattern: str = "2:4", **fields: Any) -> LayerDecision:
    where = {"shape": (channels, 8), "axis": 0, "dtype": "float32"} if channels else {}
    fields = {"pattern": Pattern.parse(pattern)} | where | fields
    return LayerDecision("fc", "Dense", "prune", "eligible", "fc: pruned.", **fields)


RULED = attrs.evolve(FAST, rules=(WIDE, INT8))


@pytest.mark.parametrize(
    ("layer", "objections", "conditions", "sentence"),
    [
        (_layer(), (), (INT8,), "eligible if met at conversion: Weights must be int8"),
        (_layer(dtype="int8", deployed=True), (), (), "eligible"),
        (_layer(8), (WIDE,), (INT8,), "not eligible: The group axis must have 16 members"),
        (
            _layer(8, deployed=True),
            (WIDE, INT8),
            (),
            "not eligible: The group axis must have 16 members; Weights must be int8",
        ),
        (
            _layer(None),
            (),
            (WIDE, INT8),
            "eligible if met at conversion: The group axis must have 16 members; Weights must be int8",
        ),
    ],
)
def test_rules_that_fail_are_objections_and_those_decided_later_are_conditions(
    layer: LayerDecision, objections: tuple[LayerRule, ...], conditions: tuple[LayerRule, ...], sentence: str
) -> None:
    verdict = RULED.judge(layer)
    assert verdict == TargetVerdict(not objections, objections, conditions)
    assert str(verdict) == sentence


def test_without_rules_what_gains_is_eligible() -> None:
    assert FAST.judge(_layer()) == TargetVerdict(True)


def test_without_a_gain_no_layer_is_eligible_and_the_reason_is_the_profiles() -> None:
    verdict = attrs.evolve(SLOW, rules=(WIDE,)).judge(_layer())
    assert not verdict.eligible
    assert str(verdict) == "not eligible: It is dense"
    assert [rule.source for rule in verdict.objections] == ["a document"]


def test_without_a_gain_from_the_pattern_the_layer_is_not_eligible() -> None:
    verdict = attrs.evolve(RULED, patterns=("2:4", "1:4")).judge(_layer(pattern="1:2"))
    assert not verdict.eligible
    assert str(verdict) == "not eligible: The pattern must be 2:4 or 1:4"


@pytest.mark.parametrize(
    ("holds", "complaint"),
    [
        (lambda layer: 1 / 0, "ZeroDivisionError on layer 'fc': division by zero"),
        (lambda layer: "yes", "'yes' for layer 'fc'; expected True, False or None"),
        (lambda layer: 1, "1 for layer 'fc'; expected True, False or None"),
    ],
)
def test_a_rule_that_gives_no_answer_is_an_error_that_names_profile_and_rule(holds: Any, complaint: str) -> None:
    broken = attrs.evolve(FAST, rules=(attrs.evolve(WIDE, holds=holds),))
    with pytest.raises(PluginError) as error:
        broken.judge(_layer())
    assert str(error.value) == f"target profile 'acme-fast', rule 'wide': {complaint}"


def test_a_verdict_is_plain_json_without_predicates() -> None:
    decision = _layer(8)
    written = json.loads(to_json(attrs.evolve(decision, verdict=RULED.judge(decision))))
    assert written["verdict"] == {
        "eligible": False,
        "objections": [
            {"name": "wide", "message": "The group axis must have 16 members.", "source": "a document"},
        ],
        "conditions": [{"name": "int8", "message": "Weights must be int8.", "source": "another document"}],
    }


def test_profiles_compare_by_value_and_cannot_be_changed() -> None:
    assert attrs.evolve(FAST) == FAST
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        FAST.gains = False  # type: ignore[misc]


def test_the_engine_names_no_device() -> None:
    text = Path(sparsekit.target.__file__).read_text(encoding="utf-8").lower()
    assert not [word for word in ("atlas", "ascend", "huawei", "nvidia", "ethos") if word in text]


def test_importing_it_does_not_import_tensorflow() -> None:
    code = "import sys, sparsekit.target, sparsekit_targets; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
