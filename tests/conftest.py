"""Fixtures for the tests on live graphs."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Which kernels TensorFlow takes depends on the processor, unless this is said before it is imported. Without these it
# has neither gradients of grouped convolutions nor NCHW.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import pytest
from small_graphs import VARIABLE_KINDS, settings_of


@pytest.fixture(params=VARIABLE_KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Variables and control flow as old scripts have them ("ref"), then as new ones do ("resource")."""
    with settings_of(request.param, "v1" if request.param == "ref" else "v2"):
        yield request.param


@pytest.fixture
def resource_kind() -> Iterator[None]:
    """TensorFlow 2's own settings: resource variables, functional control flow."""
    with settings_of("resource", "v2"):
        yield
