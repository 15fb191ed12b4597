"""Who answers to a name of a product, held against the tables that the tests of every vendor have by hand."""

from __future__ import annotations

import pytest
import test_arm
import test_atlas
import test_nvidia

import sparsekit_targets
from sparsekit.errors import TargetError
from sparsekit.target import TargetProfile, resolve_target

PROFILES = tuple(sparsekit_targets.sparsekit_targets())
TABLES = (test_atlas, test_nvidia, test_arm)


@pytest.mark.parametrize(
    ("asked", "name", "gains"),
    [
        (asked, name, gains)
        for tables in TABLES
        for table, gains in ((tables.GAIN, True), (tables.NO_GAIN, False))
        for name, names in table.items()
        for asked in (name, *names)
    ],
)
def test_every_product_of_the_tables_has_its_verdict(asked: str, name: str, gains: bool) -> None:
    profile = resolve_target(asked, PROFILES)
    assert (profile.name, profile.gains, profile.gains_from("2:4")) == (name, gains, gains)


def test_the_tables_and_the_plugin_have_the_same_rows() -> None:
    rows = [name for tables in TABLES for name in (*tables.GAIN, *tables.NO_GAIN)]
    assert sorted(profile.name for profile in PROFILES) == sorted(rows)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_no_name_is_ambiguous(profile: TargetProfile) -> None:
    for name in profile.names:
        for spelling in (name, name.lower().replace(" ", "")):
            found = resolve_target(spelling, PROFILES)
            # One vendor's products share chips: the verdict is what counts.
            assert found is profile or ({found.vendor, profile.vendor} == {"Huawei"} and found.gains is profile.gains)


@pytest.mark.parametrize("asked", [name for tables in TABLES for name in tables.NOBODYS])
def test_a_name_that_nobody_has_is_not_guessed(asked: str) -> None:
    with pytest.raises(TargetError, match="unknown target"):
        resolve_target(asked, PROFILES)
