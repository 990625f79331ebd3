"""Decode attention row by row from the definition, in fp64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.half import Storage, from_storage

Float64 = NDArray[np.float64]


def attend_blocks(
    query: NDArray[np.float32],
    blocks: Storage,
    *,
    slot: NDArray[np.int32],
    begin: NDArray[np.int32],
    end: NDArray[np.int32],
    angle_cos: NDArray[np.float32],
    angle_sin: NDArray[np.float32],
    rotate_keys: NDArray[np.uint8],
    offset_cos: NDArray[np.float32],
    offset_sin: NDArray[np.float32],
    scale: float,
    softcap: float = 0.0,
) -> tuple[Float64, Float64]:
    """See the package."""
    num_heads, dim = query.shape
    group = num_heads // blocks.shape[2]
    out, lse = np.zeros((num_heads, dim)), np.full(num_heads, -np.inf)
    for head in range(num_heads):
        logits, values = [], []
        for e in range(len(slot)):
            turned = _rotate(query[head].astype(np.float64), angle_cos[e], angle_sin[e])
            for row in range(begin[e], end[e]):
                key, value = from_storage(blocks[slot[e], :, head // group, row]).astype(np.float64)
                if rotate_keys[e]:
                    key = _rotate(key, offset_cos[row], offset_sin[row])
                logit = scale * float(turned @ key)
                logits.append(softcap * math.tanh(logit / softcap) if softcap else logit)
                values.append(value)
        if logits:
            peak = max(logits)
            weights = np.exp(np.array(logits) - peak)
            lse[head] = peak + np.log(weights.sum())
            out[head] = weights @ np.array(values) / weights.sum()
    return out, lse


def _rotate(x: Float64, cos: NDArray[np.float32], sin: NDArray[np.float32]) -> Float64:
    half = len(cos)
    low, high = x[:half], x[half : 2 * half]
    return np.concatenate((low * cos - high * sin, high * cos + low * sin, x[2 * half :]))
