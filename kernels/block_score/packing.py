"""Queries in the form that meets stored anchors as plain dot products."""

from __future__ import annotations

from typing import Any

import numpy as np

from moorage.kernels.compiling import njit
from moorage.kernels.numba_flags import SERIAL


@njit(**SERIAL)
def pack(queries: Any, num_kv_heads: Any, quest: Any) -> Any:
    """Queries as [Hkv, R * G, V]; for bounds V is 2 * D.

    As max_d >= min_d, the bound is a plain dot product of [max, min] with [positive part, negative part] of q.
    """
    rows, heads, dim = queries.shape
    group = heads // num_kv_heads
    packed = np.empty((num_kv_heads, rows * group, dim * (2 if quest else 1)), np.float32)
    for r in range(rows):
        for head in range(heads):
            query, into = queries[r, head], packed[head // group, r * group + head % group]
            for d in range(dim):
                if quest:
                    into[d], into[dim + d] = max(query[d], np.float32(0)), min(query[d], np.float32(0))
                else:
                    into[d] = query[d]
    return packed


@njit(**SERIAL)
def pack_sums(queries: Any, num_kv_heads: Any, quest: Any, factor: Any) -> Any:
    """As `pack`, the queries of each group added up and multiplied by `factor`: [R, Hkv, V]."""
    rows, heads, dim = queries.shape
    group = heads // num_kv_heads
    packed = np.zeros((rows, num_kv_heads, dim * (2 if quest else 1)), np.float32)
    for r in range(rows):
        for head in range(heads):
            query, into = queries[r, head], packed[r, head // group]
            for d in range(dim):
                if quest:
                    into[d] += factor * max(query[d], np.float32(0))
                    into[dim + d] += factor * min(query[d], np.float32(0))
                else:
                    into[d] += factor * query[d]
    return packed
