"""From hidden states to sampled tokens and prompt log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from moorage.workers.gpu.engine.rounds import SessionStep
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.sampler import NOT_FINITE, Sampled, TokenCounts, sample
from moorage.workers.gpu.transfer.host_copy import on_device
from moorage.workers.spec import Segment

LOGIT_ROWS = 256
"""Positions whose logits are held at once while a prompt is scored."""


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Log-probabilities of given tokens, and the likeliest token at the place of each."""

    logprobs: tuple[float, ...] = ()
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SegmentOutput:
    """Sampled tokens and prompt log-probabilities of one segment."""

    drawn: tuple[Sampled, ...]
    scored: ScoredTokens
    error: str | None = None
    """Why there is none of them; then the other fields mean nothing."""


class OutputStage:
    """The last part of a step: logits only for the positions that need them, then one batched draw.

    Temperature, top-k, top-p and the draw are torch operations on the device, see `sampler`; the sampled tokens of
    all sessions reach the host in one copy.
    """

    def __init__(self, decoder: Decoder, vocab_size: int, timer: PartTimer) -> None:
        self._decoder = decoder
        self._vocab_size = vocab_size
        self._timer = timer

    def count_tokens(
        self, session: WorkerSession, first: int, token_ids: Sequence[int], device: torch.device
    ) -> None:
        """Adds `token_ids`, of positions from `first` on, to the session's counts, if it has a penalty that reads
        them, and to its known tokens, if drafts are looked up there."""
        if session.memory.verify:
            session.known.put(first, token_ids)
        if not session.sampling.counts_tokens:
            return
        if session.counts is None:
            none = torch.zeros(self._vocab_size, dtype=torch.int32, device=device)
            session.counts = TokenCounts(prompt=none, generated=none.clone())
        ids = torch.tensor(list(token_ids), dtype=torch.long, device=device)
        of_prompt = max(0, session.prompt_tokens - first)
        for counts, part in (
            (session.counts.prompt, ids[:of_prompt]),
            (session.counts.generated, ids[of_prompt:]),
        ):
            if len(part):
                counts += torch.bincount(part, minlength=self._vocab_size).to(torch.int32)

    def __call__(self, hidden: torch.Tensor, steps: Sequence[SessionStep]) -> list[SegmentOutput]:
        """`hidden` is [T, hidden], the steps' tokens one after the other."""
        with self._timer("sample"):
            ends = list(accumulate(len(step.segment.token_ids) for step in steps))
            starts = [0, *ends[:-1]]
            scored = [
                self._prompt_logprobs(hidden[a:b], step.segment, step.session)
                if step.segment.prompt_logprobs
                else ScoredTokens()
                for a, b, step in zip(starts, ends, steps, strict=True)
            ]
            drawn = self._draw(hidden, ends, steps)
        return [self._output(s, p) for s, p in zip(drawn, scored, strict=True)]

    def _output(self, drawn: tuple[Sampled, ...], scored: ScoredTokens) -> SegmentOutput:
        error = next((sampled.error for sampled in drawn if sampled.error is not None), None)
        if error is None and not all(map(math.isfinite, scored.logprobs)):
            error = NOT_FINITE
        if error is not None:
            single = self._decoder.dtype is torch.float32
            error += "; check the weights" if single else "; set model.dtype to float32"
        return SegmentOutput(drawn, scored, error)

    def _draw(
        self, hidden: torch.Tensor, ends: Sequence[int], steps: Sequence[SessionStep]
    ) -> list[tuple[Sampled, ...]]:
        """What the last tokens of each step give."""
        asked = [step.sample_rows for step in steps]
        rows = [row for some in asked for row in some]
        if not rows:
            return [()] * len(steps)
        last = [end - len(some) + i for end, some in zip(ends, asked, strict=True) for i in range(len(some))]
        logits = self._decoder.logits(
            hidden
            if len(last) == hidden.shape[0]
            else hidden.index_select(0, on_device(last, torch.long, hidden.device))
        )
        drawn = iter(sample(logits, rows))
        return [tuple(next(drawn) for _ in some) for some in asked]

    def _prompt_logprobs(
        self, hidden: torch.Tensor, segment: Segment, session: WorkerSession
    ) -> ScoredTokens:
        """Log-probability of each token of the segment given those before it (none for position 0)."""
        found: list[float] = []
        best: list[tuple[int, float]] = []
        ids = torch.tensor(list(segment.token_ids), dtype=torch.long, device=hidden.device)
        if session.last_logprobs is not None:
            found.append(float(session.last_logprobs[ids[0]]))
            best += _likeliest(session.last_logprobs[None])
        for start in range(0, len(ids), LOGIT_ROWS):
            rows = torch.log_softmax(self._decoder.logits(hidden[start : start + LOGIT_ROWS]), dim=-1)
            following = ids[start + 1 : start + 1 + len(rows)]
            found += rows[: len(following)].gather(1, following[:, None])[:, 0].tolist()
            best += _likeliest(rows[: len(following)])
        session.last_logprobs = rows[-1].clone()
        return ScoredTokens(tuple(found), tuple(best))


def _likeliest(rows: torch.Tensor) -> list[tuple[int, float]]:
    """The largest entry of each row [T, vocab], with its column."""
    values, ids = rows.max(dim=-1)
    return list(zip(ids.tolist(), values.tolist(), strict=True))
