"""The record of a finished request: tokens, times, and what its attention selected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """The record of a finished request."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV was already held."""
    completion_tokens: int
    queue_s: float
    time_to_first_token_s: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    total_s: float
    dram_bytes: int
    """Reserved in the KV actors for this request."""
    chosen_blocks: float | None
    """Mean distant blocks attended per layer and decode step; single keys are in `chosen_keys`."""
    budget_tokens: int
    """Most tokens attended per layer and decode step; 0 stands for all."""
    recall: float | None
    """Mean share of the exact attention mass on the attended keys, over the sampled layers and steps."""
    inter_token_p50_s: float | None = None
    inter_token_p99_s: float | None = None
    beyond_tokens: int = 0
    """Tokens of prompt and answer beyond the length that positions reach; answers there are not reliable."""
    drafted_tokens: int = 0
    """Tokens that were drafted and then verified; 0 where `verify` is off."""
    accepted_tokens: int = 0
    """The drafted tokens that are the answer's."""
    recall_p5: float | None = None
    """5th percentile of the share that `recall` is the mean of, over the sampled steps, layers and heads."""
    chosen_keys: float | None = None
    """Mean single keys attended per layer, KV head and decode step; None where blocks are selected."""
    preset_differs: tuple[str, ...] = ()
    """What the request's preset says of the store, and the cluster has otherwise: `block_size 64, not 128`."""
