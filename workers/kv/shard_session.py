"""What one shard knows of a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from moorage.workers.kv.block_scorer import Scoring
from moorage.workers.kv.block_table import BlockTable
from moorage.workers.kv.candidates import Preselection
from moorage.workers.kv.messages import AnchorRotation


@dataclass(slots=True)
class ShardSession:
    """What is known of one session in one shard."""

    table: BlockTable
    num_sealed: list[int]
    """The number of first blocks, by layer, that are full and have anchors."""
    preselections: dict[int, Preselection] = field(default_factory=dict)
    """The preselections by layer."""
    rotation: AnchorRotation | None = None
    """Set in the store when anchors summarise rotated keys."""
    scoring: Scoring | None = None
    """A scored request that waits for `select_scored`."""
    version: int = 0
    """Another number after everything that may change what is sealed. No two sessions of a shard ever have the same
    one, not even those that had the same id one after the other."""
