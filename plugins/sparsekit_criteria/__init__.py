"""The criteria that come with sparsekit, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Iterable

from sparsekit.criterion import Criterion
from sparsekit.hookspecs import hookimpl
from sparsekit_criteria.admm import Admm
from sparsekit_criteria.controls import Inverted, Random
from sparsekit_criteria.magnitude import Magnitude
from sparsekit_criteria.sparsegpt import SparseGpt
from sparsekit_criteria.wanda import Wanda


@hookimpl
def sparsekit_criteria() -> Iterable[Criterion]:
    return (Magnitude(), Random(), Inverted(), Wanda(), SparseGpt(), Admm())
