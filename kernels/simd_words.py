"""Vectors of 32 int16 in LLVM's language: rounded products, dot products of pairs, look-ups in a register."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from moorage.kernels.simd import LINE_BYTES
from moorage.kernels.simd_lanes import FLOAT, HALF, I8, I16, I32, I64, call, host_has

LANES = 32
"""int16 lanes of a vector."""
VECTOR_BYTES = 64
SHORTS, SUMS = ir.VectorType(I16, LANES), ir.VectorType(I32, LANES // 2)
HAS_PAIR_DOTS = host_has("avx512bw") and host_has("avx512vbmi") and host_has("avx512vnni")
"""Whether the functions here can be used."""


def load(builder: Any, address: Any, element: ir.Type, count: int) -> Any:
    """A vector of `count` elements at an address."""
    kind = ir.VectorType(element, count)
    align = {I8: 1, I16: 2, HALF: 2, I32: 4, FLOAT: 4}[element]
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def load_one(builder: Any, address: Any, element: ir.Type) -> Any:
    """The float32 or int32 at an address."""
    return builder.load(builder.inttoptr(address, element.as_pointer()), align=4)


def store(builder: Any, vector: Any, address: Any) -> None:
    """Stores a vector of int16 or float32."""
    align = 2 if vector.type.element == I16 else 4
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=align)


def constant(numbers: list[int], element: ir.Type = I16) -> Any:
    """A constant vector."""
    return ir.Constant(ir.VectorType(element, len(numbers)), numbers)


def pick(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    """Lanes of two vectors; those of `right` are counted on from those of `left`."""
    return builder.shuffle_vector(left, right, constant(lanes, I32))


def splat(builder: Any, value: Any, count: int) -> Any:
    """A vector of `count` equal lanes."""
    lane = builder.insert_element(ir.Constant(ir.VectorType(value.type, count), ir.Undefined), value, I32(0))
    return pick(builder, lane, lane, [0] * count)


def offset(builder: Any, address: Any, by: int) -> Any:
    """The address `by` bytes further."""
    return builder.add(address, I64(by)) if by else address


def rounded_product(builder: Any, left: Any, right: Any) -> Any:
    """left * right / 2**15 of each lane, rounded."""
    return call(builder, "llvm.x86.avx512.pmul.hr.sw.512", SHORTS, [left, right])


def high_product(builder: Any, left: Any, right: Any) -> Any:
    """left * right / 2**16 of each lane without a sign: by powers of two a shift, where shuffles and shifts queue."""
    return call(builder, "llvm.x86.avx512.pmulhu.w.512", SHORTS, [left, right])


def merge(builder: Any, mask: int, left: Any, right: Any) -> Any:
    """The bits of `left` that a mask of 16 bits has, and the others of `right`."""
    both = [builder.bitcast(each, SUMS) for each in (constant([mask] * LANES), left, right)]
    found = call(builder, "llvm.x86.avx512.pternlog.d.512", SUMS, [*both, I32(0xCA)])
    return builder.bitcast(found, SHORTS)


def add_pair_dots(builder: Any, total: Any, left: Any, right: Any) -> Any:
    """total plus, in each int32 lane, the dot product of the two int16 lanes there. Sums beyond int32 wrap."""
    return call(builder, "llvm.x86.avx512.vpdpwssd.512", SUMS, [total, left, right])


def look_up(builder: Any, table: Any, index: Any) -> Any:
    """The entries of a table of LANES int16 at the low five bits of each lane."""
    return call(builder, "llvm.x86.avx512.permvar.hi.512", SHORTS, [table, index])


def to_shorts(builder: Any, floats: Any) -> Any:
    """The nearest int16 of each float32 lane; all must be within their range."""
    count = floats.type.count
    nearest = call(builder, f"llvm.rint.v{count}f32", floats.type, [floats])
    words = builder.fptosi(nearest, ir.VectorType(I32, count))
    return builder.trunc(words, ir.VectorType(I16, count))


def ask(builder: Any, address: Any, lines: Any) -> None:
    """Asks for `lines` cache lines from an address on in L2; any address is safe."""
    with cgutils.for_range(builder, lines) as loop:
        place = builder.add(address, builder.mul(loop.index, I64(LINE_BYTES)))
        target = builder.inttoptr(place, I8.as_pointer())
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [target, I32(0), I32(2), I32(1)])


def all_floats(value: float, count: int) -> Any:
    """A constant vector of equal float32."""
    return ir.Constant(ir.VectorType(FLOAT, count), [value] * count)


def magnitudes(builder: Any, vector: Any) -> Any:
    """The absolute values of a vector of float32."""
    return call(builder, f"llvm.fabs.v{vector.type.count}f32", vector.type, [vector])


def larger(builder: Any, left: Any, right: Any) -> Any:
    """The larger of two numbers or lanes; the second, where one is NaN."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def largest(builder: Any, vector: Any) -> Any:
    """The largest lane. LLVM's own reduction goes lane by lane, as long as it may not pass NaN over."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        if half == 1:
            left, right = (builder.extract_element(vector, I32(lane)) for lane in (0, 1))
            return larger(builder, left, right)
        vector = larger(
            builder, *(pick(builder, vector, vector, list(range(at, at + half))) for at in (0, half))
        )
    return vector
