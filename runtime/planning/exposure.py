"""Whether other hosts can reach a server, and what the configuration must say before they may."""

from __future__ import annotations

import ipaddress
import socket

from moorage.runtime.api.access.keys import NO_KEYS
from moorage.runtime.config.schema import ServerSection
from moorage.workers.errors import InvalidConfig


def is_exposed(address: str) -> bool:
    """Whether other hosts can reach a HOST:PORT.

    A name counts as what it resolves to; one that does not resolve can't be bound, and the
    check of the port reports that.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return not all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def check_exposure(server: ServerSection) -> list[str]:
    """Warnings about addresses that other hosts can reach. Raises InvalidConfig for one that needs no key."""
    warnings = []
    for key, address in (("server.grpc", server.grpc), ("server.http", server.http)):
        if address in ("off", "auto") or not is_exposed(address):
            continue
        if server.keys is None:
            raise InvalidConfig(
                f"{key}: {address} can be reached by other hosts, and no API keys are set; make one with `runtime "
                "key add NAME` and set server.keys to its file, listen on 127.0.0.1, or set server.keys to none"
            )
        if (warning := exposure_warning(server, key, address)) is not None:
            warnings.append(warning)
    return warnings


def exposure_warning(server: ServerSection, key: str, address: str) -> str | None:
    """One line for an exposed HOST:PORT that lacks authentication or encryption; None for one that lacks neither."""
    lacks = ["authentication"] if server.keys in (None, NO_KEYS) and server.tls_client_ca is None else []
    lacks += ["encryption"] if server.tls_cert is None else []
    if not lacks:
        return None
    shared = ", and all clients share its session names" if "authentication" in lacks else ""
    return (
        f"{key}: {address} can be reached by other hosts; the server has no {' and no '.join(lacks)}{shared}; "
        "set server.keys, server.tls_cert and server.tls_key, or let only hosts that you trust reach the port"
    )
