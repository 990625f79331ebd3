"""The norm of float32 or bfloat16 rows on the host, in one pass over each row; torch takes five operations for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.bfloat import narrow, stored, widen
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.thread_team import run_units, team_of, unit_call, units_for

Rows = NDArray[np.float32] | NDArray[np.uint16]
_TYPES = (torch.float32, torch.bfloat16)


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether rows of this type lie on the host and can be normed here."""
    return x.device.type == "cpu" and x.dtype in _TYPES and weight.dtype == torch.float32


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package; float32 or bfloat16 rows and a float32 weight."""
    rows = x if x.dim() == 2 and x.is_contiguous() else x.reshape(-1, x.shape[-1]).contiguous()
    out = _normed(rows, rows, False, weight, eps)
    return out if out.dim() == x.dim() else out.reshape(x.shape)


def add_rms_norm(x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package; float32 or bfloat16 rows and a float32 weight."""
    are_rows = x.dim() == 2 and x.is_contiguous() and added.is_contiguous()
    if x.shape != added.shape or x.dtype != added.dtype or not are_rows:
        raise ValueError(
            f"x {list(x.shape)} {x.dtype}, added {list(added.shape)} {added.dtype}; expected contiguous rows, alike"
        )
    return _normed(x, added, True, weight, eps)


def _normed(
    rows: torch.Tensor, added: torch.Tensor, adds: bool, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    if not supports(rows, weight):
        raise ValueError(
            f"x {rows.dtype}, weight {weight.dtype}; expected float32 or bfloat16, and a float32 weight"
        )
    if weight.shape != rows.shape[1:] or not weight.is_contiguous():
        raise ValueError(
            f"x {list(rows.shape)}, weight {list(weight.shape)}; expected a contiguous weight of as many channels"
        )
    out = torch.empty_like(rows)
    team = team_of(num_workers(2 * rows.nbytes))
    arrays = stored(rows), stored(added), adds, weight.numpy(), eps, stored(out)
    _norm(team, units_for(team, len(rows)), *arrays)
    return out


@njit(**SERIAL)
def _norm(
    team: Any, units: Any, x: Any, added: Any, adds: Any, weight: Any, eps: Any, out: Any
) -> None:  # fmt: skip
    run_units(team, units, *unit_call(_norm_share, (units, x, added, adds, weight, eps, out)))


@njit(**SERIAL)
def _norm_share(
    unit: Any, units: Any, x: Any, added: Any, adds: Any, weight: Any, eps: Any, out: Any
) -> None:  # fmt: skip
    epsilon = np.float32(eps)
    for r in range(len(x) * unit // units, len(x) * (unit + 1) // units):
        row, more, into, total = x[r], added[r], out[r], np.float32(0)
        if adds:
            for d in range(len(row)):
                row[d] = narrow(widen(row[d]) + widen(more[d]), row[d])
        for d in range(len(row)):
            total += widen(row[d]) * widen(row[d])
        scale = np.float32(1) / np.sqrt(total / np.float32(len(row)) + epsilon)
        for d in range(len(row)):
            normed = narrow(widen(row[d]) * scale, row[d])
            into[d] = narrow(widen(normed) * weight[d], row[d])
