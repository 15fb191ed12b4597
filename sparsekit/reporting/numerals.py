"""Numbers as people read them."""

from __future__ import annotations

import math

UNKNOWN = "not known"
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def known(value: float | None) -> bool:
    """There is a number; NaN and infinity are none."""
    return value is not None and math.isfinite(value)


def count(value: int) -> str:
    """All digits: 1,234,567."""
    return f"{value:,}"


def short(value: int) -> str:
    """Three digits and a unit from a million on: 1.23M, 45.6G; all digits below it."""
    for unit, letter in _UNITS:
        scaled = value / unit
        if scaled >= 0.9995:
            decimals = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:,.{decimals}f}{letter}"
    return count(value)


def share(value: float | None) -> str:
    """A share of 1 as a percentage; only none and all read 0% and 100%."""
    if value is None or not known(value):
        return UNKNOWN
    if value in (0, 1):
        return f"{value:.0%}"
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}%"


def quantity(value: float) -> str:
    """A measured or estimated number of any size: 1,234,567, 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def ratio(value: float) -> str:
    """A quotient: 0.532."""
    return f"{value:.3f}"
