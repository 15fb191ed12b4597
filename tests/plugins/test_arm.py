"""Arm's Ethos-U NPUs, by the names of Vela's accelerator configurations; what Vela measures is in the edge example."""

from __future__ import annotations

from typing import Any

import pytest

import sparsekit_targets
from sparsekit.pattern import Pattern
from sparsekit.planning import LayerDecision
from sparsekit.target import TargetProfile, choose_target, resolve_target, unsupported_message
from sparsekit_targets import arm

PROFILES = tuple(sparsekit_targets.sparsekit_targets())

GAIN = {
    "arm-ethos-u85": [
        *("Ethos-U85", "Arm Ethos-U85", "ethos u85", "U85", "Corstone-320"),
        *("ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
    ]
}
NO_GAIN = {
    "arm-ethos-u65": ["Ethos-U65", "ethos-u65-256", "ethos-u65-512", "i.MX 93"],
    "arm-ethos-u55": ["Ethos-U55", "ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "Corstone-300"],
}
NOBODYS = ["Arm", "Ethos", "Ethos-U", "ethos-u85-300"]


@pytest.mark.parametrize("profile", arm.PROFILES, ids=lambda profile: profile.name)
def test_every_profile_gives_its_sources_and_promises_no_speed(profile: TargetProfile) -> None:
    assert any("measured with Vela 5.2.0" in source for source in profile.sources)
    text = " ".join((profile.reason, *profile.sources, *(rule.message for rule in profile.rules)))
    assert "faster" not in text and "speed" not in text


def _layer(op_type: str, pattern: str = "2:4", **fields: Any) -> LayerDecision:
    facts = {"shape": (64, 32), "axis": 0, "dtype": "float32"} | fields
    return LayerDecision("fc", op_type, "prune", "eligible", "", pattern=Pattern.parse(pattern), **facts)


DEPLOYED = {"dtype": "int8", "deployed": True}
INT8, OPERATOR = (
    "Weights must be int8",
    "It must become a convolution, a transposed convolution or a fully connected layer",
)


@pytest.mark.parametrize(
    ("layer", "verdict"),
    [
        (_layer("Conv2D", shape=(3, 3, 12, 7), axis=2), f"eligible if met at conversion: {INT8}"),
        (_layer("BatchMatMulV2"), f"eligible if met at conversion: {INT8}; {OPERATOR}"),
        (_layer("CONV_2D", shape=(16, 3, 3, 12), axis=3, **DEPLOYED), "eligible"),
        (_layer("TRANSPOSE_CONV", shape=(16, 3, 3, 12), axis=3, **DEPLOYED), "eligible"),
        (_layer("FULLY_CONNECTED", **DEPLOYED), "eligible"),
        (_layer("FULLY_CONNECTED", "1:4", **DEPLOYED), "eligible"),
        (_layer("FULLY_CONNECTED", "2:8", **DEPLOYED), "not eligible: The pattern must be 2:4 or 1:4 or 1:2"),
        (_layer("CONV_2D", shape=(16, 3, 3, 7), axis=3, **DEPLOYED), "eligible"),  # a shorter last group
        (_layer("FULLY_CONNECTED", deployed=True), f"not eligible: {INT8}"),
        (_layer("FULLY_CONNECTED", deployed=True, dtype="float16"), f"not eligible: {INT8}"),
    ],
)
def test_the_u85_wants_int8_weights_of_operators_that_were_measured(layer: LayerDecision, verdict: str) -> None:
    assert str(resolve_target("ethos-u85-256", PROFILES).judge(layer)) == verdict


@pytest.mark.parametrize("name", NO_GAIN)
def test_no_layer_is_eligible_on_its_predecessors(name: str) -> None:
    verdict = resolve_target(name, PROFILES).judge(_layer("FULLY_CONNECTED", **DEPLOYED))
    assert str(verdict).startswith("not eligible: Its multipliers do not skip zeros")
    chosen = choose_target(name, None, {}, PROFILES)
    assert chosen is not None
    assert unsupported_message(chosen, PROFILES, ["2:4"]).endswith("Products of Arm that gain: Arm Ethos-U85.")
