"""Selections over the blocks of all shards: each shard selects its best, and the best of these are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from moorage.workers.errors import MoorageError
from moorage.workers.kv.link import Link
from moorage.workers.kv.merge import merge_selections
from moorage.workers.kv.messages import Float32, Int32, SelectReply, SelectRequest
from moorage.workers.kv.operations import Preselect, Score, Select, SelectScored, SelectTogether
from moorage.workers.kv.stripes import Stripes
from moorage.workers.spec import HeadPool

T = TypeVar("T")


class ShardSelection:
    """What one store that held everything would select; block ids and limits of requests are global."""

    def __init__(self, links: Sequence[Link], blocks: Stripes, first_link: Callable[[int], int]) -> None:
        """`blocks` deals blocks to the shards of a session, of which shard 0 lies at `first_link(session_id)`."""
        self._links, self._blocks, self._first_link = tuple(links), blocks, first_link

    def select(self, request: SelectRequest) -> SelectReply:
        """What one store that held everything would select by `request`, whose blocks and limits are global ids."""
        if len(self._links) == 1:
            return self._links[0].call(Select(request))
        session_id, links = request.session_id, self._links_of(request.session_id)
        requests = [self._of_shard(request, shard) for shard in range(len(links))]
        if request.pooling is HeadPool.SOFTMAX:
            parts = all_of([link.submit(Score(one)) for link, one in zip(links, requests, strict=True)])
            lse: Float32 = np.asarray(np.logaddexp.reduce(parts, axis=0), np.float32)
            replies = all_of([link.submit(SelectScored(session_id, lse)) for link in links])
        else:
            replies = all_of([link.submit(Select(one)) for link, one in zip(links, requests, strict=True)])
        return merge_selections(replies, self._blocks, request.k)

    def answers_together(self, pooling: HeadPool) -> bool:
        """Whether one question to each shard is enough; SOFTMAX takes two when there are several."""
        return len(self._links) == 1 or pooling is not HeadPool.SOFTMAX

    def select_together(self, requests: Sequence[SelectRequest]) -> list[Int32]:
        """Ids [1, S, k] for each of some sessions' requests of one row, in one call a shard.

        All must satisfy `answers_together`. Raises what the first of them fails with, and a failed commit only
        passes through: each asked alone, its own session still fails with it.
        """
        if len(self._links) == 1:
            return [ids for ids, _ in self._links[0].call(SelectTogether(list(requests)))]
        count, first = len(self._links), [self._first_link(request.session_id) for request in requests]
        parts = [
            [self._of_shard(request, (at - first[i]) % count) for i, request in enumerate(requests)]
            for at in range(count)
        ]
        pending = [link.submit(SelectTogether(part)) for link, part in zip(self._links, parts, strict=True)]
        replies = all_of(pending)
        return [
            merge_selections(
                [replies[(first[i] + shard) % count][i] for shard in range(count)], self._blocks, request.k
            ).ids
            for i, request in enumerate(requests)
        ]

    def _of_shard(self, request: SelectRequest, shard: int) -> SelectRequest:
        return request._replace(
            first=self._blocks.count(request.first, shard),
            limits=self._blocks.counts(request.limits, shard),
        )

    def preselect(self, session_id: int, layer: int, blocks: Int32, limit: int) -> None:
        """Restricts later selections with `use_preselected`: of the blocks before `limit`, to ascending `blocks`."""
        shards, local = self._blocks.split(blocks)
        for shard, link in enumerate(self._links_of(session_id)):
            link.call(Preselect(session_id, layer, local[shards == shard], self._blocks.count(limit, shard)))

    def _links_of(self, session_id: int) -> Sequence[Link]:
        """The links in the order of a session's shards."""
        first = self._first_link(session_id)
        return self._links[first:] + self._links[:first]


def all_of(actions: Sequence[Callable[[], T]]) -> list[T]:
    """What each gives, in order. All are done even when one fails; then raises the first failure."""
    answers: list[T] = []
    failure: MoorageError | None = None
    for action in actions:
        try:
            answers.append(action())
        except MoorageError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return answers
