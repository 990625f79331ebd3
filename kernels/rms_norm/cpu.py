"""The norm of float32 rows on the host, in one pass over each row; torch takes five operations for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, is_typed
from moorage.kernels.numba_flags import PARALLEL, SERIAL, num_workers

Float32 = NDArray[np.float32]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package; float32 only."""
    _check_types(x, weight)
    array = x.numpy()
    rows = array if array.ndim == 2 and array.flags.c_contiguous else _as_rows(array)
    out = _normed(rows, rows, False, weight.numpy(), eps)
    return torch.from_numpy(out if out.ndim == array.ndim else out.reshape(array.shape))


def add_rms_norm(x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package; float32 only."""
    _check_types(x, weight)
    rows, more = x.numpy(), added.numpy()
    if more.shape != rows.shape or not (is_typed(rows, FLOAT32, 2) and is_typed(more, FLOAT32, 2)):
        raise ValueError(
            f"x {rows.shape}, added {more.shape} {more.dtype}; expected contiguous float32, alike"
        )
    return torch.from_numpy(_normed(rows, more, True, weight.numpy(), eps))


def _check_types(x: torch.Tensor, weight: torch.Tensor) -> None:
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise ValueError(f"x {x.dtype}, weight {weight.dtype}; expected float32")


def _as_rows(x: Float32) -> Float32:
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def _normed(rows: Float32, added: Float32, adds: bool, weight: Float32, eps: float) -> Float32:
    if not is_typed(weight, FLOAT32, 1) or len(weight) != rows.shape[1]:
        raise ValueError(
            f"x {rows.shape}, weight {weight.shape}; expected a contiguous weight of as many channels"
        )
    out, workers = np.empty(rows.shape, np.float32), num_workers(2 * rows.nbytes)
    if workers > 1:
        _parallel(rows, added, adds, weight, eps, out, min(workers, len(rows)))
    else:
        _range(rows, added, adds, weight, eps, out, 0, len(rows))
    return out


@njit(**SERIAL)
def _range(x: Any, added: Any, adds: Any, weight: Any, eps: Any, out: Any, begin: Any, end: Any) -> None:
    epsilon = np.float32(eps)
    for r in range(begin, end):
        row, more, into, total = x[r], added[r], out[r], np.float32(0)
        if adds:
            for d in range(len(row)):
                row[d] += more[d]
        for d in range(len(row)):
            total += row[d] * row[d]
        scale = np.float32(1) / np.sqrt(total / np.float32(len(row)) + epsilon)
        for d in range(len(row)):
            into[d] = row[d] * scale * weight[d]


@njit(**PARALLEL)
def _parallel(x: Any, added: Any, adds: Any, weight: Any, eps: Any, out: Any, workers: Any) -> None:
    for i in prange(workers):
        _range(x, added, adds, weight, eps, out, len(x) * i // workers, len(x) * (i + 1) // workers)
