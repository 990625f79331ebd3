"""Certificates of the servers, checked before anything listens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from moorage.workers.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form."""

    cert: Path
    """The server's certificate, with those between it and its authority."""
    key: Path
    client_ca: Path | None = None
    """Authorities whose clients are let in; without it every client is."""

    def check(self) -> None:
        """Raises InvalidConfig with the file that can't be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfig(
                f"server.tls_cert: {self.cert} and {self.key} are no certificate with its key ({_reason(error)}); "
                "name PEM files that belong together"
            ) from None
        if self.client_ca is None:
            return
        try:
            context.load_verify_locations(self.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfig(
                f"server.tls_client_ca: {self.client_ca} holds no certificates ({_reason(error)}); name a PEM file"
            ) from None


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())[:100]
