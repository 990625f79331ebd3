"""A selection of single keys by the definition, in fp64 and with full sorts, and what stands for the other keys.

Codes of a block, as the arena has them, are uint8 [Hkv * (B * (C + 2) + 2 D)] with C = ceil(D / 8). For each KV head
in turn: bytes uint8 [C][B], then scales, bits of fp16 [B], then the mean value of the block, bits of fp16 [D]. Bit
d % 8 of byte d // 8 of key t is 1 where channel d of Hadamard(key - mean) is not negative, and the scale is the mean
of the absolute channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moorage.kernels.hadamard import hadamard_matrix

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

ExactLogits = Float64 | Callable[[int, Int64], ArrayLike]
"""Scaled logits [Hq, T] of all candidates, or (KV head, positions [m]) -> those [G, m] of the head's query heads."""


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
    heads = np.ascontiguousarray(codes).reshape(count, num_kv_heads, -1)
    bounds = [num_planes * block_size, (num_planes + 2) * block_size]
    planes, scales, values = map(np.ascontiguousarray, np.split(heads, bounds, axis=-1))
    by_key = planes.reshape(count, num_kv_heads, num_planes, block_size).swapaxes(2, 3)
    bits = np.unpackbits(by_key, axis=-1, bitorder="little")[..., :dim]
    return BlockCodes(
        2.0 * bits - 1, scales.view("<f2").astype(np.float64), values.view("<f2").astype(np.float64)
    )


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
    return scale * dots.reshape(len(heads), num_blocks * block_size)


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
    return (logits - near[:, None]).max(axis=0)


def best_keys(values: Float64, count: int) -> Int64:
    """The places of the `count` largest of values [T], ascending; of equal ones the earlier."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


class KeyChoice(NamedTuple):
    """Candidates of one session and layer, by KV head ascending places from 0 on."""

    margin: list[Int64]
    """Those with exact logits."""
    selected: list[Int64]
    """Those that are attended, among `margin`."""

    def positions(self, topk_keys: int, first: int = 0) -> Int64:
        """[Hkv, topk_keys] positions of the attended keys, padded with -1, if the first candidate is at `first`."""
        found = np.full((len(self.selected), topk_keys), -1, np.int64)
        for into, places in zip(found, self.selected, strict=True):
            into[: len(places)] = first + places
        return found


def select_keys(
    estimated: Float64,
    exact_logits: ExactLogits,
    near: Float64,
    *,
    num_kv_heads: int,
    topk_keys: int,
    key_margin: int,
) -> KeyChoice:
    """The keys that one session attends in a layer, beside sinks and window.

    `estimated` [Hq, T] are the candidates' logits by their codes, and `near` [Hq] the log-sum-exp of the exact logits
    of sinks and window. The `key_margin * topk_keys` keys of each KV head with the best estimated values are
    ranked again by `exact_logits`, and the best `topk_keys` of them are attended. Ties go to the earlier one.
    """
    group, choice = len(estimated) // num_kv_heads, KeyChoice([], [])
    for head in range(num_kv_heads):
        heads = slice(head * group, (head + 1) * group)
        margin = best_keys(key_values(estimated[heads], near[heads]), key_margin * topk_keys)
        exact = exact_of(exact_logits, head, group, margin)
        choice.margin.append(margin)
        choice.selected.append(margin[best_keys(key_values(exact, near[heads]), topk_keys)])
    return choice


def exact_of(exact_logits: ExactLogits, head: int, group: int, places: Int64) -> Float64:
    """Exact logits [G, m] of the query heads of a KV head."""
    if callable(exact_logits):
        return np.asarray(exact_logits(head, places), np.float64).reshape(group, len(places))
    return np.asarray(exact_logits, np.float64)[head * group : (head + 1) * group, places]


def complete(
    estimated: Float64, exact_logits: ExactLogits, choice: KeyChoice, mean_values: Float64, block_size: int
) -> tuple[Float64, Float64]:
    """(out [Hq, D], lse [Hq]) of the candidates that are not attended: the completion term of the softmax.

    Each has the weight of its exact logit where it has one, else of its estimated logit, and the mean value of its
    block, of mean_values [n, Hkv, D].
    """
    group = len(estimated) // len(choice.margin)
    logits = np.array(estimated, np.float64)
    for head, (margin, selected) in enumerate(zip(choice.margin, choice.selected, strict=True)):
        heads = np.arange(head * group, (head + 1) * group)[:, None]
        logits[heads, margin] = exact_of(exact_logits, head, group, margin)
        logits[heads, selected] = -np.inf
    lse = log_sum_exp(logits)
    out = np.zeros((len(logits), mean_values.shape[-1]))
    values = np.repeat(mean_values, block_size, axis=0)
    for h in np.flatnonzero(lse > -np.inf):
        out[h] = np.exp(logits[h] - lse[h]) @ values[:, h // group]
    return out, lse
