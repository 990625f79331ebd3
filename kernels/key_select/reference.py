"""A selection of single keys by the definition, in fp64 and with full sorts.

Codes of a block, as the arena has them, are uint8 [Hkv * B * (C + 2)] with C = ceil(D / 8). For each KV head in turn:
bytes uint8 [C][B], then scales, bits of fp16 [B]. Bit d % 8 of byte d // 8 of key t is 1 where channel d of
Hadamard(key - mean) is not negative, and the scale is the mean of the absolute channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moorage.kernels.hadamard import hadamard_matrix

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

ExactLogits = Float64 | Callable[[int, Int64], ArrayLike]
"""Scaled logits [Hq, T] of all candidates, or (KV head, positions [m]) -> those [G, m] of the head's query heads."""


def unpack_codes(
    codes: NDArray[np.uint8], num_kv_heads: int, block_size: int, dim: int
) -> tuple[Float64, Float64]:
    """(signs [n, Hkv, B, D] of 1 and -1, scales [n, Hkv, B]) of the codes [n, Hkv * B * (C + 2)] of n blocks."""
    num_bytes = -(-dim // 8)
    heads = np.ascontiguousarray(codes).reshape(len(codes), num_kv_heads, num_bytes + 2, block_size)
    bits = np.unpackbits(heads[:, :, :num_bytes].swapaxes(2, 3), axis=-1, bitorder="little")[..., :dim]
    halves = np.ascontiguousarray(heads[:, :, num_bytes:]).reshape(len(codes), num_kv_heads, 2 * block_size)
    return 2.0 * bits - 1, halves.view("<f2").astype(np.float64)


def estimated_logits(
    codes: NDArray[np.uint8], means: ArrayLike, queries: ArrayLike, *, block_size: int, scale: float
) -> Float64:
    """[Hq, n * B]: scale * (query . key) of all keys of n blocks, as their codes say.

    codes [n, Hkv * B * (C + 2)], means [n, Hkv, D], queries [Hq, D] rotated as they meet the codes.
    """
    centres, heads = np.asarray(means, np.float64), np.asarray(queries, np.float64)
    num_blocks, num_kv_heads, dim = centres.shape
    signs, scales = unpack_codes(codes, num_kv_heads, block_size, dim)
    groups = heads.reshape(num_kv_heads, -1, dim)
    of_mean = np.einsum("hgd,nhd->hgn", groups, centres)[..., None]
    of_code = np.einsum("hgd,nhbd->hgnb", groups @ hadamard_matrix(dim), signs)
    dots = of_mean + of_code * scales.transpose(1, 0, 2)[:, None]
    return scale * dots.reshape(len(heads), num_blocks * block_size)


def log_sum_exp(logits: Float64) -> Float64:
    """Over the last axis; -inf without any."""
    if not logits.shape[-1]:
        return np.full(logits.shape[:-1], -np.inf)
    peak = logits.max(axis=-1)
    return peak + np.log(np.exp(logits - peak[..., None]).sum(axis=-1))


def key_values(logits: Float64) -> Float64:
    """[T]: by key, the largest share of softmax in the logits [G, T] of any head, as its logarithm."""
    return (logits - log_sum_exp(logits)[:, None]).max(axis=0)


def best_keys(values: Float64, count: int) -> Int64:
    """The places of the `count` largest of values [T], ascending; of equal ones the earlier."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def select_keys(
    codes: NDArray[np.uint8],
    means: ArrayLike,
    queries: ArrayLike,
    exact_logits: ExactLogits,
    *,
    block_size: int,
    scale: float,
    topk_keys: int,
    key_margin: int,
    first: int = 0,
) -> Int64:
    """Positions [Hkv, topk_keys] of the selected keys of one session and layer, ascending, padded with -1.

    The candidates are the keys of n blocks with `codes` and `means`, see `estimated_logits`; the first of them stands
    at position `first`. A key's value is the largest over the G query heads of its KV head of (logit - log-sum-exp of
    that head's logits over all candidates). The `key_margin * topk_keys` best by estimated logits are ranked again by
    `exact_logits`, whose log-sum-exp is over these alone, and the best `topk_keys` stay. Ties go to the earlier one.
    """
    num_kv_heads = np.asarray(means).shape[1]
    estimated = estimated_logits(codes, means, queries, block_size=block_size, scale=scale)
    groups = estimated.reshape(num_kv_heads, len(estimated) // num_kv_heads, estimated.shape[1])
    selected = np.full((num_kv_heads, topk_keys), -1, np.int64)
    for head, logits in enumerate(groups):
        kept = best_keys(key_values(logits), key_margin * topk_keys)
        exact = _exact_of(exact_logits, head, len(logits), kept)
        best = kept[best_keys(key_values(exact), topk_keys)]
        selected[head, : len(best)] = first + best
    return selected


def _exact_of(exact_logits: ExactLogits, head: int, group: int, kept: Int64) -> Float64:
    if callable(exact_logits):
        return np.asarray(exact_logits(head, kept), np.float64).reshape(group, len(kept))
    return np.asarray(exact_logits, np.float64)[head * group : (head + 1) * group, kept]
