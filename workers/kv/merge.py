"""Joins what the shards chose into the choice of one store that held everything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.kernels.top_blocks import top_blocks
from moorage.workers.kv.messages import Float32, Int32, SelectReply
from moorage.workers.kv.stripes import Stripes

_ABSENT = np.iinfo(np.int32).max


def merge_choices(replies: Sequence[SelectReply], blocks: Stripes, k: int) -> tuple[Int32, Float32]:
    """The `k` best of the shards' best: (ids, scores), [R, S, k], ids global, ascending and padded with -1.

    Exact, since the best of all are among each shard's best. Among equal scores the lower id wins.
    """
    num_rows, num_choices, _ = replies[0].ids.shape
    shape = (num_rows, num_choices, k)
    parts = [
        np.where(reply.ids >= 0, blocks.joined(shard, reply.ids), _ABSENT)
        for shard, reply in enumerate(replies)
    ]
    ids = np.concatenate(parts, axis=2).reshape(num_rows * num_choices, -1)
    scores = np.concatenate([reply.scores for reply in replies], axis=2).reshape(ids.shape)
    order = np.argsort(ids, axis=1)
    ids = np.take_along_axis(ids, order, axis=1)
    scores = np.take_along_axis(scores, order, axis=1)
    present = np.count_nonzero(ids != _ABSENT, axis=1).astype(np.int32)
    places, best = np.full((len(ids), k), -1, np.int32), np.full((len(ids), k), -np.inf, np.float32)
    top_blocks(scores, present, k, places, best)
    rows = np.arange(len(ids))[:, None]
    merged = np.where(places >= 0, ids[rows, places], -1).astype(np.int32)
    return merged.reshape(shape), best.reshape(shape)
