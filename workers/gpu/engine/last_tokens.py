"""The last tokens of a prompt that select single keys, as generated tokens do: each of them is a pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.spec import Segment, SegmentResult

Pass = Callable[[Sequence[Segment]], list[SegmentResult]]
"""Runs segments of different sessions together; those that fail have no result."""


def run_in_passes(
    segments: Sequence[Segment], sessions: Mapping[int, WorkerSession], run: Pass
) -> list[SegmentResult]:
    """The results of segments whose last tokens may need a pass each; one for each segment that does not fail."""
    waiting = {segment.session_id: _passes(segment, sessions.get(segment.session_id)) for segment in segments}
    found: dict[int, SegmentResult] = {}
    while waiting:
        results = {result.session_id: result for result in run([parts.pop(0) for parts in waiting.values()])}
        for session_id in [one for one in waiting if one not in results]:
            found.pop(session_id, None)
        found |= {one: _joined(found.get(one), result) for one, result in results.items()}
        waiting = {one: parts for one, parts in waiting.items() if parts and one in results}
    return list(found.values())


def _joined(before: SegmentResult | None, last: SegmentResult) -> SegmentResult:
    """The result of a segment from those of its parts."""
    if before is None:
        return last
    return replace(
        last,
        prompt_logprobs=before.prompt_logprobs + last.prompt_logprobs,
        prompt_likeliest=before.prompt_likeliest + last.prompt_likeliest,
    )


def _passes(segment: Segment, session: WorkerSession | None) -> list[Segment]:
    """The parts of a segment that run one after the other; the last one draws the token."""
    count, end = len(segment.token_ids), segment.start + len(segment.token_ids)
    if session is None or session.num_tokens >= session.prompt_tokens:
        return [segment]
    first = session.memory.selection.first_as_generated(session.prompt_tokens)
    if end <= first or count == 1:
        return [segment]
    edges = [segment.start, *range(max(first, segment.start + 1), end), end]
    return [
        replace(
            segment,
            start=a,
            token_ids=segment.token_ids[a - segment.start : b - segment.start],
            sample=segment.sample and b == end,
        )
        for a, b in pairwise(edges)
    ]
