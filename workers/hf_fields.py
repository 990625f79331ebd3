"""JSON files of a model directory, read field by field with one-line errors."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TypeGuard

from moorage.workers.errors import InvalidModel

MOST_INT = 2**31 - 1
LEAST_FLOAT, MOST_FLOAT = 1e-6, 1e6
"""Range of a number whose field has no narrower one; no published model is near its ends."""


class Fields:
    """A JSON object whose getters check what they return. A field that is null counts as absent."""

    def __init__(self, values: dict[str, object], source: str) -> None:
        self.values = values
        self.source = source
        self.was_read: set[str] = set()
        """Names of the fields that a getter was asked for."""

    @classmethod
    def read(cls, path: Path) -> Fields:
        """The object in the file at `path`. Raises InvalidModel when it is not one."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidModel(f"{path}: can't be read ({error.strerror}); check model.path") from None
        except (ValueError, RecursionError) as error:
            raise InvalidModel(f"{path}: not valid JSON ({error}); download the file again") from None
        if not isinstance(values, dict):
            raise InvalidModel(f"{path}: holds {type(values).__name__}, not a JSON object; download it again")
        return cls(values, str(path))

    def get(self, name: str) -> object:
        """The raw value, None when absent."""
        self.was_read.add(name)
        return self.values.get(name)

    def wrong(self, name: str, expected: str) -> InvalidModel:
        """The error for a field whose value does not serve."""
        if self.get(name) is None:
            return InvalidModel(f"{self.source}: {name} is missing; add it, {expected}")
        shown = repr(self.get(name))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return InvalidModel(f"{self.source}: {name} is {shown}; it must be {expected}")

    def positive_int(self, name: str, default: int | None = None, most: int = MOST_INT) -> int:
        """An integer from 1 to `most`; `default` when absent. Raises InvalidModel."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, "a positive integer")
        if value > most:
            raise self.wrong(name, f"at most {most}")
        return value

    def optional_positive_int(self, name: str, most: int = MOST_INT) -> int | None:
        """An integer from 1 to `most`, or None when absent. Raises InvalidModel."""
        return None if self.get(name) is None else self.positive_int(name, most=most)

    def positive_float(
        self, name: str, default: float | None = None, least: float = LEAST_FLOAT, most: float = MOST_FLOAT
    ) -> float:
        """A number above 0, from `least` to `most`; `default` when absent. Raises InvalidModel."""
        value = default if self.get(name) is None else self.get(name)
        if not _is_number(value) or value <= 0:
            raise self.wrong(name, "a positive number")
        if not least <= value <= most:
            raise self.wrong(name, f"from {least:g} to {most:g}")
        return float(value)

    def optional_positive_float(self, name: str) -> float | None:
        """A number above 0, or None when absent. Raises InvalidModel."""
        return None if self.get(name) is None else self.positive_float(name)

    def epsilon(self, name: str, default: float | None = None) -> float:
        """What a norm adds to a variance, from 1e-15 to 0.1; `default` when absent. Raises InvalidModel."""
        return self.positive_float(name, default, least=1e-15, most=0.1)

    def positive_floats(self, name: str, length: int) -> tuple[float, ...]:
        """A list of `length` numbers from LEAST_FLOAT to MOST_FLOAT. Raises InvalidModel."""
        value = self.get(name)
        if not isinstance(value, list) or not all(
            _is_number(x) and LEAST_FLOAT <= x <= MOST_FLOAT for x in value
        ):
            raise self.wrong(name, f"a list of {length} positive numbers")
        if len(value) != length:
            message = f"{self.source}: {name} has {len(value)} numbers; this head size needs {length}"
            raise InvalidModel(message)
        return tuple(float(x) for x in value)

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false; `default` when absent. Raises InvalidModel."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id, or a list of them; () when absent. Raises InvalidModel."""
        value = self.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x <= MOST_INT for x in ids):
            raise self.wrong(name, "a token id or a list of token ids")
        return tuple(ids)

    def child(self, name: str) -> Fields | None:
        """The object in this field, or None when absent or empty. Raises InvalidModel."""
        value = self.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.source}: {name}")


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float) and math.isfinite(value)
