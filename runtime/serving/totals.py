"""Sums over all steps since the start."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from moorage.runtime.serving.scheduled_request import Step
from moorage.workers.spec import StepResult


@dataclass(slots=True)
class Totals:
    """Sums since the start, for status and metrics."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    link_bytes: int = 0
    """Bytes of blocks that were copied from the stores to the device."""
    recall_sum: float = 0.0
    recall_count: int = 0
    part_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of needed blocks that were in device slots."""
        total = self.cache_hits + self.cache_misses
        return self.cache_hits / total if total else None

    @property
    def recall(self) -> float | None:
        """Mean of the sampled recalls."""
        return self.recall_sum / self.recall_count if self.recall_count else None

    def count(self, step: Step, result: StepResult) -> None:
        """Adds one step."""
        self.prompt_tokens += step.prompt_tokens
        self.generated_tokens += sum(len(r.tokens) for r in result.segments)
        self.cache_hits += result.cache_hits
        self.cache_misses += result.cache_misses
        self.link_bytes += result.link_bytes
        for recall in (r.recall for r in result.segments if r.recall is not None):
            self.recall_sum += recall
            self.recall_count += 1
        for part, seconds in result.part_s.items():
            self.part_s[part] += seconds
