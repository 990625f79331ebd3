"""The figures of a load test under the names of `vllm bench serve`: TTFT, TPOT, ITL, throughput, goodput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moorage.runtime.bench.serve.run import Served

Limits = Mapping[str, float]
"""Most milliseconds of ttft, tpot and e2el that a good request takes."""
LIMITS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds: mean, median and 99th percentile."""

    mean: float
    median: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        """The spread of times in seconds; None where there are none."""
        if not seconds:
            return None
        times = 1000 * np.asarray(seconds)
        median, p99 = np.percentile(times, (50, 99))
        return cls(float(times.mean()), float(median), float(p99))


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of all requests of a run."""

    completed: int
    failed: Mapping[str, int]
    """Requests by the class of their error."""
    refused_ms: float | None
    """The longest time that a request took to fail."""
    duration_s: float
    total_input_tokens: int
    cached_tokens: int
    total_output_tokens: int
    goodput: float | None
    """Requests in a second that kept every limit; None without limits."""
    spreads: Mapping[str, Spread | None]
    """The spreads by name: ttft, tpot, itl and e2el; ttft_first and ttft_later for first and later turns."""

    @property
    def request_throughput(self) -> float:
        """Requests in a second."""
        return self.completed / self.duration_s

    @property
    def output_throughput(self) -> float:
        """Generated tokens in a second."""
        return self.total_output_tokens / self.duration_s

    @property
    def total_token_throughput(self) -> float:
        """Prompt tokens and generated tokens in a second."""
        return (self.total_input_tokens + self.total_output_tokens) / self.duration_s

    def as_json(self) -> dict[str, Any]:
        """The keys of vLLM's result file, and our own beside them."""
        value: dict[str, Any] = {
            "duration": self.duration_s,
            "completed": self.completed,
            "failed": dict(self.failed),
            "max_refusal_ms": self.refused_ms,
            "total_input_tokens": self.total_input_tokens,
            "cached_tokens": self.cached_tokens,
            "total_output_tokens": self.total_output_tokens,
            "request_throughput": self.request_throughput,
            "request_goodput": self.goodput,
            "output_throughput": self.output_throughput,
            "total_token_throughput": self.total_token_throughput,
        }
        for name, spread in self.spreads.items():
            if spread is not None:
                value |= {
                    f"mean_{name}_ms": spread.mean,
                    f"median_{name}_ms": spread.median,
                    f"p99_{name}_ms": spread.p99,
                }
        return value


def figures_of(served: Sequence[Served], duration_s: float, limits: Limits) -> Figures:
    """The figures of what the clients of one run saw, which took `duration_s`."""
    done = [one for one in served if not one.error]
    failed: dict[str, int] = {}
    for one in served:
        if one.error:
            failed[one.error] = failed.get(one.error, 0) + 1
    gaps = [
        after - before for one in done for before, after in zip(one.token_s, one.token_s[1:], strict=False)
    ]
    return Figures(
        completed=len(done),
        failed=failed,
        refused_ms=max((1000 * one.total_s for one in served if one.error), default=None),
        duration_s=duration_s,
        total_input_tokens=sum(one.prompt_tokens for one in done),
        cached_tokens=sum(one.cached_tokens for one in done),
        total_output_tokens=sum(len(one.token_s) for one in done),
        goodput=sum(_is_good(one, limits) for one in done) / duration_s if limits else None,
        spreads={
            "ttft": Spread.of([one.ttft_s for one in done]),
            "ttft_first": Spread.of([one.ttft_s for one in done if one.turn == 0]),
            "ttft_later": Spread.of([one.ttft_s for one in done if one.turn > 0]),
            "tpot": Spread.of([one.tpot_s for one in done if one.tpot_s is not None]),
            "itl": Spread.of(gaps),
            "e2el": Spread.of([one.total_s for one in done]),
        },
    )


def parse_limits(given: Sequence[str]) -> dict[str, float]:
    """Limits from texts such as ttft:500. Raises ValueError with what is wrong."""
    found = {}
    for one in given:
        name, _, value = one.partition(":")
        if name not in LIMITS:
            raise ValueError(f"{one!r} should be NAME:MILLISECONDS, with a name of {', '.join(LIMITS)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"{one!r}: {value!r} is no number of milliseconds") from None
    return found


def _is_good(one: Served, limits: Limits) -> bool:
    seconds = {"ttft": one.ttft_s, "tpot": one.tpot_s or 0.0, "e2el": one.total_s}
    return all(1000 * seconds[name] <= limit for name, limit in limits.items())
