"""A whole engine in this process, without Ray or a server: what measurements that look inside a step need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.planning.host import deployment_of
from moorage.runtime.planning.worker_settings import for_one_session, worker_settings
from moorage.runtime.serving.capacity import pages_of_one
from moorage.runtime.serving.executor import LocalExecutor
from moorage.runtime.serving.session_cache import StoredKv
from moorage.runtime.serving.sessions.reuse import reusable_tokens
from moorage.runtime.text.tokenizer import TextTokenizer, stop_token_ids
from moorage.workers.counting import counted
from moorage.workers.errors import Internal, InvalidRequest
from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.hf_config import read_model_spec
from moorage.workers.spec import (
    ContinueSession,
    MemorySpec,
    OpenSession,
    SamplingSpec,
    Segment,
    SegmentResult,
    StepPlan,
)
from moorage.workers.token_ids import TokenIds

if TYPE_CHECKING:
    import torch

    from moorage.workers.gpu.attention.exact import ExactAttention
    from moorage.workers.gpu.attention.observed import Observer
    from moorage.workers.gpu.attention.recall_probe import RecallProbe

SESSION = 1
"""The id of the engine's one session."""


class LocalEngine:
    """One session at a time, with room for `max_tokens`, on one store of just that size."""

    def __init__(
        self,
        config: ClusterConfig,
        max_tokens: int,
        preset: str | None = None,
        memory: MemorySpec | None = None,
        on_loading: Callable[[int, int], None] | None = None,
    ) -> None:
        """Loads the model and reserves the store. Raises InvalidConfig or InvalidModel as `runtime launch` does.

        `on_loading` is called with the bytes of the weights that are read, and all.
        """
        self.config, self.max_tokens = config, max_tokens
        self.model = read_model_spec(config.model.path)
        self.memory = memory or resolve_memory(config, preset, self.model)
        self.tokenizer = TextTokenizer.load(config.model.path)
        self.eos_token_ids = stop_token_ids(self.model, self.tokenizer)
        self.recalls: list[float] = []
        """Sampled while the latest prompt was answered."""
        self._settings = self._worker_settings(config, self.memory)
        self.layout = self._settings.layout
        self._executor = LocalExecutor.start(
            self._settings, [pages_of_one(self.layout, max_tokens)], progress=on_loading
        )
        self._steps = 0
        self._windows = deployment_of(config, self.model).windows
        self._stored: StoredKv | None = None
        """What a prompt that was kept left in the store."""

    def serves(self, config: ClusterConfig, memory: MemorySpec) -> bool:
        """Whether this engine can run `memory` as it stands: same model, store and chunks, and room enough."""
        other, own = self._worker_settings(config, memory), self._settings
        room = {name: getattr(own.engine, name) for name in ("num_slots", "key_rows", "anchor_bytes")}
        return (
            replace(other, engine=replace(other.engine, **room)) == own
            and other.engine.num_slots <= own.engine.num_slots
            and other.engine.key_rows <= own.engine.key_rows
            and config.max_step_tokens == self.config.max_step_tokens
        )

    def probe(self, every: int = 1) -> RecallProbe:
        """Measures recall and the oracle on each layer of every so-many-th step from now on."""
        from moorage.workers.gpu.attention.recall_probe import RecallProbe

        engine = self._executor.worker.engine
        probe = RecallProbe(engine.exact, self.layout.block_size, every)
        engine.observe(probe)
        return probe

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        memory: MemorySpec | None = None,
        progress: Callable[[int], None] | None = None,
        question_tokens: int = 0,
        keep: bool = False,
    ) -> Iterator[int]:
        """Greedy tokens until the end of the sequence; `progress` is called with the number of prefilled tokens.

        The last `question_tokens` of the prompt, fewer than all, pass through decode steps. With `keep` what lies
        before them stays in the store, and the next prompt that begins with it need not prefill it again, where a
        fresh prefill would store the same.
        """
        opening = self._opening(prompt, max_new_tokens, memory)
        self.recalls = []
        document = prompt[: len(prompt) - question_tokens]
        if question_tokens:
            # The question's tokens are among the prompt's last, which may select for themselves.
            alone = max(0, opening.memory.selection.last_tokens_alone - question_tokens)
            memory = opening.memory.replace(last_tokens_alone=alone)
            opening = replace(opening, prompt_tokens=len(document), memory=memory)
        kept = self._reusable(document, opening.memory) if keep else 0
        if not kept:
            self._forget()
        try:
            yield from self._tokens(opening, document, prompt[len(document) :], progress, kept, keep)
        except BaseException:
            self._drop()
            raise
        if not keep:
            self._drop()
            return
        held = self._windows.first_held(opening.max_tokens)
        first_held = max(held, 0 if self._stored is None else self._stored.first_held)
        self._stored = StoredKv(TokenIds(list(document)), len(document), opening.memory, first_held)

    def _reusable(self, document: Sequence[int], memory: MemorySpec) -> int:
        """First tokens of a document that the store holds as a fresh prefill would."""
        if self._stored is None:
            return 0
        return reusable_tokens(self._stored, document, memory, self.layout, self.model.rope, self._windows)

    def score(self, tokens: Sequence[int], memory: MemorySpec | None = None) -> list[float]:
        """Log-probability of each token but the first, given those before it."""
        opening = self._opening(tokens, 0, memory)
        self._forget()
        try:
            return [
                value for result in self._prefill(opening, tokens, True) for value in result.prompt_logprobs
            ]
        finally:
            self._drop()

    def observe(self, observer: Observer) -> None:
        """Tells `observer` of each attention of generated tokens from now on."""
        self._executor.worker.engine.observe(observer)

    @property
    def exact(self) -> ExactAttention:
        """Attends all of a session's past."""
        return self._executor.worker.engine.exact

    def put(
        self, start: int, token_ids: Sequence[int], opening: OpenSession | ContinueSession | None = None
    ) -> None:
        """One step over given tokens from position `start` on, of the session that `opening` opens or continues.

        The session stays open.
        """
        opens = () if opening is None else (opening,)
        self._run(Segment(SESSION, start, tuple(token_ids), False), opens)

    def put_scored(self, start: int, token_ids: Sequence[int]) -> torch.Tensor:
        """The same for an open session; returns the log-probabilities [vocab] after the last token, in fp32."""
        self._run(Segment(SESSION, start, tuple(token_ids), False, True))
        found = self._executor.worker.engine.sessions[SESSION].last_logprobs
        if found is None:
            raise Internal("the engine kept no log-probabilities of a scored step")
        return found

    def _worker_settings(self, config: ClusterConfig, memory: MemorySpec) -> WorkerSettings:
        return worker_settings(config, for_one_session(deployment_of(config, self.model), memory))

    def _opening(self, prompt: Sequence[int], max_new_tokens: int, memory: MemorySpec | None) -> OpenSession:
        total = len(prompt) + max_new_tokens
        if not prompt:
            raise InvalidRequest("prompt is empty; give at least one token")
        if total > self.max_tokens:
            raise InvalidRequest(
                f"prompt has {counted(len(prompt), 'token')}, {counted(total, 'token')} with its answer, and this "
                f"engine holds {self.max_tokens}; shorten the prompt or ask for fewer new tokens"
            )
        return OpenSession(SESSION, total, len(prompt), memory or self.memory, SamplingSpec())

    def _prefill(
        self, opening: OpenSession, prompt: Sequence[int], scored: bool, kept: int = 0, alone: bool = False
    ) -> Iterator[SegmentResult]:
        """One result for each chunk; the last one's has the first new token unless the prompt is scored.

        `kept` tokens are held. With `alone` the last token is a chunk of its own, as it is where all before it is
        held, so that rounding is the same.
        """
        opens: tuple[OpenSession | ContinueSession, ...] = (opening,)
        if kept:
            opens = (
                ContinueSession(
                    SESSION,
                    kept,
                    opening.max_tokens,
                    opening.prompt_tokens,
                    opening.memory,
                    opening.sampling,
                    prompt[:kept],
                ),
            )
        last_alone = [len(prompt) - 1] if alone else []
        ends = [*range(kept, len(prompt) - alone, self.config.max_step_tokens), *last_alone, len(prompt)]
        for start, end in pairwise(ends):
            last = end == len(prompt)
            segment = Segment(SESSION, start, tuple(prompt[start:end]), last and not scored, scored)
            yield self._run(segment, opens)
            opens = ()

    def _tokens(
        self,
        opening: OpenSession,
        prompt: Sequence[int],
        question: Sequence[int],
        progress: Callable[[int], None] | None,
        kept: int,
        alone: bool,
    ) -> Iterator[int]:
        end, result = kept, SegmentResult(SESSION)
        for chunk in self._prefill(opening, prompt, False, kept, alone):
            result, end = chunk, min(end + self.config.max_step_tokens, len(prompt))
            if progress is not None:
                progress(end)
        for position, token_id in enumerate(question, len(prompt)):
            result = self._run(Segment(SESSION, position, (token_id,), True))
        position, segment = len(prompt) + len(question), Segment(SESSION, 0, (), True)
        while True:
            if not (result.tokens or opening.memory.verify):
                raise Internal(f"the engine sampled no token for position {position}")
            for token in result.tokens:
                yield token.token_id
                if token.token_id in self.eos_token_ids or position + 1 == opening.max_tokens:
                    return
                segment = Segment(SESSION, position, (token.token_id,), True)
                position += 1
            result = self._run(segment)
            if result.recall is not None:
                self.recalls.append(result.recall)

    def _run(self, segment: Segment, opens: tuple[OpenSession | ContinueSession, ...] = ()) -> SegmentResult:
        """One step of the session. Raises the error that the segment ended with."""
        self._steps += 1
        (result,) = self._executor.step(StepPlan(self._steps, (), opens, (segment,))).segments
        if result.error is not None:
            raise result.error
        return result

    def _forget(self) -> None:
        """Drops the session that a prompt left."""
        if self._stored is not None:
            self._drop()

    def _drop(self) -> None:
        self._stored = None
        self._steps += 1
        self._executor.step(StepPlan(self._steps, drops=(SESSION,)))

    def close(self) -> None:
        """Gives the store's memory back."""
        self._executor.release()
