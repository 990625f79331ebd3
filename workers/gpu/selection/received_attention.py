"""Attention that keys have received, while it is being counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class ReceivedAttention:
    """Attention that the keys of one layer's window have received so far."""

    first_block: int
    tokens: torch.Tensor
    """[Hkv, n] from the first block's first token on."""

    def copy(self) -> ReceivedAttention:
        """The same counts, which go on by themselves."""
        return ReceivedAttention(self.first_block, self.tokens.clone())

    def extend(self, num_tokens: int) -> None:
        """Makes it at least `num_tokens` long."""
        missing = num_tokens - self.tokens.shape[1]
        if missing > 0:
            added = self.tokens.new_zeros((len(self.tokens), missing))
            self.tokens = torch.cat((self.tokens, added), dim=1)

    def add(self, first: int, found: torch.Tensor) -> None:
        """Adds `found` [Hkv, n] from the `first`-th token on."""
        self.tokens[:, first : first + found.shape[1]] += found

    def take_until(self, block: int, block_size: int) -> tuple[int, torch.Tensor] | None:
        """(first block, [Hkv, n * B]) of the blocks before `block`, which are forgotten here; None without any."""
        count = block - self.first_block
        if count <= 0 or not self.tokens.shape[1]:
            return None
        first, taken = self.first_block, self.tokens[:, : count * block_size]
        self.first_block, self.tokens = block, self.tokens[:, count * block_size :].clone()
        return first, taken
