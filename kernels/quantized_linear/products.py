"""The product as one compiled function for each kind of weights, called by its address.

A record of numbers describes a product, so that whoever calls it, a wrapper or a longer compiled call, needs no
types of its own for each kind. Work is divided by panels of output channels.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.kernels.compile_lock import one_at_a_time
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import INLINE, SERIAL
from moorage.kernels.quantized_linear.matrix import WORD_CODES
from moorage.kernels.quantized_linear.panels import (
    ROWS,
    panel_1,
    panel_2,
    panel_4,
    rows_1,
    rows_2,
    rows_4,
    single_row,
)


class Field(IntEnum):
    """Numbers of a record; addresses are in bytes, float32 unless said otherwise."""

    WEIGHTS = 0
    """Codes of a QuantizedMatrix, or float weights [out, in]."""
    SCALES = 1
    MINIMA = 2
    """0 without minima."""
    TABLE = 3
    WIDE_SCALES = 4
    """1 where scales and minima are float32, 0 where they are float16."""
    WIDTH = 5
    """in; a multiple of WORD_CODES, and of PANEL for float weights."""
    GROUPS = 6
    ROWS = 7
    """out."""
    X = 8
    """Activations [n, in]."""
    SUMS = 9
    """Sums of the activations of each group [n, groups]; only of quantised weights."""
    NUM_X = 10
    """n."""
    OUT = 11
    """[n, OUT_STRIDE]; quantised weights write whole panels."""
    OUT_STRIDE = 12
    KERNEL = 13
    """Address of the compiled function."""
    GROUP_BYTES = 14
    """Bytes of the scales of one panel."""
    PANEL_BYTES = 15
    """Bytes of the codes of one panel."""


FIELDS = len(Field)
_W, _S, _M, _T, _WIDE, _IN, _GROUPS, _OUT_ROWS, _X, _SUMS, _NUM_X, _OUT, _STRIDE = range(13)
_GROUP_BYTES, _PANEL_BYTES = 14, 15
_SIGNATURE = types.void(types.CPointer(types.int64), types.int64, types.int64)


@intrinsic
def run_product(_typing: Any, record: Any, begin: Any, end: Any) -> Any:
    """Computes panels [begin, end) of the product of which `record` is the address."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        whole = ir.IntType(64)
        fields = builder.inttoptr(args[0], whole.as_pointer())
        address = builder.load(builder.gep(fields, [whole(Field.KERNEL.value)]))
        kind = ir.FunctionType(ir.VoidType(), [whole.as_pointer(), whole, whole])
        builder.call(builder.inttoptr(address, kind.as_pointer()), [fields, args[1], args[2]])
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@njit(**INLINE)
def _panels(like: Any, a: Any, begin: Any, end: Any) -> None:
    width, groups, num_x, stride = a[_IN], a[_GROUPS], a[_NUM_X], a[_STRIDE]
    table, wide, words = a[_T], a[_WIDE], width // groups // WORD_CODES
    for panel in range(begin, end):
        codes, scales = a[_W] + panel * a[_PANEL_BYTES], a[_S] + panel * a[_GROUP_BYTES]
        minima = a[_M] + panel * a[_GROUP_BYTES] if a[_M] != 0 else np.int64(0)
        x, sums, out, left = a[_X], a[_SUMS], a[_OUT] + panel * (4 * PANEL), num_x
        while left > 0:
            count = np.int64(4 if left >= 4 else (2 if left >= 2 else 1))
            if count == 4:
                panel_4(like, codes, scales, minima, table, wide, words, groups, x, sums, out, stride)
            elif count == 2:
                panel_2(like, codes, scales, minima, table, wide, words, groups, x, sums, out, stride)
            else:
                panel_1(like, codes, scales, minima, table, wide, words, groups, x, sums, out, stride)
            x, sums = x + count * width * 4, sums + count * groups * 4
            out, left = out + count * stride * 4, left - count


@njit(**INLINE)
def _rows(like: Any, item: Any, a: Any, begin: Any, end: Any) -> None:
    width, num_x, stride = a[_IN], a[_NUM_X], a[_STRIDE]
    row, last = begin * PANEL, min(end * PANEL, a[_OUT_ROWS])
    while row < last:
        weights, x, out, left = a[_W] + row * width * item, a[_X], a[_OUT] + row * 4, num_x
        whole = last - row >= ROWS
        while left > 0:
            count = np.int64(1)
            if not whole:
                single_row(like, weights, width, x, out, stride)
            elif left >= 4:
                rows_4(like, weights, width, x, out, stride)
                count = np.int64(4)
            elif left >= 2:
                rows_2(like, weights, width, x, out, stride)
                count = np.int64(2)
            else:
                rows_1(like, weights, width, x, out, stride)
            x, out, left = x + count * width * 4, out + count * stride * 4, left - count
        row += ROWS if whole else 1


def _int4(a: Any, begin: Any, end: Any) -> None:
    _panels(np.int32(0), a, begin, end)


def _table4(a: Any, begin: Any, end: Any) -> None:
    _panels(np.uint32(0), a, begin, end)


def _int8(a: Any, begin: Any, end: Any) -> None:
    _panels(np.int8(0), a, begin, end)


def _float8(a: Any, begin: Any, end: Any) -> None:
    _panels(np.uint8(0), a, begin, end)


def _f32(a: Any, begin: Any, end: Any) -> None:
    _rows(np.float32(0), np.int64(4), a, begin, end)


def _bf16(a: Any, begin: Any, end: Any) -> None:
    _rows(np.int16(0), np.int64(2), a, begin, end)


def _f16(a: Any, begin: Any, end: Any) -> None:
    _rows(np.uint16(0), np.int64(2), a, begin, end)


_PRODUCTS: dict[str, Callable[[Any, Any, Any], None]] = {
    CodeKind.INT4: _int4,
    CodeKind.TABLE4: _table4,
    CodeKind.INT8: _int8,
    CodeKind.FLOAT8: _float8,
    "float32": _f32,
    "bfloat16": _bf16,
    "float16": _f16,
}


def kernel_address(kind: str) -> int:
    """Address of the compiled product for a CodeKind or a float type; the first call compiles or loads it."""
    return int(_compiled(kind).address)


@cache
def _compiled(kind: str) -> Any:
    """Kept as long as the process runs, since its code goes with it."""
    with one_at_a_time("linear-kernels"):
        return cfunc(_SIGNATURE, **SERIAL)(_PRODUCTS[kind])
