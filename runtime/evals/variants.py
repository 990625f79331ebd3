"""Choices of memory by name: a preset, or any keys of the configuration, some of them following the length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from moorage.workers.errors import InvalidRequest

SCALE = "{scale}"
"""In a value it stands for the length over the model's trained length, at least 1."""
_SEPARATOR = re.compile(r",(?=\s*[a-z_]+\.[a-z0-9_]+=)")
"""A comma before another key; those inside a value such as {rope_type: linear, factor: 4} have none after them."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One choice: a preset that each request names, or keys of the configuration as `section.key=value`."""

    name: str
    preset: str | None = None
    overrides: tuple[str, ...] = ()

    def overrides_at(self, length: int | None, trained: int) -> list[str]:
        """The overrides for prompts of `length` tokens."""
        scale = max(1.0, (length or trained) / trained)
        return [override.replace(SCALE, f"{scale:.6g}") for override in self.overrides]


def parse_variant(text: str) -> Variant:
    """Reads `NAME:section.key=value,section.key=value`. Raises InvalidRequest for another form."""
    name, colon, keys = text.partition(":")
    overrides = tuple(part.strip() for part in _SEPARATOR.split(keys)) if keys.strip() else ()
    if not (name.strip() and colon) or not all(re.match(r"[a-z_]+\.[a-z0-9_]+=", part) for part in overrides):
        raise InvalidRequest(
            f"--variant {text}: should be NAME:section.key=value,…, as in wide:memory.topk=64,memory.n_init=128"
        )
    return Variant(name.strip(), None, overrides)


def check_names(variants: Sequence[Variant]) -> None:
    """Raises InvalidRequest when two variants share a name."""
    names = [variant.name for variant in variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"{twice}: named twice; give each preset and variant another name")
