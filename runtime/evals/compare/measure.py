"""Measures samples under several choices of memory, each beside full attention over the same cache.

What full attention generates, it generates once: choices on other stores are given the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moorage.runtime.evals.compare.samples import Sample
from moorage.runtime.evals.fidelity.choices import Choice, full_attention
from moorage.runtime.evals.fidelity.forced_session import ForcedSession
from moorage.runtime.evals.fidelity.measure import divergence
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.runtime.text.decoder import text_after
from moorage.workers.spec import MemorySpec

if TYPE_CHECKING:
    import torch

REPEAT_TOKENS = 8
"""A run of so many tokens that stood in the generated text before counts as repeated."""
Answers = dict[tuple[str, int, int], list[int]]
"""(task, length, index) -> what full attention generated."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One sample under one choice."""

    task: str
    length: int
    index: int
    choice: str
    budget: int | None
    index_bytes: float | None
    """Bytes of the index, for each key and KV head of a layer; None where nothing is selected."""
    kl: NDArray[np.float64]
    """[n] nats from full attention, over the text's own tokens or those that full attention generated."""
    agrees: NDArray[np.bool_]
    """[n] whether the likeliest token is full attention's."""
    loss: float | None
    """Nats of a token of the text; None where the model generated the tokens."""
    full_loss: float | None
    score: float | None
    """The score of this choice's own greedy answer; None where there is no right answer."""
    full_score: float | None
    num_keys: float | None
    """Keys attended by a layer and head at the first scored token."""
    repeated: float
    """Share of the scored tokens that end a run which stood in them before."""


@dataclass(frozen=True, slots=True)
class _Truth:
    """What full attention says."""

    tokens: list[int]
    said: list[torch.Tensor]
    """Log-probabilities [vocab] before each token."""


class Judge:
    """Compares choices on one engine."""

    def __init__(self, engine: LocalEngine, answers: Answers) -> None:
        """`answers` is filled with what full attention generates, and read where another engine filled it."""
        from moorage.workers.gpu.attention.mass_probe import MassProbe

        self._engine, self._answers = engine, answers
        self._session = ForcedSession(engine)
        self._probe = MassProbe(engine.exact, engine.layout.block_size)
        engine.observe(self._probe)

    def compare(self, sample: Sample, choices: Sequence[Choice]) -> list[Measured]:
        """Full attention first, whose tokens all choices are given."""
        truth = self._truth(sample, full_attention(choices[0].memory))
        return [self._measured(sample, choice, truth) for choice in choices]

    def _measured(self, sample: Sample, choice: Choice, truth: _Truth) -> Measured:
        said, num_keys = truth.said, None
        if not choice.attends_all:
            said, num_keys = self._forced(sample, choice.memory, truth.tokens)
        agrees = np.array([int(s.argmax()) == int(t.argmax()) for s, t in zip(said, truth.said, strict=True)])
        score = full_score = self._score(sample, truth.tokens)
        if score is not None and not agrees.all():
            score = self._score(sample, self._drawn(sample, choice.memory)[0])
        of_text = sample.wanted is not None
        return Measured(
            task=sample.task,
            length=sample.length,
            index=sample.index,
            choice=choice.name,
            budget=choice.budget,
            index_bytes=None if choice.attends_all else choice.index_bytes,
            kl=np.array([divergence(t[None], s[None])[0] for t, s in zip(truth.said, said, strict=True)]),
            agrees=agrees,
            loss=_loss(said, truth.tokens) if of_text else None,
            full_loss=_loss(truth.said, truth.tokens) if of_text else None,
            score=score,
            full_score=full_score,
            num_keys=num_keys,
            repeated=repeated_share(truth.tokens),
        )

    def _truth(self, sample: Sample, memory: MemorySpec) -> _Truth:
        key = (sample.task, sample.length, sample.index)
        known = sample.wanted or self._answers.get(key)
        if known is not None:
            return _Truth(known, self._forced(sample, memory, known)[0])
        tokens, said = self._drawn(sample, memory)
        self._answers[key] = tokens
        return _Truth(tokens, said)

    def _forced(
        self, sample: Sample, memory: MemorySpec, tokens: Sequence[int]
    ) -> tuple[list[torch.Tensor], float | None]:
        """Log-probabilities before each of the given tokens, and the keys attended at the first."""
        said = [self._ask(sample, memory)]
        keys = [each.num_keys for each in self._probe.samples]
        said += [self._session.decode(token_id).cpu() for token_id in tokens[:-1]]
        return said, float(np.mean(keys)) if keys else None

    def _drawn(self, sample: Sample, memory: MemorySpec) -> tuple[list[int], list[torch.Tensor]]:
        """Greedy tokens until the end of the sequence, which is the last of them, and what was said before each."""
        ends = list(self._engine.eos_token_ids)
        said = [self._ask(sample, memory)]
        tokens: list[int] = []
        while True:
            allowed = said[-1]
            if sample.endless and ends:
                allowed = allowed.clone()
                allowed[ends] = -np.inf
            tokens.append(int(allowed.argmax()))
            if len(tokens) == sample.most_new_tokens or (tokens[-1] in ends and not sample.endless):
                return tokens, said
            said.append(self._session.decode(tokens[-1]).cpu())

    def _ask(self, sample: Sample, memory: MemorySpec) -> torch.Tensor:
        """Log-probabilities after the question, which passes through decode steps; the last of them is probed."""
        self._session.prefill(sample.prompt, memory)
        self._probe.samples = []
        for token_id in sample.given[:-1]:
            self._session.decode(token_id)
        self._probe.enabled = True
        said = self._session.decode(sample.given[-1]).cpu()
        self._probe.enabled = False
        return said

    def _score(self, sample: Sample, tokens: Sequence[int]) -> float | None:
        if sample.score is None:
            return None
        prompt = [*sample.prompt, *sample.given]
        return sample.score(text_after(self._engine.tokenizer, prompt, tokens), sample.answers)


def repeated_share(tokens: Sequence[int]) -> float:
    """Share of the tokens that end a run of REPEAT_TOKENS which stood in them before."""
    seen: set[tuple[int, ...]] = set()
    repeated = 0
    for end in range(REPEAT_TOKENS, len(tokens) + 1):
        run = tuple(tokens[end - REPEAT_TOKENS : end])
        repeated += run in seen
        seen.add(run)
    return repeated / len(tokens)


def _loss(said: Sequence[torch.Tensor], tokens: Sequence[int]) -> float:
    return float(np.mean([-float(one[token]) for one, token in zip(said, tokens, strict=True)]))
