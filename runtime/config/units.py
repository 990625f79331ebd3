"""Values as people write them: `8GiB`, `512MB`, `128K` tokens."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

_BYTE_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _BYTE_UNITS[f"{_letter}IB"] = 1024**_power
    _BYTE_UNITS[f"{_letter}B"] = 1000**_power
_BYTE_KEYS = ("dram", "quota", "object_store_memory", "device_memory")
"""Keys of bytes whose names do not end in `_bytes`."""
_TIME_UNITS = {"": 1, "S": 1, "MIN": 60, "M": 60, "H": 3600, "D": 86400}
_TOKEN_UNITS = {"": 1, "K": 1024, "M": 1024**2}
_QUANTITY = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes of `8GiB` (1024-based), `8GB` (1000-based) or a plain number.

    Raises ValueError with the units that can be used.
    """
    return _parse(text, _BYTE_UNITS, "a size such as 8GiB, 512MiB or 8GB")


def parse_tokens(text: str | int) -> int:
    """Tokens of `128K` (K = 1024), `1M` (M = 1024²) or a plain number.

    Raises ValueError with the units that can be used.
    """
    return _parse(text, _TOKEN_UNITS, "a token count such as 4096, 128K or 1M")


def parse_seconds(text: str | float) -> float:
    """Seconds of `30min`, `12h`, `7d` or a plain number.

    Raises ValueError with the units that can be used.
    """
    if isinstance(text, float):
        return text
    return _parse(text, _TIME_UNITS, "a time such as 90, 30min, 12h or 7d")


def format_bytes(num_bytes: float) -> str:
    """Bytes with a binary unit, two decimals from KiB up: `8.00 GiB`."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def format_tokens(num_tokens: int) -> str:
    """Tokens in K or M where that is exact, else the plain number."""
    for unit, size in (("M", 1024**2), ("K", 1024)):
        if num_tokens and num_tokens % size == 0:
            return f"{num_tokens // size}{unit}"
    return str(num_tokens)


def _parse(text: str | int, units: dict[str, int], wanted: str) -> int:
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2].upper() not in units:
        raise ValueError(f"should be {wanted}")
    value = float(match[1]) * units[match[2].upper()]
    if "." not in match[1]:
        return int(match[1]) * units[match[2].upper()]
    return round(value)


def shown_value(key: str, value: Any) -> str:
    """`8GiB`, `4096 (4K)`, `true`, `SHARED`."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if (key in _BYTE_KEYS or key.endswith("_bytes")) and isinstance(value, int):
        return format_bytes(value).replace(".00 ", "").replace(" ", "")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and value >= 1024 and format_tokens(value) != str(value):
        return f"{value} ({format_tokens(value)})"
    return str(value)


def one_of(names: tuple[str, ...]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
