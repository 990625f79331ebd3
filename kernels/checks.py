"""Checks that wrappers make before compiled code reads or writes memory.

Those that are named check_ raise ValueError with one line. On the token path a wrapper asks `is_typed` of each array,
and its kernel compares sizes and ids, which costs nothing there; only what does not fit is looked at again by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL

STORAGE = (np.dtype(np.uint16), np.dtype(np.float32))
FLOAT32 = (np.dtype(np.float32),)
INT32 = (np.dtype(np.int32),)
UINT8 = (np.dtype(np.uint8),)
UINT16 = (np.dtype(np.uint16),)


def check_array(
    name: str, array: NDArray[Any], dtypes: tuple[np.dtype[Any], ...], shape: tuple[int | None, ...]
) -> None:
    """Requires one of `dtypes`, `shape` (None: any size) and C order."""
    found = array.shape
    if len(found) == len(shape) and array.dtype in dtypes and array.flags.c_contiguous:
        # A plain loop: a step makes dozens of these checks.
        for want, size in zip(shape, found, strict=True):
            if want is not None and want != size:
                break
        else:
            return
    order = "" if array.flags.c_contiguous else ", not C-contiguous"
    names = " or ".join(dtype.name for dtype in dtypes)
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"{name}: {array.dtype} {array.shape}{order}; expected C-contiguous {names} [{sizes}]")


def is_typed(array: NDArray[Any], dtypes: tuple[np.dtype[Any], ...], num_axes: int) -> bool:
    """Whether `array` has a type that kernels are compiled for: one of `dtypes`, so many axes, in C order."""
    return array.ndim == num_axes and array.dtype in dtypes and array.flags.c_contiguous


def check_ids(name: str, ids: NDArray[np.int32], bound: int) -> None:
    """Requires int32 [n] with every value in [0, bound)."""
    check_array(name, ids, INT32, (None,))
    if not all_within(ids, bound):
        raise ValueError(f"{name}: values from {ids.min()} to {ids.max()}; expected 0 to {bound - 1}")


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Requires low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name}: {value}; expected {low} to {high}")


def check_multiple(name: str, value: int, divisor: int) -> None:
    """Requires a positive multiple of `divisor`."""
    if value <= 0 or divisor <= 0 or value % divisor:
        raise ValueError(f"{name}: {value}; expected a positive multiple of {divisor}")


@njit(**SERIAL)
def all_within(ids: Any, bound: Any) -> Any:
    """Whether every id lies in [0, bound); for use in kernels."""
    outside = 0
    for i in range(len(ids)):
        outside += (ids[i] < 0) | (ids[i] >= bound)
    return outside == 0
