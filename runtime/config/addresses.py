"""Addresses of servers: HOST:PORT, where one is found, and one line on what to write for anything else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from moorage.workers.errors import InvalidRequest

DEFAULT_ADDRESS = "127.0.0.1:50051"
VARIABLE = "MOORAGE_ADDRESS"
"""Environment variable that names the server where no address is given."""
_MOST_HOST_CHARS = 253
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://+([^/?#]*)")
_BRACKETED = re.compile(r"\[[0-9A-Za-z:.%_-]+\]")
_NOT_IN_A_HOST = re.compile(r"[\s/\\@?#\[\],;]")


def check_address(text: object) -> str:
    """`text` itself when it is HOST:PORT or [IPV6]:PORT. Raises ValueError with what to write instead."""
    if not isinstance(text, str):
        raise ValueError("should be HOST:PORT, such as 127.0.0.1:50051")
    scheme = _SCHEME.match(text.strip())
    if scheme is not None:
        rest = scheme[2].rpartition("@")[2]
        write = f"write {rest}" if _is_address(rest) else "write it as 127.0.0.1:50051 is written"
        raise ValueError(f"should be HOST:PORT without {scheme[1]}://, since the server speaks gRPC; {write}")
    host, _, port = text.rpartition(":")
    if host.count(":") > 1 and not host.startswith("[") and port.isdecimal():
        raise ValueError(f"has an IPv6 address without brackets; write [{host}]:{port}")
    if ":" not in text and _is_host(text):
        raise ValueError(f"should be HOST:PORT and has no port; write {text}:50051, or another port")
    if not _is_address(text):
        raise ValueError("should be HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:50051")
    return text


def server_target(address: object, given_as: str = "address") -> str:
    """The address of a server to call, in the form that gRPC takes. Raises InvalidRequest for any other."""
    try:
        text = check_address(address)
    except ValueError as error:
        raise InvalidRequest(f"{given_as} {_shown(address)}: {error}") from None
    if text.endswith(":0"):
        raise InvalidRequest(
            f"{given_as} {_shown(address)}: nothing answers at port 0; give the port that `runtime status` shows"
        )
    return text


def environment_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """The address in $MOORAGE_ADDRESS; None where it is not set or empty. Raises as `server_target` does."""
    value = environ.get(VARIABLE, "").strip()
    return server_target(value, VARIABLE) if value else None


def client_address(address: str | None) -> str:
    """The address given, that of $MOORAGE_ADDRESS, or the default. Raises as `server_target` does."""
    return server_target(address) if address is not None else environment_address() or DEFAULT_ADDRESS


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(colon) and port.isascii() and port.isdecimal() and int(port[:6]) < 65536 and _is_host(host)


def _is_host(host: str) -> bool:
    if not host or len(host) > _MOST_HOST_CHARS or not host.isprintable():
        return False
    return bool(_BRACKETED.fullmatch(host)) or not (":" in host or _NOT_IN_A_HOST.search(host))


def _shown(address: object) -> str:
    text = address if isinstance(address, str) and address.isprintable() else repr(address)
    return text if len(text) <= 60 else text[:57] + "..."
