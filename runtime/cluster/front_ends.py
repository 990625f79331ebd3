"""The gRPC server and the HTTP server of one cluster, as one: they start, serve, drain and stop together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import structlog

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.cluster.background_tasks import essential
from moorage.runtime.config.schema import ServerSection
from moorage.runtime.planning.access import keys_of, tls_of
from moorage.runtime.planning.exposure import check_exposure
from moorage.workers.errors import InvalidConfig, Unavailable

if TYPE_CHECKING:
    from moorage.runtime.api.http.server import HttpServer

log = structlog.get_logger()

DEFAULT_HTTP = "127.0.0.1:8000"
FREE_HTTP = "127.0.0.1:0"
_HTTP_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a cluster listens, with the real ports."""

    grpc: str
    http: str | None
    """None where there is no HTTP server."""


class FrontEnds:
    """Both servers listen from their start, and answer once they have an engine."""

    def __init__(self, config: ServerSection) -> None:
        self._config = config
        self._keys, self._tls = keys_of(config), tls_of(config)
        self._grpc = ApiServer(config.max_message_bytes, keys=self._keys, tls=self._tls)
        self._http: HttpServer | None = None

    async def start(self) -> Addresses:
        """Binds what the configuration names. Raises Unavailable or InvalidConfig for what can't be bound."""
        for warning in check_exposure(self._config):
            log.warning(warning)
        grpc = await self._grpc.start(self._config.grpc)
        try:
            http = await self._start_http(self._config.http)
        except BaseException:
            await self._grpc.stop()
            raise
        return Addresses(grpc, http)

    async def serve(self, engine: Engine) -> None:
        """From now on `engine` answers requests."""
        await self._grpc.serve(engine)
        if self._http is not None:
            self._http.serve(engine)

    async def set_health(self, *, serving: bool) -> None:
        """Sets the answer of gRPC's health checks; those of HTTP ask the engine."""
        await self._grpc.set_health(serving=serving)

    async def closed(self) -> None:
        """Waits until one of the servers ends. Raises Unavailable with its name."""
        ends = [essential("the gRPC server", self._grpc.closed())]
        if self._http is not None:
            ends.append(essential("the HTTP server", self._http.closed()))
        tasks = [asyncio.ensure_future(end) for end in ends]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and waits at most `grace_s` for those that are being answered."""
        http = [self._http.drain(grace_s)] if self._http is not None else []
        await asyncio.gather(self._grpc.drain(grace_s), *http)

    async def stop(self) -> None:
        """Closes the ports. The engine closes before, so that open requests end with its error."""
        http = [self._http.stop()] if self._http is not None else []
        await asyncio.gather(self._grpc.stop(), *http)

    async def _start_http(self, wanted: str) -> str | None:
        missing = [name for name in _HTTP_PACKAGES if find_spec(name) is None]
        if wanted == "off" or (missing and wanted == "auto"):
            return None
        if missing:
            raise InvalidConfig(
                f"server.http: {missing[0]} is not installed; install it with pip install 'moorage[http]', or set "
                "server.http to off"
            )
        from moorage.runtime.api.http.server import HttpServer

        server = HttpServer(keys=self._keys, tls=self._tls)
        if wanted != "auto":
            address = await server.start(wanted)
        else:
            try:
                address = await server.start(DEFAULT_HTTP)
            except Unavailable:
                address = await server.start(FREE_HTTP)
                log.warning(
                    f"{DEFAULT_HTTP} is in use, so HTTP is served at {address}; set server.http for another"
                )
        self._http = server
        return address
