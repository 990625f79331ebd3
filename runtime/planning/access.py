"""What a server's configuration says of keys and certificates, ready to be used by its servers."""

from __future__ import annotations

from pathlib import Path

from moorage.runtime.api.access.keys import NO_KEYS, Keys
from moorage.runtime.api.access.tls import Tls
from moorage.runtime.config.schema import ServerSection


def keys_of(server: ServerSection) -> Keys:
    """The keys of a server. Raises InvalidConfig for a file that can't be read."""
    path = server.keys if isinstance(server.keys, Path) else None
    return Keys(path, any_host=server.keys == NO_KEYS)


def tls_of(server: ServerSection) -> Tls | None:
    """The certificates of a server; None where it has none."""
    if server.tls_cert is None or server.tls_key is None:
        return None
    return Tls(server.tls_cert, server.tls_key, server.tls_client_ca)


def check_access(server: ServerSection) -> None:
    """Raises InvalidConfig for files of keys and certificates that can't be used."""
    keys_of(server)
    if (tls := tls_of(server)) is not None:
        tls.check()
