"""The server's end of the text process: starts it, sends it jobs, reads the answers, restarts it when it ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from moorage.runtime.cluster.os_processes import ProcessId, ProcessState
from moorage.runtime.text.body import Body, read_all
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.runtime.text.jobs import NO_EXTRA, chat_layout
from moorage.runtime.text.lanes import LONG_BYTES, Lane, Lanes
from moorage.runtime.text.limits import PACKET_BYTES, JobLimits
from moorage.runtime.text.reasoning import ReasoningUse
from moorage.runtime.text.tools.formats import ToolUse
from moorage.workers.errors import InvalidRequest, Unavailable

log = structlog.get_logger()

START_TIMEOUT_S = 60.0
_ENDED = "the text process ended, and starts again; send it once more"
_STOPPING = "the server is stopping; ask another one or start it again"
_END_GRACE_S = 2.0
_CHECK_S = 0.5
_STOPPED_CHECKS = 4
"""A debugger stops a process for moments; one that is stopped for longer is replaced, since it holds no state."""


class TextProcess:
    """Implements `Text` with a process that holds the tokenizer of `model_dir`."""

    def __init__(
        self,
        model_dir: Path,
        max_bytes_per_token: int,
        limits: JobLimits | None = None,
        spelling: Callable[[int], str] = lambda _token_id: "",
        tool_use: ToolUse | None = None,
        reasoning: ReasoningUse | None = None,
    ) -> None:
        """`spelling` gives the text of single tokens in this process."""
        self._model_dir, self.max_bytes_per_token = model_dir, max_bytes_per_token
        self.tool_use, self.reasoning = tool_use, reasoning
        self._spelling = spelling
        self._limits = limits or JobLimits()
        self._lanes = Lanes()
        self._numbers = itertools.count(1)
        self._jobs: dict[int, asyncio.Future[int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The text process, while it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Returns once the process has loaded the tokenizer. Raises Unavailable if it can't."""
        if self._closed:
            raise Unavailable(_STOPPING)
        if self._starting is None or (self._starting.done() and self._socket is None):
            self._starting = self._logged(self._start())
        await asyncio.shield(self._starting)

    async def encode(self, field: str, text: Body, *, add_special_tokens: bool = True) -> array[int]:
        """See `Text`."""
        options = {"field": field, "add_special_tokens": add_special_tokens}
        lane: Lane = "long" if text.num_bytes > LONG_BYTES else "short"
        return array("I", await self._run(lane, "encode", text, options))

    async def encode_chat(
        self,
        contents: Body,
        messages: Sequence[tuple[str, int]],
        *,
        parse_special: bool = False,
        extra: ChatExtra = NO_EXTRA,
    ) -> array[int]:
        """See `Text`."""
        layout = chat_layout(messages, extra)
        contents.append(layout)
        lane: Lane = "long" if contents.num_bytes > LONG_BYTES else "chat"
        options = {"layout_bytes": len(layout), "parse_special": parse_special}
        return array("I", await self._run(lane, "encode_chat", contents, options))

    async def decode(self, token_ids: Sequence[int]) -> str:
        """See `Text`."""
        with Body(array("I", token_ids).tobytes()) as body:
            lane: Lane = "long" if body.num_bytes > LONG_BYTES else "short"
            return (await self._run(lane, "decode", body, {})).decode("utf-8")

    def spelling(self, token_id: int) -> str:
        """See `Text`."""
        return self._spelling(token_id)

    async def close(self) -> None:
        """Ends the process and its jobs. Safe to call twice."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._end()

    def _logged(self, start: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose failure is logged. The next job tries again."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                log.error("text process did not start", reason=str(task.exception()))

        task = asyncio.create_task(start)
        task.add_done_callback(ended)
        return task

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        command = [sys.executable, "-m", "moorage.runtime.text.child", str(self._model_dir)]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), json.dumps(asdict(self._limits))],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        hello = b""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(START_TIMEOUT_S):
                    hello = await asyncio.get_running_loop().sock_recv(ours, PACKET_BYTES)
        finally:
            if not hello:
                ours.close()
                await self._end()
        if not hello:
            raise Unavailable("the text process did not start; the server's log says why")
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_packet)

    async def _end(self) -> None:
        """Closes the socket, which ends the process, and waits for it."""
        process, self._process = self._process, None
        self._disconnect()
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, _END_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    def _disconnect(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        jobs, self._jobs = self._jobs, {}
        for ended in jobs.values():
            if not ended.done():
                ended.set_exception(Unavailable(_STOPPING if self._closed else _ENDED))

    def _on_packet(self) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet:
            result = json.loads(packet)
            ended = self._jobs.pop(result["job"], None)
            if ended is not None and not ended.done():
                ended.set_result(result["code"])
            return
        process, self._process = self._process, None
        self._disconnect()
        code = None if process is None else process.poll()
        log.error("text process ended", pid=None if process is None else process.pid, code=code)
        self._starting = self._logged(self._restart(process))

    async def _restart(self, ended: subprocess.Popen[bytes] | None) -> None:
        if ended is not None:
            await asyncio.to_thread(ended.wait)
        await self._start()
        log.info("text process started again", pid=self.pid)

    async def _run(self, lane: Lane, job: str, text: Body, options: Mapping[str, Any]) -> bytes:
        """The bytes that a job answers. Cancelling ends it."""
        async with self._lanes.enter(lane):
            await self.start()
            with Body() as answer:
                code = await self._ended(job, options, text, answer)
                line, _, rest = read_all(answer.fd).partition(b"\n")
                failure = json.loads(line or b"{}")
        if code == 0 and not failure:
            return rest
        raise InvalidRequest(failure["error"] if "error" in failure else self._limits.reason(code, failure))

    async def _ended(self, job: str, options: Mapping[str, Any], text: Body, answer: Body) -> int:
        """The exit code of a job's child; negative for the signal that ended it."""
        number, process = next(self._numbers), self._process
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._jobs[number] = ended
        wall_s = self._limits.wall_s(text.num_bytes)
        try:
            async with asyncio.timeout(wall_s):
                self._send({"job": number, "do": job, "options": options}, text.fd, answer.fd)
                if await self._answered(ended):
                    return ended.result()
            why = "is stopped (state T)"
        except TimeoutError:
            why = f"did not answer within {wall_s} s"
        finally:
            if self._jobs.pop(number, None) is not None and self._socket is not None:
                with suppress(Unavailable):
                    self._send({"cancel": number})
        if process is not None and process is self._process:
            log.error(f"text process {why}, so it is ended", pid=process.pid)
            process.kill()
        raise Unavailable(f"the text process {why}, and starts again; send it once more")

    async def _answered(self, ended: asyncio.Future[int]) -> bool:
        """Waits for a job; False when the process is stopped at `_STOPPED_CHECKS` checks in a row."""
        known = None if self._process is None else ProcessId.of(self._process.pid)
        checks = 0
        while not (await asyncio.wait({ended}, timeout=_CHECK_S))[0]:
            checks = checks + 1 if known is not None and known.state is ProcessState.STOPPED else 0
            if checks == _STOPPED_CHECKS:
                return False
        return True

    def _send(self, packet: Mapping[str, Any], *descriptors: int) -> None:
        try:
            if self._socket is None:
                raise BrokenPipeError
            socket.send_fds(self._socket, [json.dumps(packet).encode()], descriptors)
        except OSError:
            raise Unavailable(_ENDED) from None
