"""Selections of single keys over all shards, and the rows of these keys for workers that attend them elsewhere.

Several shards are asked twice: for their best keys, and for the rows of the best of all. One shard alone answers both
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from moorage.workers.kv.formats import format_of
from moorage.workers.kv.link import Link
from moorage.workers.kv.merge import merge_selections
from moorage.workers.kv.messages import (
    Float32,
    Int32,
    KeyReply,
    KeyRequest,
    KeyRowsRequest,
    SelectReply,
    Storage,
)
from moorage.workers.kv.operation import Operation
from moorage.workers.kv.operations import KeyRows, SelectKeys
from moorage.workers.kv.shard_selection import all_of
from moorage.workers.kv.stripes import Stripes
from moorage.workers.spec import KvLayout

T = TypeVar("T")


class FoundKeys(NamedTuple):
    """The best keys of one session over all shards, and the completion of all its candidates."""

    positions: Int32
    """[Hkv, n] in the session, ascending, padded at the end with -1."""
    rows: Storage
    """[2, Hkv, n, D] of storage type: keys and values; 0 at a position of -1."""
    rest_out: Float32
    """[Hq, D]: see `kernels.key_select.reference.complete`."""
    rest_lse: Float32
    """[Hq]"""


class ShardKeys:
    """What one store that held everything would select; block ids and positions are global."""

    def __init__(
        self, links: Sequence[Link], layout: KvLayout, stripe_blocks: int, first_link: Callable[[int], int]
    ) -> None:
        """Shard 0 of a session lies at `first_link(session_id)`."""
        self._links, self._layout, self._first_link = tuple(links), layout, first_link
        self._blocks = Stripes(len(links), stripe_blocks)
        self._tokens = Stripes(len(links), stripe_blocks * layout.block_size)

    def select(self, requests: Sequence[KeyRequest]) -> list[FoundKeys]:
        """The best keys of each of some sessions, by one question a shard and round about all of them.

        Raises what the first of them fails with; a failed commit only passes through where there are several.
        """
        if len(self._links) == 1:
            replies = self._links[0].call(SelectKeys([one._replace(with_rows=True) for one in requests]))
            return [
                FoundKeys(each.positions, each.rows, each.rest_out, each.rest_lse)
                for each in replies
                if each.rows is not None
            ]
        sessions = [request.session_id for request in requests]
        best = self._ask(SelectKeys, sessions, [self._of_shards(request) for request in requests])
        positions = [
            self._merged(replies, request.count) for replies, request in zip(best, requests, strict=True)
        ]
        rows = self._rows(requests, positions)
        rests = [_joined(replies) for replies in best]
        return [FoundKeys(*each, *rest) for *each, rest in zip(positions, rows, rests, strict=True)]

    def _rows(self, requests: Sequence[KeyRequest], positions: Sequence[Int32]) -> list[Storage]:
        """[2, Hkv, n, D] of storage type for positions [Hkv, n] of each session, 0 where that is -1."""
        places, asked = [], []
        for request, of_session in zip(requests, positions, strict=True):
            heads, at = np.nonzero(of_session >= 0)
            shards, local = self._tokens.split(of_session[heads, at])
            here = [np.flatnonzero(shards == shard) for shard in range(len(self._links))]
            places.append([(heads[some], at[some]) for some in here])
            named = [(heads[some].astype(np.int32), local[some]) for some in here]
            asked.append([KeyRowsRequest(request.session_id, request.layer, *each) for each in named])
        answers = self._ask(KeyRows, [request.session_id for request in requests], asked)
        storage, found = format_of(self._layout.kv_type).storage, list[Storage]()
        for of_session, into, parts in zip(positions, places, answers, strict=True):
            out: Storage = np.zeros((2, *of_session.shape, self._layout.head_dim), storage)
            for (heads, at), rows in zip(into, parts, strict=True):
                out[:, heads, at] = rows
            found.append(out)
        return found

    def _of_shards(self, request: KeyRequest) -> list[KeyRequest]:
        """The request in the blocks of each shard."""
        count = self._blocks.count
        return [
            request._replace(first=count(request.first, shard), limit=count(request.limit, shard))
            for shard in range(len(self._links))
        ]

    def _merged(self, replies: Sequence[KeyReply], count: int) -> Int32:
        """The positions [Hkv, count] of the best of all shards."""
        parts = [SelectReply(reply.positions[None], reply.scores[None]) for reply in replies]
        return merge_selections(parts, self._tokens, count).ids[0]

    def _ask(
        self,
        kind: Callable[[list[Any]], Operation[list[T]]],
        sessions: Sequence[int],
        parts: Sequence[Sequence[Any]],
    ) -> list[list[T]]:
        """Answers [i][shard], given what shard `shard` of session i is asked: parts[i][shard]."""
        count, first = len(self._links), [self._first_link(session_id) for session_id in sessions]
        pending = [
            link.submit(kind([part[(at - first[i]) % count] for i, part in enumerate(parts)]))
            for at, link in enumerate(self._links)
        ]
        answers = all_of(pending)
        return [
            [answers[(first[i] + shard) % count][i] for shard in range(count)] for i in range(len(sessions))
        ]


def _joined(replies: Sequence[KeyReply]) -> tuple[Float32, Float32]:
    """The completion of the blocks of all shards: (out [Hq, D], lse [Hq])."""
    lses = np.array([reply.rest_lse for reply in replies])
    lse = np.logaddexp.reduce(lses, axis=0)
    weights = np.exp(lses - np.where(lse > -np.inf, lse, 0.0))
    return np.einsum("sh,shd->hd", weights, [reply.rest_out for reply in replies]), lse
