"""The built-in deployment targets."""

from __future__ import annotations

from collections.abc import Iterable

from sparsekit.hookspecs import hookimpl
from sparsekit.target import TargetProfile
from sparsekit_targets import arm, atlas, nvidia


@hookimpl
def sparsekit_targets() -> Iterable[TargetProfile]:
    """Huawei's Atlas products, NVIDIA's GPUs and Arm's Ethos-U NPUs."""
    return (*atlas.PROFILES, *nvidia.PROFILES, *arm.PROFILES)
