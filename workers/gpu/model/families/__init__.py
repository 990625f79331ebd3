"""The model families, one module each. A module defines FAMILY; nothing else is to be done for a new one.

All of them are free of torch: the configuration and `runtime size` read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules

from moorage.workers.gpu.model.family import Family


def _found() -> Iterator[Family]:
    for module in iter_modules(__path__):
        yield import_module(f"{__name__}.{module.name}").FAMILY


FAMILIES: Mapping[str, Family] = {family.name: family for family in _found()}
"""Family by name."""
