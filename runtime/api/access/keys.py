"""API keys: a file with a hash of each, and the tenant that a key stands for.

A key is 256 random bits, so a plain SHA-256 of it can't be reversed. The name of a key is the tenant whose sessions
and turns in the queue its requests have.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from moorage.workers.errors import InvalidConfig, InvalidRequest, NotFound, Unauthenticated

log = structlog.get_logger()

PREFIX = "mk-"
NO_KEYS = "none"
"""In place of a file: whoever reaches the server may use it."""
_MAX_NAME_CHARACTERS = 64
_MAX_KEY_CHARACTERS = 512
_RANDOM_BYTES = 32

tenant: ContextVar[str] = ContextVar("tenant", default="")
"""Whose request the present task answers; empty where the server has no keys."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as the file has it."""

    name: str
    sha256: str
    created: str
    """The day on which it was made, in ISO form."""


class KeyFile:
    """A JSON file of keys that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[KeyRecord, ...]:
        """All keys. Raises InvalidConfig for a file that is missing or is no key file."""
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))["keys"]
            return tuple(KeyRecord(**entry) for entry in entries)
        except FileNotFoundError:
            raise InvalidConfig(
                f"{self.path}: no such file; make a key with `runtime key add NAME --file {self.path}`"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:100]
            raise InvalidConfig(f"{self.path}: is no file of API keys ({reason}); make a new one") from None

    def add(self, name: str) -> str:
        """Makes a key and returns it; the file holds its hash alone. Raises InvalidRequest for a name in use."""
        if not (0 < len(name) <= _MAX_NAME_CHARACTERS and name.isascii() and name.isprintable()):
            raise InvalidRequest(f"name: must be 1 to {_MAX_NAME_CHARACTERS} printable ASCII characters")
        keys = self.read() if self.path.exists() else ()
        if any(key.name == name for key in keys):
            raise InvalidRequest(f"name: {name!r} has a key already; remove it first, or choose another name")
        key = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        self._write((*keys, KeyRecord(name, _hash(key), time.strftime("%Y-%m-%d"))))
        return key

    def remove(self, name: str) -> None:
        """Removes a key; servers refuse it from then on. Raises NotFound for a name that has none."""
        keys = self.read()
        left = tuple(key for key in keys if key.name != name)
        if left == keys:
            known = ", ".join(key.name for key in keys) or "none"
            raise NotFound(f"name: {name!r} has no key in {self.path}; there are: {known}")
        self._write(left)

    def _write(self, keys: tuple[KeyRecord, ...]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n"
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        scratch.replace(self.path)


class Keys:
    """What a server asks of each request. It reads the file anew when it has changed."""

    def __init__(self, path: Path | None = None, *, any_host: bool = True) -> None:
        """Without a file every request is let in. Raises InvalidConfig for a file that can't be read.

        Then `any_host` says whether it may name the server as it likes. Otherwise a page of another site, whose name
        is made to lead to this host, could call as if it were the server's own.
        """
        self.any_host = any_host or path is not None
        self._file = None if path is None else KeyFile(path)
        self._stamp: tuple[int, int] | None = None
        self._keys: tuple[KeyRecord, ...] = ()
        if self._file is not None:
            self._stamp, self._keys = self._changed_at(), self._file.read()

    def tenant_of(self, key: str | None) -> str:
        """The tenant of a key. Raises Unauthenticated for a key that is missing or unknown.

        Every key of the file is compared, each in constant time.
        """
        if self._file is None:
            return ""
        self._reload()
        if not key:
            raise Unauthenticated("an API key is needed; send it as `Authorization: Bearer KEY`")
        sent, found = _hash(key[:_MAX_KEY_CHARACTERS]), None
        for record in self._keys:
            if hmac.compare_digest(record.sha256, sent):
                found = record
        if found is None:
            raise Unauthenticated("the API key is unknown here; make one with `runtime key add NAME`")
        return found.name

    def _reload(self) -> None:
        """Follows changes of the file. One that can't be read lets nobody in until it can."""
        stamp = self._changed_at()
        if self._file is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._file.read()
        except InvalidConfig as error:
            self._keys = ()
            log.error("no API key is valid", reason=str(error))

    def _changed_at(self) -> tuple[int, int] | None:
        assert self._file is not None
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def key_of(authorization: str | None, x_api_key: str | None) -> str | None:
    """The key in the two headers that clients send it in."""
    scheme, _, rest = (authorization or "").partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else x_api_key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
