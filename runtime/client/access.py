"""What a client shows a server, and how it knows the server: an API key, and certificates."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from moorage.workers.errors import InvalidRequest

KEY_VARIABLE = "MOORAGE_API_KEY"
CA_VARIABLE = "MOORAGE_CA_FILE"


@dataclass(frozen=True, slots=True)
class Access:
    """The metadata of each call, and the credentials of the channel; None for one that is not encrypted."""

    metadata: tuple[tuple[str, str], ...]
    credentials: grpc.ChannelCredentials | None


def access(api_key: str | None, ca_file: str | Path | None) -> Access:
    """What is given, or what the environment has. Raises InvalidRequest for a file that can't be read."""
    key = api_key or os.environ.get(KEY_VARIABLE, "").strip()
    file = ca_file or os.environ.get(CA_VARIABLE, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidRequest("api_key: has characters that no API key has; copy it again")
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    if not file:
        return Access(metadata, None)
    try:
        return Access(metadata, grpc.ssl_channel_credentials(Path(file).read_bytes()))
    except OSError as error:
        raise InvalidRequest(
            f"ca_file: {file} can't be read ({error.strerror}); give a file in PEM form"
        ) from None
