"""Is a model sparse? Read from its weights, never from a stored mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from sparsekit.artefact.deployed import DeployedLayer
from sparsekit.artefact.model import Model
from sparsekit.config import PruneConfig
from sparsekit.deployed_plan import plan_deployed
from sparsekit.graph.trace import Read
from sparsekit.pattern import GroupCheck, Pattern, check
from sparsekit.planning import LayerDecision, Planning, make_plan
from sparsekit.plugins import Registry
from sparsekit.progress import track
from sparsekit.record import Record
from sparsekit.table import text_table
from sparsekit.target import TargetProfile, TargetVerdict

_WORK = "Verifying"


@attrs.frozen
class LayerVerification:
    """What the weights of one layer say.

    Attributes:
        name, op_type, shape, axis, pattern: as in the plan.
        ok: every group follows the pattern and every value is finite.
        seen: its weights could be read (or their state is known without: masks not yet stripped).
        groups: groups along the axis, a shorter one at its end included.
        violations: groups with too many non-zeros.
        density: non-zeros / size; NaN where no weights could be read.
        finite: neither NaN nor infinity.
        message: what is wrong, "" if nothing is.
        verdict: what the target makes of the layer, where one was chosen.
    """

    name: str
    op_type: str
    shape: tuple[int, ...] | None
    axis: int | None
    pattern: Pattern
    ok: bool
    seen: bool = True
    groups: int = 0
    violations: int = 0
    density: float = float("nan")
    finite: bool = False
    message: str = ""
    verdict: TargetVerdict | None = None


@attrs.frozen
class Verification:
    """The layers that should be sparse, each with what its weights say. Prints as a table.

    Attributes:
        layers: those looked at.
        skipped: layers that no pattern was expected of, with the reason.
    """

    layers: tuple[LayerVerification, ...]
    skipped: tuple[LayerDecision, ...] = ()

    @property
    def ok(self) -> bool:
        """All layers are sparse. With no layer to look at, nothing was shown: False."""
        return bool(self.layers) and all(layer.ok for layer in self.layers)

    @property
    def status(self) -> str:
        """ "sparse", "not sparse", or "unknown" where weights could not be read and no other layer fails."""
        if any(layer.seen and not layer.ok for layer in self.layers):
            return "not sparse"
        return "sparse" if self.ok else "unknown"

    def summary(self) -> str:
        """One sentence."""
        if not self.layers:
            return "Could not tell: no layer was found that should be sparse."
        if self.status == "unknown":
            unseen = [layer for layer in self.layers if not layer.seen]
            return f"Could not tell: the weights of {len(unseen)} of {len(self.layers)} layers could not be read."
        bad = [layer.name for layer in self.layers if not layer.ok]
        if bad:
            return f"NOT sparse: {len(bad)} of {len(self.layers)} layers fail ({', '.join(bad[:5])}).{self._dense()}"
        return f"Sparse: all {len(self.layers)} layers follow their pattern."

    def _dense(self) -> str:
        """Layers without a zero among others with many were left dense, perhaps on purpose; "" if there are none."""
        dense = [layer.name for layer in self.layers if not layer.ok and layer.density == 1]
        if not dense or len(dense) == len(self.layers):
            return ""
        return (
            f" Without a zero: {', '.join(dense[:5])}. If that is on purpose (keep_dense, skip_layers), verify with "
            "the record or the config that says so."
        )

    def __str__(self) -> str:
        judged = any(layer.verdict for layer in self.layers)
        rows = [
            (
                layer.name,
                layer.op_type,
                "-" if layer.shape is None else "x".join(map(str, layer.shape)),
                "-" if layer.axis is None else layer.axis,
                layer.pattern,
                layer.groups,
                layer.violations,
                f"{layer.density:.4f}",
                "ok" if layer.ok else layer.message,
                *([layer.verdict or "-"] if judged else []),
            )
            for layer in self.layers
        ]
        header = ["layer", "op", "shape", "axis", "pattern", "groups", "violating", "density", "verdict"]
        header += ["target"] if judged else []
        table = text_table(header, [[str(cell) for cell in row] for row in rows]) if rows else ""
        dense = "".join(f"\n  {d.name}: {d.reason}" for d in self.skipped)
        return f"{table}{self.summary()}{' Not looked at:' + dense if dense else ''}"


def verify_model(
    model: Model,
    registry: Registry,
    *,
    record: Record | None = None,
    config: PruneConfig | None = None,
    outputs: tuple[str, ...] | None = None,
    target: TargetProfile | None = None,
    stored_obstacle: Callable[[Read], str] = lambda read: "",
) -> Verification:
    """Check the weights of a model at rest.

    Args:
        model: the model.
        registry: the plugins.
        record: the layers that should be sparse. Without one: those that ``config`` would prune.
        config: None for 2:4 everywhere.
        outputs: look only at what lies behind these operations.
        target: judges the layers; it does not change whether they are sparse.
        stored_obstacle: why no pattern is expected of a weight, "" if it is.

    Raises:
        RecordError: the record names a layer that the graph does not have, or another shape.
        ModelError: a stored weight is damaged.
    """
    config = config or PruneConfig()
    planning = make_plan(model.view, config, outputs or model.outputs, registry, target, stored_obstacle)
    expected = _recorded(planning, record) if record else _planned(planning)
    names = {decision.name for decision, _ in expected}
    return Verification(
        layers=tuple(_look_at(decision, pattern, planning, model) for decision, pattern in track(expected, _WORK)),
        skipped=tuple(d for d in planning.plan.skipped if d.name not in names),
    )


def verify_deployed(
    layers: Sequence[DeployedLayer], config: PruneConfig, target: TargetProfile | None = None
) -> Verification:
    """Check the weights of a file in a deployment format, along the contraction axis of that format."""
    decisions = plan_deployed(layers, config, target).decisions
    expected = [pair for pair in zip(layers, decisions, strict=True) if not pair[0].exempt]
    return Verification(
        tuple(_look_at_deployed(layer, config.pattern, decision.verdict) for layer, decision in track(expected, _WORK))
    )


def _look_at_deployed(layer: DeployedLayer, pattern: Pattern, verdict: TargetVerdict | None) -> LayerVerification:
    fields = {name: getattr(layer, name) for name in ("name", "op_type", "shape", "axis")} | {"verdict": verdict}
    if not layer.readable or layer.axis is None:
        message = f"{layer.name}: {layer.obstacle or 'its layout is not known'}."
        return LayerVerification(**fields, pattern=pattern, ok=False, seen=False, message=message)
    return _judged(fields, pattern, [(layer.name, check(layer.values(), layer.axis, pattern))])


def _planned(planning: Planning) -> list[tuple[LayerDecision, Pattern]]:
    # A layer that still has its mask ops is not deployable yet, so it must not go unseen.
    return [
        (decision, decision.pattern or Pattern(2, 4))
        for decision in planning.plan.decisions
        if decision.pruned or decision.reason == "already-masked"
    ]


def _recorded(planning: Planning, record: Record) -> list[tuple[LayerDecision, Pattern]]:
    decisions = {name: decision for decision in planning.plan.decisions for name in decision.uses}
    record.match({name: d.shape for name, d in decisions.items()}, "model", "is not in the model")
    return [(decisions[entry.name], entry.pattern) for entry in record.layers]


def _look_at(decision: LayerDecision, pattern: Pattern, planning: Planning, model: Model) -> LayerVerification:
    fields = {name: getattr(decision, name) for name in ("name", "op_type", "shape", "axis", "verdict")}
    sites = planning.sites.get(decision)
    if sites is None:
        masked = decision.reason == "already-masked"
        return LayerVerification(**fields, pattern=pattern, ok=False, seen=masked, message=decision.message)
    source = sites[0].source
    obstacle = model.obstacle(source.read)
    if obstacle:
        message = f"{decision.name}: {obstacle}."
        return LayerVerification(**fields, pattern=pattern, ok=False, seen=False, message=message)
    checks = []
    for place, weight in model.values(source.read):
        checks.append((place or source.name, check(weight, source.axis, pattern)))
        del weight  # before the next copy is read
    return _judged(fields, pattern, checks)


def _judged(fields: dict[str, Any], pattern: Pattern, checks: list[tuple[str, GroupCheck]]) -> LayerVerification:
    # Of several copies the worst counts: each is what one kind of loader serves.
    worst = max((found for _, found in checks), key=lambda found: (not found.finite, found.violations, found.density))
    texts = [_failing(found, place, pattern, len(checks)) for place, found in checks]
    return LayerVerification(
        **fields,
        pattern=pattern,
        ok=not any(texts),
        groups=worst.groups,
        violations=worst.violations,
        density=worst.density,
        finite=worst.finite,
        message="; ".join(text for text in texts if text),
    )


def _failing(found: GroupCheck, place: str, pattern: Pattern, copies: int) -> str:
    parts = []
    if found.violations:
        parts.append(f"{found.violations} of {found.groups} groups hold more than {pattern.n} non-zeros")
    if not found.finite:
        parts.append(f"NaN or infinity in '{place}'")
    text = ", ".join(parts)
    return f"{text} (in the copy '{place}')" if text and copies > 1 else text
