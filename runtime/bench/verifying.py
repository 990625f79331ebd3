"""`bench verify`: drafts that one exact pass verifies, against full attention, on prompts of one model.

Each document is read once. Its prompts are the document up to each length and a request behind it; all choices
answer over the same keys and values.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean

from moorage.runtime.bench.threads import use_threads
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.evals.fidelity.choices import full_attention
from moorage.runtime.evals.haystack import text_haystack
from moorage.runtime.planning.host import deployment_of
from moorage.runtime.planning.worker_settings import for_one_session, worker_settings
from moorage.runtime.serving.capacity import pages_of_one
from moorage.runtime.serving.executor import LocalExecutor
from moorage.runtime.text.tokenizer import TextTokenizer
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

FULL = "full"
REQUESTS = (
    "\n\nIn short, the text above says that",
    "\n\nQuestion: What is the most important point of the text above?\nAnswer:",
    "\n\nHere is a list of the terms that the text above defines:\n",
    "\n\nA short example in Python of what the text above describes:\n\n",
)
"""What stands behind the document, in turn."""
_SESSION = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What one choice generated."""

    tokens: tuple[int, ...]
    seconds: float
    """Time after the first token, which the prompt's last step brings."""
    num_drafted: int
    num_accepted: int

    @property
    def token_s(self) -> float:
        """Seconds of a token."""
        return self.seconds / max(1, len(self.tokens) - 1)


@dataclass(slots=True)
class Comparison:
    """All prompts of one length under one choice, beside full attention."""

    choice: str
    context_tokens: int
    full: list[Answer] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def num_equal(self) -> int:
        """Answers whose tokens are those of full attention."""
        return sum(a.tokens == b.tokens for a, b in zip(self.full, self.answers, strict=True))

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that full attention draws as well."""
        drafted = sum(answer.num_drafted for answer in self.answers)
        return sum(answer.num_accepted for answer in self.answers) / drafted if drafted else None

    @property
    def speed_up(self) -> float:
        """Seconds of full attention for all answers over those of the choice."""
        return sum(answer.token_s for answer in self.full) / sum(answer.token_s for answer in self.answers)

    def as_json(self) -> dict[str, float | int | str | None]:
        """The figures for machines."""
        return {
            "choice": self.choice,
            "context": self.context_tokens,
            "prompts": len(self.answers),
            "equal": self.num_equal,
            "acceptance": self.acceptance,
            "full_token_s": mean(answer.token_s for answer in self.full),
            "token_s": mean(answer.token_s for answer in self.answers),
            "speed_up": self.speed_up,
        }


class Reader:
    """One model in this process, whose one session holds a document."""

    def __init__(self, config: ClusterConfig, longest: int, threads: int) -> None:
        """Raises InvalidConfig or InvalidModel as `runtime launch` does."""
        use_threads(threads)
        self._model = read_model_spec(config.model.path)
        self.memory = resolve_memory(config, None, self._model).replace(recall_every=0)
        """The configuration's own."""
        self.full = full_attention(self.memory).replace(verify=0)
        """All keys, where the same positions see them."""
        settings = worker_settings(config, for_one_session(deployment_of(config, self._model), self.memory))
        self._chunk, self._steps, self._held = config.max_step_tokens, 0, list[int]()
        self._executor = LocalExecutor.start(settings, [pages_of_one(settings.layout, longest)])
        self._tokenizer = TextTokenizer.load(config.model.path)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(token_ids)

    def read(self, prompt: Sequence[int]) -> None:
        """Holds all of `prompt` but its last token, and reads what is not held yet."""
        keep = next(
            (at for at, (a, b) in enumerate(zip(self._held, prompt, strict=False)) if a != b),
            min(len(self._held), len(prompt) - 1),
        )
        opens: tuple[OpenSession | ContinueSession, ...] = (self._opening(self.full, prompt, keep, 0),)
        for start in range(keep, len(prompt) - 1, self._chunk):
            ids = tuple(prompt[start : min(start + self._chunk, len(prompt) - 1)])
            self._step(Segment(_SESSION, start, ids, False), opens)
            opens = ()
        self._held = list(prompt[:-1])

    def answer(self, prompt: Sequence[int], count: int, memory: MemorySpec) -> Answer:
        """`count` greedy tokens after a prompt that was read."""
        keep = len(prompt) - 1
        opening = self._opening(memory, prompt, keep, count)
        first = self._step(Segment(_SESSION, keep, (prompt[-1],), True), (opening,))
        tokens, drafted, accepted = [token.token_id for token in first.tokens], 0, 0
        started = time.perf_counter()
        while len(tokens) < count:
            result = self._step(Segment(_SESSION, keep + len(tokens), (tokens[-1],), True))
            tokens += [token.token_id for token in result.tokens]
            drafted, accepted = drafted + result.num_drafted, accepted + len(result.following)
        return Answer(tuple(tokens), time.perf_counter() - started, drafted, accepted)

    def _opening(
        self, memory: MemorySpec, prompt: Sequence[int], keep: int, count: int
    ) -> OpenSession | ContinueSession:
        total, sampling = len(prompt) + count, SamplingSpec()
        if not self._held:
            return OpenSession(_SESSION, total, len(prompt), memory, sampling)
        return ContinueSession(_SESSION, keep, total, len(prompt), memory, sampling, prompt[:keep])

    def _step(self, segment: Segment, opens: tuple[OpenSession | ContinueSession, ...] = ()) -> SegmentResult:
        self._steps += 1
        (result,) = self._executor.step(StepPlan(self._steps, (), opens, (segment,))).segments
        if result.error is not None:
            raise result.error
        return result

    def close(self) -> None:
        """Gives the store's memory back."""
        self._executor.release()


def run_verification(
    reader: Reader,
    lengths: Sequence[int],
    documents: Iterable[int],
    count: int,
    choices: dict[str, MemorySpec],
) -> Iterator[list[Comparison]]:
    """Yields after each document the comparisons so far, one for each choice and length.

    A round has one answer under each choice, in an order that rotates.
    """
    found = {(name, length): Comparison(name, length) for length in lengths for name in choices}
    haystack = text_haystack()
    ways = {FULL: reader.full, **choices}
    for number in documents:
        document = haystack.tokens(reader, max(lengths), seed=number)
        for at, length in enumerate(sorted(lengths)):
            request = reader.encode(REQUESTS[(number + at) % len(REQUESTS)])
            prompt = [*document[: length - len(request)], *request]
            reader.read(prompt)
            turn = (number + at) % len(ways)
            names = [*ways][turn:] + [*ways][:turn]
            answers = {name: reader.answer(prompt, count, ways[name]) for name in names}
            for name in choices:
                found[name, length].full.append(answers[FULL])
                found[name, length].answers.append(answers[name])
        yield list(found.values())
