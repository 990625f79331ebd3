"""The gRPC server: the service, standard health, reflection, and the limits of a connection."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import add_MoorageServicer_to_server
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.grpc.interceptors import EveryMethod
from moorage.runtime.api.grpc.service import MoorageService
from moorage.runtime.api.uploads import UploadLimits, Uploads
from moorage.workers.errors import Unavailable

SERVICE = pb.DESCRIPTOR.services_by_name["Moorage"].full_name
MAX_CONCURRENT_RPCS = 8192
"""A last resort, since beyond it health is not answered: uploads, streams and requests have narrower bounds."""
BYTES_PER_TOKEN_SENT = 32
"""Most bytes a token of the longest prompt for which uploads have room; text has some 4."""
DEFAULT_MAX_MESSAGE_BYTES = 4 << 20
_DRAIN_POLL_S = 0.05
_LAST_WORDS_S = 1.0
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 5),
)


class ApiServer:
    """Listens at once, answers once an engine is set."""

    def __init__(
        self, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES, uploads: UploadLimits | None = None
    ) -> None:
        options = (*_OPTIONS, ("grpc.max_receive_message_length", max_message_bytes))
        self._server = grpc.aio.server(
            interceptors=(EveryMethod(SERVICE),),
            options=options,
            maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
        )
        self._upload_limits = uploads or UploadLimits()
        self._service = MoorageService()
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        add_MoorageServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, address: str) -> str:
        """Binds HOST:PORT and answers health checks with NOT_SERVING. Returns the address with its real port.

        Raises Unavailable when the address can't be bound. Port 0 picks a free one.
        """
        await self._tell(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise Unavailable(
                f"server.grpc: {address} can't be bound; stop what uses the port or choose another"
            ) from None
        await self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    async def serve(self, engine: Engine) -> None:
        """From now on requests are answered by `engine`, and health says SERVING."""
        prompt_bytes = engine.model_info().max_seq_len * BYTES_PER_TOKEN_SENT
        self._service.uploads = Uploads(self._upload_limits.for_prompts(prompt_bytes))
        self._service.engine = engine
        await self.tell_health(serving=True)

    async def tell_health(self, *, serving: bool) -> None:
        """What health checks are answered from now on; nothing else changes."""
        status = health_pb2.HealthCheckResponse
        await self._tell(status.SERVING if serving else status.NOT_SERVING)

    async def closed(self) -> None:
        """Waits until the port is closed, by `stop` or by a failure."""
        # Cancelled, it would cancel the server's own end, and `stop` with it.
        await asyncio.shield(self._server.wait_for_termination())

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and waits at most `grace_s` for those that are being answered."""
        self._service.stopping = True
        await self._health.enter_graceful_shutdown()
        for _ in range(int(grace_s / _DRAIN_POLL_S)):
            if not self._service.num_active:
                return
            await asyncio.sleep(_DRAIN_POLL_S)

    async def stop(self) -> None:
        """Closes the port. It comes after the engine has closed, so that open requests say why they end."""
        await self._server.stop(_LAST_WORDS_S)

    async def _tell(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)
