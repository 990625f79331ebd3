"""How the blocks of an idle session come into files and back, beside the steps of the workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from moorage.workers.kv.store import KvStore


class BlockFiles(Protocol):
    """One file for each KV actor, on the actor's host. Nobody may write to the session's blocks meanwhile."""

    async def save(self, session_id: int, files: Sequence[Path]) -> list[str]:
        """Writes all blocks of a session; returns the checksums. Raises Unavailable when a file can't be written."""

    async def load(self, session_id: int, files: Sequence[Path], checksums: Sequence[str]) -> None:
        """Reads all blocks of a session. Raises InvalidRequest for files that are not what was saved."""


class LocalBlockFiles:
    """The block files of stores in this process."""

    def __init__(self, stores: Sequence[KvStore]) -> None:
        self._stores = tuple(stores)

    async def save(self, session_id: int, files: Sequence[Path]) -> list[str]:
        """See BlockFiles."""
        from moorage.workers.kv.snapshot import save_session

        calls = [
            asyncio.to_thread(save_session, store, session_id, file)
            for store, file in zip(self._stores, files, strict=True)
        ]
        return await asyncio.gather(*calls)

    async def load(self, session_id: int, files: Sequence[Path], checksums: Sequence[str]) -> None:
        """See BlockFiles."""
        from moorage.workers.kv.snapshot import load_session

        calls = [
            asyncio.to_thread(load_session, store, session_id, file, checksum)
            for store, file, checksum in zip(self._stores, files, checksums, strict=True)
        ]
        await asyncio.gather(*calls)
