"""Sessions that begin idle: on blocks of another session, or on blocks from files."""

from __future__ import annotations

from collections.abc import Mapping

from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.gpu.positions.rotary import RotaryCache
from moorage.workers.gpu.transfer.block_cache import BlockCache
from moorage.workers.spec import RestoreSession, SamplingSpec


def forked(session: WorkerSession, new_id: int, num_tokens: int, cache: BlockCache) -> WorkerSession:
    """An idle session that holds the first tokens of another, which attended them in the same way."""
    return WorkerSession(
        new_id,
        session.memory,
        session.sampling,
        session.prompt_tokens,
        num_tokens,
        cache,
        session.rotations,
        session.scale,
        session.softcap,
        session.other_rotations,
        num_tokens=num_tokens,
        kept_tokens=num_tokens,
        idle=True,
        anchor_view=session.anchor_view,
    )


def restored(
    restoring: RestoreSession,
    num_tokens: int,
    cache: BlockCache,
    rotations: RotaryCache,
    others: Mapping[int, RotaryCache],
    factors: tuple[float, float],
    anchor_view: RopeView | None,
) -> WorkerSession:
    """An idle session whose blocks come from files; `factors` are scale and softcap."""
    return WorkerSession(
        restoring.session_id,
        rotations.memory,
        SamplingSpec(),
        restoring.prompt_tokens,
        num_tokens,
        cache,
        rotations,
        *factors,
        others,
        num_tokens=num_tokens,
        kept_tokens=num_tokens,
        idle=True,
        anchor_view=anchor_view,
    )
