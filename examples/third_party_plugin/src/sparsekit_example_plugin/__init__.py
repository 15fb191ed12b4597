"""An example of a plugin for sparsekit: this module is what the entry point names, and these are its hooks."""

from __future__ import annotations

from collections.abc import Iterable

from sparsekit import Criterion, OpHandler, TargetProfile, hookimpl
from sparsekit_example_plugin.acme import PROFILES
from sparsekit_example_plugin.positive import Positive
from sparsekit_example_plugin.sparse_matmul import SparseMatMul


@hookimpl
def sparsekit_op_handlers() -> Iterable[OpHandler]:
    return (SparseMatMul(),)


@hookimpl
def sparsekit_targets() -> Iterable[TargetProfile]:
    return PROFILES


@hookimpl
def sparsekit_criteria() -> Iterable[Criterion]:
    return (Positive(),)
