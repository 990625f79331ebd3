"""Who is asked: a running cluster over gRPC, or an engine in this process. Evaluations see no difference."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from moorage.client import Client, GenerateOptions
from moorage.client.types import Prompt
from moorage.runtime.config.units import format_tokens
from moorage.runtime.evals.haystack import Coder
from moorage.runtime.planning.trained_length import Reach

CHAT_TOKENS = 128
"""Room that is left for what a chat template adds to a prompt."""
CHAT_ANSWER_TOKENS = 512
"""Least length of an answer in a chat: models begin with a sentence, or with thoughts, before the fact itself."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A continuation, greedily drawn."""

    text: str
    seconds: float
    recall: float | None
    budget_tokens: int
    """Most tokens attended per layer and decode step; 0 stands for all."""
    cut: bool = False
    """Whether the limit of tokens ended it, and not the model."""


class Target(Coder, Protocol):
    """One model under one choice of memory, at one length."""

    @property
    def room(self) -> int:
        """Most tokens of a prompt and its answer together."""

    def prefix(self) -> list[int]:
        """What the model expects before a text, such as BOS."""

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        session: str | None = None,
        question_tokens: int = 0,
    ) -> Answer:
        """Continues a prompt until the end of the sequence or the limit.

        Where sessions last, prompts of one `session` are prefilled only from their first difference on. The last
        `question_tokens` pass through decode steps, one by one, where the target can do that.
        """

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probability of each token but the first, given those before it."""


class Targets(Protocol):
    """One model under several choices of memory, which are measured side by side."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The choices, by name."""

    def settings(self, label: str) -> dict[str, Any]:
        """What the choice means, as far as it is known here; JSON values."""

    def at(self, label: str, length: int | None) -> Target:
        """The model under one choice, ready for a prompt and answer of `length` tokens."""

    def remarks(self, lengths: Sequence[int]) -> list[str]:
        """What should be known of the choices beside results at these lengths, a line each."""

    def close(self) -> None:
        """Gives back what it held."""


class ServerTargets:
    """A running cluster; the choices are presets that a request may name."""

    def __init__(self, client: Client, presets: Sequence[str] = (), chat: bool = False) -> None:
        """Without presets the cluster's own is asked for; `chat` sends prompts as a user's messages.

        Raises Unavailable when there is no server.
        """
        self._client, self._info, self._chat = client, client.models()[0], chat
        self.model = self._info.name
        self.labels = tuple(presets) or (self._info.preset,)

    def settings(self, label: str) -> dict[str, Any]:
        """Only the preset's name: the server keeps its configuration to itself."""
        return {"preset": label} | ({"chat": True} if self._chat else {})

    def at(self, label: str, length: int | None) -> Target:  # noqa: ARG002  (the server takes any length)
        """The server under a preset."""
        preset = None if label == self._info.preset else label
        return ServerTarget(self._client, preset, self._info.max_seq_len, self._chat)

    def remarks(self, lengths: Sequence[int]) -> list[str]:
        """Whether the cluster's own preset is asked beyond its reach; the server reports no other preset's reach."""
        reach, own = Reach(self._info.reach_tokens, "as the server says"), self._info.preset
        return beyond_reach({own: [reach] * len(lengths)}, lengths) if own in self.labels else []

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


class ServerCoder:
    """The server's own tokenizer, so that an evaluation needs no copy of the model."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self._client.tokenize(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`; of none, the empty text."""
        return self._client.detokenize(token_ids) if token_ids else ""

    def prefix(self) -> list[int]:
        """What the model expects before a text, such as BOS."""
        return prefix_of(self.encode, self._client.tokenize)


class ServerTarget(ServerCoder):
    """A server under one preset; None is its own."""

    def __init__(self, client: Client, preset: str | None, room: int, chat: bool = False) -> None:
        super().__init__(client)
        self._preset, self._chat = preset, chat
        self.room = room - CHAT_TOKENS if chat else room

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        session: str | None = None,
        question_tokens: int = 0,
    ) -> Answer:
        """Continues a prompt greedily, whatever the model's own sampling defaults are; prefills all of it."""
        del question_tokens
        sent: Prompt = [{"role": "user", "content": self.decode(prompt)}] if self._chat else prompt
        start_s = time.monotonic()
        most = max(max_new_tokens, CHAT_ANSWER_TOKENS) if self._chat else max_new_tokens
        options: GenerateOptions = {
            "max_new_tokens": most,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "preset": self._preset,
        }
        if session is not None:
            options["session"] = session
        result = self._client.generate(sent, **options).result()
        seconds = time.monotonic() - start_s
        cut = result.finish_reason == "length"
        return Answer(result.text, seconds, result.usage.recall, result.usage.budget_tokens, cut)

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities, as the server's Score call gives them."""
        logprobs = self._client.score(tokens, preset=self._preset).logprobs
        return [value for value in logprobs if value is not None]


def beyond_reach(reaches: Mapping[str, Sequence[Reach]], lengths: Sequence[int]) -> list[str]:
    """A line for each choice whose positions do not reach some of the lengths; it has one reach for each length."""
    lines = []
    for label, own in reaches.items():
        beyond = [(reach, length) for reach, length in zip(own, lengths, strict=True) if reach.beyond(length)]
        if beyond:
            tokens, reason = beyond[0][0].tokens, beyond[0][0].reason
            far = ", ".join(format_tokens(length) for _, length in beyond)
            lines.append(f"{label}: positions reach {tokens:,} tokens ({reason}), not {far}")
    return lines


def prefix_of(encode: Callable[[str], list[int]], encode_whole: Callable[[str], list[int]]) -> list[int]:
    """The special tokens that `encode_whole` puts before a text and `encode` does not."""
    text = "text"
    plain, whole = encode(text), encode_whole(text)
    starts = range(len(whole) - len(plain) + 1)
    start = next((at for at in starts if whole[at : at + len(plain)] == plain), 0)
    return whole[:start]
