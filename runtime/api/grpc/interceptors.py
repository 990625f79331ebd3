"""Rules for every method of every service: messages that can't be read are refused, open streams are bounded."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from moorage.runtime.api.grpc.failures import end, read_on
from moorage.runtime.serving.trace_context import set_caller

MAX_OTHER_STREAMS = 256
"""Health watches and reflections that may be open at once; they are counted apart from everything else."""

Context = grpc.aio.ServicerContext[Any, Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a message that could not be read."""

    num_bytes: int


class EveryMethod(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses requests that are no valid protobuf as INVALID_ARGUMENT, where gRPC itself says INTERNAL.

    Bounds the streams of services other than `own_service`, which knows its own limits.
    """

    def __init__(self, own_service: str) -> None:
        self._own = f"/{own_service}/"
        self._num_other_streams = 0

    async def intercept_service(self, continuation: Continuation, handler_call_details: Any) -> Any:
        """The method's own handler, with a reader that does not fail and a check of what it read."""
        set_caller(handler_call_details.invocation_metadata or ())
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        own = handler_call_details.method.startswith(self._own)
        counted = self._counted if handler.response_streaming and not own else nullcontext
        options = (_reader(handler.request_deserializer), handler.response_serializer)
        if handler.stream_stream is not None:
            call = _checked(handler.stream_stream, _valid_stream, counted)
            return grpc.stream_stream_rpc_method_handler(call, *options)
        if handler.unary_stream is not None:
            call = _checked(handler.unary_stream, _valid, counted)
            return grpc.unary_stream_rpc_method_handler(call, *options)
        return grpc.unary_unary_rpc_method_handler(_checked(handler.unary_unary, _valid, counted), *options)

    @contextmanager
    def _counted(self) -> Any:
        self._num_other_streams += 1
        try:
            yield self._num_other_streams <= MAX_OTHER_STREAMS
        finally:
            self._num_other_streams -= 1


def _checked(
    behavior: Any, check: Callable[[Any, Context], Any], counted: Callable[[], AbstractContextManager[Any]]
) -> Any:
    """`behavior` with its request, or its stream of requests, checked and its call counted."""

    async def refuse_if(too_many: bool, context: Context) -> None:
        if too_many:
            await end(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {MAX_OTHER_STREAMS} health watches and reflections are open; close some",
            )

    async def answer(request: Any, context: Context) -> Any:
        with counted() as within:
            await refuse_if(within is False, context)
            checked = check(request, context)
            return await behavior(await checked if inspect.isawaitable(checked) else checked, context)

    async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
        with counted() as within:
            await refuse_if(within is False, context)
            async for response in behavior(check(request, context), context):
                yield response

    return answers if inspect.isasyncgenfunction(behavior) else answer


async def _valid(request: Any, context: Context) -> Any:
    if isinstance(request, _Malformed):
        await end(
            context,
            grpc.StatusCode.INVALID_ARGUMENT,
            f"a message of {request.num_bytes} bytes is no valid protobuf of this method; "
            "use the stubs of proto/v1/moorage.proto",
        )
    return request


async def _valid_stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Malformed):
            await read_on(requests)
        yield await _valid(request, context)


def _reader(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read_or_mark(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _Malformed(len(data))

    return read_or_mark
