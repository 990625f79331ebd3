"""Checks what is given to the selection of single keys, and starts the compiled call."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.checks import FLOAT32, INT32, UINT8, check_array, check_multiple
from moorage.kernels.decode_keys.layer import attend_selected
from moorage.kernels.decode_keys.records import KeySelections
from moorage.kernels.decode_keys.scan import list_length
from moorage.kernels.decode_layer.records import Attended, Float32, LayerMemory, SessionBatch
from moorage.kernels.key_codes.sizes import code_bytes
from moorage.kernels.thread_team import team_for


class KeyLists:
    """Memory for the keys that a scan finds, used again by every layer and step."""

    def __init__(self) -> None:
        self.ids: NDArray[np.int32] = np.empty((0, 0), np.int32)
        self.values: Float32 = np.empty((0, 0), np.float32)

    def grow(self, slices: int, length: int) -> None:
        """Makes room for `length` keys of each of so many slices."""
        shape = max(slices, len(self.ids)), max(length, self.ids.shape[1])
        self.ids, self.values = np.empty(shape, np.int32), np.empty(shape, np.float32)


def decode_keys(
    memory: LayerMemory,
    batch: SessionBatch,
    query: Float32,
    keys: KeySelections,
    attended: Attended,
    lists: KeyLists,
    *,
    is_checked: bool = False,
) -> None:
    """Selects single keys of N sessions by their codes, attends them, and joins that with what `attended` holds.

    query [N, Hq, D], un-rotated. `attended` is of each session's sinks and window. The candidates are the keys of
    its blocks [num_sinks, near_block). A key's value is its largest weight, as its code estimates it, in the
    softmax of one of the KV head's query heads, relative to what that head has attended. The k best keys are
    attended. Where `keys.completes`, every candidate block enters the softmax as one more key and value: its means,
    with the weight of its other keys. Sessions that have failed or do not select stay as they are. Raises ValueError
    if arrays do not fit. The memory's codes are of keys, see `kernels.key_codes`. A session's results are the same
    alone, with others and by any number of threads. `is_checked` says that arrays of these types and shapes have
    fitted before.
    """
    if not is_checked:
        _check(memory, batch, query, keys, attended)
    shape = memory.shape
    num_bytes = int((batch.near_block - batch.num_sinks).sum()) * shape.block_size * shape.num_kv_heads
    team = team_for(num_bytes * shape.head_dim // 8)
    head_codes = code_bytes(1, shape.block_size, shape.head_dim)
    call = memory.table, memory.empty, shape, head_codes, batch, query, keys, attended, memory.packed
    missing = attend_selected(team, *call, lists.ids, lists.values)
    if missing:
        lists.grow(int(missing), int(list_length(shape.block_size)))
        attend_selected(team, *call, lists.ids, lists.values)


def _check(
    memory: LayerMemory, batch: SessionBatch, query: Float32, keys: KeySelections, attended: Attended
) -> None:
    shape, count, half = memory.shape, len(query), batch.offset_cos.shape[1]
    check_array("query", query, FLOAT32, (count, None, shape.head_dim))
    check_multiple("query heads", query.shape[1], shape.num_kv_heads)
    check_array("selects", keys.selects, UINT8, (count,))
    check_array("positions", keys.positions, INT32, (count, shape.num_kv_heads, None))
    if not keys.positions.shape[2]:
        raise ValueError("positions: 0 keys of each KV head; expected 1 or more")
    check_array("base_turns", keys.base_turns, FLOAT32, (None, 2, half))
    check_array("offset_turns", keys.offset_turns, FLOAT32, (shape.block_size, 2, half))
    check_array("lse", keys.lse, FLOAT32, (count, query.shape[1]))
    check_array("out", attended.out, FLOAT32, query.shape)
    if len(keys.base_turns) < len(batch.bases):
        raise ValueError(
            f"base_turns: {len(keys.base_turns)} rows; expected at least {len(batch.bases)}, as many as bases"
        )
