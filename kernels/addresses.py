"""Arrays by address, so that a kernel is compiled once for any number of them."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL
from moorage.kernels.unit_call import without_owner


def address_of(array: NDArray[Any]) -> int:
    """Where an array begins; it must live as long as the address is used."""
    return int(array.ctypes.data)


@intrinsic
def _pointer(_typing: Any, address: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), build


@intrinsic
def uncounted(_typing: Any, arrays: Any) -> Any:
    """An array, or a tuple of arrays and numbers, whose users are not counted: each call that is given a counted one
    writes to memory twice. Whoever allocated an array must use it once more after the last use of this."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return without_owner(context, builder, signature.args[0], args[0])

    return arrays(arrays), build


@njit(**SERIAL)
def matrix_at(address: Any, rows: Any, columns: Any, like: Any) -> Any:
    """The [rows, columns] of `like`'s type that lie at `address`."""
    return carray(_pointer(address), (rows, columns), like.dtype)


@njit(**SERIAL)
def floats_at(address: Any, size: Any) -> Any:
    """The float32 array of `size` elements at an address. Nobody counts its users."""
    return carray(_pointer(address), (size,), np.float32)


@njit(**SERIAL)
def spanned(addresses: Any, sizes: Any, like: Any) -> Any:
    """(flat, first): arrays of `sizes` elements in one array from the lowest address to the highest, and where in it
    each begins. Nothing else of it may be read or written: others' memory may lie between them."""
    item, low, high = like.itemsize, addresses[0], addresses[0]
    for m in range(len(addresses)):
        low, high = min(low, addresses[m]), max(high, addresses[m] + sizes[m] * item)
    first = np.empty(len(addresses), np.int64)
    for m in range(len(addresses)):
        first[m] = (addresses[m] - low) // item
    return carray(_pointer(low), ((high - low) // item,), like.dtype), first
