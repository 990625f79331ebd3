"""Numbers of single precision as the decimals that they were written as."""

from __future__ import annotations

import struct

_MOST_DIGITS = 9
"""Digits with which every number of single precision is told from all others."""


def as_decimal(value: float) -> float:
    """The number of the fewest decimal digits that is `value` in single precision, as 1e-5 for 9.99999974e-06.

    A number that single precision has not stays as it is.
    """
    if _single(value) != value:
        return value
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, _MOST_DIGITS + 1))
    return next(decimal for decimal in decimals if _single(decimal) == value)


def _single(value: float) -> float | None:
    """The nearest number of single precision; None for one beyond its range."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return None
