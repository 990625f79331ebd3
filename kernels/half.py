"""fp16 as its bits: Numba's CPU target has no half type, so stored elements are uint16 and converted in registers.

Inside a kernel `widen` and `narrow` become one vcvtph2ps or vcvtps2ph per vector. float32 storage passes through,
so one kernel serves both storage types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Storage = NDArray[np.uint16] | NDArray[np.float32]
"""Stored elements: the bits of fp16, or float32."""


@intrinsic
def widen(_typing_context: Any, value: Any) -> Any:
    """float32 of a stored element."""
    if value == types.float32:
        return types.float32(value), lambda _context, _builder, _signature, args: args[0]
    if value != types.uint16:
        return None

    def widen_half(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(value), widen_half


@intrinsic
def narrow(_typing_context: Any, value: Any, like: Any) -> Any:
    """Stored element of a float32, of the type of `like`; rounds to nearest even, beyond 65504 to infinity."""
    if value != types.float32:
        return None
    if like == types.float32:
        return types.float32(value, like), lambda _context, _builder, _signature, args: args[0]
    if like != types.uint16:
        return None

    def narrow_half(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(value, like), narrow_half


@intrinsic
def no_bits(_typing_context: Any, like: Any) -> Any:
    """Zero in an unsigned integer as wide as the stored element `like`: what `largest` begins with."""
    if like not in _AS_BITS:
        return None
    bits = _AS_BITS[like]
    return bits(like), lambda _context, _builder, _signature, _args: ir.Constant(ir.IntType(bits.bitwidth), 0)


@intrinsic
def largest(_typing_context: Any, most: Any, value: Any) -> Any:
    """The larger of `most` and the bits of a stored element without its sign.

    These grow with the absolute value, see NOT_FINITE; as integers they are compared in all lanes of a vector.
    """
    if value not in _AS_BITS or most != _AS_BITS[value]:
        return None

    def of_bits(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        width = ir.IntType(most.bitwidth)
        bits = builder.and_(builder.bitcast(args[1], width), ir.Constant(width, 2 ** (most.bitwidth - 1) - 1))
        return builder.select(builder.icmp_unsigned(">", bits, args[0]), bits, args[0])

    return most(most, value), of_bits


_AS_BITS = {types.uint16: types.uint16, types.float32: types.uint32}
NOT_FINITE = {np.dtype(np.uint16): 0x7C00, np.dtype(np.float32): 0x7F800000}
"""By storage type: the least bits without a sign that are infinity or not a number."""


def to_storage(array: NDArray[np.float32], is_half: bool) -> Storage:
    """Stored form of a float32 array on the host."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16).view(np.uint16) if is_half else array.astype(np.float32)


def from_storage(array: Storage) -> NDArray[np.float32]:
    """float32 of a stored array on the host; a copy."""
    return array.view(np.float16).astype(np.float32) if array.dtype == np.uint16 else array.astype(np.float32)
