"""Pages in the KV actors: how many a memory holds, and how sessions share them."""

from __future__ import annotations

from moorage.runtime.config.units import format_bytes
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.serving.capacity import Resources, session_pages
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidConfig
from moorage.workers.kv.stripes import Stripes
from moorage.workers.spec import KvLayout


def pages_per_actor(dram_bytes: int, actors: int, layout: KvLayout) -> int:
    """Pages of each KV actor's arena. Raises InvalidConfig when there is no room for one."""
    pages = dram_bytes // actors // layout.page_bytes
    if pages < 1:
        raise InvalidConfig(
            f"kv_store.dram: {format_bytes(dram_bytes)} for {counted(actors, 'actor')} has no room for one block of "
            f"{layout.page_bytes} bytes each; raise it to {actors * layout.page_bytes} bytes or more"
        )
    return pages


def largest_context_tokens(deployment: Deployment, dram_bytes: int, sessions: int = 1) -> int:
    """Longest context of which `sessions` fit into `dram_bytes` of pages, shared evenly by the shards."""
    per_shard = dram_bytes // deployment.shards // deployment.layout.page_bytes
    low, high = 0, per_shard * deployment.shards
    while low < high:
        blocks = (low + high + 1) // 2
        fits = largest_shard(deployment, blocks, sessions) <= per_shard
        low, high = (blocks, high) if fits else (low, blocks - 1)
    return low * deployment.layout.block_size


def most_sessions(deployment: Deployment, dram_bytes: int, context_tokens: int) -> int:
    """How many sessions of `context_tokens` fit into `dram_bytes` of pages at once."""
    per_shard = dram_bytes // deployment.shards // deployment.layout.page_bytes
    blocks = deployment.layout.num_blocks(context_tokens)
    low, high = 0, max(0, per_shard) * deployment.shards // blocks
    while low < high:
        sessions = (low + high + 1) // 2
        fits = largest_shard(deployment, blocks, sessions) <= per_shard
        low, high = (sessions, high) if fits else (low, sessions - 1)
    return low


def pages_of_session(deployment: Deployment, num_blocks: int) -> int:
    """Pages of a running session in all shards."""
    stripes = Stripes(deployment.shards, deployment.stripe_blocks)
    return sum(session_pages(deployment.layout, num_blocks, stripes))


def largest_shard(deployment: Deployment, num_blocks: int, sessions: int) -> int:
    """Pages of the fullest shard. Sessions start at the emptiest one, as they do when they are admitted."""
    stripes = Stripes(deployment.shards, deployment.stripe_blocks)
    counts = session_pages(deployment.layout, num_blocks, stripes)
    return max(_spread(Resources(counts, 0), sessions))


def _spread(need: Resources, sessions: int) -> tuple[int, ...]:
    """Pages in each actor once `sessions` that need `need` have started, one after the other, in empty actors."""
    empty = Resources((0,) * len(need.pages), 0)
    used, count = empty, 0
    while count < sessions:
        actor = min(range(len(used.pages)), key=used.pages.__getitem__)
        used, count = used.plus(need.starting_at(actor)), count + 1
        if count < sessions and len(set(used.pages)) == 1:  # from here on it goes round
            rest = _spread(need, sessions % count)
            return tuple(sessions // count * used.pages[0] + pages for pages in rest)
    return used.pages
