"""JSON as every reader takes it: without NaN and Infinity, and without half characters."""

from __future__ import annotations

import json
from typing import Any


def strict_json(text: str) -> object:
    """The value of a JSON text; None also for what is no such text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if is_strict(value) else None


def is_strict(value: Any) -> bool:
    """Whether a value can be sent as JSON in UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # A lone surrogate can't be encoded, which is a ValueError too.
        return False
    return True
