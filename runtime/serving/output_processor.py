"""From a step's result to each request's events."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moorage.runtime.serving.event_stream import MOST_UNREAD
from moorage.runtime.serving.health import logged
from moorage.runtime.serving.protocol import Finished, Progress, PromptLogprobs, Token
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.request_usage import usage_of
from moorage.runtime.serving.scheduled_request import Step
from moorage.runtime.serving.totals import Totals
from moorage.workers.errors import Internal
from moorage.workers.spec import SampledToken, SegmentResult, StepResult


class OutputProcessor:
    """Puts tokens, progress and the final record into the requests' events, and says which requests ended."""

    def __init__(self, eos_token_ids: frozenset[int], totals: Totals, clock: Callable[[], float]) -> None:
        self._eos_token_ids = eos_token_ids
        self._totals = totals
        self._clock = clock

    def process(self, step: Step, result: StepResult, requests: Mapping[str, Request]) -> list[Request]:
        """Processes one step's results and returns the requests that ended with it."""
        self._totals.count(step, result)
        ended = []
        by_session = {r.session_id: r for r in result.segments}
        chunk_ends = {chunk.request_id: chunk.end for chunk in step.prefills}
        for request_id in step.request_ids:
            request = requests.get(request_id)
            outcome = by_session.get(request.session_id) if request else None
            if request is None or outcome is None:
                continue
            try:
                self._segment(request, outcome, chunk_ends.get(request_id))
            except Exception as error:  # noqa: BLE001  one request must not end another
                ids = {request_id: request.session_id}
                request.fail(logged(error, "processing a request's output", ids, show_message=False))
            request.scheduled.paused = request.events.qsize() >= MOST_UNREAD
            if request.finished or request.failed:
                ended.append(request)
        return ended

    def _segment(self, request: Request, outcome: SegmentResult, chunk_end: int | None) -> None:
        if outcome.error is not None:
            ids = {request.request_id: request.session_id}
            unexpected = isinstance(outcome.error, Internal)
            request.fail_step(logged(outcome.error, "a session's step", ids) if unexpected else outcome.error)
            return
        if chunk_end is not None:
            self._progress(request, outcome, chunk_end)
        elif outcome.token_id is None or not request.memory.verify:  # What was verified attended everything.
            request.chosen_blocks.append(outcome.num_selected_blocks)
            request.chosen_keys.append(outcome.num_selected_keys)
        if outcome.recall is not None:
            request.recall.append(outcome.recall)
            request.recall_by_head.extend(outcome.recall_by_head)
        request.block_masses.add(outcome.block_masses)
        request.drafted_tokens += outcome.num_drafted
        request.accepted_tokens += len(outcome.following)
        for token in outcome.tokens:
            if not request.finished:
                self._token(request, token)

    def _progress(self, request: Request, outcome: SegmentResult, end: int) -> None:
        request.events.put_nowait(Progress(end, len(request.prompt)))
        if outcome.prompt_logprobs:
            scored = (request.prompt_scored, outcome.prompt_logprobs, outcome.prompt_likeliest)
            request.events.put_nowait(PromptLogprobs(*scored))
            request.prompt_scored += len(outcome.prompt_logprobs)
        if end == len(request.prompt):
            request.prefilled_s = self._clock()
            if request.is_score:
                self._finish(request, "length")

    def _token(self, request: Request, token: SampledToken) -> None:
        request.token_s.append(self._clock())
        token_id = token.token_id
        request.generated.append(token_id)
        is_eos = token_id in self._eos_token_ids and not request.ignore_eos
        at_limit = request.remaining_new_tokens <= 0
        text = "" if is_eos else request.text_of(token_id)
        stopped, ended = request.matcher.stopped, request.is_whole(token_id)
        if (is_eos or at_limit or ended) and not stopped:
            text += request.rest_of_text()
            stopped = request.matcher.stopped
        index = len(request.generated) - 1
        request.events.put_nowait(Token(index, token_id, text, token.logprob, token.top_logprobs))
        if request.guide is not None and request.guide.failure is not None:
            request.fail(request.guide.failure)
        elif is_eos or stopped or ended:
            self._finish(request, "stop")
        elif at_limit:
            self._finish(request, "length")

    def _finish(self, request: Request, reason: str) -> None:
        request.finished, request.outcome = True, reason
        record = usage_of(request, self._clock())
        attention = request.block_masses.shares(request.block_size)
        request.events.put_nowait(Finished(reason, record, request.matcher.matched, attention))
