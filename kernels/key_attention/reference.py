"""Single keys one by one from the definition, in fp64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.key_select.reference import log_sum_exp

Float64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


def key_logits(
    queries: Float64,
    keys: Float64,
    *,
    variant: NDArray[np.int64],
    turns: NDArray[np.complex128] | None,
    scale: float,
    softcap: float = 0.0,
) -> Float64:
    """See gpu.py."""
    num_kv_heads, count, _ = keys.shape
    group = queries.shape[1] // num_kv_heads
    out = np.zeros((num_kv_heads, group, count))
    for h, g, i in np.ndindex(out.shape):
        key = keys[h, i].astype(np.float64)
        if turns is not None:
            half = turns.shape[-1]
            turned = (key[:half] + 1j * key[half : 2 * half]) * turns[h, i]
            key = np.concatenate((turned.real, turned.imag, key[2 * half :]))
        logit = scale * float(queries[variant[h, i], h * group + g].astype(np.float64) @ key)
        out[h, g, i] = softcap * math.tanh(logit / softcap) if softcap else logit
    return out


def attend_keys(logits: Float64, is_there: Bools, values: Float64) -> tuple[Float64, Float64]:
    """See gpu.py."""
    num_kv_heads, group, _ = logits.shape
    out, lse = np.zeros((num_kv_heads, group, values.shape[-1])), np.full((num_kv_heads, group), -np.inf)
    for h, g in np.ndindex(lse.shape):
        there = is_there[h]
        if there.any():
            lse[h, g] = log_sum_exp(logits[h, g][there])
            out[h, g] = np.exp(logits[h, g][there] - lse[h, g]) @ values[h][there].astype(np.float64)
    return out.reshape(-1, values.shape[-1]), lse.reshape(-1)
