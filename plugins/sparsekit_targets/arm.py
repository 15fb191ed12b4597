"""Arm's Ethos-U NPUs: which of them gain from 2:4.

What is called measured was read from the estimates of Arm's compiler Vela (package ethos-u-vela 5.2.0) for small int8
networks of one layer, pruned and not: multiply-adds (nn_macs in its summary), never a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekit.target import LayerRule, TargetProfile
from sparsekit_targets._rules import int8_weights

if TYPE_CHECKING:
    from sparsekit.planning import LayerDecision

_HARDWARE = (
    "gain: Arm's announcement of the Ethos-U85 (2024), native hardware support for 2/4 sparsity, int8 weights, int8 or "
    "int16 activations"
)
_MEASURED = (
    "measured with Vela 5.2.0: along the input channels 2:4, 1:4 and 1:2 halve a layer's multiply-adds, tried on "
    "convolutions with 3 to 18 of them, whether or not 4 divides the number; along the output channels nothing changes"
)
_COMPILER = (
    "how Vela decides: its source, regor/compiler/scheduler.cpp (EncodeBestWeightFormat) and the weight encoder of the "
    "Ethos-U85, read in a public copy"
)
_CONFIGURATIONS = "chip names: Vela 5.2.0, values of --accelerator-config"

_GAIN = (
    "Its multipliers skip half of a 2:4 weight, the weights of a whole operator or none: one group with more than two "
    "non-zeros keeps the operator dense. Vela finds the pattern in a plain int8 .tflite file and uses it, operator by "
    "operator, where it estimates fewer cycles; small layers can stay dense."
)
_NO_GAIN = (
    "Its multipliers do not skip zeros: with 2:4 weights Vela estimates as many multiply-adds as without. Zeros "
    "compress the weights there, whatever their pattern."
)

# As TensorFlow, TensorFlow Lite and ONNX call them.
_MEASURED_OPERATORS = frozenset(
    {
        *("Conv2D", "_FusedConv2D", "Conv2DBackpropInput", "MatMul", "_FusedMatMul"),
        *("CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "Conv", "ConvTranspose", "Gemm"),
    }
)


def _measured_operator(layer: LayerDecision) -> bool | None:
    return True if layer.op_type in _MEASURED_OPERATORS else None


_RULES = (
    LayerRule(
        name="data-type",
        message="Weights must be int8.",
        source="Arm's announcement of the Ethos-U85 (2024): int8 weights; learn.arm.com on ExecuTorch: Ethos-U runs "
        "quantized integer operators, not float ones",
        holds=int8_weights,
    ),
    LayerRule(
        name="operator",
        message="It must become a convolution, a transposed convolution or a fully connected layer.",
        source="measured with Vela 5.2.0 on CONV_2D (grouped too), TRANSPOSE_CONV and FULLY_CONNECTED; other operators "
        "were not tried",
        holds=_measured_operator,
    ),
)

PROFILES: tuple[TargetProfile, ...] = (
    TargetProfile(
        name="arm-ethos-u85",
        vendor="Arm",
        title="Arm Ethos-U85",
        products=("Ethos-U85", "Corstone-320"),
        chips=tuple(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
        aliases=("U85",),
        gains=True,
        patterns=("2:4", "1:4", "1:2"),
        reason=_GAIN,
        sources=(
            _HARDWARE,
            _MEASURED,
            _COMPILER,
            _CONFIGURATIONS,
            "product: ExecuTorch documentation of the Arm Ethos-U backend (Corstone-320 has an Ethos-U85)",
        ),
        rules=_RULES,
    ),
    TargetProfile(
        name="arm-ethos-u65",
        vendor="Arm",
        title="Arm Ethos-U65",
        products=("Ethos-U65", "NXP i.MX 93"),
        chips=tuple(f"ethos-u65-{macs}" for macs in (256, 512)),
        aliases=("U65", "i.MX 93"),
        gains=False,
        reason=_NO_GAIN,
        sources=(
            "none: measured with Vela 5.2.0 for ethos-u65-256",
            _CONFIGURATIONS,
            "product: Linux device tree binding arm,ethos (fsl,imx93-npu is an Ethos-U65)",
        ),
    ),
    TargetProfile(
        name="arm-ethos-u55",
        vendor="Arm",
        title="Arm Ethos-U55",
        products=("Ethos-U55", "Corstone-300"),
        chips=tuple(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
        aliases=("U55",),
        gains=False,
        reason=_NO_GAIN,
        sources=(
            "none: measured with Vela 5.2.0 for ethos-u55-128",
            _CONFIGURATIONS,
            "product: ExecuTorch documentation of the Arm Ethos-U backend (Corstone-300 has an Ethos-U55)",
        ),
    ),
)
