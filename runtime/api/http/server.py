"""The HTTP server beside the gRPC server, in the same process and on the same event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress

import uvicorn

from moorage.runtime.api.access.keys import Keys
from moorage.runtime.api.access.tls import Tls
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.app import application
from moorage.runtime.api.http.connections import MAX_CONNECTIONS, BoundedConnection
from moorage.runtime.api.http.service import HttpService
from moorage.runtime.api.uploads import UploadLimits
from moorage.workers.errors import Unavailable

_CLOSE_GRACE_S = 1.0
_CLOSE_POLL_S = 0.01
_KEEP_ALIVE_S = 30
_MAX_HEADER_BYTES = 64 << 10
_BACKLOG = 1024


class HttpServer:
    """Listens from its start, and answers once it has an engine."""

    def __init__(
        self, uploads: UploadLimits | None = None, keys: Keys | None = None, tls: Tls | None = None
    ) -> None:
        self._keys, self._tls = keys or Keys(), tls
        self._upload_limits = uploads or UploadLimits()
        self._service = HttpService()
        self._server: uvicorn.Server | None = None
        self._stopped = asyncio.Event()

    async def start(self, address: str) -> str:
        """Binds HOST:PORT and answers; all that needs an engine gets 503. Returns the address with its real port.

        Raises Unavailable when the address can't be bound. Port 0 picks a free one.
        """
        bound = _bound(address)
        config = uvicorn.Config(
            application(self._service, self._keys),
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            limit_concurrency=2 * MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            date_header=False,  # uvicorn sets it in a loop of its own, which does not run here.
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        )
        if self._tls is not None:
            config.ssl_certfile, config.ssl_keyfile = str(self._tls.cert), str(self._tls.key)
            if self._tls.client_ca is not None:
                config.ssl_ca_certs, config.ssl_cert_reqs = str(self._tls.client_ca), ssl.CERT_REQUIRED
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup([bound])
        return f"{address.rpartition(':')[0]}:{bound.getsockname()[1]}"

    def serve(self, engine: Engine) -> None:
        """From now on `engine` answers requests."""
        self._service.attach(engine, self._upload_limits)

    async def closed(self) -> None:
        """Waits until `stop` has closed the port."""
        await self._stopped.wait()

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and waits at most `grace_s` for those that are being answered."""
        await self._service.drain(grace_s)

    async def stop(self) -> None:
        """Closes the port and every connection. The engine closes before, and open requests end with its error."""
        server, self._server = self._server, None
        if server is None:
            return
        state = server.server_state
        for listening in server.servers:
            listening.close()
        for connection in list(state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_GRACE_S):
                while state.connections or state.tasks:
                    await asyncio.sleep(_CLOSE_POLL_S)
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        self._stopped.set()


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, target = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(target)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise Unavailable(
            f"server.http: {address} can't be bound ({error.strerror}); stop what uses the port, choose another, "
            "or set server.http to off"
        ) from None
    bound.setblocking(False)
    return bound
