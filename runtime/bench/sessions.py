"""A long document in a named session: what later questions cost, and what a fork, files and a restart do.

Two lives of a server: the first reads the document, answers a second question, forks the session and saves it; the
second, after a restart, loads it, goes on with that answer, and answers the second question again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from moorage.client import Client, Token
from moorage.runtime.bench.serve.traces import QUESTION_TOKENS, unlike_prompt

T = TypeVar("T")

SESSION, BRANCH, WHOLE = "bench-document", "bench-branch", "bench-whole"
_WARM_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer as its client saw it."""

    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FirstLife:
    """What was measured before the restart."""

    first: Asked
    second: Asked
    whole: Asked
    """An answer to the second question of twice as many tokens, in another session."""
    fork_s: float
    branch_bytes: int
    """What the forked session holds."""
    shared_bytes: int
    """The part of these that it shares."""
    save_s: float
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class SecondLife:
    """What was measured after the restart."""

    load_s: float
    rest: Asked
    """The second answer goes on."""
    again: Asked


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """The figures of one document."""

    before: FirstLife
    after: SecondLife

    @property
    def second_part(self) -> float:
        """Time to first token of the second question, as a part of the first one's."""
        return self.before.second.ttft_s / self.before.first.ttft_s

    @property
    def restart_part(self) -> float:
        """The same part for the question after the restart, with the time to load."""
        return (self.after.load_s + self.after.again.ttft_s) / self.before.first.ttft_s

    @property
    def same_tokens(self) -> bool:
        """Whether the answer after the restart is the one before it, and goes on as one that was not cut."""
        second, whole = self.before.second.token_ids, self.before.whole.token_ids
        return self.after.again.token_ids == second and (*second, *self.after.rest.token_ids) == whole

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured."""
        parts = {"second_part": self.second_part, "restart_part": self.restart_part}
        return {**asdict(self.before), **asdict(self.after), **parts, "same_tokens": self.same_tokens}


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """The document and two questions about it, as token ids."""

    document: tuple[int, ...]
    questions: tuple[tuple[int, ...], tuple[int, ...]]
    output_tokens: int

    @classmethod
    def of(cls, text: Sequence[int], length: int, output_tokens: int, seed: int = 0) -> SessionPlan:
        """A document of `length` tokens of a text."""
        draw = random.Random(seed)
        first, second = (unlike_prompt(draw, text, QUESTION_TOKENS) for _ in range(2))
        return cls(unlike_prompt(draw, text, length), (first, second), output_tokens)


def first_life(client: Client, plan: SessionPlan) -> FirstLife:
    """Asks two questions, then forks the session and saves it."""
    _warm(client, plan)
    first, second = (_ask(client, plan, question) for question in plan.questions)
    whole = _ask(client, plan, plan.questions[1], WHOLE, 2 * plan.output_tokens)
    fork_s, branch = _timed(lambda: client.sessions.fork(SESSION, BRANCH))
    save_s, saved = _timed(lambda: client.sessions.save(SESSION))
    forked = fork_s, branch.dram_bytes, branch.shared_bytes
    return FirstLife(first, second, whole, *forked, save_s, saved.saved_bytes)


def second_life(client: Client, plan: SessionPlan, before: FirstLife) -> SecondLife:
    """Loads the session that `first_life` has saved, goes on with its answer, and asks the second question again."""
    _warm(client, plan)
    load_s, _ = _timed(lambda: client.sessions.load(SESSION))
    rest = _ask(client, plan, (*plan.questions[1], *before.second.token_ids))
    return SecondLife(load_s, rest, _ask(client, plan, plan.questions[1]))


def _ask(
    client: Client,
    plan: SessionPlan,
    question: Sequence[int],
    session: str = SESSION,
    num_tokens: int | None = None,
) -> Asked:
    prompt = (*plan.document, *question)
    asked_s, ttft_s = time.perf_counter(), 0.0
    token_ids: list[int] = []
    count = num_tokens or plan.output_tokens
    options: dict[str, Any] = {"max_new_tokens": count, "temperature": 0.0, "ignore_eos": True}
    with client.generate(prompt, session=session, **options) as stream:
        for event in stream:
            if isinstance(event, Token):
                ttft_s = ttft_s or time.perf_counter() - asked_s
                token_ids.append(event.token_id)
        usage = stream.result().usage
    return Asked(ttft_s, usage.prompt_tokens, usage.cached_tokens, tuple(token_ids))


def _warm(client: Client, plan: SessionPlan) -> None:
    """A first request, which pays for what a process does once."""
    client.generate(plan.document[-_WARM_TOKENS:], max_new_tokens=2, temperature=0.0).result()


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun_s = time.perf_counter()
    found = work()
    return time.perf_counter() - begun_s, found
