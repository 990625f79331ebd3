"""`bench select` and `bench link`: a selection of one layer, and the bare round trip, by each way to a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from statistics import median

import numpy as np

from moorage.runtime.bench.measure import interleave, percentile
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.stores import fill, mailbox_store, random_queries, ray_store
from moorage.runtime.bench.threads import use_threads
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.messages import Float32, Int32, SelectRequest
from moorage.workers.kv.operations import Stats
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, HeadPool, KvLayout

SESSION = 1
BLOCK_SIZE, NUM_KV_HEADS, GROUP, HEAD_DIM = 128, 8, 4, 128
NUM_LAYERS = 4
TOPK = 96
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
CALLS = 200


def run_select(context_tokens: int, threads: int, rounds: int, with_ray: bool) -> Iterator[Row]:
    """One layer of InternLM2.5-7B's shape: query in, ids out, in this process and by each link.

    A selection reads anchors only, so the stores hold blocks of one token, as many as `context_tokens` make.
    """
    num_blocks = context_tokens // BLOCK_SIZE
    layout = KvLayout(NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM, 1, anchor_type=AnchorType.BLOCK_MEAN)
    query = random_queries(1, NUM_KV_HEADS * GROUP, HEAD_DIM)
    limits = np.array([num_blocks], np.int32)
    use_threads(threads)
    with ExitStack() as stack:
        links = open_links(stack, layout, num_blocks, threads, with_ray)
        subjects: dict[str, Callable[[], object]] = {}
        for name, link in links.items():
            kv = ShardedKv([link], layout)
            kv.open(SESSION, num_blocks)
            fill(kv, layout, SESSION, num_blocks)
            subjects[f"select-{name}"] = partial(_select, kv, cycle(range(NUM_LAYERS)), query, limits)
        taken = interleave(subjects, rounds)
    num_bytes = num_blocks * layout.anchor_bytes
    own = taken["select-inprocess"]
    for name, seconds in taken.items():
        ratio_to = {} if name == "select-inprocess" else {"select-inprocess": own / seconds}
        yield Row(name, seconds, context_tokens, threads, num_bytes, ratio_to=ratio_to)
        if ratio_to:
            yield Row(f"{name}-added", max(seconds - own, 0.0), context_tokens, threads)


def run_link(rounds: int, with_ray: bool) -> Iterator[Row]:
    """Percentiles of a round trip that computes nothing: medians over runs of 200 calls each."""
    layout = KvLayout(1, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE)
    with ExitStack() as stack:
        links = open_links(stack, layout, 1, 1, with_ray)
        shares: dict[str, list[float]] = {f"{link}-{name}": [] for link in links for name in SHARES}
        for _ in range(rounds + 1):
            for name, link in links.items():
                for share, value in _round_trips(link).items():
                    shares[f"{name}-{share}"].append(value)
    for name, values in shares.items():
        yield Row(f"link-{name}", median(values[1:]))


def open_links(
    stack: ExitStack, layout: KvLayout, num_pages: int, threads: int, with_ray: bool
) -> Mapping[str, Link]:
    """A store of its own behind each kind of link; all end with `stack`."""
    store = KvStore(layout, num_pages)
    stack.callback(store.close)
    links: dict[str, Link] = {
        "inprocess": LocalLink(store),
        "mailbox": stack.enter_context(mailbox_store(layout, num_pages, threads)),
    }
    if with_ray:
        links["ray"] = stack.enter_context(ray_store(layout, num_pages, threads))
    return links


def _select(kv: ShardedKv, layers: Iterator[int], query: Float32, limits: Int32) -> object:
    layer, scale = next(layers), HEAD_DIM**-0.5
    return kv.select(SelectRequest(SESSION, layer, query, 0, limits, TOPK, True, scale, pooling=HeadPool.SUM))


def _round_trips(link: Link) -> dict[str, float]:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        link.call(Stats())
        times.append(time.perf_counter() - start)
    return {name: percentile(times, share) for name, share in SHARES.items()}
