"""What every engine must do to be measured, and which engines there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["llama.cpp", "transformers", "moorage"]
PACKAGES: dict[Kind, tuple[str, str]] = {
    "llama.cpp": ("llama_cpp_python", "pip install llama-cpp-python"),
    "transformers": ("transformers", "pip install transformers"),
}
"""The distribution of each peer, and what installs it."""


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """One engine with one form of the weights; everything that its process must know."""

    name: str
    """The row's name."""
    kind: Kind
    model: Path
    threads: int
    modes: tuple[str, ...] = ("",)
    """What is varied while tokens are generated: presets in Moorage, nothing in the others."""
    overrides: tuple[str, ...] = ()
    """Settings of Moorage, as section.key=value."""
    dtype: str = ""
    """float32 to compute in that type; by default bfloat16 in transformers, and in Moorage the checkpoint's own."""
    longest: int = 0
    """Most tokens of a session: the longest context and what is generated after it."""


class Peer(Protocol):
    """One engine with one model. It holds one sequence of tokens at a time."""

    part_s: dict[str, float]
    """Seconds of the last call by part, where the engine tells them."""

    def open(self, max_tokens: int) -> None:
        """Gives back what was held, and makes room for a sequence of `max_tokens`."""

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Processes a whole prompt. Returns the likeliest next token."""

    def fill(self, num_tokens: int) -> None:
        """Fills the empty cache with `num_tokens` tokens whose keys and values cost nothing to make."""

    def decode(self, token_id: int, mode: str) -> int:
        """Appends one token. Returns the likeliest next one."""

    def close(self) -> None:
        """Gives back everything."""
