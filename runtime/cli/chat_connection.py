"""The server of a chat, which may go away and come back, also at another address."""

from __future__ import annotations

import time
from typing import Self

from moorage.client import Client, ModelInfo
from moorage.runtime.cli import options as o
from moorage.workers.errors import NotFound, Unavailable

_POLL_S = 0.5


class Connection:
    """A client of the server at `address`; without one, of that where a command would find it now."""

    def __init__(self, address: str | None) -> None:
        self._given = address
        self.client = Client(o.server_address(address))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def model(self) -> ModelInfo:
        """The served model. Raises Unavailable when no server answers."""
        return self.client.models()[0]

    def wait(self, timeout_s: float) -> None:
        """Returns once the server answers again. Raises Unavailable after `timeout_s`."""
        until_s = time.monotonic() + timeout_s
        while not self._ready():
            if time.monotonic() >= until_s:
                raise Unavailable(
                    f"no server answers at {self.client.address} for {timeout_s:g} s; start it again"
                )
            time.sleep(_POLL_S)

    def _ready(self) -> bool:
        try:
            address = o.server_address(self._given)
        except NotFound:  # several run, and none of them need be the one that was lost
            address = self.client.address
        if address != self.client.address:
            self.client.close()
            self.client = Client(address)
        return self.client.is_ready()
