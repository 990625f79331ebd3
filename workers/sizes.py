"""Device room of a session: one formula for the worker that allocates and the calculator that prints it."""

from __future__ import annotations

from moorage.workers.kv.formats import format_of
from moorage.workers.spec import KvLayout, MemorySpec

STREAM_PIECE_BLOCKS = 32
"""Blocks that are streamed at once when all of a session's blocks are attended."""
GPU_PIECE_TOKENS = 8192
"""The least length of pieces on a GPU: each costs a pass over the partial results that it is merged with."""
LEAST_CHUNK, MOST_CHUNK = 2048, 8192
"""Tokens of a prompt's chunk, powers of two, between which a GPU worker decides by what it measures."""


def piece_blocks(layout: KvLayout, on_cpu: bool) -> int:
    """Blocks of one streamed piece."""
    return STREAM_PIECE_BLOCKS if on_cpu else max(STREAM_PIECE_BLOCKS, GPU_PIECE_TOKENS // layout.block_size)


def packed_staging_bytes(layout: KvLayout, on_cpu: bool) -> int:
    """Device memory for the packed blocks of one piece, and for what they are expanded by; none on a CPU."""
    if on_cpu or not layout.is_packed:
        return 0
    shape, calibrated = layout.block_shape, layout.quantizer != 0
    if layout.layer_kv_types:
        kinds = [format_of(each) for each in layout.layer_kv_types]
        tables = sum(each.device_table_bytes(1, shape, calibrated) for each in kinds)
    else:
        tables = format_of(layout.kv_type).device_table_bytes(layout.num_layers, shape, calibrated)
    return piece_blocks(layout, on_cpu) * layout.block_bytes + tables


def near_block(position: int, memory: MemorySpec, block_size: int) -> int:
    """First block that the local window of the query at `position` reaches."""
    return max(0, position - memory.retention.window + 1) // block_size


def sink_blocks(memory: MemorySpec, block_size: int) -> int:
    """Blocks that hold the sinks."""
    return -(-memory.retention.sinks // block_size)


def slots_per_layer(memory: MemorySpec, layout: KvLayout, max_cached_block: int | None) -> int:
    """Slots that one session holds in each layer: local window, sinks, and selected blocks.

    `max_cached_block` is the room for selected blocks; None makes it twice `topk`, which keeps most of the
    blocks that the next step selects again, or as many as a context of `dense_until` tokens has. The room is
    never smaller than what one step attends. Single keys that are selected take no slots.
    """
    near = -(-(memory.retention.window + 1) // layout.block_size) + 2
    sinks = sink_blocks(memory, layout.block_size)
    selected = memory.selection.topk or 0
    # blocks that left the window since the selection they are attended with was made
    aged = -(-(memory.selection.token_step - 1) // layout.block_size) if selected else 0
    wanted = max(
        2 * selected, layout.num_blocks(memory.selection.dense_until) if memory.selection.selects else 0
    )
    cached = max(wanted if max_cached_block is None else max_cached_block, selected)
    return near + sinks + cached + aged
