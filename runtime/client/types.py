"""Types of the arguments and results of calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from moorage.runtime.serving.protocol import Finished, Progress, PromptLogprobs, Token
from moorage.runtime.serving.usage import Usage

Prompt = str | bytes | Sequence[int] | Sequence[Mapping[str, str]]
"""Text (or its UTF-8 bytes), token ids, or chat messages {"role": …, "content": …}."""


class GenerateOptions(TypedDict, total=False):
    """Options of a generation; proto/v1/moorage.proto documents their ranges and defaults."""

    model: str
    max_new_tokens: int
    ignore_eos: bool
    stop: Sequence[str]
    preset: str | None
    memory: Mapping[str, object] | None
    """Settings of memory by their keys in a cluster file, such as {"topk": 64}."""
    session: str | None
    parse_special: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    num_logprobs: int
    json_schema: str | Mapping[str, object] | None
    """The answer is JSON of this schema. At most one of this, `regex` and `lark` is given."""
    regex: str | None
    """The answer matches this expression as a whole."""
    lark: str | None
    """The answer follows this grammar, in Lark's syntax."""


GRAMMARS = ("json_schema", "regex", "lark")
"""Options that say what the answer must follow."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request was valid and waits for its first step. `request_id` names it in the server's log."""

    request_id: str
    prompt_tokens: int


GenerateEvent = Accepted | Progress | Token | Finished
ScoreEvent = Accepted | Progress | PromptLogprobs | Finished


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """A finished generation; `logprobs` has one natural logarithm per token."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str
    usage: Usage

    @classmethod
    def of(cls, events: Sequence[GenerateEvent]) -> GenerateResult:
        """The sum of a stream's events, of which the last is Finished."""
        tokens = [event for event in events if isinstance(event, Token)]
        finished = events[-1]
        assert isinstance(finished, Finished)
        return cls(
            token_ids=tuple(token.token_id for token in tokens),
            text="".join(token.text for token in tokens),
            logprobs=tuple(token.logprob for token in tokens),
            top_logprobs=tuple(token.top_logprobs for token in tokens),
            finish_reason=finished.finish_reason,
            usage=finished.usage,
        )


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """Log-likelihood of a text: `logprobs[0]` is None, since nothing comes before the first token."""

    logprobs: tuple[float | None, ...]
    usage: Usage

    @classmethod
    def of(cls, events: Sequence[ScoreEvent]) -> ScoreResult:
        """The sum of a stream's events, of which the last is Finished."""
        scored = [value for event in events if isinstance(event, PromptLogprobs) for value in event.logprobs]
        finished = events[-1]
        assert isinstance(finished, Finished)
        return cls((None, *scored), finished.usage)

    @property
    def num_tokens(self) -> int:
        """Tokens of the text, the unscored first one included."""
        return len(self.logprobs)

    @property
    def loss(self) -> float | None:
        """Mean negative log-likelihood of the scored tokens, in nats; None when there are none."""
        scored = [value for value in self.logprobs if value is not None]
        return -math.fsum(scored) / len(scored) if scored else None

    @property
    def perplexity(self) -> float | None:
        """exp(loss)."""
        loss = self.loss
        return None if loss is None else math.exp(loss)
