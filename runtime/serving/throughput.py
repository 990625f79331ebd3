"""How fast the latest steps were, and what that means for those who wait."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

_WEIGHT = 0.1
"""Of the latest step among those before it."""
_LEAST_RETRY_S, _MOST_RETRY_S = 0.5, 600.0


class Throughput:
    """Seconds that a prompt token and a generated one take, averaged over the latest steps."""

    def __init__(self) -> None:
        self._prompt_s: float | None = None
        self._generated_s: float | None = None
        self._used: float | None = None
        """Share of the tokens asked for that requests generated before they ended by themselves."""

    def note_step(self, prompt_tokens: int, generated_tokens: int, elapsed_s: float) -> None:
        """A step took `elapsed_s`; in one of both kinds of tokens, generated ones take what they take alone."""
        if prompt_tokens:
            rest_s = max(0.0, elapsed_s - generated_tokens * (self._generated_s or 0.0))
            self._prompt_s = _averaged(self._prompt_s, rest_s / prompt_tokens)
        elif generated_tokens:
            self._generated_s = _averaged(self._generated_s, elapsed_s / generated_tokens)

    def note_end(self, generated_tokens: int, asked_tokens: int) -> None:
        """A request ended by itself after some of the tokens that it was allowed."""
        if asked_tokens:
            self._used = _averaged(self._used, generated_tokens / asked_tokens)

    def work_s(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """How long this takes alone; None while nothing was measured."""
        if self._prompt_s is None:
            return None
        used = 1.0 if self._used is None else self._used
        return prompt_tokens * self._prompt_s + new_tokens * used * (self._generated_s or self._prompt_s)


def waits_s(running_s: Sequence[float], waiting_s: Sequence[float]) -> list[float]:
    """When each waiting request starts, in order, given the work of all.

    Running requests share the time evenly, and one that ends makes room for one that waits.
    """
    served_s, now_s, starts = 0.0, 0.0, []
    ends = list(running_s)  # of the time that each of the running ones was served
    heapq.heapify(ends)
    for work_s in waiting_s:
        if ends:
            end = heapq.heappop(ends)
            now_s += (end - served_s) * (len(ends) + 1)
            served_s = end
        starts.append(now_s)
        heapq.heappush(ends, served_s + work_s)
    return starts


def retry_after_s(starts: Sequence[float]) -> float:
    """When a refused request should come again: half of the queue has started then."""
    return min(max(starts[len(starts) // 2], _LEAST_RETRY_S), _MOST_RETRY_S)


def _averaged(before: float | None, latest: float) -> float:
    return latest if before is None else before + _WEIGHT * (latest - before)
