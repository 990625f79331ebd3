"""The gRPC server: the service, standard health, reflection, and the limits of a connection."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import add_MoorageServicer_to_server
from moorage.runtime.api.access.keys import Keys
from moorage.runtime.api.access.tls import Tls
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.grpc.access import NeedsKey
from moorage.runtime.api.grpc.failures import ignore_clients_that_left
from moorage.runtime.api.grpc.interceptors import EveryMethod
from moorage.runtime.api.grpc.service import MoorageService
from moorage.runtime.api.uploads import UploadLimits
from moorage.workers.errors import Unavailable

SERVICE = pb.DESCRIPTOR.services_by_name["Moorage"].full_name
MAX_CONCURRENT_RPCS = 8192
"""The last bound, since beyond it no health check is answered. Uploads, streams and requests have lower ones."""
DEFAULT_MAX_MESSAGE_BYTES = 4 << 20
_CLOSE_GRACE_S = 1.0
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
    """Listens from its start, and answers once it has an engine."""

    def __init__(
        self,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        uploads: UploadLimits | None = None,
        keys: Keys | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._tls = tls
        ignore_clients_that_left()
        options = (*_OPTIONS, ("grpc.max_receive_message_length", max_message_bytes))
        self._server = grpc.aio.server(
            interceptors=(NeedsKey(keys or Keys()), EveryMethod(SERVICE)),
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
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            port = self._bind(address)
        except RuntimeError:
            raise Unavailable(
                f"server.grpc: {address} can't be bound; stop what uses the port or choose another"
            ) from None
        await self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    def _bind(self, address: str) -> int:
        if self._tls is None:
            return self._server.add_insecure_port(address)
        pair = self._tls.key.read_bytes(), self._tls.cert.read_bytes()
        clients = None if self._tls.client_ca is None else self._tls.client_ca.read_bytes()
        credentials = grpc.ssl_server_credentials([pair], clients, require_client_auth=clients is not None)
        return self._server.add_secure_port(address, credentials)

    async def serve(self, engine: Engine) -> None:
        """From now on `engine` answers requests, and health checks get SERVING."""
        self._service.attach(engine, self._upload_limits)
        await self.set_health(serving=True)

    async def set_health(self, *, serving: bool) -> None:
        """Sets the answer of health checks; nothing else changes."""
        status = health_pb2.HealthCheckResponse
        await self._set(status.SERVING if serving else status.NOT_SERVING)

    async def closed(self) -> None:
        """Waits until the port is closed, by `stop` or by a failure."""
        # Cancelled, it would cancel the server's own end, and `stop` with it.
        await asyncio.shield(self._server.wait_for_termination())

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and waits at most `grace_s` for those that are being answered."""
        self._service.stopping = True
        await self._health.enter_graceful_shutdown()
        await self._service.drain(grace_s)

    async def stop(self) -> None:
        """Closes the port. The engine closes before, so that open requests end with its error."""
        await self._server.stop(_CLOSE_GRACE_S)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)
