"""Whether the pages and counts of a store agree, and whether what is asked of it fits them."""

from __future__ import annotations

import numpy as np

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.messages import Float32
from moorage.workers.kv.page_allocator import PageAllocator
from moorage.workers.kv.shard_session import ShardSession
from moorage.workers.spec import KvLayout


def check_pages(shard: MappedShard, pages: PageAllocator) -> None:
    """Raises RuntimeError if the free list, the page tables and the sealed counts disagree."""
    tables = [session.table for session in shard.sessions.values()]
    parts = [part for table in tables for part in (table.pages, table.raw.open_pages, table.raw.sink_pages)]
    held = np.concatenate([np.empty(0, np.int32), *parts])
    if (np.bincount(held, minlength=pages.num_pages) != pages.holders).any():
        raise RuntimeError("KV store: sessions hold other pages than are counted as held")
    if np.count_nonzero(pages.holders == 0) != pages.num_free:
        raise RuntimeError("KV store: the count of free pages is wrong")
    for session in shard.sessions.values():
        _check_session(session, shard.layout.block_size)


def _check_session(session: ShardSession, size: int) -> None:
    table = session.table
    for layer, (tokens, sealed) in enumerate(zip(table.num_tokens, session.num_sealed, strict=True)):
        if not (sealed <= tokens // size and tokens <= len(table.pages) * size):
            raise RuntimeError(
                f"KV store: session {table.session_id}, layer {layer}: {sealed} sealed blocks, "
                f"{tokens} tokens and {len(table.pages)} pages disagree"
            )


def check_importance(
    session: ShardSession, layout: KvLayout, layer: int, first: int, importance: Float32
) -> None:
    """Raises InvalidRequest unless `importance` [n, Hkv, B] is that of keys of sealed blocks from `first` on."""
    session.table.check_layer(layer)
    end, session_id = first + len(importance), session.table.session_id
    if importance.shape[1:] != (layout.num_kv_heads, layout.block_size):
        raise InvalidRequest(
            f"importance of shape {importance.shape}; expected [blocks, {layout.num_kv_heads}, "
            f"{layout.block_size}]"
        )
    if not 0 <= first <= end <= session.num_sealed[layer] or not layout.anchor_type.needs_importance:
        raise InvalidRequest(
            f"session {session_id}, layer {layer}: importance for blocks {first} to {end - 1} of "
            f"{session.num_sealed[layer]} sealed, {layout.anchor_type} anchors; send it for sealed blocks only"
        )
