"""How new rows of a session reach the stores that share its blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from moorage.workers.kv.link import Link, write_rows
from moorage.workers.kv.operations import CloseBlock, Commit
from moorage.workers.kv.stripes import Stripes


def append_rows(
    links: Sequence[Link],
    tokens: Stripes,
    session_id: int,
    layer: int,
    start: int,
    keys: ArrayLike,
    values: ArrayLike,
    are_packed: bool,
) -> None:
    """Writes and commits rows [T, Hkv, D] from token `start` on.

    `links` are in the order of the session's shards, and `tokens` deals tokens to these. Where blocks `are_packed`,
    who writes rows seals the blocks that they fill, and only the block of the last row is then read in fp16.
    """
    keys, values = np.asarray(keys), np.asarray(values)
    committed: dict[int, tuple[int, int]] = {}
    for shard, local, begin, stop in tokens.runs(start, start + len(keys)):
        rows = slice(begin - start, stop - start)
        write_rows(links[shard], session_id, layer, local, keys[rows], values[rows])
        first = committed[shard][0] if shard in committed else local
        committed[shard] = (first, local + stop - begin)
    for shard, (first, end) in committed.items():
        links[shard].post(Commit(session_id, layer, first, end, are_packed))
    if are_packed and len(links) > 1 and committed:
        last, before = tokens.place(start + len(keys) - 1)[0], tokens.place(max(start - 1, 0))[0]
        for shard in {*committed, before} - {last}:
            links[shard].post(CloseBlock(session_id, layer))
