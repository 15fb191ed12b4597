"""The criteria that come with sparsekit, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Iterable

from sparsekit.criterion import Criterion
from sparsekit.hookspecs import hookimpl
from sparsekit_criteria.controls import Inverted, Random
from sparsekit_criteria.magnitude import Magnitude


@hookimpl
def sparsekit_criteria() -> Iterable[Criterion]:
    return (Magnitude(), Random(), Inverted())
