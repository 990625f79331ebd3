"""Sessions that a step opens without a request. They are idle."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.workers.spec.memory import MemorySpec


@dataclass(frozen=True, slots=True)
class ForkSession:
    """Open an idle session that shares the first blocks of another one."""

    session_id: int
    """The other one, which may be idle or not."""
    new_id: int
    num_blocks: int
    """All of them are full in every layer."""
    num_rest: int = 0
    """Tokens of the next block, which is copied and not shared."""


@dataclass(frozen=True, slots=True)
class RestoreSession:
    """Open an idle session, whose bytes are then read from files into the stores."""

    session_id: int
    num_blocks: int
    """Full ones."""
    prompt_tokens: int
    """Tokens of the prompt under whose positions its anchors were made."""
    memory: MemorySpec
    first_shard: int
    num_rest: int = 0
    """Tokens of the block after the full ones."""
