"""The packed blocks of an arena: what packs them, and the pages that hold rows in fp16 instead."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.base import Bytes, PackedCodec, PackedFormat
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.kv.formats.quantizer_array import from_array, to_array
from moorage.workers.spec import KvLayout, KvType


def codec_in(
    format: PackedFormat, layout: KvLayout, memory: Bytes, quantizer: Quantizer | None
) -> PackedCodec:
    """The codec by a quantizer, which is written to `memory`, or read from there where none is given."""
    shape, numbers = layout.block_shape, memory.view(np.float32)
    if quantizer is not None and len(numbers):
        numbers[:] = to_array(quantizer)
    elif len(numbers):
        bits = numbers.reshape(layout.num_layers, -1)[:, 0]
        if not bits.any():
            # Nobody has written one: a warm-up compiles by an arena of its own, whatever its numbers are.
            bits[:] = [bits_of(each) for each in layout.layer_kv_types] or format.bits
        quantizer = from_array(numbers, format.bits, layout.num_layers, shape.num_kv_heads, shape.head_dim)
    return format.codec(shape, quantizer)


def bits_of(kv_type: KvType) -> int:
    """The codec of a packed format."""
    format = format_of(kv_type)
    assert isinstance(format, PackedFormat)
    return format.bits


def by_layer(layout: KvLayout, memory: Bytes, num_pages: int) -> tuple[Bytes, ...]:
    """[P, bytes of a block] of each layer, which follow each other in `memory`."""
    ends = np.cumsum(layout.layer_bytes) * num_pages
    return tuple(part.reshape(num_pages, -1) for part in np.split(memory, ends[:-1]))


def raw_view(layout: KvLayout, stored: Bytes) -> NDArray[np.uint16]:
    """[P, 2, Hkv, layout.raw_rows, D]: the pages of a layer, `stored` [P, bytes], as those that hold rows."""
    shape = 2, layout.num_kv_heads, layout.raw_rows, layout.head_dim
    rows = stored[:, : 2 * int(np.prod(shape))].view(np.uint16)
    return rows.reshape(len(stored), *shape, copy=False)
