"""Huawei's Atlas products and Ascend chips: which of them gain from 2:4.

Each profile is a row of the product lists in Huawei's AMCT documents up to CANN 9.1. Those name families;
the products in a family come from the documents' page on product forms or are general knowledge, and which
chip is in them is general knowledge throughout. Each profile's `sources` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparsekit.target import LayerRule, TargetProfile
from sparsekit_targets._rules import int8_weights

if TYPE_CHECKING:
    from sparsekit.planning import LayerDecision

_VERDICT = "gain or none: AMCT documents up to CANN 9.1, products of the 2:4 structured sparsity feature"
_FORMS = "products: AMCT TensorFlow document of CANN 8.0.RC1 on product forms (atlasamcttf_16_0004)"
_PRODUCTS = "products: general knowledge, not from the AMCT documents"
_CHIPS = "chip names: general knowledge, not from the AMCT documents"
_CONVERTER = (
    "rule on int8: an excerpt of the ATC document, option --sparsity (not the whole document, not tried on hardware)"
)
_FUSION = (
    "rule on operators: CANN 9.0 and 9.1, graph fusion patterns, ConvWeightCompressFusionPass (atlasrr_30_0035): "
    "Conv2D, FullyConnection and MatMulV2 with int8 or uint8 inputs and no more than one group (not tried on hardware)"
)

_GAIN = (
    "The AMCT documents count it among the products with a 2:4 gain. By the converter's documents the gain is for "
    "int8 weights of convolutions, not grouped, MatMul and fully connected layers, so a float deployment should gain "
    "nothing (read from excerpts, not tried on hardware)."
)
_NO_GAIN = "The AMCT documents say that its hardware cannot use 2:4; a pruned model gains nothing there."


def _named_operator(layer: LayerDecision) -> bool | None:
    return True if layer.op_type in ("Conv2D", "_FusedConv2D", "MatMul", "_FusedMatMul") else None


_RULES = (
    LayerRule(
        name="data-type",
        message="Weights must be int8.",
        source=_CONVERTER,
        holds=int8_weights,
    ),
    LayerRule(
        name="operator",
        message="The converter must make it a Conv2D, MatMulV2 or FullyConnection operator.",
        source=_FUSION + "; what becomes of other operators is not documented",
        holds=_named_operator,
    ),
)


def _profile(
    name: str,
    title: str,
    *,
    gains: bool,
    sources: Iterable[str],
    products: Iterable[str] = (),
    chips: Iterable[str] = (),
    aliases: Iterable[str] = (),
) -> TargetProfile:
    """A profile whose chips ("310P") also answer to "Ascend 310P" and to the Chinese 昇腾310P."""
    chips = tuple(chips)
    return TargetProfile(
        name=name,
        vendor="Huawei",
        title=title,
        products=tuple(products),
        chips=tuple(f"Ascend {chip}" for chip in chips),
        aliases=(*aliases, *chips, *(f"昇腾{chip}" for chip in chips)),
        gains=gains,
        reason=_GAIN if gains else _NO_GAIN,
        sources=(_VERDICT, *sources, *((_CONVERTER, _FUSION) if gains else ())),
        rules=_RULES if gains else (),
    )


# The training and the inference products of one generation share their chips.
_A3_CHIPS = ("910_93", "910C", "910_9391", "910_9392", "910_9381", "910_9382", "910_9372", "910_9362")
_A2_CHIPS = ("910B", "910B1", "910B2", "910B2C", "910B3", "910B4", "910B4-1")
_A2_910B = "910B read as Atlas A2, as today; early CANN versions also called a first-generation 910 Ascend910B"

PROFILES: tuple[TargetProfile, ...] = (
    _profile(
        "atlas-a3-training",
        "Atlas A3 training products",
        gains=True,
        products=("Atlas 800T A3", "Atlas 900 A3 SuperPoD"),
        chips=_A3_CHIPS,
        aliases=(
            "Atlas A3",
            "Atlas A3 training series",
            "Atlas A3 训练系列产品",
            "Atlas A3 training products/Atlas A3 inference products",
            "Atlas A3 训练系列产品/Atlas A3 推理系列产品",
        ),
        sources=(_PRODUCTS, _CHIPS),
    ),
    _profile(
        "atlas-a3-inference",
        "Atlas A3 inference products",
        gains=True,
        products=("Atlas 800I A3",),
        chips=_A3_CHIPS,
        aliases=(
            "Atlas A3",
            "Atlas A3 inference series",
            "Atlas A3 推理系列产品",
        ),
        sources=(_PRODUCTS, _CHIPS),
    ),
    _profile(
        "atlas-a2-training",
        "Atlas A2 training products",
        gains=True,
        products=("Atlas 800T A2", "Atlas 900 A2 PoD", "Atlas 200T A2 Box16"),
        chips=_A2_CHIPS,
        aliases=(
            "Atlas A2",
            "Atlas A2 training series",
            "Atlas A2 训练系列产品",
            "Atlas A2 training products/Atlas A2 inference products",
            "Atlas A2 训练系列产品/Atlas A2 推理系列产品",
        ),
        sources=(_FORMS, _CHIPS, _A2_910B),
    ),
    _profile(
        "atlas-a2-inference",
        "Atlas A2 inference products",
        gains=True,
        products=("Atlas 800I A2", "A200I A2 Box"),
        chips=_A2_CHIPS,
        aliases=(
            "Atlas A2",
            "800I A2",
            "Atlas A200I A2 Box",
            "Atlas A2 inference series",
            "Atlas A2 推理系列产品",
        ),
        sources=("products: AMCT documents up to CANN 9.1", _CHIPS, _A2_910B),
    ),
    _profile(
        "atlas-200i-500-a2-inference",
        "Atlas 200I/500 A2 inference products",
        gains=True,
        products=("Atlas 200I A2", "Atlas 200I DK A2", "Atlas 500 A2"),
        chips=("310B", "310B1", "310B2", "310B3", "310B4"),
        aliases=("Atlas 200I/500 A2", "Atlas 200I/500 A2 推理产品"),
        sources=(_FORMS, _CHIPS),
    ),
    _profile(
        "atlas-200-300-500-inference",
        "Atlas 200/300/500 inference products",
        gains=False,
        products=("Atlas 200", "Atlas 200 DK", "Atlas 300", "Atlas 300I", "Atlas 500", "Atlas 500 Pro"),
        chips=("310",),
        aliases=("Atlas 200/300/500", "Atlas 200/300/500 推理产品"),
        sources=(_FORMS, _CHIPS),
    ),
    _profile(
        "atlas-inference",
        "Atlas inference products",
        gains=False,
        products=(
            "Atlas 300I Pro",
            "Atlas 300I Duo",
            "Atlas 300V",
            "Atlas 300V Pro",
            "Atlas 200I SoC A1",
        ),
        chips=("310P", "310P1", "310P2", "310P3", "310P4", "310P5", "310P7"),
        aliases=("Atlas inference series", "Atlas inference series products", "Atlas 推理系列产品"),
        sources=(_FORMS + " for Atlas 300I Pro; the others: general knowledge", _CHIPS),
    ),
    _profile(
        "atlas-training",
        "Atlas training products",
        gains=False,
        # "Atlas 800" is sold as an inference server too, with cards that gain nothing either.
        products=("Atlas 800", "Atlas 300T", "Atlas 300T Pro", "Atlas 900", "Atlas 900 PoD"),
        chips=("910", "910A", "910ProA", "910ProB", "910PremiumA"),
        aliases=("Atlas training series", "Atlas training series products", "Atlas 训练系列产品"),
        sources=(_FORMS + " for Atlas 800 and 300T; the others: general knowledge", _CHIPS),
    ),
    _profile(
        "ascend-950",
        "Ascend 950PR/Ascend 950DT",
        gains=False,
        chips=("950", "950PR", "950DT", "910_95"),
        aliases=("Ascend 950PR/950DT",),
        sources=("950PR, 950DT: AMCT documents up to CANN 9.1; 910_95, its earlier name: general knowledge",),
    ),
    _profile(
        "atlas-350",
        "Atlas 350 accelerator cards",
        gains=False,
        products=("Atlas 350",),
        aliases=("Atlas 350 accelerator card", "Atlas 350 加速卡"),
        sources=("product: AMCT documents up to CANN 9.1",),
    ),
)
