"""Bytes: keys by channel of a block, values by token and KV head (KIVI)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.formats.base import Bytes, PackedCodec, PackedFormat
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.kv.messages import Int32
from moorage.workers.spec import BlockShape

_LEVELS = 255


class ByteCodec:
    """Codes [2, Hkv, B, D], then scale and zero point of keys [2, Hkv, D] and of values [2, Hkv, B], fp16."""

    def __init__(self, shape: BlockShape) -> None:
        self._shape = shape

    def encode(self, layer: int, blocks: NDArray[np.uint16], stored: Bytes, pages: Int32) -> bool:
        """See PackedCodec."""
        del layer
        rows = blocks.view(np.float16).astype(np.float32)
        if not np.isfinite(rows).all():
            return False
        codes, parts = [], []
        for part, axis in ((rows[:, 0], 2), (rows[:, 1], 3)):
            low, high = part.min(axis, keepdims=True), part.max(axis, keepdims=True)
            scale, zero = ((high - low) / _LEVELS).astype(np.float16), low.astype(np.float16)
            wide = np.where(scale > 0, scale, 1).astype(np.float32)
            codes.append(np.clip(np.rint((part - zero) / wide), 0, _LEVELS).astype(np.uint8))
            parts += [scale, zero]
        flat = [each.reshape(len(pages), -1).view(np.uint8) for each in (*codes, *parts)]
        packed = np.concatenate(flat, axis=1)
        stored[pages, : packed.shape[1]] = packed
        return True

    def decode(self, layer: int, stored: Bytes, pages: Int32, out: NDArray[np.uint16], slots: Int32) -> None:
        """See PackedCodec."""
        del layer
        heads, size, dim = self._shape
        count, codes = len(pages), heads * size * dim
        found = stored[pages]
        at = 2 * codes
        for part, (shape, length) in enumerate(
            (((heads, 1, dim), heads * dim), ((heads, size, 1), heads * size))
        ):
            scale, zero = (
                found[:, at + 2 * i * length : at + 2 * (i + 1) * length]
                .copy()
                .view(np.float16)
                .reshape(count, *shape)
                .astype(np.float32)
                for i in (0, 1)
            )
            at += 4 * length
            code = found[:, part * codes : (part + 1) * codes].reshape(count, *self._shape)
            out[slots, part] = (code * scale + zero).astype(np.float16).view(np.uint16)


class Int8(PackedFormat):
    """See the module."""

    bits = 8

    def block_bytes(self, shape: BlockShape, calibrated: bool = False) -> int:
        """See BlockFormat."""
        del calibrated
        statistics = 4 * shape.num_kv_heads * (shape.head_dim + shape.block_size)
        return -(-(shape.num_elements + statistics) // 64) * 64

    def codec(self, shape: BlockShape, quantizer: Quantizer | None = None) -> PackedCodec:
        """See PackedFormat."""
        del quantizer
        return ByteCodec(shape)


FORMAT = Int8()
