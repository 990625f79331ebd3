"""bfloat16 as its bits: stored elements are uint16 and converted in registers. float32 passes through.

So one kernel serves both types. `half.py` does the same for float16, whose bits are uint16 as well.
"""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_SHORT, _WORD = ir.IntType(16), ir.IntType(32)


@intrinsic
def widen(_typing: Any, value: Any) -> Any:
    """float32 of a stored element."""
    if value == types.float32:
        return types.float32(value), lambda _context, _builder, _signature, args: args[0]
    if value != types.uint16:
        return None

    def widen_bits(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], _WORD), _WORD(16)), ir.FloatType())

    return types.float32(value), widen_bits


@intrinsic
def narrow(_typing: Any, value: Any, like: Any) -> Any:
    """Stored element of a float32, of the type of `like`; rounds to nearest even, and keeps NaN."""
    if value != types.float32:
        return None
    if like == types.float32:
        return types.float32(value, like), lambda _context, _builder, _signature, args: args[0]
    if like != types.uint16:
        return None

    def narrow_bits(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _WORD)
        odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
        rounded = builder.add(bits, builder.add(odd, _WORD(0x7FFF)))
        is_nan = builder.icmp_unsigned(">", builder.and_(bits, _WORD(0x7FFFFFFF)), _WORD(0x7F800000))
        kept = builder.select(is_nan, builder.or_(bits, _WORD(0x400000)), rounded)
        return builder.trunc(builder.lshr(kept, _WORD(16)), _SHORT)

    return types.uint16(value, like), narrow_bits


def stored(tensor: torch.Tensor) -> Any:
    """A tensor of the host as an array of elements that `widen` takes; no copy. bfloat16 or float32."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()
