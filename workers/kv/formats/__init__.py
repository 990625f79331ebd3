"""How blocks are stored: one module for each `KvType`, of its name in lower case."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from moorage.workers.kv.formats.base import BlockFormat, PackedFormat
from moorage.workers.spec import BlockShape, KvType

__all__ = ["BlockFormat", "BlockShape", "format_of", "takes_quantizer"]


@cache
def format_of(kv_type: KvType) -> BlockFormat:
    """The format that `kv_type` names."""
    found: BlockFormat = import_module(f"{__name__}.{kv_type.value.lower()}").FORMAT
    return found


def takes_quantizer(kv_type: KvType) -> bool:
    """Whether the format packs blocks by a quantizer, where it is given one."""
    found = format_of(kv_type)
    return isinstance(found, PackedFormat) and found.takes_quantizer
