"""Several generations of one HTTP request as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

import structlog

from moorage.runtime.api.engine import Engine, Events
from moorage.runtime.api.http.service import HttpService
from moorage.runtime.serving.protocol import Event, Finished, GenerateParams, ScoreParams

log = structlog.get_logger()

TICK_S = 2.5
"""Longest time without an item: a stream shows its client that the request is alive."""
MOST_AT_ONCE = 8
"""Generations of one HTTP request that are in the engine's queue at once; the others follow."""

Asked = GenerateParams | ScoreParams


class Generations:
    """Generations that were accepted. `aclose`, or leaving the `async with` block, ends their work."""

    def __init__(self, engine: Engine, asked: Iterator[tuple[int, Asked]]) -> None:
        self._engine, self._left = engine, asked
        self._streams: dict[int, Events] = {}
        self._counted: AbstractContextManager[None] | None = None

    @classmethod
    async def start(cls, service: HttpService, engine: Engine, asked: Sequence[Asked]) -> Self:
        """Queues the first ones, or raises why one can't be served and queues none."""
        generations = cls(engine, enumerate(asked))
        for one in asked:
            if isinstance(one, GenerateParams):
                await engine.sessions.wake(one.session, one.tenant)
        try:
            while len(generations._streams) < MOST_AT_ONCE and generations._start_next() is not None:
                pass
        except BaseException:
            await generations.aclose()
            raise
        generations._counted = service.counted()
        generations._counted.__enter__()
        return generations

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends what is not finished. Safe to call twice."""
        counted, self._counted = self._counted, None
        if counted is not None:
            counted.__exit__(None, None, None)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            await stream.aclose()

    async def events(self) -> AsyncIterator[tuple[int, Event] | None]:
        """Events with the number of their generation, as they come; None where nothing came for `TICK_S`.

        Raises the error that a generation failed with.
        """
        waiting = {_next(stream): number for number, stream in self._streams.items()}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    yield None
                for task in sorted(done, key=waiting.__getitem__):
                    number, event = waiting.pop(task), task.result()
                    yield number, event
                    following: int | None = number
                    if isinstance(event, Finished):
                        del self._streams[number]
                        following = self._start_next()
                    if following is not None:
                        waiting[_next(self._streams[following])] = following
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _start_next(self) -> int | None:
        """Queues the next generation and returns its number; None when there is none left."""
        number, asked = next(self._left, (None, None))
        if number is None or asked is None:
            return None
        if isinstance(asked, GenerateParams):
            self._streams[number], tokens = self._engine.generate(asked), asked.prompt
        else:
            self._streams[number], tokens = self._engine.score(asked), asked.tokens
        log.info("request accepted", request_id=asked.request_id, prompt_tokens=len(tokens))
        return number


def _next(stream: Events) -> asyncio.Future[Event]:
    return asyncio.ensure_future(anext(stream))
