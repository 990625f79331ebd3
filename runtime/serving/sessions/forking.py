"""How an idle session becomes two that share blocks. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.runtime.serving.session_cache import IdleSession, SessionCache
from moorage.runtime.serving.sessions.shared_blocks import SharedBlocks
from moorage.workers.errors import FailedPrecondition


def check_can_share(capacity: Capacity) -> None:
    """Raises FailedPrecondition where a session writes to its full blocks, or has keys outside the blocks."""
    if (anchors := capacity.layout.anchor_type).needs_importance:
        raise FailedPrecondition(
            f"anchors of type {anchors} are made anew for each prompt, so sessions can't share blocks; set "
            "long_context.anchor_type to another type, such as KEY_CODES"
        )
    if capacity.windows is not None and capacity.windows.num_layers:
        raise FailedPrecondition(
            "the model has sliding-window layers, whose keys sessions can't share; send the prompt under another name"
        )


def forked(
    held: IdleSession, name: str, session_id: int, capacity: Capacity, now_s: float, idle: SessionCache
) -> tuple[IdleSession, IdleSession]:
    """The new record of `held`, now in `idle`, and that of a session which shares all of its full blocks."""
    num_tokens = len(held.stored.token_ids)
    num_tokens -= num_tokens % capacity.layout.block_size
    held, shared = share(held, num_tokens, capacity, idle)
    stored = replace(held.stored, token_ids=held.stored.token_ids[:num_tokens], draw=None)
    fork = IdleSession(name, session_id, stored, idle.nothing, held.first_actor, shared, used_s=now_s)
    return held, replace(fork, digests=held.digests[: num_tokens // capacity.layout.block_size])


def share(
    held: IdleSession, num_tokens: int, capacity: Capacity, idle: SessionCache
) -> tuple[IdleSession, SharedBlocks | None]:
    """Makes the blocks that the first `num_tokens` fill shareable, where they are not yet, and holds them once more.

    Returns the session's record, which replaces `held` in `idle`, and the chain that the other session has.
    """
    size = capacity.layout.block_size
    have = 0 if held.shared is None else held.shared.end
    if num_tokens // size <= have:
        part = None if held.shared is None else held.shared.cut(num_tokens)
        return held, None if part is None else part.hold()
    chain = SharedBlocks(num_tokens // size, size, first_blocks(capacity, held.first_actor), held.shared, 2)
    # The part before is held by the new part instead of the session.
    own = replace(held, resources=held.resources.minus(chain.resources), shared=chain)
    return idle.replace(held, own), chain


def first_blocks(capacity: Capacity, first_actor: int) -> Callable[[int], Resources]:
    """Resources of the first n blocks of a session that starts at an actor."""
    size = capacity.layout.block_size
    return lambda count: replace(capacity.idle(count * size), rings=0).starting_at(first_actor)
