"""Choices by the last step's query: which of them still stand, which are made anew (`selection.asynchronous`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.workers.gpu.engine.session_state import Choice, WorkerSession

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

NEVER = -1.0
"""The threshold that no cosine is under, so that nobody waits for the query that would be compared."""


def last_choice(session: WorkerSession, layer: int) -> Choice | None:
    """The choice by the last step's query; None for the first step after a prompt, and where a step failed."""
    kept = session.choices.get(layer)
    return kept if kept is not None and kept.decode_step == session.decode_index - 1 else None


def waits_for_query(session: WorkerSession, layer: int) -> bool:
    """Whether this step's query has a say in what this step attends."""
    return session.memory.selection.asynchronous_cosine > NEVER or last_choice(session, layer) is None


def moved_rows(last: Choice, query: Float32, cosine: float) -> NDArray[np.bool_]:
    """[S]: whether a head that shares the choice has moved: its `query`, of [1, Hq, D], has a smaller cosine."""
    assert last.query is not None
    products = (query * last.query).sum(axis=-1)
    lengths = np.linalg.norm(query, axis=-1) * np.linalg.norm(last.query, axis=-1)
    moved: NDArray[np.bool_] = (products < cosine * lengths).reshape(len(last.ids), -1).any(axis=1)
    return moved


def replace_rows(kept: Int32, fresh: Int32, moved: NDArray[np.bool_]) -> Int32:
    """`kept` [S, n] with the `moved` [S] rows of `fresh` [S, k], k <= n, padded at the end with -1."""
    if moved.all():
        return fresh
    rows = kept.copy()
    rows[moved] = -1
    rows[moved, : fresh.shape[1]] = fresh[moved]
    return rows
