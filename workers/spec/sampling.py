"""How tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would overflow."""


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How the next token is drawn. temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    num_logprobs: int = 0
    """Alternatives to report beside each sampled token."""

    @property
    def counts_tokens(self) -> bool:
        """Whether a penalty needs to know how often each token came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always drawn."""
        return self.temperature < GREEDY_BELOW
