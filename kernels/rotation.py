"""Rotation of vectors of heads on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.bfloat import narrow, stored, widen
from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL, num_workers
from moorage.kernels.thread_team import run_units, team_of, unit_call, units_for

Float32 = NDArray[np.float32]


def rotate_heads(heads: Float32, cos: Float32, sin: Float32) -> Float32:
    """heads [n, D] with channels (i, i + rd / 2) rotated by cos, sin [rd / 2]; channels from rd on as they are."""
    if 2 * len(cos) > heads.shape[1] or cos.shape != sin.shape:
        raise ValueError(f"cos {cos.shape} and sin {sin.shape} do not fit heads {heads.shape}")
    out = np.empty(heads.shape, np.float32)
    rotate_into(heads, cos, sin, out)
    return out


@njit(**SERIAL)
def rotate_into(heads: Any, cos: Any, sin: Any, out: Any) -> None:
    """`rotate_heads` into `out`, for use in kernels."""
    half = len(cos)
    for n in range(len(heads)):
        source, into = heads[n], out[n]
        for d in range(half):
            low, high = source[d], source[half + d]
            into[d], into[half + d] = low * cos[d] - high * sin[d], high * cos[d] + low * sin[d]
        for d in range(2 * half, len(into)):
            into[d] = source[d]


def rotate_each(heads: Float32, cos: Float32, sin: Float32) -> Float32:
    """heads [n, H, D], the heads of item i rotated by cos[i], sin[i], each [n, rd / 2], as `rotate_heads` does."""
    if cos.shape != sin.shape or len(cos) != len(heads) or 2 * cos.shape[1] > heads.shape[2]:
        raise ValueError(f"cos {cos.shape} and sin {sin.shape} do not fit heads {heads.shape}")
    out = np.empty(heads.shape, np.float32)
    _rotate_each(heads, cos, sin, out)
    return out


@njit(**SERIAL)
def _rotate_each(heads: Any, cos: Any, sin: Any, out: Any) -> None:
    for i in range(len(heads)):
        rotate_into(heads[i], cos[i], sin[i], out[i])


def rotate_tokens(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [H, T, D], float32 or bfloat16 on the host, token t rotated by row t of cos, sin f32 [T or 1, rd / 2].

    Channels pair as in `rotate_heads`. Computed in fp32, returned in the type of x as a view of [T, H, D].
    """
    num_heads, num_tokens, dim = x.shape
    if cos.shape != sin.shape or cos.shape[0] not in (1, num_tokens) or 2 * cos.shape[1] > dim:
        raise ValueError(f"cos {list(cos.shape)}, sin {list(sin.shape)} do not fit x {list(x.shape)}")
    if x.stride(2) != 1:
        x = x.contiguous()
    size = 1 + sum((count - 1) * step for count, step in zip(x.shape, x.stride(), strict=True))
    out = torch.empty((num_tokens, num_heads, dim), dtype=x.dtype)
    if not x.numel():
        return out.transpose(0, 1)
    flat = stored(x.as_strided((size,), (1,)))
    arrays = flat, x.stride(0), x.stride(1), cos.contiguous().numpy(), sin.contiguous().numpy(), stored(out)
    team = team_of(num_workers(2 * x.nbytes))
    _rotate(team, units_for(team, num_tokens), *arrays)
    return out.transpose(0, 1)


@njit(**SERIAL)
def _rotate(
    team: Any, units: Any, x: Any, to_head: Any, to_token: Any, cos: Any, sin: Any, out: Any
) -> None:  # fmt: skip
    run_units(team, units, *unit_call(_rotate_share, (units, x, to_head, to_token, cos, sin, out)))


@njit(**SERIAL)
def _rotate_share(
    unit: Any, units: Any, x: Any, to_head: Any, to_token: Any, cos: Any, sin: Any, out: Any
) -> None:  # fmt: skip
    half, only_one, dim = cos.shape[1], len(cos) == 1, out.shape[2]
    begin, end = len(out) * unit // units, len(out) * (unit + 1) // units
    for t in range(begin, end):
        turn = 0 if only_one else t
        c, s = cos[turn], sin[turn]
        for h in range(out.shape[1]):
            at = h * to_head + t * to_token
            source, into = x[at : at + dim], out[t, h]
            for d in range(half):
                low, high = widen(source[d]), widen(source[half + d])
                into[d] = narrow(low * c[d] - high * s[d], into[d])
                into[half + d] = narrow(high * c[d] + low * s[d], into[d])
            for d in range(2 * half, dim):
                into[d] = source[d]
