"""Selections of single keys over all shards, and the rows of these keys for workers that attend them elsewhere.

Several shards are asked twice: for their best keys, and for the rows of the best of all. One shard alone answers both
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from moorage.workers.kv.formats import format_of
from moorage.workers.kv.key_scorer import joined
from moorage.workers.kv.link import Link
from moorage.workers.kv.merge import merge_selections
from moorage.workers.kv.messages import (
    Float32,
    Int32,
    KeyReply,
    KeyRequest,
    KeyRowsReply,
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
Places = NDArray[np.intp]


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
                self._padded(each.positions, [np.nonzero(each.positions >= 0)], [each.rows])
                for each in replies
                if each.rows is not None
            ]
        sessions, asked = [one.session_id for one in requests], [self._of_shards(one) for one in requests]
        best = self._ask(SelectKeys, sessions, asked)
        positions = [
            self._merged(replies, request.num_keys) for replies, request in zip(best, requests, strict=True)
        ]
        wanted, places = [], []
        for of_session, parts in zip(positions, asked, strict=True):
            heads, at = np.nonzero(of_session >= 0)
            shards, local = self._tokens.split(of_session[heads, at])
            here = [np.flatnonzero(shards == shard) for shard in range(len(self._links))]
            places.append([(heads[some], at[some]) for some in here])
            named = [(heads[some].astype(np.int32), local[some]) for some in here]
            wanted.append([KeyRowsRequest(part, *each) for part, each in zip(parts, named, strict=True)])
        answers = self._ask(KeyRows, sessions, wanted)
        return [self._padded(*each) for each in zip(positions, places, answers, strict=True)]

    def _padded(
        self, positions: Int32, places: Sequence[tuple[Places, ...]], answers: Sequence[KeyRowsReply]
    ) -> FoundKeys:
        """Puts the shards' rows to their places (heads, columns) among `positions`, and joins their completions."""
        storage = format_of(self._layout.kv_type).storage
        rows: Storage = np.zeros((2, *positions.shape, self._layout.head_dim), storage)
        for (heads, at), answer in zip(places, answers, strict=True):
            rows[:, heads, at] = answer.rows
        rest = joined(
            np.array([answer.rest_out for answer in answers]),
            np.array([answer.rest_lse for answer in answers]),
        )
        return FoundKeys(positions, rows, *rest)

    def _of_shards(self, request: KeyRequest) -> list[KeyRequest]:
        """The request in the blocks of each shard."""
        counts = self._blocks.counts
        return [request._replace(bounds=counts(request.bounds, shard)) for shard in range(len(self._links))]

    def _merged(self, replies: Sequence[KeyReply], count: int) -> Int32:
        """The positions [Hkv, count] of the best of all shards."""
        parts = [SelectReply(reply.positions[None], reply.scores[None]) for reply in replies]
        best: Int32 = merge_selections(parts, self._tokens, count).ids[0]
        return best

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
