"""What is counted of a session in one step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class SessionStats:
    """Sums over the layers of one step; the worker resets them at its start."""

    num_selected: int = 0
    """Distant blocks."""
    num_keys: int = 0
    """Single keys of each KV head."""
    num_selections: int = 0
    recall: list[float] = field(default_factory=list)
    """Recall of each query head of the sampled layers."""

    block_masses: bytes = b""
    """Masses of an inspected session: see SegmentResult."""

    def add_selection(self, num_blocks: int) -> None:
        """Counts the distant blocks attended in one layer."""
        self.num_selected += num_blocks
        self.num_selections += 1
