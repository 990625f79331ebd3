"""Asks a server the conversations of a load, and takes the time of every token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moorage.client import AsyncClient, MoorageError, Token
from moorage.runtime.bench.serve.traces import Conversation, Load, conversations


@dataclass(frozen=True, slots=True)
class Served:
    """What the client of one request saw; times are seconds after the request was sent."""

    turn: int
    prompt_tokens: int
    cached_tokens: int
    token_s: tuple[float, ...]
    """When each token came."""
    total_s: float
    error: str = ""
    """The class of the error that ended it; empty for an answer."""

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.token_s[0]

    @property
    def tpot_s(self) -> float | None:
        """Mean time of each token after the first; None where there is one token."""
        later = len(self.token_s) - 1
        return (self.token_s[-1] - self.token_s[0]) / later if later else None


async def run_load(
    address: str,
    load: Load,
    text: Sequence[int],
    *,
    preset: str | None,
    sessions: bool,
    on_served: Callable[[Served], None],
) -> list[Served]:
    """One entry for each request that was sent; a conversation ends with its first error.

    With `sessions` each conversation has a session, which keeps its KV between the turns.
    """
    asker = _Asker(AsyncClient(address), load, preset, sessions, on_served)
    try:
        return await asker.run(text)
    finally:
        await asker.client.close()


async def ask(
    client: AsyncClient,
    prompt: Sequence[int],
    output_tokens: int,
    *,
    turn: int = 0,
    preset: str | None = None,
    session: str | None = None,
) -> tuple[Served, list[int]]:
    """Sends one request; what its client saw, and the token ids of the answer."""
    came_s: list[float] = []
    answer: list[int] = []
    error, cached = "", 0
    sent_s = time.perf_counter()
    try:
        async with client.generate(
            prompt,
            max_new_tokens=output_tokens,
            temperature=0.0,
            ignore_eos=True,
            preset=preset,
            session=session,
        ) as stream:
            async for event in stream:
                if isinstance(event, Token):
                    came_s.append(time.perf_counter() - sent_s)
                    answer.append(event.token_id)
            cached = (await stream.result()).usage.cached_tokens
    except MoorageError as failed:
        error = type(failed).__name__
    total_s = time.perf_counter() - sent_s
    return Served(turn, len(prompt), cached, tuple(came_s), total_s, error), answer


class _Asker:
    """All conversations of one run."""

    def __init__(
        self,
        client: AsyncClient,
        load: Load,
        preset: str | None,
        sessions: bool,
        on_served: Callable[[Served], None],
    ) -> None:
        self.client = client
        self._load, self._preset, self._sessions, self._on_served = load, preset, sessions, on_served
        self._slots = asyncio.Semaphore(load.max_concurrency)
        self._served: list[Served] = []
        self._begun_s = 0.0

    async def run(self, text: Sequence[int]) -> list[Served]:
        asked = list(conversations(self._load, text))
        self._begun_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for one in asked:
                group.create_task(self._converse(one))
        return self._served

    async def _converse(self, one: Conversation) -> None:
        await asyncio.sleep(max(0.0, self._begun_s + one.starts_s - time.perf_counter()))
        prompt = list(one.document)
        for turn, question in enumerate([(), *one.questions]):
            prompt += question
            session = f"bench-{self._load.seed}-{one.number}" if self._sessions else None
            async with self._slots:
                served, answer = await ask(
                    self.client,
                    prompt,
                    self._load.output_tokens,
                    turn=turn,
                    preset=self._preset,
                    session=session,
                )
            self._served.append(served)
            self._on_served(served)
            if served.error:
                return
            prompt += answer
