"""Rows of packed codes unpacked number by number, for processors without a look-up in registers."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from moorage.kernels.compiling import njit
from moorage.kernels.key_select.lanes import load_float, store_float
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.simd_lanes import FLOAT, HALF, I8, I16


@intrinsic
def load_byte(_typing: Any, address: Any) -> Any:
    """The byte at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], I8.as_pointer()))

    return types.uint8(types.int64), build


@intrinsic
def load_short(_typing: Any, address: Any) -> Any:
    """The uint16 at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], I16.as_pointer()), align=2)

    return types.uint16(types.int64), build


@intrinsic
def load_half(_typing: Any, address: Any) -> Any:
    """float32 of the fp16 at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fpext(builder.load(builder.inttoptr(args[0], HALF.as_pointer()), align=2), FLOAT)

    return types.float32(types.int64), build


@njit(**SERIAL)
def unpack_plainly(
    layout: Any, codes: Any, count: Any, levels: Any, scale: Any, zero: Any, by_row: Any, out: Any
) -> None:
    """`count` rows of codes at an address as float32 at `out`.

    The statistics are fp16 for each row where `by_row`, else float32 for each channel.
    """
    dim = layout.head_dim
    for t in range(count):
        begin = codes + t * layout.row_bytes
        for d in range(dim):
            code = _code(layout, begin, d)
            level = np.float32(code) if layout.bits == 8 else load_float(levels + 4 * code)
            if by_row:
                factor, added = load_half(scale + 2 * t), load_half(zero + 2 * t)
            else:
                factor, added = load_float(scale + 4 * d), load_float(zero + 4 * d)
            store_float(out + 4 * (t * dim + d), added + factor * level)


@njit(**INLINE)
def _code(layout: Any, row: Any, d: Any) -> Any:
    """The code of channel d of the row at an address."""
    if layout.bits == 8:
        return np.int64(load_byte(row + d))
    if layout.bits == 4:
        half = layout.width // 2
        if d < half:
            return np.int64(load_byte(row + d)) & 15
        return np.int64(load_byte(row + d - half)) >> 4
    code = np.int64(load_byte(row + d // 4)) >> 2 * (d % 4) & 3
    if layout.bits == 3:
        code |= (np.int64(load_byte(row + layout.high_plane + d // 8)) >> d % 8 & 1) << 2
    return code
