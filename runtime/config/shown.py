"""Values of a cluster file as people write them, for messages and the reference."""

from __future__ import annotations

from enum import Enum
from typing import Any

from moorage.runtime.config.units import format_bytes, format_tokens

BYTE_KEYS = ("dram", "object_store_memory", "max_message_bytes", "device_memory", "dma_bytes")


def shown_value(key: str, value: Any) -> str:
    """`8GiB`, `4096 (4K)`, `true`, `SHARED`."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if key in BYTE_KEYS and isinstance(value, int):
        return format_bytes(value).replace(".00 ", "").replace(" ", "")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and value >= 1024 and format_tokens(value) != str(value):
        return f"{value} ({format_tokens(value)})"
    return str(value)


def one_of(names: tuple[str, ...]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
