"""Atomic operations on an int64 at an address, in one order for all threads (sequentially consistent)."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD, _ORDER = ir.IntType(64), "seq_cst"


def _at(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic
def load(_typing: Any, address: Any) -> Any:
    """The value at `address`."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(_at(builder, args[0]), _ORDER, 8)

    return types.int64(types.int64), build


@intrinsic
def store(_typing: Any, address: Any, value: Any) -> Any:
    """Writes `value` at `address`."""

    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _at(builder, args[0]), _ORDER, 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), build


@intrinsic
def add(_typing: Any, address: Any, value: Any) -> Any:
    """Adds `value` to what is at `address`, and returns what was there before."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, args[0]), args[1], _ORDER)

    return types.int64(types.int64, types.int64), build


@intrinsic
def swap(_typing: Any, address: Any, value: Any) -> Any:
    """Writes `value` at `address`, and returns what was there before."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("xchg", _at(builder, args[0]), args[1], _ORDER)

    return types.int64(types.int64, types.int64), build


@intrinsic
def replace(_typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Writes `value` at `address` if `expected` is there; whether it was."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place = _at(builder, args[0])
        return builder.extract_value(builder.cmpxchg(place, args[1], args[2], _ORDER, _ORDER), 1)

    return types.boolean(types.int64, types.int64, types.int64), build
