"""Every product of the AMCT documents' table (up to CANN 9.1), held here a second time, by hand."""

from __future__ import annotations

import pytest

import sparsekit_targets
from sparsekit.pattern import Pattern
from sparsekit.planning import LayerDecision
from sparsekit.target import TargetProfile, choose_target, resolve_target, unsupported_message
from sparsekit_targets import atlas

# Those of other vendors too: no name may mean two things.
PROFILES = tuple(sparsekit_targets.sparsekit_targets())

GAIN = {
    "atlas-a3-training": ["Atlas A3 training products", "Atlas A3 训练系列产品", "Atlas 800T A3"],
    "atlas-a3-inference": ["Atlas A3 inference products", "Atlas A3 推理系列产品", "Atlas 800I A3"],
    "atlas-a2-training": [
        "Atlas A2 training products",
        "Atlas A2 训练系列产品",
        "Atlas 800T A2",
        "Atlas 900 A2 PoD",
        "Atlas 200T A2 Box16",
    ],
    "atlas-a2-inference": [
        "Atlas A2 inference products",
        "Atlas A2 推理系列产品",
        "Atlas 800I A2",
        "atlas-800i-a2",
        "800I A2",
        "A200I A2 Box",
    ],
    "atlas-200i-500-a2-inference": [
        "Atlas 200I/500 A2 inference products",
        "Atlas 200I/500 A2 推理产品",
        "Atlas 200I A2",
        "Atlas 200I DK A2",
        "Atlas 500 A2",
        "Ascend310B",
        "310B",
        "Ascend310B1",
        "Ascend310B2",
        "Ascend310B3",
        "Ascend310B4",
    ],
}

NO_GAIN = {
    "atlas-200-300-500-inference": [
        "Atlas 200/300/500 inference products",
        "Atlas 200/300/500 推理产品",
        "Atlas 200",
        "Atlas 200 DK",
        "Atlas 300",
        "Atlas 300I",
        "Atlas 500",
        "Atlas 500 Pro",
        "Ascend310",
        "310",
    ],
    "atlas-inference": [
        "Atlas inference products",
        "Atlas inference series",
        "Atlas 推理系列产品",
        "Atlas 300I Pro",
        "Atlas 300I Duo",
        "Atlas 300V",
        "Ascend310P",
        "Ascend 310P",
        "ascend_310p",
        "310P",
        "Ascend310P1",
        "Ascend310P3",
        "昇腾310P",
    ],
    "atlas-training": [
        "Atlas training products",
        "Atlas training series",
        "Atlas 训练系列产品",
        "Atlas 800",
        "Atlas 300T",
        "Atlas 900",
        "Ascend910",
        "Ascend 910",
        "910",
        "Ascend910A",
        "Ascend910ProA",
        "Ascend910ProB",
        "Ascend910PremiumA",
    ],
    "ascend-950": [
        "Ascend 950PR/Ascend 950DT",
        "Ascend 950PR / 950DT",
        "Ascend950PR",
        "Ascend950DT",
        "950PR",
    ],
    "atlas-350": ["Atlas 350", "Atlas 350 accelerator card", "Atlas 350 加速卡"],
}

# Training and inference products share chips: the verdict is what counts.
SHARED_CHIPS = [
    "Ascend910B", "Ascend 910B", "910B", "Ascend910B1", "Ascend910B2", "Ascend910B2C", "Ascend910B3",
    "Ascend910B4", "Ascend910B4-1", "昇腾910B", "Atlas A2",
    "Ascend910_93", "Ascend91093", "910_93", "Ascend910_9391", "Ascend910C", "910C", "Atlas A3",
]  # fmt: skip
NOBODYS = ["Ascend", "Atlas", "Ascend910B9", "Ascend310X", "Atlas 1000"]


@pytest.mark.parametrize("asked", SHARED_CHIPS)
def test_every_chip_shared_by_training_and_inference_products_gains(asked: str) -> None:
    assert resolve_target(asked, PROFILES).gains


@pytest.mark.parametrize("profile", atlas.PROFILES, ids=lambda profile: profile.name)
def test_every_profile_gives_its_sources_and_calls_general_knowledge_so(profile: TargetProfile) -> None:
    assert profile.vendor == "Huawei"
    assert any("AMCT documents up to CANN 9.1" in source for source in profile.sources)
    if profile.chips:
        assert any("general knowledge" in source for source in profile.sources)


@pytest.mark.parametrize("name", GAIN)
def test_a_target_that_gains_says_that_the_gain_is_for_int8(name: str) -> None:
    profile = resolve_target(name, PROFILES)
    assert "int8" in profile.reason and "not tried on hardware" in profile.reason
    assert any("ATC" in source and "--sparsity" in source for source in profile.sources)


def test_the_message_for_an_unsupported_chip_lists_the_products_that_gain() -> None:
    chosen = choose_target(None, None, {"SPARSEKIT_TARGET": "Ascend310P3"}, PROFILES)
    assert chosen is not None
    message = unsupported_message(chosen, PROFILES, ["2:4"])
    assert message.startswith("'Ascend310P3' (Atlas inference products) gains nothing from 2:4 sparsity")
    for title in ("A3 training", "A3 inference", "A2 training", "A2 inference", "200I/500 A2 inference"):
        assert f"Atlas {title} products" in message
    assert "Atlas training products" not in message


def _layer(op_type: str, **fields: object) -> LayerDecision:
    facts = {"shape": (64, 32), "axis": 0, "dtype": "float32", "pattern": Pattern.parse("2:4")} | fields
    return LayerDecision("fc", op_type, "prune", "eligible", "", **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "verdict"),
    [
        (_layer("MatMul"), "eligible if met at conversion: Weights must be int8"),
        (_layer("Conv2D", dtype="int8", deployed=True), "eligible"),
        (_layer("MatMul", deployed=True), "not eligible: Weights must be int8"),
        (
            _layer("Conv2DBackpropInput", dtype="int8", deployed=True),
            "eligible if met at conversion: The converter must make it a Conv2D, MatMulV2 or FullyConnection operator",
        ),
        (_layer("MatMul", pattern=Pattern.parse("1:2")), "not eligible: The pattern must be 2:4"),
    ],
)
@pytest.mark.parametrize("name", GAIN)
def test_the_gain_is_for_int8_weights_of_the_operators_that_the_converter_names(
    name: str, layer: LayerDecision, verdict: str
) -> None:
    assert str(resolve_target(name, PROFILES).judge(layer)) == verdict


@pytest.mark.parametrize("name", NO_GAIN)
def test_no_layer_is_eligible_where_the_hardware_cannot_use_it(name: str) -> None:
    verdict = resolve_target(name, PROFILES).judge(_layer("MatMul", dtype="int8", deployed=True))
    assert str(verdict).startswith("not eligible: The AMCT documents say that its hardware cannot use 2:4")
