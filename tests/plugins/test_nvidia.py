"""NVIDIA's generations, held here a second time, by hand; and what their documents ask of a layer."""

from __future__ import annotations

from typing import Any

import pytest

import sparsekit_targets
from sparsekit.pattern import Pattern
from sparsekit.planning import LayerDecision
from sparsekit.target import TargetProfile, choose_target, resolve_target, unsupported_message
from sparsekit_targets import nvidia

PROFILES = tuple(sparsekit_targets.sparsekit_targets())

GAIN = {
    "nvidia-blackwell": [
        "B100",
        "B200",
        "NVIDIA GB200",
        "RTX 5090",
        "geforce rtx 5070 ti",
        "sm_100",
        "sm120",
        "Jetson Thor",
    ],
    "nvidia-hopper": ["H100", "nvidia h200", "GH200", "Grace Hopper", "sm_90", "compute capability 9.0"],
    "nvidia-ada": ["L4", "L40", "L40S", "RTX 4090", "NVIDIA GeForce RTX 4090", "RTX 40 series", "sm_89"],
    "nvidia-ampere": [
        *("A100", "NVIDIA A100", "A30", "A10", "A40", "RTX 3090", "GeForce RTX 30 series", "RTX A6000"),
        *("Jetson AGX Orin", "Jetson Orin", "jetson-orin-nano", "sm_80", "sm_86", "sm_87", "GA100"),
    ],
}
NO_GAIN = {
    "nvidia-turing": ["T4", "Tesla T4", "RTX 2080 Ti", "RTX 20 series", "Quadro RTX 6000", "GTX 1650", "sm_75"],
    "nvidia-volta": ["V100", "Tesla V100", "TITAN V", "Jetson AGX Xavier", "Jetson Xavier NX", "sm_70", "sm_72"],
    "nvidia-pascal": ["P100", "P4", "P40", "GTX 1080", "Jetson TX2", "Jetson Nano", "sm_60", "sm_53"],
}
NOBODYS = ["NVIDIA", "A1000", "RTX", "RTX 6000", "sm_8", "Tesla"]


@pytest.mark.parametrize("profile", nvidia.PROFILES, ids=lambda profile: profile.name)
def test_every_profile_gives_its_sources_and_promises_no_speed(profile: TargetProfile) -> None:
    assert any("cuSPARSELt 0.8.1" in source for source in profile.sources)
    assert any("general knowledge" in source for source in profile.sources)
    text = " ".join((profile.reason, *profile.sources, *(rule.message for rule in profile.rules)))
    assert "faster" not in text and "speed" not in text


def _layer(op_type: str = "MatMul", pattern: str = "2:4", **fields: Any) -> LayerDecision:
    facts = {"shape": (64, 32), "axis": 0, "dtype": "float32"} | fields
    return LayerDecision("fc", op_type, "prune", "eligible", "", pattern=Pattern.parse(pattern), **facts)


def _judged(layer: LayerDecision, target: str = "A100") -> tuple[list[str], list[str]]:
    """Names of the objections, and of the conditions."""
    verdict = resolve_target(target, PROFILES).judge(layer)
    return [rule.name for rule in verdict.objections], [rule.name for rule in verdict.conditions]


@pytest.mark.parametrize("target", GAIN)
def test_before_conversion_the_data_type_is_a_condition(target: str) -> None:
    assert _judged(_layer(), target) == ([], ["data-type"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("target", GAIN)
def test_in_a_deployed_file_the_data_type_decides(target: str, dtype: str) -> None:
    assert _judged(_layer(dtype=dtype, deployed=True), target) == ([], [])
    assert _judged(_layer(dtype="float32", deployed=True), target) == (["data-type"], [])
    assert _judged(_layer(dtype="float64", deployed=True), target) == (["data-type"], [])


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_came_after_ampere(dtype: str) -> None:
    refused = {name for name in GAIN if _judged(_layer(dtype=dtype, deployed=True), name)[0]}
    assert refused == {"nvidia-ampere"}


def test_float32_is_paired_as_1_of_2() -> None:
    assert _judged(_layer(pattern="1:2", deployed=True)) == ([], [])
    assert _judged(_layer(pattern="1:4", deployed=True)) == (["data-type"], [])


@pytest.mark.parametrize("channels", [1, 3, 6, 10, 63])
def test_input_channels_that_4_does_not_divide_are_an_objection(channels: int) -> None:
    assert _judged(_layer("Conv2D", shape=(3, 3, channels, 32), axis=2))[0] == ["whole-groups"]


def test_channels_of_a_convolution_are_those_along_the_group_axis() -> None:
    assert _judged(_layer("Conv2D", shape=(3, 3, 12, 7), axis=2)) == ([], ["data-type"])


@pytest.mark.parametrize(
    ("shape", "dtype", "conditions"),
    [
        ((64, 32), "int8", []),
        ((48, 16), "float16", []),
        ((48, 16), "int8", ["matrix-alignment"]),
        ((64, 10), "float16", ["matrix-alignment"]),
        ((12, 32), "bfloat16", ["matrix-alignment"]),
        ((3, 3, 12, 8), "int8", []),
    ],
)
def test_matrices_that_do_not_fill_a_tile_are_eligible_if_padded(
    shape: tuple[int, ...], dtype: str, conditions: list[str]
) -> None:
    op_type, axis = ("Conv2D", 2) if len(shape) == 4 else ("MatMul", 0)
    assert _judged(_layer(op_type, shape=shape, axis=axis, dtype=dtype, deployed=True)) == ([], conditions)


def test_what_other_operators_become_is_open() -> None:
    assert _judged(_layer("Conv3D", shape=(3, 3, 3, 16, 16), axis=3)) == ([], ["data-type", "operator"])


def test_a_gpu_without_sparse_tensor_cores_says_which_have_them() -> None:
    chosen = choose_target("T4", None, {}, PROFILES)
    assert chosen is not None
    message = unsupported_message(chosen, PROFILES, ["2:4"])
    assert message.startswith("'T4' (NVIDIA Turing GPUs) gains nothing from 2:4 sparsity")
    assert message.endswith("Blackwell GPUs, NVIDIA Hopper GPUs, NVIDIA Ada GPUs, NVIDIA Ampere GPUs.")
    assert _judged(_layer(), "T4") == (["gain"], [])
