"""NVIDIA's GPUs, one profile a generation: those with sparse tensor cores gain from 2:4, older ones do not.

Which library runs a layer is open until deployment: TensorRT runs whole networks, cuSPARSELt matrix products. The
rules give what the documents of both ask for. To be eligible is not to be chosen: TensorRT times a sparse and a dense
kernel for every layer and takes the better one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparsekit.target import LayerRule, TargetProfile

if TYPE_CHECKING:
    from sparsekit.planning import LayerDecision

_ARCHITECTURES = (
    "gain or none: cuSPARSELt 0.8.1, whose library refuses what is older than compute capability 8.0 and names 8.0, "
    "8.6, 8.7, 8.9, 9.0, 10.0 and 12.0 as native; its package's description adds 10.1, 11.0 and 12.1, that of 0.10.0 "
    "adds 10.3"
)
_TENSORRT = (
    "TensorRT Developer Guide (8.x, section Sparsity): convolution and fully connected kernels, at most two non-zeros "
    "in every four input channels of each output channel and kernel position, with FP16 or INT8 enabled"
)
_CHOSEN = (
    "TensorRT compares a sparse and a dense kernel for each layer: its maintainers in NVIDIA/TensorRT issues 2169 and "
    "3849 on GitHub, who expect the sparse one to win above 256 channels"
)
_PRODUCTS = "products and compute capabilities: NVIDIA's page CUDA GPUs, from memory"
_CHIPS = "chip names: general knowledge"

_GAIN = (
    "Its sparse tensor cores skip half of a 2:4 weight. TensorRT decides by timing, layer by layer, whether a sparse "
    "kernel is used; small layers usually stay dense."
)
_NO_GAIN = (
    "Its tensor cores, if it has any, multiply dense matrices alone: sparse ones came with compute capability 8.0."
)

_SIXTEEN_BITS = ("float16", "bfloat16")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")

# As TensorFlow, ONNX and TensorFlow Lite call them.
_CONVOLUTIONS_AND_PRODUCTS = frozenset(
    {"Conv2D", "_FusedConv2D", "MatMul", "_FusedMatMul", "Conv", "Gemm", "CONV_2D", "FULLY_CONNECTED"}
)


def _known_operator(layer: LayerDecision) -> bool | None:
    return True if layer.op_type in _CONVOLUTIONS_AND_PRODUCTS else None


def _whole_groups(layer: LayerDecision) -> bool | None:
    if layer.shape is None or layer.axis is None:
        return None
    return layer.shape[layer.axis] % 4 == 0


def _aligned(layer: LayerDecision) -> bool | None:
    """Never False: a library may pad, and TensorRT's kernels have tiles of their own."""
    if layer.shape is None:
        return None
    if len(layer.shape) != 2 or all(size % 32 == 0 for size in layer.shape):
        return True
    sixteen_bits = layer.deployed and layer.dtype in _SIXTEEN_BITS
    return True if sixteen_bits and all(size % 16 == 0 for size in layer.shape) else None


def _data_type(float8: bool) -> LayerRule:
    types = (*_SIXTEEN_BITS, "int8", *(_FLOAT8 if float8 else ()))

    def holds(layer: LayerDecision) -> bool | None:
        if not layer.deployed:
            return None
        # The hardware pairs float32 (TF32) as 1:2, which is 2:4 as well, but not the other way round.
        return layer.dtype in types or (layer.dtype == "float32" and str(layer.pattern) == "1:2")

    return LayerRule(
        name="data-type",
        message=f"Weights must be float16, bfloat16{', float8' if float8 else ''} or int8 (or float32 and 1:2).",
        source="cuSPARSELt 0.8.1, description of its package (types by compute capability), release notes of 0.8.0 "
        "(float8 on 8.9) and documentation of cusparseLtSparsity_t (2:4 for half, bfloat16, int8, e4m3 and e5m2, 1:2 "
        "for float)",
        holds=holds,
    )


_LAYOUT_RULES = (
    LayerRule(
        name="operator",
        message="It must run as a convolution or a fully connected layer.",
        source=_TENSORRT + "; what other operators become is not documented",
        holds=_known_operator,
    ),
    LayerRule(
        name="whole-groups",
        message="The number of input channels must be a multiple of 4.",
        source=_TENSORRT + ", given for C % 4 == 0",
        holds=_whole_groups,
    ),
    LayerRule(
        name="matrix-alignment",
        message=(
            "Both sizes of a matrix must be multiples of 16 for 16-bit types and of 32 for 8-bit types, or be padded "
            "to that where cuSPARSELt runs it."
        ),
        source="PyTorch, torch/sparse/semi_structured.py, shape constraints of its cuSPARSELt backend; cuSPARSELt "
        "0.8.1 refuses other sizes. Only of matrices: cuSPARSELt has no convolutions",
        holds=_aligned,
    ),
)


def _profile(
    name: str,
    title: str,
    *,
    gains: bool,
    products: Iterable[str],
    geforce: tuple[str, ...] = (),
    chips: Iterable[str],
    capabilities: tuple[str, ...],
    aliases: Iterable[str] = (),
    float8: bool = False,
) -> TargetProfile:
    """A profile that also answers to "NVIDIA A100", "sm_80", "compute capability 8.0" and to each GeForce card.

    Args:
        name, title, gains, products, chips, aliases: as in the profile.
        geforce: the series, then the models, such as "RTX 30 series" and "RTX 3090".
        capabilities: compute capabilities.
        float8: its tensor cores multiply float8.
    """
    products = (*products, *(f"GeForce {series}" for series in geforce[:1]))
    return TargetProfile(
        name=name,
        vendor="NVIDIA",
        title=title,
        products=products,
        chips=tuple(chips),
        aliases=(
            *(f"NVIDIA {product}" for product in products),
            *(f"{brand}{model}" for model in geforce for brand in ("", "GeForce ", "NVIDIA GeForce ")),
            *(f"sm_{capability.replace('.', '')}" for capability in capabilities),
            *(f"compute capability {capability}" for capability in capabilities),
            *aliases,
        ),
        gains=gains,
        # Where at most one of four or of two is not zero, at most two of four are not.
        patterns=("2:4", "1:4", "1:2"),
        reason=_GAIN if gains else _NO_GAIN,
        sources=(_ARCHITECTURES, *((_TENSORRT, _CHOSEN) if gains else ()), _PRODUCTS, _CHIPS),
        rules=(_data_type(float8), *_LAYOUT_RULES) if gains else (),
    )


PROFILES: tuple[TargetProfile, ...] = (
    _profile(
        "nvidia-blackwell",
        "NVIDIA Blackwell GPUs",
        gains=True,
        products=(
            *("B100", "B200", "GB200", "B300", "GB300", "RTX PRO 6000 Blackwell"),
            *("Jetson T5000", "Jetson T4000", "Jetson AGX Thor", "DGX Spark"),
        ),
        geforce=(
            *("RTX 50 series", "RTX 50", "RTX 5090", "RTX 5080", "RTX 5070 Ti", "RTX 5070"),
            *("RTX 5060 Ti", "RTX 5060", "RTX 5050"),
        ),
        chips=("GB100", "GB202", "GB203", "GB205", "GB10"),
        capabilities=("10.0", "10.1", "10.3", "11.0", "12.0", "12.1"),
        aliases=("Blackwell", "Jetson Thor"),
        float8=True,
    ),
    _profile(
        "nvidia-hopper",
        "NVIDIA Hopper GPUs",
        gains=True,
        products=("H100", "H200", "H800", "H20", "GH200"),
        chips=("GH100",),
        capabilities=("9.0",),
        aliases=("Hopper", "Grace Hopper"),
        float8=True,
    ),
    _profile(
        "nvidia-ada",
        "NVIDIA Ada GPUs",
        gains=True,
        products=("L4", "L40", "L40S", "L2", "L20", "RTX 6000 Ada", "RTX 5000 Ada", "RTX 4000 Ada", "RTX 2000 Ada"),
        geforce=(
            *("RTX 40 series", "RTX 40", "RTX 4090", "RTX 4080", "RTX 4070 Ti", "RTX 4070"),
            *("RTX 4060 Ti", "RTX 4060", "RTX 4050"),
        ),
        chips=("AD102", "AD103", "AD104", "AD106", "AD107"),
        capabilities=("8.9",),
        aliases=("Ada", "Ada Lovelace"),
        float8=True,
    ),
    _profile(
        "nvidia-ampere",
        "NVIDIA Ampere GPUs",
        gains=True,
        products=(
            *("A100", "A800", "A30", "A40", "A10", "A16", "A2"),
            *("RTX A6000", "RTX A5000", "RTX A4000", "RTX A2000"),
            *("Jetson AGX Orin", "Jetson Orin NX", "Jetson Orin Nano", "DRIVE Orin"),
        ),
        geforce=(
            *("RTX 30 series", "RTX 30", "RTX 3090 Ti", "RTX 3090", "RTX 3080 Ti", "RTX 3080", "RTX 3070 Ti"),
            *("RTX 3070", "RTX 3060 Ti", "RTX 3060", "RTX 3050 Ti", "RTX 3050"),
        ),
        chips=("GA100", "GA102", "GA103", "GA104", "GA106", "GA107", "GA10B"),
        capabilities=("8.0", "8.6", "8.7"),
        aliases=("Ampere", "Jetson Orin", "Orin"),
    ),
    _profile(
        "nvidia-turing",
        "NVIDIA Turing GPUs",
        gains=False,
        products=("T4", "Quadro RTX 8000", "Quadro RTX 6000", "Quadro RTX 5000", "Quadro RTX 4000", "TITAN RTX"),
        geforce=(
            *("RTX 20 series", "RTX 20", "RTX 2080 Ti", "RTX 2080", "RTX 2070", "RTX 2060"),
            *("GTX 16 series", "GTX 16", "GTX 1660 Ti", "GTX 1660", "GTX 1650"),
        ),
        chips=("TU102", "TU104", "TU106", "TU116", "TU117"),
        capabilities=("7.5",),
        aliases=("Turing", "Tesla T4"),
    ),
    _profile(
        "nvidia-volta",
        "NVIDIA Volta GPUs",
        gains=False,
        products=("V100", "TITAN V", "Jetson AGX Xavier", "Jetson Xavier NX"),
        chips=("GV100", "GV10B"),
        capabilities=("7.0", "7.2"),
        aliases=("Volta", "Tesla V100", "Jetson Xavier", "Xavier"),
    ),
    _profile(
        "nvidia-pascal",
        "NVIDIA Pascal and Maxwell GPUs",
        gains=False,
        products=("P100", "P40", "P4", "Jetson TX2", "M60", "M40", "Jetson TX1", "Jetson Nano"),
        geforce=(
            "GTX 10 series",
            "GTX 10",
            "GTX 1080 Ti",
            "GTX 1080",
            "GTX 1070",
            "GTX 1060",
            "GTX 1050 Ti",
            "GTX 1050",
        ),
        chips=("GP100", "GP102", "GP104", "GP10B", "GM200", "GM20B"),
        capabilities=("5.2", "5.3", "6.0", "6.1", "6.2"),
        aliases=("Pascal", "Maxwell", "Tesla P100", "Tesla P40", "Tesla P4", "Tesla M60"),
    ),
)
