"""Every gRPC method but health checks needs a key, where the server has keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health

from moorage.runtime.api.access.keys import Keys, key_of
from moorage.runtime.api.grpc.failures import end, read_on
from moorage.workers.errors import Unauthenticated

_OPEN = f"/{health.SERVICE_NAME}/"

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class NeedsKey(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Ends calls without a valid key as UNAUTHENTICATED, and tells the others' handlers whose they are."""

    def __init__(self, held: Keys) -> None:
        self._keys = held

    async def intercept_service(self, continuation: Continuation, handler_call_details: Any) -> Any:
        """The method's own handler, or one that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            # gRPC runs the handler in this task.
            self._keys.admit(key_of(_text(metadata, "authorization"), _text(metadata, "x-api-key")))
        except Unauthenticated as error:
            return _refusing(str(error))
        return handler


def _text(metadata: dict[str, Any], name: str) -> str | None:
    value = metadata.get(name)
    return value if isinstance(value, str) else None


def _refusing(message: str) -> Any:
    async def refuse(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await read_on(requests)
        await end(context, grpc.StatusCode.UNAUTHENTICATED, message)

    return grpc.stream_stream_rpc_method_handler(refuse)
