"""What is counted of a session in one step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class SessionStats:
    """Sums over the layers of one step; the worker resets them at its start."""

    num_selected: float = 0
    """Blocks; n single keys of each KV head count as n / block size."""
    num_selections: int = 0
    recall: list[float] = field(default_factory=list)
    """Of each query head of the sampled layers."""

    def add_selection(self, num_blocks: float) -> None:
        """Counts the distant blocks attended in one layer."""
        self.num_selected += num_blocks
        self.num_selections += 1
