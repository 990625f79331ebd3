"""What stands for keys that are not selected, in fp32 by products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.compiling import njit
from moorage.kernels.half import Storage, widen
from moorage.kernels.numba_flags import SERIAL

Float32 = NDArray[np.float32]


def complete(
    means: Storage,
    mean_values: NDArray[np.float16],
    queries: Float32,
    selected: Sequence[NDArray[np.int32]],
    *,
    block_size: int,
    scale: float,
    first: int = 0,
) -> tuple[Float32, Float32]:
    """(out [Hq, D], lse [Hq]); see reference.py. Means are as stored; `selected` has the positions by KV head."""
    num_blocks, num_kv_heads, dim = means.shape
    centres, values = _single(means), _single(mean_values)
    left = np.full((num_kv_heads, num_blocks), block_size)
    for of_head, positions in zip(left, selected, strict=True):
        blocks = (positions[positions >= first] - first) // block_size
        of_head -= np.bincount(blocks[blocks < num_blocks], minlength=num_blocks)
    groups = queries.reshape(num_kv_heads, -1, dim) * np.float32(scale)
    with np.errstate(divide="ignore"):
        logits = groups @ centres.transpose(1, 2, 0) + np.log(left, dtype=np.float32)[:, None]
    peak = logits.max(axis=-1, initial=-np.inf)
    weights = np.exp(logits - np.where(peak > -np.inf, peak, 0)[..., None], dtype=np.float32)
    total = weights.sum(axis=-1)
    out = (weights @ values.transpose(1, 0, 2)) / np.where(total > 0, total, 1)[..., None]
    with np.errstate(divide="ignore"):
        lse = np.where(peak > -np.inf, peak, 0) + np.log(total)
    return out.reshape(len(queries), dim), lse.reshape(len(queries))


def _single(stored: NDArray[Any]) -> Float32:
    """float32 of an array of fp16, of its bits, or of float32."""
    bits = np.ascontiguousarray(stored.view(np.uint16) if stored.dtype == np.float16 else stored)
    out = np.empty(bits.shape, np.float32)
    _widen(bits.reshape(-1), out.reshape(-1))
    return out


@njit(**SERIAL)
def _widen(stored: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = widen(stored[i])
