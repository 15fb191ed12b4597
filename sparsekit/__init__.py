"""2:4 (n:m) structured sparsity for TensorFlow: any graph in, a deployable sparse graph out, every layer explained.

The whole public API is here. Importing it is instant: TensorFlow is imported when a verb is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparsekit._on_tensorflow import register_gradient
from sparsekit.errors import (
    CalibrationError,
    ConfigError,
    GraphError,
    MissingFileError,
    ModelError,
    PluginError,
    RecordError,
    SaveError,
    SparsekitError,
    TargetError,
    UnsupportedTargetError,
    UnsupportedTargetWarning,
)

if TYPE_CHECKING:
    from sparsekit.api import diff, plan, prune, report, save, sensitivity, strip, verify
    from sparsekit.artefact.comparing import ValueChange
    from sparsekit.config import Override, PruneConfig
    from sparsekit.criterion import Criterion
    from sparsekit.difference import Difference, StructureChange
    from sparsekit.handler import Constraint, OpHandler, WeightSite
    from sparsekit.hookspecs import hookimpl
    from sparsekit.layer_sensitivity import LayerSensitivity, Sensitivity
    from sparsekit.matrix_form import Contraction, MatrixForm
    from sparsekit.pattern import Pattern
    from sparsekit.planning import LayerDecision, Plan
    from sparsekit.reporting.facts import Estimate, LayerFacts, Report, Totals
    from sparsekit.result import LayerAccount, PruneResult
    from sparsekit.target import LayerRule, TargetProfile, TargetVerdict
    from sparsekit.training.masked_model import MaskedModel
    from sparsekit.verification import LayerVerification, Verification

__version__ = "0.1.0"

__all__ = [
    "CalibrationError",
    "ConfigError",
    "Constraint",
    "Contraction",
    "Criterion",
    "Difference",
    "Estimate",
    "GraphError",
    "LayerAccount",
    "LayerDecision",
    "LayerFacts",
    "LayerRule",
    "LayerSensitivity",
    "LayerVerification",
    "MaskedModel",
    "MatrixForm",
    "MissingFileError",
    "ModelError",
    "OpHandler",
    "Override",
    "Pattern",
    "Plan",
    "PluginError",
    "PruneConfig",
    "PruneResult",
    "RecordError",
    "Report",
    "SaveError",
    "Sensitivity",
    "SparsekitError",
    "StructureChange",
    "TargetError",
    "TargetProfile",
    "TargetVerdict",
    "Totals",
    "UnsupportedTargetError",
    "UnsupportedTargetWarning",
    "ValueChange",
    "Verification",
    "WeightSite",
    "diff",
    "hookimpl",
    "plan",
    "prune",
    "report",
    "save",
    "sensitivity",
    "strip",
    "verify",
]

_HOMES = {
    "api": ("diff", "plan", "prune", "report", "save", "sensitivity", "strip", "verify"),
    "artefact.comparing": ("ValueChange",),
    "config": ("Override", "PruneConfig"),
    "criterion": ("Criterion",),
    "difference": ("Difference", "StructureChange"),
    "handler": ("Constraint", "OpHandler", "WeightSite"),
    "hookspecs": ("hookimpl",),
    "layer_sensitivity": ("LayerSensitivity", "Sensitivity"),
    "matrix_form": ("Contraction", "MatrixForm"),
    "pattern": ("Pattern",),
    "planning": ("LayerDecision", "Plan"),
    "reporting.facts": ("Estimate", "LayerFacts", "Report", "Totals"),
    "result": ("LayerAccount", "PruneResult"),
    "training.masked_model": ("MaskedModel",),
    "target": ("LayerRule", "TargetProfile", "TargetVerdict"),
    "verification": ("LayerVerification", "Verification"),
}

register_gradient()


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"sparsekit.{home}"), name)
            return value
    raise AttributeError(f"module 'sparsekit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
