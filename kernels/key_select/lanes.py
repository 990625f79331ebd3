"""Estimated logits of many keys from their one-bit codes, in vectors of 64 or 16 keys.

The products of a query with four bits of a code are looked up in a table of 16 bytes (Quick ADC, VLDB 2017; FastScan
of Faiss), which one instruction does for a whole vector of keys. All arguments of the intrinsics are addresses in
bytes and numbers; nothing is checked.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moorage.kernels.simd_lanes import FLOAT, HALF, I8, I16, I32, I64, call, host_has, multiply_add
from moorage.kernels.simd_softmax import load, store

TABLE_BYTES = 16
"""Of the table for four bits of a code."""
LARGEST = 127
"""The largest entry of a table: the sum of two fits a byte."""
_LOOK_UPS = {64: ("avx512bw", "llvm.x86.avx512.pshuf.b.512"), 16: ("ssse3", "llvm.x86.ssse3.pshuf.b.128")}
"""By keys of a vector: the feature of the processor, and LLVM's name of the instruction."""


class _Vectors:
    """The types of a vector of keys, and what is done with them."""

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self.codes, self.pairs = ir.VectorType(I8, keys), ir.VectorType(I16, keys // 2)
        self.floats, self.halves = ir.VectorType(FLOAT, keys), ir.VectorType(HALF, keys)
        self.words = ir.VectorType(I32, keys)

    def read(self, builder: Any, place: Any, kind: ir.VectorType, align: int = 1) -> Any:
        """A vector at an address."""
        return builder.load(builder.inttoptr(place, kind.as_pointer()), align=align)

    def spread(self, builder: Any, place: Any) -> Any:
        """The float32 at an address in all lanes."""
        lane = builder.insert_element(
            ir.Constant(self.floats, ir.Undefined), load(builder, place, FLOAT), I32(0)
        )
        return builder.shuffle_vector(lane, lane, ir.Constant(self.words, [0] * self.keys))

    def looked_up(self, builder: Any, place: Any, index: Any) -> Any:
        """The entries `index` of the table at an address."""
        table = self.read(builder, place, ir.VectorType(I8, TABLE_BYTES))
        feature, name = _LOOK_UPS[self.keys]
        if host_has(feature):
            lanes = ir.Constant(self.words, [lane % TABLE_BYTES for lane in range(self.keys)])
            return call(builder, name, self.codes, [builder.shuffle_vector(table, table, lanes), index])
        found = ir.Constant(self.codes, ir.Undefined)
        for lane in range(self.keys):
            at = builder.zext(builder.extract_element(index, I32(lane)), I32)
            found = builder.insert_element(found, builder.extract_element(table, at), I32(lane))
        return found

    def numbers(self, builder: Any, both: Any, upper: Any) -> Any:
        """The sums of all keys as floats, of which `both` holds those of two neighbours in each word."""
        eight = ir.Constant(self.pairs, [8] * (self.keys // 2))
        lower = builder.sub(both, builder.shl(upper, eight))
        lanes = [lane // 2 + (lane % 2) * (self.keys // 2) for lane in range(self.keys)]
        joined = builder.shuffle_vector(lower, upper, ir.Constant(self.words, lanes))
        return builder.uitofp(builder.zext(joined, self.words), self.floats)


def _code_logits(keys: int, group: int) -> Callable[..., Any]:
    vectors = _Vectors(keys)
    codes, pairs = vectors.codes, vectors.pairs
    nibble, four = (ir.Constant(codes, [value] * keys) for value in (15, 4))
    eight = ir.Constant(pairs, [8] * (keys // 2))

    def code_logits(
        _typing: Any, planes: Any, num_planes: Any, block: Any, scales: Any, tables: Any, terms: Any, out: Any,
        out_step: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            planes, num_planes, block, scales, tables, terms, out, out_step = args
            to_head = builder.mul(num_planes, I64(2 * TABLE_BYTES))
            own = [builder.add(tables, builder.mul(to_head, I64(head))) for head in range(group)]
            with cgutils.for_range(builder, builder.udiv(block, I64(keys))) as loop:
                first = builder.mul(loop.index, I64(keys))
                sums = [[cgutils.alloca_once(builder, pairs) for _ in range(2)] for _ in range(group)]
                for both, upper in sums:
                    for held in (both, upper):
                        builder.store(ir.Constant(pairs, [0] * (keys // 2)), held)
                with cgutils.for_range(builder, num_planes) as plane:
                    at = builder.add(builder.add(planes, first), builder.mul(plane.index, block))
                    bits = vectors.read(builder, at, codes)
                    low, high = builder.and_(bits, nibble), builder.lshr(bits, four)
                    step = builder.mul(plane.index, I64(2 * TABLE_BYTES))
                    for table, (both, upper) in zip(own, sums, strict=True):
                        here = builder.add(table, step)
                        after = builder.add(here, I64(TABLE_BYTES))
                        found = builder.add(
                            vectors.looked_up(builder, here, low), vectors.looked_up(builder, after, high)
                        )
                        found = builder.bitcast(found, pairs)
                        builder.store(builder.add(builder.load(both), found), both)
                        builder.store(builder.add(builder.load(upper), builder.lshr(found, eight)), upper)
                place = builder.add(scales, builder.mul(first, I64(2)))
                scale = builder.fpext(vectors.read(builder, place, vectors.halves, 2), vectors.floats)
                for head, (both, upper) in enumerate(sums):
                    numbers = vectors.numbers(builder, builder.load(both), builder.load(upper))
                    factor, offset, mean = (
                        vectors.spread(builder, builder.add(terms, I64(12 * head + 4 * i))) for i in range(3)
                    )
                    inner = multiply_add(builder, numbers, factor, offset)
                    found = multiply_add(builder, inner, scale, mean)
                    into = builder.add(
                        builder.add(out, builder.mul(out_step, I64(head))), builder.mul(first, I64(4))
                    )
                    builder.store(found, builder.inttoptr(into, vectors.floats.as_pointer()), align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.void(*[i] * 8), build

    tile: Callable[..., Any] = intrinsic(code_logits)
    return tile


LOGITS_64 = tuple(_code_logits(64, group) for group in range(1, 5))
"""(planes, num_planes, block, scales, tables, terms, out, out_step) by the number of queries, 1 to 4: estimated
logits of the `block` keys of a block, a multiple of 64, for each query, float32 from `out` on.

Byte p of the keys' codes lies at planes + p * block, one byte a key; `scales` are fp16. `tables` are the queries'
[group, num_planes, 2, 16] bytes, for the lower and the upper four bits; `terms` are [group, 3] float32: the logit
of a key is scale * (terms[0] * sum + terms[1]) + terms[2]. Rows of `out` are out_step bytes apart."""
LOGITS_16 = tuple(_code_logits(16, group) for group in range(1, 5))
"""`LOGITS_64` for a block that is a multiple of 16."""


@intrinsic
def prefetch_at(_typing: Any, address: Any) -> Any:
    """Asks for the cache line of an address in L2; any address is safe."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(hint, [pointer, I32(0), I32(2), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def copy_float(_typing: Any, into: Any, address: Any) -> Any:
    """Copies the float32 at an address to another."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store(builder, load(builder, args[1], FLOAT), args[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def store_word(_typing: Any, into: Any, value: Any) -> Any:
    """Stores an int64 at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store(builder, args[1], args[0], 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build
