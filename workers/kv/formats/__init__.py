"""How blocks are stored: one module for each `KvType`, of its name in lower case."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from moorage.workers.kv.formats.base import BlockFormat
from moorage.workers.spec import BlockShape, KvType

__all__ = ["BlockFormat", "BlockShape", "format_of"]


@cache
def format_of(kv_type: KvType) -> BlockFormat:
    """The format that `kv_type` names."""
    found: BlockFormat = import_module(f"{__name__}.{kv_type.value.lower()}").FORMAT
    return found
