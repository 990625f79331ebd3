"""The server's end of reading documents: each is read by a process of its own, which can be ended at any time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

import structlog

from moorage.runtime.text.body import Body, read_all
from moorage.runtime.text.limits import JobLimits
from moorage.workers.errors import InvalidRequest, ResourceExhausted

log = structlog.get_logger()

DOCUMENT_LIMITS = JobLimits(base_s=30, s_per_mib=20, base_bytes=512 << 20, bytes_per_byte=16, patience=4)
"""pypdf reads some 50 pages a second."""
MAX_RUNNING = 2
MAX_WAITING = 16
"""Documents that wait to be read; more are refused."""
_RETRY_S = 5.0


class DocumentReader:
    """Reads at most `MAX_RUNNING` documents at once. It belongs to one event loop."""

    def __init__(self, limits: JobLimits = DOCUMENT_LIMITS) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(MAX_RUNNING)
        self._num_waiting = 0
        self.num_running = 0
        """Documents that are being read."""

    async def text(self, name: str, document: Body) -> str:
        """The text of a document; `name` names it in errors. Cancelling ends the work.

        Raises InvalidRequest for a document that has no text or needs too much time or memory, and
        ResourceExhausted when too many wait.
        """
        if self._num_waiting >= MAX_WAITING:
            raise ResourceExhausted(
                f"{MAX_WAITING} documents wait to be read; try again later", retry_after_s=_RETRY_S
            )
        self._num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._num_waiting -= 1
        self.num_running += 1
        try:
            with Body() as answer:
                code = await self._read(name, document, answer)
                line, _, text = read_all(answer.fd).partition(b"\n")
        finally:
            self.num_running -= 1
            self._free.release()
        failure = json.loads(line) if line else {"code": code}
        if failure:
            raise InvalidRequest(failure.get("error") or self._reason(name, document.num_bytes, failure))
        return text.decode("utf-8")

    async def _read(self, name: str, document: Body, answer: Body) -> int:
        """The exit code of the process; negative for the signal that ended it."""
        limits = json.dumps(asdict(self._limits))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moorage.runtime.text.document_child", name, str(os.getpid()), limits),
            stdin=document.fd,
            stdout=answer.fd,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(self._limits.wall_s(document.num_bytes)):
                return await process.wait()
        except TimeoutError:
            return -signal.SIGXCPU
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _reason(self, name: str, num_bytes: int, failure: dict[str, Any]) -> str:
        """Why a process ended without a text, in one line."""
        code = failure.get("code")
        log.info("document not read", num_bytes=num_bytes, **failure)
        if "memory" in failure or code == -signal.SIGABRT:
            mebibytes = self._limits.memory_bytes(num_bytes) >> 20
            return f"{name}: needs more than {mebibytes} MiB of memory to be read; split it, or send its text"
        if code == -signal.SIGXCPU:
            seconds = self._limits.cpu_s(num_bytes)
            return f"{name}: needs more than {seconds} s to be read; split it, or send its text"
        return f"{name}: can't be read (its reader ended with status {code}); save it anew, or as text"
