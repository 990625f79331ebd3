"""Where keys and values of sliding-window layers lie: a ring of blocks for each session, on the worker's device."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.workers.spec.model import ModelSpec
from moorage.workers.spec.store import BlockShape, KvLayout

RING_BLOCK = 64
"""Tokens of one block of a ring."""
RING_MARGIN = 1024
"""Tokens before the window that a ring keeps, so that a session can be continued from an earlier token."""


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """Sizes of the rings of one model; all its window layers have rings of the same length."""

    num_layers: int
    """Window layers; 0 where every layer attends everything."""
    window: int
    """Tokens of the longest window, that of the query included."""
    shape: BlockShape
    element: str
    """float16 or float32: the type of keys and values."""
    element_bytes: int

    @classmethod
    def of(cls, model: ModelSpec, layout: KvLayout) -> WindowLayout:
        """The rings of `model`, whose keys and values have the type that `layout` decodes blocks to."""
        windows = [model.layer(index).window or 0 for index in model.window_layers]
        shape = BlockShape(model.num_kv_heads, RING_BLOCK, model.head_dim)
        return cls(len(windows), max(windows, default=0), shape, layout.element, layout.element_bytes)

    @property
    def num_blocks(self) -> int:
        """Blocks of one ring in one layer: the window and the margin, and the block that is being written."""
        return -(-(self.window - 1 + RING_MARGIN) // RING_BLOCK) + 1

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all window layers."""
        return self.num_layers * self.shape.num_elements // RING_BLOCK * self.element_bytes

    @property
    def ring_bytes(self) -> int:
        """The ring of one session in all window layers."""
        return self.num_blocks * RING_BLOCK * self.token_bytes

    def first_held(self, num_tokens: int) -> int:
        """The first token that a ring still holds once `num_tokens` tokens were written."""
        last_block = max(0, num_tokens - 1) // RING_BLOCK
        return max(0, last_block - self.num_blocks + 1) * RING_BLOCK

    def continues_at(self, num_tokens: int, first_held: int) -> bool:
        """Whether a ring that holds the tokens from `first_held` on has the window before token `num_tokens`."""
        return not self.num_layers or first_held <= max(0, num_tokens - self.window + 1)
