"""Values of many keys from their one-bit codes, in vectors of 64, 32 or 16 keys.

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

ENTRIES, TABLE_BYTES = 16, 64
"""Of the table for four bits of a code, whose entries are written four times: a vector's worth is read as it lies."""
LARGEST = 127
"""The largest entry of a table: the sum of two fits a byte."""
_LOOK_UPS = {
    64: ("avx512bw", "llvm.x86.avx512.pshuf.b.512"),
    32: ("avx2", "llvm.x86.avx2.pshuf.b"),
    16: ("ssse3", "llvm.x86.ssse3.pshuf.b.128"),
}
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
        table = self.read(builder, place, self.codes)
        feature, name = _LOOK_UPS[self.keys]
        if host_has(feature):
            return call(builder, name, self.codes, [table, index])
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


def _code_values(keys: int, group: int) -> Callable[..., Any]:
    vectors = _Vectors(keys)
    codes, pairs = vectors.codes, vectors.pairs
    nibble, four = (ir.Constant(codes, [value] * keys) for value in (15, 4))
    eight = ir.Constant(pairs, [8] * (keys // 2))

    def add_plane(builder: Any, bits: Any, tables: list[Any], sums: list[Any]) -> None:
        """Adds what eight bits of the codes stand for to the sums of each query: of both keys of a word, and of its
        upper key alone."""
        low, high = builder.and_(bits, nibble), builder.lshr(bits, four)
        for table, (both, upper) in zip(tables, sums, strict=True):
            after = builder.add(table, I64(TABLE_BYTES))
            found = builder.add(
                vectors.looked_up(builder, table, low), vectors.looked_up(builder, after, high)
            )
            found = builder.bitcast(found, pairs)
            builder.store(builder.add(builder.load(both), found), both)
            builder.store(builder.add(builder.load(upper), builder.lshr(found, eight)), upper)

    def code_values(
        _typing: Any, planes: Any, num_planes: Any, block: Any, tables: Any, terms: Any, means: Any, means_step: Any,
        less: Any, joins: Any, out: Any,
    ) -> Any:  # fmt: skip
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            planes, num_planes, block, tables, terms, means, means_step, less, joins, out = args
            to_head = builder.mul(num_planes, I64(2 * TABLE_BYTES))
            own = [builder.add(tables, builder.mul(to_head, I64(head))) for head in range(group)]
            scales = builder.add(planes, builder.mul(num_planes, block))
            with cgutils.for_range(builder, builder.udiv(block, I64(keys))) as loop:
                first = builder.mul(loop.index, I64(keys))
                sums = [[cgutils.alloca_once(builder, pairs) for _ in range(2)] for _ in range(group)]
                for both, upper in sums:
                    for held in (both, upper):
                        builder.store(ir.Constant(pairs, [0] * (keys // 2)), held)
                with cgutils.for_range(builder, num_planes) as plane:
                    at = builder.add(builder.add(planes, first), builder.mul(plane.index, block))
                    step = builder.mul(plane.index, I64(2 * TABLE_BYTES))
                    here = [builder.add(table, step) for table in own]
                    add_plane(builder, vectors.read(builder, at, codes), here, sums)
                place = builder.add(scales, builder.mul(first, I64(2)))
                scale = builder.fpext(vectors.read(builder, place, vectors.halves, 2), vectors.floats)
                into = builder.add(out, builder.mul(first, I64(4)))
                lowest = ir.Constant(vectors.floats, [float("-inf")] * keys)
                best = builder.select(joins, vectors.read(builder, into, vectors.floats, 4), lowest)
                for head, (both, upper) in enumerate(sums):
                    numbers = vectors.numbers(builder, builder.load(both), builder.load(upper))
                    mean, other = (
                        builder.add(means, builder.mul(means_step, I64(head))),
                        builder.add(less, I64(4 * head)),
                    )
                    factor, offset = (builder.add(terms, I64(8 * head + 4 * i)) for i in range(2))
                    factor, offset, mean, other = (
                        vectors.spread(builder, each) for each in (factor, offset, mean, other)
                    )
                    inner = multiply_add(builder, numbers, factor, offset)
                    value = builder.fsub(multiply_add(builder, inner, scale, mean), other)
                    best = builder.select(builder.fcmp_ordered(">", value, best), value, best)
                builder.store(best, builder.inttoptr(into, vectors.floats.as_pointer()), align=4)
            return context.get_dummy_value()

        i = types.int64
        return types.void(*[i] * 8, types.boolean, i), build

    tile: Callable[..., Any] = intrinsic(code_values)
    return tile


WIDE = max((keys for keys, (feature, _) in _LOOK_UPS.items() if host_has(feature)), default=16)
"""Keys of the widest vector that this processor looks up at once."""
VALUES_WIDE = tuple(_code_values(WIDE, group) for group in range(1, 5))
"""(planes, num_planes, block, tables, terms, means, means_step, less, joins, out) by the number of queries, 1 to 4:
values of the `block` keys of a block, a multiple of WIDE, float32 from `out` on.

Byte p of the keys' codes lies at planes + p * block, one byte a key; their scales, fp16, follow. `tables` are the
queries' [group, num_planes, 2, TABLE_BYTES] bytes, for the lower and the upper four bits; `terms` are [group, 2]
float32. The logit of a key is scale * (terms[0] * sum + terms[1]) + mean, where the means, float32, lie means_step
bytes apart. A key's value is the largest of logit - less over the queries, `less` [group] float32; and of what `out`
holds, where `joins`."""
HALF_WIDE = max(WIDE // 2, 16)
"""Keys of a vector for blocks that are no multiple of WIDE."""
VALUES_HALF_WIDE = tuple(_code_values(HALF_WIDE, group) for group in range(1, 5))
"""`VALUES_WIDE` for a block that is a multiple of HALF_WIDE."""
VALUES_16 = tuple(_code_values(16, group) for group in range(1, 5))
"""`VALUES_WIDE` for a block that is a multiple of 16."""


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


def _reader(kind: Any, stored: ir.Type, align: int) -> Callable[..., Any]:
    def read(_typing: Any, address: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], stored.as_pointer()), align=align)

        return kind(types.int64), build

    made: Callable[..., Any] = intrinsic(read)
    return made


def _writer(kind: Any, align: int) -> Callable[..., Any]:
    def write(_typing: Any, address: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            store(builder, args[1], args[0], align)
            return context.get_dummy_value()

        return types.void(types.int64, kind), build

    made: Callable[..., Any] = intrinsic(write)
    return made


load_word, load_float = _reader(types.int64, I64, 8), _reader(types.float32, FLOAT, 4)
"""(address): the int64 or float32 there."""
store_word, store_float = _writer(types.int64, 8), _writer(types.float32, 4)
"""(address, value): stores an int64 or a float32."""
