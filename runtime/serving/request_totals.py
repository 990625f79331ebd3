"""Histograms of requests that ended, for metrics: times in seconds, and lengths in tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from moorage.runtime.serving.request import Request

_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0, 7200.0)
"""A prompt of a million tokens takes minutes, on a CPU hours."""
_TOKENS = tuple(float(1 << power) for power in range(0, 21, 2))


@dataclass(slots=True)
class Histogram:
    """Counts of values by upper bounds; values above all bounds count in the last place."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, values: Iterable[float | None]) -> None:
        """Adds values; None stands for one that was not measured."""
        for value in values:
            if value is not None:
                self.counts[bisect_left(self.bounds, value)] += 1
                self.total += value


class RequestTotals:
    """All requests since the start that ended, however they ended."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        """How many ended by stop, length, cancelled or failed."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.lengths = {
            name: Histogram(_TOKENS) for name in ("request_prompt_tokens", "request_generation_tokens")
        }
        self.times = {
            "time_to_first_token_seconds": Histogram(_LONG_S),
            "inter_token_latency_seconds": Histogram(_SHORT_S),
            "e2e_request_latency_seconds": Histogram(_LONG_S),
            "request_queue_time_seconds": Histogram(_LONG_S),
            "request_prefill_time_seconds": Histogram(_LONG_S),
            "request_decode_time_seconds": Histogram(_LONG_S),
        }

        self.observers: list[Callable[[Request, float], None]] = []
        """Called with each request that ended, and when."""

    def record(self, request: Request, now_s: float) -> None:
        """Adds a request that ended now."""
        for observe in self.observers:
            observe(request, now_s)
        self.outcomes[request.outcome.partition(":")[0]] += 1
        self.prompt_tokens += len(request.prompt)
        self.cached_tokens += request.cached_tokens
        self.drafted_tokens += request.drafted_tokens
        self.accepted_tokens += request.accepted_tokens
        self.lengths["request_prompt_tokens"].observe([len(request.prompt)])
        self.lengths["request_generation_tokens"].observe([len(request.generated)])
        tokens, arrived_s, admitted_s = request.token_s, request.arrived_s, request.admitted_s
        prefilled_s = request.prefilled_s
        ends: dict[str, list[float | None]] = {
            "time_to_first_token_seconds": [tokens[0] - arrived_s if tokens else None],
            "inter_token_latency_seconds": [after - before for before, after in pairwise(tokens)],
            "e2e_request_latency_seconds": [now_s - arrived_s],
            "request_queue_time_seconds": [None if admitted_s is None else admitted_s - arrived_s],
            "request_prefill_time_seconds": [
                None if prefilled_s is None or admitted_s is None else prefilled_s - admitted_s
            ],
            "request_decode_time_seconds": [tokens[-1] - tokens[0] if tokens else None],
        }
        for name, values in ends.items():
            self.times[name].observe(values)
