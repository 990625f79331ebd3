"""Teacher forcing: given tokens pass one at a time through decode steps, after a prompt that is prefilled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from moorage.runtime.evals.local_engine import SESSION, LocalEngine
from moorage.runtime.planning.host import deployment_of
from moorage.runtime.serving.session_cache import StoredKv
from moorage.runtime.serving.sessions.reuse import reusable_tokens
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import ContinueSession, MemorySpec, OpenSession, SamplingSpec
from moorage.workers.token_ids import TokenIds

if TYPE_CHECKING:
    import torch


class ForcedSession:
    """One session of an engine. Its stored tokens serve the next prompt where a fresh prefill would store the same.

    So a prompt is prefilled once, however many settings of memory decode after it.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._windows = deployment_of(engine.config, engine.model).windows
        self._ids: list[int] = []
        self._prompt_tokens = 0
        self._memory: MemorySpec | None = None
        """None before the first prompt."""
        self._first_held = 0
        self.prefilled_tokens = 0
        """Tokens that went through prefill so far."""

    def prefill(self, prompt: Sequence[int], memory: MemorySpec) -> None:
        """Makes the session hold `prompt` under `memory`. Raises InvalidRequest where the engine is too small."""
        engine = self._engine
        if len(prompt) > engine.max_tokens:
            raise InvalidRequest(
                f"prompt has {counted(len(prompt), 'token')}, and this engine holds {engine.max_tokens}; shorten it"
            )
        kept = self._reusable(prompt, memory)
        opening = self._opening(kept, len(prompt), memory)
        # The last token runs alone, as it does where all before it is kept, so that rounding is the same.
        bounds = [*range(kept, len(prompt) - 1, engine.config.max_step_tokens), len(prompt) - 1, len(prompt)]
        for start, end in pairwise(bounds):
            engine.put(start, prompt[start:end], opening)
            opening = None
        self._ids, self._prompt_tokens, self._memory = list(prompt), len(prompt), memory
        self._first_held = max(self._first_held if kept else 0, self._windows.first_held(len(prompt)))
        self.prefilled_tokens += len(prompt) - kept

    def decode(self, token_id: int) -> torch.Tensor:
        """Log-probabilities [vocab] after one more token, which attends what the session's memory selects."""
        found = self._engine.put_scored(len(self._ids), (token_id,))
        self._ids.append(token_id)
        self._first_held = max(self._first_held, self._windows.first_held(len(self._ids)))
        return found

    def _reusable(self, prompt: Sequence[int], memory: MemorySpec) -> int:
        if self._memory is None:
            return 0
        engine = self._engine
        stored = StoredKv(TokenIds(self._ids), self._prompt_tokens, self._memory, self._first_held)
        return reusable_tokens(stored, prompt, memory, engine.layout, engine.model.rope, self._windows)

    def _opening(
        self, kept: int, prompt_tokens: int, memory: MemorySpec
    ) -> OpenSession | ContinueSession | None:
        room = self._engine.max_tokens
        if self._memory is None:
            return OpenSession(SESSION, room, prompt_tokens, memory, SamplingSpec())
        return ContinueSession(SESSION, kept, room, prompt_tokens, memory, SamplingSpec())
