"""Rows of keys and values on their way into a store."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from moorage.workers.errors import InvalidRequest, NotFinite
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.messages import Storage
from moorage.workers.spec import KvLayout, KvType

_SINGLE, _HALF, _BITS = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint16)


def beyond_storage(layer: int, kv_type: KvType) -> NotFinite:
    """A key or value that the store can't hold as a number."""
    return NotFinite(f"layer {layer}: {format_of(kv_type).limit}")


def as_rows(session_id: int, layout: KvLayout, keys: ArrayLike, values: ArrayLike) -> tuple[Storage, Storage]:
    """Keys and values as the kernels take them: storage type or float32; fp16 of numpy or torch passes as its bits.

    Raises InvalidRequest for other shapes than the layout has.
    """
    found = _as_rows(keys, layout), _as_rows(values, layout)
    if len(found[0]) != len(found[1]):
        raise InvalidRequest(
            f"session {session_id}: {len(found[0])} keys, {len(found[1])} values; give as many"
        )
    return found


def _as_rows(rows: ArrayLike, layout: KvLayout) -> Storage:
    array = np.asarray(rows)
    if array.shape[1:] != (layout.num_kv_heads, layout.head_dim):
        raise InvalidRequest(
            f"rows of shape {array.shape}; expected [tokens, {layout.num_kv_heads}, {layout.head_dim}]"
        )
    stored = format_of(layout.kv_type).storage
    if array.dtype == _HALF and stored == _BITS:
        array = array.view(_BITS)
    if array.dtype == _SINGLE or array.dtype == stored:
        return np.ascontiguousarray(array)
    if array.dtype == _BITS:
        array = array.view(_HALF)
    return np.ascontiguousarray(array, np.float32)
