"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moorage.client import channel as channels
from moorage.client import messages
from moorage.client.access import access
from moorage.client.sessions import Sessions
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
from moorage.workers.errors import DeadlineExceeded

Event = TypeVar("Event")
Result = TypeVar("Result")


class EventStream(Generic[Event, Result]):
    """Events as they arrive. Leaving a `with` early, or `cancel`, stops the work on the server.

    Iterating and `result` raise the errors of `moorage.client`.
    """

    def __init__(
        self, call: Any, read: Callable[[Any], Event], total: Callable[[Sequence[Event]], Result]
    ) -> None:
        self._call, self._read, self._total = call, read, total
        self._events: list[Event] = []

    def __iter__(self) -> Iterator[Event]:
        with _translated():
            for response in self._call:
                event = self._read(response)
                self._events.append(event)
                yield event

    def result(self) -> Result:
        """Waits for the end and returns the whole result."""
        for _ in self:
            pass
        return self._total(self._events)

    def cancel(self) -> None:
        """Stops the work on the server."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


GenerateStream = EventStream[GenerateEvent, GenerateResult]
ScoreStream = EventStream[ScoreEvent, ScoreResult]


class Client:
    """Talks to one server, by default that of $MOORAGE_ADDRESS or 127.0.0.1:50051.

    `timeout_s` is the time limit of each call; None waits as long as it takes. `api_key` is for a server that needs
    one, by default that of $MOORAGE_API_KEY. `ca_file` has the certificates by which an encrypted server is known, by
    default that of $MOORAGE_CA_FILE; without either the connection is not encrypted.

    >>> with Client("127.0.0.1:50051") as client:
    ...     for event in client.generate("Once upon a time", max_new_tokens=32):
    ...         print(event)
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
            self._channel = grpc.insecure_channel(self.address, options=channels.OPTIONS)
        else:
            self._channel = grpc.secure_channel(self.address, shown.credentials, options=channels.OPTIONS)
        self._stub = MoorageStub(self._channel)
        self._connected = False
        self.sessions = Sessions(self._stub, self._call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the calls that still run and closes the connection."""
        self._channel.close()

    def generate(
        self, prompt: Prompt, *, timeout_s: float | None = None, **options: Unpack[GenerateOptions]
    ) -> GenerateStream:
        """Continues a prompt; iterate over the events or ask for the `result`. Never sent twice."""
        requests = messages.generate_requests(prompt, options)
        call = self._open(self._stub.Generate, requests, timeout_s)
        return EventStream(call, messages.read_generate, GenerateResult.of)

    def score_stream(
        self,
        text: str | bytes | Sequence[int],
        *,
        preset: str | None = None,
        memory: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> ScoreStream:
        """Log-likelihood of a text, with its progress. Never sent twice."""
        call = self._open(self._stub.Score, messages.score_requests(text, preset, memory), timeout_s)
        return EventStream(call, messages.read_score, ScoreResult.of)

    def score(
        self,
        text: str | bytes | Sequence[int],
        *,
        preset: str | None = None,
        memory: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> ScoreResult:
        """Log-likelihood of a text."""
        return self.score_stream(text, preset=preset, memory=memory, timeout_s=timeout_s).result()

    def tokenize(self, text: str | bytes, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text of at most 4 MiB."""
        request = pb.TokenizeRequest(text=messages.text_bytes(text), add_special_tokens=add_special_tokens)
        return list(self._call(self._stub.Tokenize, request).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""
        text: str = self._call(self._stub.Detokenize, messages.detokenize_request(token_ids)).text
        return text

    def models(self) -> list[ModelInfo]:
        """The models that the server serves."""
        reply = self._call(self._stub.ListModels, pb.ListModelsRequest())
        return [codec.read_model(model) for model in reply.models]

    def status(self) -> ClusterStatus:
        """A snapshot of the cluster."""
        return codec.read_status(self._call(self._stub.GetStatus, pb.GetStatusRequest()))

    def is_ready(self) -> bool:
        """Whether the server's health check says that it answers requests."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=channels.CONNECT_TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Returns once the server answers requests. Raises DeadlineExceeded after `timeout_s`."""
        messages.time_limit(timeout_s)
        until_s = time.monotonic() + timeout_s
        while not self.is_ready():
            if time.monotonic() >= until_s:
                raise DeadlineExceeded(channels.not_ready(self.address, timeout_s))
            time.sleep(channels.READY_POLL_S)

    def _open(self, method: Any, requests: Iterator[Any], timeout_s: float | None) -> Any:
        limit_s = messages.time_limit(timeout_s)
        self._connect()
        limit_s = self.timeout_s if limit_s is None else limit_s
        return method(requests, timeout=limit_s, metadata=self._metadata)

    def _call(self, method: Any, request: Any) -> Any:
        self._connect()
        with _translated():
            return method(request, timeout=self.timeout_s, metadata=self._metadata)

    def _connect(self) -> None:
        """Tries until the server is reached; the only retry of a stream, since nothing has been sent yet."""
        if self._connected:
            return
        try:
            grpc.channel_ready_future(self._channel).result(timeout=channels.CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            raise channels.unreachable(self.address) from None
        self._connected = True


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise channels.error_of(error) from None
