"""How long a prompt's chunk must be for the stream of its past to hide behind its attention."""

from __future__ import annotations

import torch

from moorage.kernels.prefill_attention import attend_dense
from moorage.workers.gpu.engine.timing import least_seconds
from moorage.workers.gpu.transfer.packed_copies import travels_packed
from moorage.workers.sizes import LEAST_CHUNK, MOST_CHUNK
from moorage.workers.spec import KvLayout

_COPIED_BYTES = 32 * 2**20
_QUERIES, _KEYS = 2048, 4096


def hiding_chunk(
    num_heads: int, head_dim: int, token_bytes: int, link_bytes_per_s: float, flops_per_s: float, most: int
) -> int:
    """Tokens of the shortest chunk that hides it: a power of two from LEAST_CHUNK to MOST_CHUNK, but at most `most`.

    P tokens of the past, `token_bytes` each for K and V of one layer, stream in P * token_bytes / link_bytes_per_s
    seconds. A chunk of C queries attends them in 4 * P * C * num_heads * head_dim / flops_per_s seconds: a product
    for the logits and one for the values, two operations for each term. The second is at least the first from
    C = token_bytes * flops_per_s / (4 * num_heads * head_dim * link_bytes_per_s) on, whatever P is.
    """
    needed = token_bytes * flops_per_s / (4 * num_heads * head_dim * link_bytes_per_s)
    chunk = LEAST_CHUNK
    while chunk < min(needed, MOST_CHUNK):
        chunk *= 2
    return min(chunk, most)


def measure_rates(
    device: torch.device, layout: KvLayout, num_heads: int, dtype: torch.dtype
) -> tuple[float, float]:
    """(bytes a second from pinned host memory to the device, operations a second of a chunk's attention there)."""
    here = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty_like(here, device=device)
    copy_s = least_seconds(lambda: there.copy_(here, non_blocking=True), device)
    queries = torch.zeros(num_heads, _QUERIES, layout.head_dim, dtype=dtype, device=device)
    keys = torch.zeros(layout.num_kv_heads, _KEYS, layout.head_dim, dtype=dtype, device=device)
    attend_s = least_seconds(lambda: attend_dense(queries, keys, keys, 1.0), device)
    return _COPIED_BYTES / copy_s, 4 * _QUERIES * _KEYS * num_heads * layout.head_dim / attend_s


def measured_chunk(
    device: torch.device, layout: KvLayout, num_heads: int, dtype: torch.dtype, most: int
) -> int:
    """`hiding_chunk` of this machine; some tens of milliseconds."""
    link, flops = measure_rates(device, layout, num_heads, dtype)
    block_bytes = layout.page_kv_bytes // layout.num_layers if travels_packed(layout) else layout.slot_bytes
    return hiding_chunk(num_heads, layout.head_dim, block_bytes // layout.block_size, link, flops, most)
