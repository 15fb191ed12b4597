"""Reports to render: made of facts, without a model, so that every case is at hand."""

from __future__ import annotations

import functools

import attrs
import numpy as np

from sparsekit.config import PruneConfig
from sparsekit.layer_sensitivity import LayerSensitivity, Sensitivity
from sparsekit.pattern import Pattern
from sparsekit.planning import LayerDecision, Plan
from sparsekit.reporting.facts import Estimate, GroupFacts, LayerFacts, Report
from sparsekit.result import LayerAccount
from sparsekit.target import LayerRule, TargetProfile

HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style><style>*{display:none}</style>",
    "</code></summary></details></li></ol>",
    "&lt;b&gt; &amp; &#x3c;",
    "javascript:alert(1)",
    "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f525/\u6df1\u5ea6/\u00e9\u0301",
    "nul\x00 bell\x07 escape\x1b return\r lone\udc80 \ufffe",
    "StatefulPartitionedCall/" * 208 + "MatMul",
)

INT8 = LayerRule(
    name="int8", message="Weights must be int8.", source="the converter's manual, chapter 4", holds=lambda _: None
)
ALIGNED = LayerRule(
    name="alignment",
    message="The input channels must be a multiple of 16.",
    source="the vendor's tuning guide, page 12",
    holds=lambda decision: decision.shape is not None and decision.shape[decision.axis or 0] % 16 == 0,
)
TARGET = TargetProfile(
    name="acme-edge-2",
    vendor="Acme",
    title="Acme Edge 2 products",
    gains=True,
    reason="Its matrix unit skips zeros of int8 weights.",
    sources=("gain: Acme's data sheet, revision 3", "chip names: general knowledge"),
    rules=(INT8, ALIGNED),
)
GAINLESS = TargetProfile(
    name="acme-edge-1",
    vendor="Acme",
    title="Acme Edge 1",
    gains=False,
    reason="Its matrix unit multiplies every weight.",
    sources=("general knowledge",),
)
PATTERN = Pattern(2, 4)


def histogram_of(weight: np.ndarray, m: int) -> tuple[int, ...]:
    """Groups along the first axis."""
    nonzeros = [np.count_nonzero(weight[i : i + m], axis=0) for i in range(0, len(weight), m)]
    return tuple(np.bincount(np.concatenate(nonzeros), minlength=m + 1).tolist())


def group_facts(weight: np.ndarray, pattern: Pattern) -> GroupFacts:
    histogram = histogram_of(weight, pattern.m)
    return GroupFacts(np.count_nonzero(weight) / weight.size, histogram, sum(histogram[pattern.n + 1 :]))


def pruned_weight(weight: np.ndarray, pattern: Pattern) -> np.ndarray:
    kept = weight.copy()
    for i in range(0, len(weight), pattern.m):
        group = kept[i : i + pattern.m]
        ranks = np.argsort(np.argsort(-np.abs(group), axis=0, kind="stable"), axis=0)
        group[ranks >= pattern.n] = 0
    return kept


def layer(
    name: str,
    shape: tuple[int, ...] = (64, 32),
    op_type: str = "MatMul",
    *,
    reason: str = "",
    message: str = "",
    pattern: Pattern = PATTERN,
    target: TargetProfile | None = None,
    corner: tuple[int, int] = (8, 16),
) -> LayerFacts:
    """A layer whose weight is random and of at most 64 x 32; what is counted is scaled up to its shape."""
    axis = len(shape) - 2
    decision = LayerDecision(
        name=name,
        op_type=op_type,
        status="skip" if reason else "prune",
        reason=reason or "eligible",
        message=message
        or f"{name}: at most {pattern} of consecutive weights along axis {axis} of {list(shape)} stay, by magnitude.",
        shape=shape,
        axis=axis,
        dtype="float32",
        weight=f"{name}/kernel",
        uses=(name,),
        pattern=pattern,
        criterion="magnitude",
    )
    if target and not reason:
        decision = attrs.evolve(decision, verdict=target.judge(decision))
    weight = np.random.RandomState(sum(shape)).laplace(size=(min(shape[axis], 64), min(shape[-1], 32)))
    planned = weight if reason else pruned_weight(weight, pattern)
    size = int(np.prod(shape))
    return LayerFacts(
        decision=decision,
        weights=size,
        stored=_scaled(group_facts(weight, pattern), size / weight.size),
        planned=_scaled(group_facts(planned, pattern), size / weight.size),
        retained=float(np.abs(planned).sum() / np.abs(weight).sum()),
        mask=tuple("".join("#" if w else "." for w in row[: corner[1]]) for row in planned.T[: corner[0]]),
        multiply_adds=size * 196,
    )


def report(
    layers: list[LayerFacts], target: TargetProfile | None = None, source: str = "models/resnet50/frozen.pb", **more
) -> Report:
    plan = Plan(tuple(facts.decision for facts in layers), target)
    return Report(source, plan, tuple(layers), **more)


@functools.cache
def residual_network(target: TargetProfile | None = TARGET) -> Report:
    """54 layers with the shapes of ResNet-50, in one report with all that people usually see."""
    layers = [
        layer(
            "resnet50/conv1/Conv2D",
            (7, 7, 3, 64),
            "Conv2D",
            reason="too-few-weights",
            message="resnet50/conv1/Conv2D: 9,408 weights are fewer than min_weights = 10,000.",
        )
    ]
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for block in range(1, blocks + 1):
            name = f"resnet50/conv{stage}_block{block}"
            if block == 1:
                layers.append(layer(f"{name}_0_conv/Conv2D", (1, 1, inputs, 4 * width), "Conv2D", target=target))
            layers.append(layer(f"{name}_1_conv/Conv2D", (1, 1, inputs, width), "Conv2D", target=target))
            layers.append(layer(f"{name}_2_conv/Conv2D", (3, 3, width, width), "Conv2D", target=target))
            layers.append(layer(f"{name}_3_conv/Conv2D", (1, 1, width, 4 * width), "Conv2D", target=target))
            inputs = 4 * width
    layers.append(
        layer(
            "resnet50/predictions/MatMul",
            (2048, 1000),
            reason="output-layer",
            message="resnet50/predictions/MatMul: skip_outputs leaves the last layers before the outputs dense.",
        )
    )
    estimates = (
        Estimate("Acme's estimate (acmec 3.1, edge-2)", "multiply-adds", 4_089_184_256.0, 2_106_318_848.0),
        Estimate("measured by Acme's runtime 3.1 on edge-2", "milliseconds", 12.41, 8.03),
    )
    return report(layers, target, estimates=estimates if target else ())


@functools.cache
def odd_cases() -> Report:
    """Everything that is unusual, in one report."""
    shared = layer("tower/shared", (96, 32), target=TARGET)
    shared = attrs.evolve(
        shared, decision=attrs.evolve(shared.decision, uses=("tower/shared", "tower/again", "tower/once_more"))
    )
    unread = layer("live/dense", (128, 64), target=TARGET)
    unread = attrs.evolve(
        unread, stored=None, planned=None, retained=None, mask=(), note="the weights of a live graph are in its session"
    )
    not_found = LayerFacts(
        LayerDecision(
            "lookup/MatMul", "MatMul", "skip", "weight-dynamic", "lookup/MatMul: no stored weight was found."
        ),
        note="no weight was found",
    )
    zeros = attrs.evolve(
        layer("dead/MatMul", (16, 8), target=TARGET), retained=float("nan"), stored=GroupFacts(0.0, (32, 0, 0, 0, 0), 0)
    )
    layers = [
        shared,
        unread,
        not_found,
        zeros,
        layer("misaligned/MatMul", (60, 10), target=TARGET),
        layer("short/MatMul", (2, 64), reason="axis-too-short", message="short/MatMul: axis 0 has 2 weights."),
        layer("four_of_eight", (64, 64), pattern=Pattern(4, 8), target=TARGET),
        layer("long_groups", (512, 32), pattern=Pattern(16, 64), target=TARGET, corner=(8, 64)),
        layer("tiny/MatMul", (6, 1), target=TARGET, corner=(1, 6)),
        attrs.evolve(layer("loop/MatMul", (32, 32), target=TARGET), multiply_adds=None, note="its batch is not known"),
    ]
    return report(layers, TARGET, "a live graph", estimates=(Estimate("Acme's estimate", "cycles", 0.0, 0.0),))


@functools.cache
def hostile() -> Report:
    """Names, texts and a source that would break a page that trusts them."""
    layers = [
        layer(name, target=TARGET) if place % 2 else layer(name, reason="skip-layers", message=f"{name}: left out.")
        for place, name in enumerate(HOSTILE_NAMES)
    ]
    layers = [attrs.evolve(facts, note=facts.decision.name) for facts in layers]
    return report(layers, TARGET, HOSTILE_NAMES[1] + HOSTILE_NAMES[8])


@functools.cache
def many(layers: int = 250) -> Report:
    """As deep as models get."""
    return report(
        [
            layer(f"encoder/block_{place}/dense", (64, 64), target=TARGET)
            if place % 3
            else layer(
                f"encoder/block_{place}/depthwise",
                (3, 3, 64, 1),
                "DepthwiseConv2dNative",
                reason="no-input-channels",
                message=f"encoder/block_{place}/depthwise: every output has a single input channel.",
            )
            for place in range(layers)
        ],
        TARGET,
    )


@functools.cache
def calibrated() -> Report:
    """What calibration did to every layer, and how much each of them decides; with names and values of every kind."""
    names = ("body/conv", *HOSTILE_NAMES[:3], HOSTILE_NAMES[-1], "head")
    layers = [layer(name, (64, 16 * (place + 1))) for place, name in enumerate(names)]
    layers.append(layer("tiny", (8, 4), reason="kept-dense", message="tiny: keep_dense leaves it dense."))
    accounts = [
        LayerAccount(
            name,
            "admm",
            error_before=0.3 / (place + 1),
            error_after=0.01 * (place + 1) ** 2,
            retained=0.7,
            damping=0.001 * place,
            iterations=30 + place,
            seconds=1.25 * place,
            shifted=bool(place % 2),
            note=name if place % 2 else "",
        )
        for place, name in enumerate(names[:-1])
    ]
    accounts.append(LayerAccount("head", "magnitude", note="it lies in a loop or cond"))
    errors = (1.5, 0.25, 0.0312, 1e-5, 0.0, None)
    sensitivities = [
        LayerSensitivity(
            name,
            "MatMul",
            (name,),
            (64, 16 * (place + 1)),
            PATTERN,
            weights=1024 * (place + 1),
            multiply_adds=None if place == 2 else 10 ** (place + 3),
            error=None if error is None else error / 3,
            output_error=error,
            note="" if error is not None else "no run of the model computes it",
        )
        for place, (name, error) in enumerate(zip(names, errors, strict=True))
    ]
    measured = Sensitivity(tuple(sensitivities), 2.0, ("scores:0",), 32, PruneConfig())
    return report(layers, accounts=tuple(accounts), sensitivity=measured)


def empty() -> Report:
    """A graph without a layer."""
    return report([], TARGET)


def nothing_pruned() -> Report:
    return report([layer("fc", reason="skip-layers", message="fc: skip_layers leaves it dense.")], GAINLESS)


def without_gain() -> Report:
    return report([layer("fc", target=GAINLESS)], GAINLESS)


ALL = {
    "residual network": residual_network,
    "without a target": lambda: residual_network(None),
    "calibrated": calibrated,
    "odd cases": odd_cases,
    "hostile": hostile,
    "empty": empty,
    "nothing pruned": nothing_pruned,
    "without gain": without_gain,
}


def _scaled(groups: GroupFacts, factor: float) -> GroupFacts:
    histogram = tuple(int(number * factor) for number in groups.histogram)
    return GroupFacts(groups.density, histogram, int(groups.violations * factor))
