"""A warning, before the server listens, when other hosts can reach it: it has no authentication."""

from __future__ import annotations

import ipaddress
import socket


def exposure_warning(address: str, key: str = "server.grpc") -> str | None:
    """One line for a HOST:PORT that other hosts can reach; None for one of this host alone.

    A name counts as what it resolves to; one that does not resolve can't be bound, and the
    check of the port reports that.
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    if all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found):
        return None
    return (
        f"{key}: {address} can be reached by other hosts; the server has no authentication and no "
        "encryption, and all clients share its session names; listen on 127.0.0.1, or let only hosts that you "
        "trust reach the port"
    )
