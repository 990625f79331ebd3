"""The client for asyncio code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moorage.client import channel as channels
from moorage.client import messages
from moorage.client.access import access
from moorage.client.sessions import AsyncSessions
from moorage.client.types import (
    GenerateEvent,
    GenerateOptions,
    GenerateResult,
    Prompt,
    ScoreEvent,
    ScoreResult,
)
from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import MoorageStub
from moorage.runtime.api.grpc import codec
from moorage.runtime.config.addresses import client_address
from moorage.runtime.serving.protocol import ClusterStatus, ModelInfo
from moorage.workers.errors import Cancelled, DeadlineExceeded

Event = TypeVar("Event")
Result = TypeVar("Result")


class AsyncEventStream(Generic[Event, Result]):
    """Events as they arrive. Leaving an `async with` early, or `cancel`, stops the work on the server.

    Iterating and `result` raise the errors of `moorage.client`.
    """

    def __init__(
        self,
        open_call: Callable[[], Any],
        connect: Callable[[], Any],
        read: Callable[[Any], Event],
        total: Callable[[Sequence[Event]], Result],
    ) -> None:
        self._open, self._connect, self._read, self._total = open_call, connect, read, total
        self._call: Any = None
        self._events: list[Event] = []

    async def __aiter__(self) -> AsyncIterator[Event]:
        if self._call is None:
            await self._connect()
            self._call = self._open()
        with _translated(self._call):
            async for response in self._call:
                event = self._read(response)
                self._events.append(event)
                yield event

    async def result(self) -> Result:
        """Waits for the end and returns the whole result."""
        async for _ in self:
            pass
        return self._total(self._events)

    def cancel(self) -> None:
        """Stops the work on the server."""
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


AsyncGenerateStream = AsyncEventStream[GenerateEvent, GenerateResult]
AsyncScoreStream = AsyncEventStream[ScoreEvent, ScoreResult]


class AsyncClient:
    """Talks to one server, by default that of $MOORAGE_ADDRESS or 127.0.0.1:50051.

    `timeout_s` is the time limit of each call; None waits as long as it takes. `api_key` is for a server that needs
    one, by default that of $MOORAGE_API_KEY. `ca_file` has the certificates by which an encrypted server is known, by
    default that of $MOORAGE_CA_FILE; without either the connection is not encrypted.

    >>> async with AsyncClient("127.0.0.1:50051") as client:
    ...     result = await client.generate("Once upon a time", max_new_tokens=32).result()
    """

    def __init__(
        self,
        address: str | None = None,
        timeout_s: float | None = None,
        *,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
    ) -> None:
        self.address, self.timeout_s = client_address(address), messages.time_limit(timeout_s)
        shown = access(api_key, ca_file)
        self._metadata = shown.metadata
        if shown.credentials is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=channels.OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(self.address, shown.credentials, options=channels.OPTIONS)
        self._stub = MoorageStub(self._channel)
        self._connected = False
        self.sessions = AsyncSessions(self._stub, self._unary)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels the calls that still run and closes the connection."""
        await self._channel.close(None)

    def generate(
        self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerateStream:
        """Continues a prompt; iterate over the events or await the `result`. Never sent twice."""
        requests = messages.generate_requests(prompt, options)
        start = self._starter(self._stub.Generate, requests, timeout_s)
        return AsyncEventStream(start, self._connect, messages.read_generate, GenerateResult.of)

    def score_stream(
        self,
        text: str | bytes | Sequence[int],
        *,
        preset: str | None = None,
        memory: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncScoreStream:
        """Log-likelihood of a text, with its progress. Never sent twice."""
        start = self._starter(self._stub.Score, messages.score_requests(text, preset, memory), timeout_s)
        return AsyncEventStream(start, self._connect, messages.read_score, ScoreResult.of)

    async def score(
        self,
        text: str | bytes | Sequence[int],
        *,
        preset: str | None = None,
        memory: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> ScoreResult:
        """Log-likelihood of a text."""
        return await self.score_stream(text, preset=preset, memory=memory, timeout_s=timeout_s).result()

    async def tokenize(self, text: str | bytes, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text of at most 4 MiB."""
        request = pb.TokenizeRequest(text=messages.text_bytes(text), add_special_tokens=add_special_tokens)
        return list((await self._unary(self._stub.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""
        reply = await self._unary(self._stub.Detokenize, messages.detokenize_request(token_ids))
        text: str = reply.text
        return text

    async def models(self) -> list[ModelInfo]:
        """The models that the server serves."""
        reply = await self._unary(self._stub.ListModels, pb.ListModelsRequest())
        return [codec.read_model(model) for model in reply.models]

    async def status(self) -> ClusterStatus:
        """A snapshot of the cluster."""
        return codec.read_status(await self._unary(self._stub.GetStatus, pb.GetStatusRequest()))

    async def is_ready(self) -> bool:
        """Whether the server's health check says that it answers requests."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=channels.CONNECT_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Returns once the server answers requests. Raises DeadlineExceeded after `timeout_s`."""
        messages.time_limit(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.is_ready():
                    await asyncio.sleep(channels.READY_POLL_S)
        except TimeoutError:
            raise DeadlineExceeded(channels.not_ready(self.address, timeout_s)) from None

    def _starter(self, method: Any, requests: Iterator[Any], timeout_s: float | None) -> Callable[[], Any]:
        limit_s = messages.time_limit(timeout_s)
        limit_s = self.timeout_s if limit_s is None else limit_s
        return lambda: method(requests, timeout=limit_s, metadata=self._metadata)

    async def _unary(self, method: Any, request: Any) -> Any:
        await self._connect()
        call = method(request, timeout=self.timeout_s, metadata=self._metadata)
        with _translated(call):
            return await call

    async def _connect(self) -> None:
        """Tries until the server is reached; the only retry of a stream, since nothing has been sent yet."""
        if self._connected:
            return
        try:
            async with asyncio.timeout(channels.CONNECT_TIMEOUT_S):
                await self._channel.channel_ready()
        except TimeoutError:
            raise channels.unreachable(self.address) from None
        self._connected = True


@contextmanager
def _translated(call: Any) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise channels.error_of(error) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if call.cancelled() and (task is None or not task.cancelling()):
            raise Cancelled("the call was cancelled by this client") from None
        raise
