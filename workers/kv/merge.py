"""Joins what the shards selected into the selection of one store that held everything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.kernels.merge_top import merge_top
from moorage.workers.kv.messages import SelectReply
from moorage.workers.kv.stripes import Stripes


def merge_selections(replies: Sequence[SelectReply], blocks: Stripes, k: int) -> SelectReply:
    """The `k` best of the shards' best; ids are global.

    Exact, since the best of all are among each shard's best. Among equal scores the lower id wins.
    """
    num_rows, num_selections, count = replies[0].ids.shape
    shape = len(replies), num_rows * num_selections, count
    ids = np.array([reply.ids for reply in replies]).reshape(shape)
    scores = np.array([reply.scores for reply in replies]).reshape(shape)
    best, top = merge_top(ids, scores, blocks.length, k)
    return SelectReply(best.reshape(num_rows, num_selections, k), top.reshape(num_rows, num_selections, k))
