"""API keys: a file with a hash of each, and the tenant that a key stands for.

A key is 256 random bits, so a plain SHA-256 of it can't be reversed. The name of a key is the tenant whose sessions
and turns in the queue its requests have. A key may have limits, which all requests with it keep together.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import structlog

from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from moorage.workers.errors import InvalidConfig, InvalidRequest, NotFound, Unauthenticated

log = structlog.get_logger()

PREFIX = "mk-"
NO_KEYS = "none"
"""The value in place of a file: whoever reaches the server may use it."""
_MAX_NAME_CHARACTERS = 64
_MAX_KEY_CHARACTERS = 512
_RANDOM_BYTES = 32

tenant: ContextVar[str] = ContextVar("tenant", default="")
"""Whose request the present task answers; empty where the server has no keys."""
key_limits: ContextVar[TenantLimits] = ContextVar("key_limits", default=NO_LIMITS)
"""What the requests of this tenant may take together."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key as the file has it."""

    name: str
    sha256: str
    created: str
    """The day on which it was made, in ISO form."""
    limits: TenantLimits = NO_LIMITS

    @classmethod
    def of(cls, entry: dict[str, Any]) -> KeyRecord:
        """Reads an entry of the file. Raises ValueError, TypeError or KeyError for what is none."""
        names = [field.name for field in fields(TenantLimits)]
        limits = {name: entry[name] for name in names if name in entry}
        for name, value in limits.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number over 0")
        rest = {name: value for name, value in entry.items() if name not in names}
        return cls(**rest, limits=TenantLimits(**limits))

    def entry(self) -> dict[str, Any]:
        """The entry of the file: limits stand beside the other fields, where there are any."""
        limits = {name: value for name, value in asdict(self.limits).items() if value is not None}
        return {"name": self.name, "sha256": self.sha256, "created": self.created, **limits}


class KeyFile:
    """A JSON file of keys that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[KeyRecord, ...]:
        """All keys. Raises InvalidConfig for a file that is missing or is no key file."""
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))["keys"]
            return tuple(map(KeyRecord.of, entries))
        except FileNotFoundError:
            raise InvalidConfig(
                f"{self.path}: no such file; make a key with `runtime key add NAME --file {self.path}`"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:100]
            raise InvalidConfig(f"{self.path}: is no file of API keys ({reason}); make a new one") from None

    def add(self, name: str, limits: TenantLimits = NO_LIMITS) -> str:
        """Makes a key and returns it; the file holds its hash alone. Raises InvalidRequest for a name in use."""
        if not (0 < len(name) <= _MAX_NAME_CHARACTERS and name.isascii() and name.isprintable()):
            raise InvalidRequest(f"name: must be 1 to {_MAX_NAME_CHARACTERS} printable ASCII characters")
        keys = self.read() if self.path.exists() else ()
        if any(key.name == name for key in keys):
            raise InvalidRequest(f"name: {name!r} has a key already; remove it first, or choose another name")
        key = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        self._write((*keys, KeyRecord(name, _hash(key), time.strftime("%Y-%m-%d"), limits)))
        return key

    def limit(self, name: str, limits: TenantLimits) -> None:
        """Gives a key other limits; servers keep them from the next request on. Raises NotFound as `remove` does."""
        keys = self._having(name)
        self._write(tuple(replace(key, limits=limits) if key.name == name else key for key in keys))

    def remove(self, name: str) -> None:
        """Removes a key; servers refuse it from then on. Raises NotFound for a name that has none."""
        self._write(tuple(key for key in self._having(name) if key.name != name))

    def _having(self, name: str) -> tuple[KeyRecord, ...]:
        keys = self.read()
        if not any(key.name == name for key in keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise NotFound(f"name: {name!r} has no key in {self.path}; there are: {known}")
        return keys

    def _write(self, keys: tuple[KeyRecord, ...]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        text = json.dumps({"keys": [key.entry() for key in keys]}, indent=2) + "\n"
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

    def admit(self, key: str | None) -> None:
        """Lets the present task act for the tenant of a key. Raises as `record_of` does."""
        record = self.record_of(key)
        if record is not None:
            tenant.set(record.name)
            key_limits.set(record.limits)

    def record_of(self, key: str | None) -> KeyRecord | None:
        """The entry of a key; None where the server has no keys.

        Every key of the file is compared, each in constant time. Raises Unauthenticated for a key that is missing or
        unknown.
        """
        if self._file is None:
            return None
        self._reload()
        if not key:
            raise Unauthenticated("an API key is needed; send it as `Authorization: Bearer KEY`")
        sent, found = _hash(key[:_MAX_KEY_CHARACTERS]), None
        for record in self._keys:
            if hmac.compare_digest(record.sha256, sent):
                found = record
        if found is None:
            raise Unauthenticated("the API key is unknown here; make one with `runtime key add NAME`")
        return found

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
