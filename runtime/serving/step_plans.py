"""The scheduler's decision in the worker's terms."""

from __future__ import annotations

from collections.abc import Mapping

from moorage.runtime.serving.jobs import Step
from moorage.runtime.serving.request import Request
from moorage.workers.spec import ContinueSession, OpenSession, Segment


def openings(
    step: Step, requests: Mapping[int, Request], now_s: float
) -> tuple[OpenSession | ContinueSession, ...]:
    """Of the sessions of admitted requests, which are marked as admitted now."""
    found = []
    for job_id in step.admitted:
        request = requests[job_id]
        request.admitted_s = now_s
        found.append(_opening(request))
    return tuple(found)


def segments(step: Step, requests: Mapping[int, Request]) -> tuple[Segment, ...]:
    """Tokens that go through the model: one of each decoding request, then chunks of prompts."""
    found = []
    for job_id in step.decodes:
        request = requests[job_id]
        start = len(request.prompt) + len(request.generated) - 1
        found.append(Segment(request.session_id, start, (request.generated[-1],), sample=True))
    for chunk in step.prefills:
        request = requests[chunk.job_id]
        end = chunk.start + chunk.count
        found.append(
            Segment(
                request.session_id,
                chunk.start,
                request.prompt[chunk.start : end],
                sample=end == len(request.prompt) and not request.is_score,
                prompt_logprobs=request.is_score,
            )
        )
    return tuple(found)


def _opening(request: Request) -> OpenSession | ContinueSession:
    held = request.job.continues
    if held is not None:
        request.session_id, request.cached_tokens = held.session_id, request.job.prefilled_tokens
        return ContinueSession(
            request.session_id,
            request.cached_tokens,
            request.num_tokens,
            len(request.prompt),
            request.memory,
            request.sampling,
            request.prompt[: request.cached_tokens] if request.sampling.counts_tokens else (),
        )
    return OpenSession(
        request.session_id,
        request.num_tokens,
        len(request.prompt),
        request.memory,
        request.sampling,
        request.job.first_actor,
    )
