"""Joins what the shards chose into the choice of one store that held everything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.kernels.merge_top import merge_top
from moorage.workers.kv.messages import Float32, Int32, SelectReply
from moorage.workers.kv.stripes import Stripes


def merge_choices(replies: Sequence[SelectReply], blocks: Stripes, k: int) -> tuple[Int32, Float32]:
    """The `k` best of the shards' best: (ids, scores), [R, S, k], ids global, ascending and padded with -1.

    Exact, since the best of all are among each shard's best. Among equal scores the lower id wins.
    """
    num_rows, num_choices, count = replies[0].ids.shape
    shape = len(replies), num_rows * num_choices, count
    ids = np.array([reply.ids for reply in replies]).reshape(shape)
    scores = np.array([reply.scores for reply in replies]).reshape(shape)
    best, top = merge_top(ids, scores, blocks.length, k)
    return best.reshape(num_rows, num_choices, k), top.reshape(num_rows, num_choices, k)
