"""The blocks of sessions in files, written and read by the KV actors of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moorage.workers.errors import Unavailable

_LOOK_S = 0.02
"""How often an actor is asked whether it is done."""


class RayBlockFiles:
    """See `BlockFiles`. Each actor works in a thread of its own, and answers other calls meanwhile."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = tuple(actors)

    async def save(self, session_id: int, files: Sequence[Path]) -> list[str]:
        """See BlockFiles."""
        calls = zip(self._actors, files, strict=True)
        return await _all([_done(one, one.start_save.remote(session_id, str(file))) for one, file in calls])

    async def load(self, session_id: int, files: Sequence[Path], checksums: Sequence[str]) -> None:
        """See BlockFiles."""
        calls = zip(self._actors, files, checksums, strict=True)
        await _all(
            [
                _done(one, one.start_load.remote(session_id, str(file), checksum))
                for one, file, checksum in calls
            ]
        )


async def _all(calls: Sequence[Any]) -> list[str]:
    """Waits for all, also when one fails; then raises."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [str(one) for one in found]


async def _done(actor: Any, started: Any) -> Any:
    import ray.exceptions

    try:
        number = await started
        while not (outcome := await actor.outcome.remote(number)).done:
            await asyncio.sleep(_LOOK_S)
    except ray.exceptions.RayError as error:
        raise Unavailable(f"KV actor: {str(error).partition(chr(10))[0]}; see that it runs") from None
    if outcome.error is not None:
        raise outcome.error
    return outcome.result
