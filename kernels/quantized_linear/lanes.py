"""Vectors of PANEL lanes in LLVM's language: loads that widen to float32, broadcasts, running sums."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from moorage.kernels.code_kinds import PANEL
from moorage.kernels.simd_lanes import (
    FLOAT,
    FLOATS,
    HALF,
    I8,
    I16,
    I32,
    I64,
    WORDS,
    all_lanes,
    call,
    host_has,
    splat,
)

PREFETCH_BYTES = 8192
"""How far ahead weights are asked for; without it one core reads them at half the speed."""


def pointer(builder: Any, address: Any, element: ir.Type, offset: Any = None) -> Any:
    """Pointer to the element `offset` after an address."""
    base = builder.inttoptr(address, element.as_pointer())
    return base if offset is None else builder.gep(base, [offset])


def load(builder: Any, place: Any, element: ir.Type) -> Any:
    """PANEL elements from `place`, which points to one of them and need not be aligned."""
    typed = builder.bitcast(place, ir.VectorType(element, PANEL).as_pointer())
    return builder.load(typed, align=max(1, {I8: 1, I16: 2, HALF: 2}.get(element, 4)))


def load_float(builder: Any, place: Any, element: ir.Type) -> Any:
    """The same as float32; integers of 16 bits are bfloat16, those of 8 bits are signed numbers."""
    vector = load(builder, place, element)
    if element == FLOAT:
        return vector
    if element == HALF:
        return builder.fpext(vector, FLOATS)
    if element == I16:
        return builder.bitcast(builder.shl(builder.zext(vector, WORDS), all_lanes(I32, 16)), FLOATS)
    return builder.sitofp(builder.sext(vector, WORDS), FLOATS)


def load_float8(builder: Any, place: Any) -> Any:
    """PANEL floats of type E4M3 as float32, divided by 256: their bits stand for that in float16."""
    shorts = ir.VectorType(I16, PANEL)
    wide = builder.zext(load(builder, place, I8), shorts)
    sign = builder.shl(builder.and_(wide, all_lanes(I16, 0x80)), all_lanes(I16, 8))
    rest = builder.shl(builder.and_(wide, all_lanes(I16, 0x7F)), all_lanes(I16, 7))
    return builder.fpext(builder.bitcast(builder.or_(sign, rest), ir.VectorType(HALF, PANEL)), FLOATS)


def store(builder: Any, vector: Any, place: Any) -> None:
    """Stores PANEL float32 at `place`, which need not be aligned."""
    builder.store(vector, builder.bitcast(place, FLOATS.as_pointer()), align=4)


def store_bfloat(builder: Any, vector: Any, place: Any) -> None:
    """Stores PANEL float32 as bfloat16, rounded to nearest even; NaN is not minded."""
    bits = builder.bitcast(vector, WORDS)
    odd = builder.and_(builder.lshr(bits, all_lanes(I32, 16)), all_lanes(I32, 1))
    rounded = builder.add(bits, builder.add(odd, all_lanes(I32, 0x7FFF)))
    shorts = ir.VectorType(I16, PANEL)
    high = builder.trunc(builder.lshr(rounded, all_lanes(I32, 16)), shorts)
    builder.store(high, builder.bitcast(place, shorts.as_pointer()), align=2)


def broadcast(builder: Any, place: Any) -> Any:
    """The float32 at `place` in all lanes."""
    return splat(builder, builder.load(place))


def zeros(builder: Any, count: int) -> list[Any]:
    """Places of `count` vectors in the function's frame, which become registers."""
    return [cgutils.alloca_once(builder, FLOATS) for _ in range(count)]


def clear(builder: Any, places: list[Any]) -> None:
    """Sets vectors to 0."""
    for place in places:
        builder.store(all_lanes(FLOAT, 0.0), place)


def prefetch(builder: Any, place: Any, ahead_bytes: int) -> None:
    """Asks for the cache line `ahead_bytes` after `place`; any address is safe."""
    line = builder.gep(builder.bitcast(place, I8.as_pointer()), [I64(ahead_bytes)])
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [line, I32(0), I32(3), I32(1)])


def look_up(builder: Any, table: Any, indices: Any) -> Any:
    """table[indices & 15] of a vector of 16 float32 and one of 32-bit words."""
    if host_has("avx512f"):
        return call(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [table, indices])
    low, found = builder.and_(indices, all_lanes(I32, 15)), ir.Constant(FLOATS, ir.Undefined)
    for lane in range(PANEL):
        value = builder.extract_element(table, builder.extract_element(low, I32(lane)))
        found = builder.insert_element(found, value, I32(lane))
    return found
