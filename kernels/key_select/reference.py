"""A selection of single keys by the definition, in fp64 and with full sorts, and what stands for all others.

Codes of a block, as the arena has them, are uint8 [Hkv * (B * (C + 2) + 2 D)] with C = ceil(D / 8). For each KV head
in turn: bytes uint8 [C][B], then scales, bits of fp16 [B], then the mean value of the block, bits of fp16 [D]. Bit
d % 8 of byte d // 8 of key t is 1 where channel d of Hadamard(key - mean) is not negative, and the scale is the mean
of the absolute channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moorage.kernels.hadamard import hadamard_matrix

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class BlockCodes(NamedTuple):
    """What the codes of n blocks say."""

    signs: Float64
    """[n, Hkv, B, D] of 1 and -1."""
    scales: Float64
    """[n, Hkv, B]"""
    mean_values: Float64
    """[n, Hkv, D]"""


def unpack_codes(codes: NDArray[np.uint8], num_kv_heads: int, block_size: int, dim: int) -> BlockCodes:
    """Reads the codes [n, bytes] of n blocks."""
    num_planes, count = -(-dim // 8), len(codes)
    heads = np.ascontiguousarray(codes).reshape(count, num_kv_heads, codes.shape[1] // num_kv_heads)
    bounds = [num_planes * block_size, (num_planes + 2) * block_size]
    planes, scales, values = map(np.ascontiguousarray, np.split(heads, bounds, axis=-1))
    by_key = planes.reshape(count, num_kv_heads, num_planes, block_size).swapaxes(2, 3)
    bits = np.unpackbits(by_key, axis=-1, bitorder="little")[..., :dim]
    signs = 2 * bits.astype(np.float64) - 1
    return BlockCodes(signs, scales.view("<f2").astype(np.float64), values.view("<f2").astype(np.float64))


def estimated_logits(
    codes: NDArray[np.uint8], means: ArrayLike, queries: ArrayLike, *, block_size: int, scale: float
) -> Float64:
    """[Hq, n * B]: scale * (query . key) of all keys of n blocks, as their codes say.

    codes [n, bytes], means [n, Hkv, D], queries [Hq, D] rotated as they meet the codes.
    """
    centres, heads = np.asarray(means, np.float64), np.asarray(queries, np.float64)
    num_blocks, num_kv_heads, dim = centres.shape
    signs, scales, _ = unpack_codes(codes, num_kv_heads, block_size, dim)
    groups = heads.reshape(num_kv_heads, -1, dim)
    of_mean = np.einsum("hgd,nhd->hgn", groups, centres)[..., None]
    of_code = np.einsum("hgd,nhbd->hgnb", groups @ hadamard_matrix(dim), signs)
    dots = of_mean + of_code * scales.transpose(1, 0, 2)[:, None]
    return np.asarray(scale * dots.reshape(len(heads), num_blocks * block_size), np.float64)


def log_sum_exp(logits: Float64) -> Float64:
    """Over the last axis; -inf without any."""
    if not logits.shape[-1]:
        return np.full(logits.shape[:-1], -np.inf)
    peak = logits.max(axis=-1)
    some = np.where(peak > -np.inf, peak, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(some + np.log(np.exp(logits - some[..., None]).sum(axis=-1)), np.float64)


def key_values(logits: Float64, near: Float64) -> Float64:
    """[T]: by key the largest of (logit - near) in the logits [G, T] of query heads with log-sum-exps `near` [G]."""
    return np.asarray((logits - near[:, None]).max(axis=0), np.float64)


def best_keys(values: Float64, count: int) -> Int64:
    """The places of the `count` largest of values [T], ascending; of equal ones the earlier."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def select_keys(
    estimated: Float64, near: Float64, *, num_kv_heads: int, topk_keys: int, first: int = 0
) -> Int64:
    """Positions [Hkv, topk_keys] of the keys that are attended beside sinks and window, ascending, padded with -1.

    `estimated` [Hq, T] are the candidates' logits by their codes, the first of them at position `first`. `near` [Hq]
    is the log-sum-exp of each query head's exact logits over sinks and window. Those with the largest `key_values`
    are selected for each KV head; ties go to the earlier one.
    """
    found = np.full((num_kv_heads, topk_keys), -1, np.int64)
    groups = estimated.reshape(num_kv_heads, len(estimated) // num_kv_heads, estimated.shape[1])
    for into, logits, of_group in zip(found, groups, near.reshape(num_kv_heads, -1), strict=True):
        best = best_keys(key_values(logits, of_group), topk_keys)
        into[: len(best)] = first + best
    return found


def complete(
    means: ArrayLike,
    mean_values: Float64,
    queries: ArrayLike,
    selected: NDArray[Any],
    *,
    block_size: int,
    scale: float,
    first: int = 0,
) -> tuple[Float64, Float64]:
    """(out [Hq, D], lse [Hq]) of the completion: each candidate block stands for its keys that are not selected.

    It is the mean key of the block, of means [n, Hkv, D], with its mean value, of mean_values [n, Hkv, D]. It weighs
    as much as it has keys that are not at the positions `selected` [Hkv, k], of which -1 is none. The first block
    begins at position `first`. Mean keys meet the queries [Hq, D] as the codes do.
    """
    centres, heads = np.asarray(means, np.float64), np.asarray(queries, np.float64)
    num_blocks, num_kv_heads, dim = centres.shape
    left = np.full((num_kv_heads, num_blocks), block_size)
    for of_head, positions in zip(left, selected, strict=True):
        blocks = (positions[positions >= first] - first) // block_size
        of_head -= np.bincount(blocks[blocks < num_blocks], minlength=num_blocks)
    groups = heads.reshape(num_kv_heads, -1, dim)
    with np.errstate(divide="ignore"):
        logits = scale * np.einsum("hgd,nhd->hgn", groups, centres) + np.log(left)[:, None]
    lse = log_sum_exp(logits)
    weights = np.exp(logits - np.where(lse > -np.inf, lse, 0.0)[..., None])
    out = np.einsum("hgn,nhd->hgd", weights, mean_values)
    return out.reshape(len(heads), -1), lse.reshape(len(heads))
