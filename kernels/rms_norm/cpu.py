"""The norm of float32 rows on the host, in one pass over each row; torch takes five operations for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange

from moorage.kernels.numba_flags import PARALLEL, SERIAL, num_workers


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package; float32 only."""
    size = x.shape[-1]
    _check(x, weight, size)
    whole = np.empty(x.shape, np.float32)
    rows = np.ascontiguousarray(x.numpy()).reshape(-1, size)
    _run(rows, rows, False, weight.numpy(), eps, whole.reshape(-1, size))
    return torch.from_numpy(whole)


def add_rms_norm(x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package; float32 only."""
    size = x.shape[-1]
    _check(x, weight, size)
    if added.shape != x.shape or added.dtype != x.dtype or not (x.is_contiguous() and added.is_contiguous()):
        raise ValueError(f"x {tuple(x.shape)}, added {tuple(added.shape)}; expected contiguous and alike")
    rows = x.numpy().reshape(-1, size)
    whole = np.empty(x.shape, np.float32)
    _run(rows, added.numpy().reshape(-1, size), True, weight.numpy(), eps, whole.reshape(-1, size))
    return torch.from_numpy(whole)


def _check(x: torch.Tensor, weight: torch.Tensor, size: int) -> None:
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or weight.shape != (size,):
        raise ValueError(f"x {x.dtype} {tuple(x.shape)}, weight {weight.dtype} {tuple(weight.shape)}")


def _run(x: Any, added: Any, adds: bool, weight: Any, eps: float, out: Any) -> None:
    workers = min(num_workers(2 * x.nbytes), len(x))
    if workers > 1:
        _parallel(x, added, adds, weight, np.float32(eps), out, workers)
    else:
        _range(x, added, adds, weight, np.float32(eps), out, 0, len(x))


@njit(**SERIAL)
def _range(x: Any, added: Any, adds: Any, weight: Any, eps: Any, out: Any, begin: Any, end: Any) -> None:
    for r in range(begin, end):
        row, more, into, total = x[r], added[r], out[r], np.float32(0)
        if adds:
            for d in range(len(row)):
                row[d] += more[d]
        for d in range(len(row)):
            total += row[d] * row[d]
        scale = np.float32(1) / np.sqrt(total / np.float32(len(row)) + eps)
        for d in range(len(row)):
            into[d] = row[d] * scale * weight[d]


@njit(**PARALLEL)
def _parallel(x: Any, added: Any, adds: Any, weight: Any, eps: Any, out: Any, workers: Any) -> None:
    for i in prange(workers):
        _range(x, added, adds, weight, eps, out, len(x) * i // workers, len(x) * (i + 1) // workers)
