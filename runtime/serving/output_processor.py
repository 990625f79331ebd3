"""From a step's result to each request's events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from moorage.runtime.serving.event_stream import MOST_UNREAD
from moorage.runtime.serving.jobs import Step
from moorage.runtime.serving.protocol import Finished, Progress, PromptLogprobs, Token
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.step_failures import logged
from moorage.workers.errors import Internal
from moorage.workers.spec import SegmentResult, StepResult


@dataclass(slots=True)
class Totals:
    """Sums since the start, for status and metrics."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
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


class Delivery:
    """Hands tokens, progress and the final record to requests, and says which are done."""

    def __init__(self, eos_token_ids: frozenset[int], totals: Totals, clock: Callable[[], float]) -> None:
        self._eos_token_ids = eos_token_ids
        self._totals = totals
        self._clock = clock

    def __call__(self, step: Step, result: StepResult, requests: Mapping[int, Request]) -> list[Request]:
        """Delivers one step's results and returns the requests that ended with it."""
        self._count(step, result)
        ended = []
        by_session = {r.session_id: r for r in result.segments}
        chunk_ends = {c.job_id: c.start + c.count for c in step.prefills}
        for job_id in step.job_ids:
            request = requests.get(job_id)
            outcome = by_session.get(request.session_id) if request else None
            if request is None or outcome is None:
                continue
            try:
                self._deliver(request, outcome, chunk_ends.get(job_id))
            except Exception as error:  # noqa: BLE001  one request must not end another
                request.fail(logged(error, "delivery", show_message=False))
            request.job.paused = request.events.qsize() >= MOST_UNREAD
            if request.finished or request.failed:
                ended.append(request)
        return ended

    def _deliver(self, request: Request, outcome: SegmentResult, chunk_end: int | None) -> None:
        if outcome.error is not None:
            unexpected = isinstance(outcome.error, Internal)
            request.fail(logged(outcome.error, "a session's step") if unexpected else outcome.error)
            return
        if chunk_end is not None:
            self._progress(request, outcome, chunk_end)
        if outcome.token_id is not None:
            self._token(request, outcome, decoding=chunk_end is None)

    def _count(self, step: Step, result: StepResult) -> None:
        totals = self._totals
        totals.prompt_tokens += sum(c.count for c in step.prefills)
        totals.generated_tokens += sum(r.token_id is not None for r in result.segments)
        totals.cache_hits += result.cache_hits
        totals.cache_misses += result.cache_misses
        for recall in (r.recall for r in result.segments if r.recall is not None):
            totals.recall_sum += recall
            totals.recall_count += 1
        for part, seconds in result.part_s.items():
            totals.part_s[part] += seconds

    def _progress(self, request: Request, outcome: SegmentResult, end: int) -> None:
        request.events.put_nowait(Progress(end, len(request.prompt)))
        if outcome.prompt_logprobs:
            request.events.put_nowait(PromptLogprobs(request.prompt_scored, outcome.prompt_logprobs))
            request.prompt_scored += len(outcome.prompt_logprobs)
        if end == len(request.prompt):
            request.prefilled_s = self._clock()
            if request.is_score:
                self._finish(request, "length")

    def _token(self, request: Request, outcome: SegmentResult, decoding: bool) -> None:
        assert outcome.token_id is not None
        request.token_s.append(self._clock())
        if decoding:
            request.chosen_blocks.append(outcome.num_chosen_blocks)
        if outcome.recall is not None:
            request.recall.append(outcome.recall)
        request.generated.append(outcome.token_id)
        is_eos = outcome.token_id in self._eos_token_ids and not request.ignore_eos
        at_limit = len(request.generated) >= request.max_new_tokens
        text = "" if is_eos else request.text_of(outcome.token_id)
        stopped = request.matcher.stopped
        if (is_eos or at_limit) and not stopped:
            text += request.rest_of_text()
            stopped = request.matcher.stopped
        index = len(request.generated) - 1
        request.events.put_nowait(
            Token(index, outcome.token_id, text, outcome.logprob or 0.0, outcome.top_logprobs)
        )
        if is_eos or stopped:
            self._finish(request, "stop")
        elif at_limit:
            self._finish(request, "length")

    def _finish(self, request: Request, reason: str) -> None:
        request.finished, request.outcome = True, reason
        request.events.put_nowait(Finished(reason, request.usage(self._clock())))
