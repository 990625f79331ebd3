"""Who may call which route: every one needs a key but those that tell nothing, and no other site's pages may call."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from moorage.runtime.api.access.keys import Keys, key_of
from moorage.runtime.api.http.failures import HttpRefusal, error_response
from moorage.workers.errors import MoorageError

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:]*)(?::[0-9]*)?")
OPEN_PATHS = ("/health", "/ping", "/ready", "/version", "/")
OPEN_FOLDER = "/page/"
"""The files of the chat page. They hold no data, and a browser can't send a key with its first request."""


class Access:
    """Lets requests in by their key, and tells whose they are."""

    def __init__(self, app: ASGIApp, held: Keys) -> None:
        self._app, self._keys = app, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        headers, path = Headers(scope=scope), scope["path"]
        try:
            self._check_origin(headers)
            if not self._keys.any_host and not _is_own_name(headers.get("host", "")):
                raise HttpRefusal(
                    403,
                    "host: is no address of this host; call it by one, or set server.keys for other names",
                )
            if not (path in OPEN_PATHS or path.startswith(OPEN_FOLDER)):
                sent = key_of(headers.get("authorization"), headers.get("x-api-key"))
                self._keys.admit(sent)
        except MoorageError as error:
            response = error_response(error, path)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    @staticmethod
    def _check_origin(headers: Headers) -> None:
        """Raises HttpRefusal for a page of another site, whatever its browser would do with the answer."""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise HttpRefusal(403, "origin: pages of other sites may not call this server")


def _is_own_name(host: str) -> bool:
    """Whether a Host header is an address, or a name that always is this host's."""
    found = _HOST.fullmatch(host)
    name = found[1].strip("[]").lower().removesuffix(".") if found else ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
