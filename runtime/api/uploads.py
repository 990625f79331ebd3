"""Bounds on prompts that are still being sent: how many, how large together, and how slow.

They are counted apart from requests that are answered. At a bound, the upload that has sent nothing for longest is
ended, so that clients which open streams and send nothing do not block others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from moorage.workers.errors import DeadlineExceeded, MoorageError, ResourceExhausted

_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Counts and bytes for all clients together and for one of them; times in seconds."""

    max_uploads: int = 256
    max_client_uploads: int = 128
    max_bytes: int = 256 << 20
    max_client_bytes: int = 64 << 20
    silence_s: float = 10.0
    """Longest wait for the next message of a stream, the first one included."""
    total_s: float = 30.0
    """Longest time for a whole prompt, and a second more for each `least_bytes_per_s` of it."""
    least_bytes_per_s: int = 16 << 10
    yields_after_s: float = 0.5
    """Silence after which an upload may be ended for another."""

    def for_prompts(self, prompt_bytes: int) -> UploadLimits:
        """Limits that admit two prompts of `prompt_bytes` from one client, and four from all clients."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["max_bytes"] = max(self.max_bytes, 4 * prompt_bytes)
        fields["max_client_bytes"] = max(self.max_client_bytes, 2 * prompt_bytes)
        return UploadLimits(**fields)


class Upload:
    """One prompt from the opening of its stream until it is tokenised."""

    def __init__(self, uploads: Uploads, client: str) -> None:
        self._uploads, self.client = uploads, client
        self.num_bytes = 0
        self.complete = False
        self.started_s = self.received_s = time.monotonic()
        self._timer: asyncio.Timeout | None = None
        self._error: MoorageError | None = None

    async def next(self, requests: AsyncIterator[Any]) -> Any:
        """The next message; None after the last. Raises DeadlineExceeded for a client that is too slow."""
        try:
            async with asyncio.timeout(self._time_left_s()) as self._timer:
                message = await anext(requests, None)
        except TimeoutError:
            raise self._error or self._too_slow() from None
        finally:
            self._timer = None
        if self._error is not None:
            raise self._error
        self.received_s = time.monotonic()
        self.complete = message is None
        return message

    def grow(self, num_bytes: int) -> None:
        """Counts bytes that are about to be held. Raises ResourceExhausted when there are too many already."""
        self._uploads.reserve(self, num_bytes)
        self.num_bytes += num_bytes

    def silent_s(self) -> float:
        """Seconds since the last message; 0 for a complete upload."""
        return 0.0 if self.complete else time.monotonic() - self.received_s

    def end(self, error: MoorageError) -> None:
        """Ends the upload with an error, at once if it waits for its client."""
        self._error = error
        if self._timer is not None:
            with suppress(RuntimeError):  # It expires just now.
                self._timer.reschedule(asyncio.get_running_loop().time())

    def _time_left_s(self) -> float:
        limits = self._uploads.limits
        total_s = limits.total_s + self.num_bytes / limits.least_bytes_per_s
        return max(0.0, min(limits.silence_s, self.started_s + total_s - time.monotonic()))

    def _too_slow(self) -> DeadlineExceeded:
        limits = self._uploads.limits
        if self.silent_s() >= limits.silence_s:
            slow = f"no message came for {limits.silence_s:g} s"
        else:
            slow = f"{self.num_bytes} bytes came in {time.monotonic() - self.started_s:.0f} s"
        return DeadlineExceeded(
            f"prompt: {slow}; send parameters and prompt without pauses, then half-close the stream"
        )


class Uploads:
    """Every upload of a server. It belongs to one event loop."""

    def __init__(self, limits: UploadLimits | None = None) -> None:
        self.limits = limits or UploadLimits()
        self._open: set[Upload] = set()

    @contextmanager
    def open(self, client: str) -> Iterator[Upload]:
        """Counts a new upload. Raises ResourceExhausted when there are too many and none can be ended for it."""
        upload = Upload(self, client)
        own = [other for other in self._open if other.client == client]
        if len(own) >= self.limits.max_client_uploads:
            self._evict(own, f"{len(own)} prompts of this client are being sent")
        elif len(self._open) >= self.limits.max_uploads:
            self._evict(list(self._open), f"{len(self._open)} prompts are being sent")
        self._open.add(upload)
        try:
            yield upload
        finally:
            self._open.discard(upload)

    def reserve(self, upload: Upload, num_bytes: int) -> None:
        """Raises ResourceExhausted when so many bytes more can't be held, and no upload can be ended for them."""
        while True:
            others = [other for other in self._open if other is not upload and other.num_bytes]
            own = [other for other in others if other.client == upload.client]
            own_bytes = upload.num_bytes + num_bytes + sum(other.num_bytes for other in own)
            all_bytes = upload.num_bytes + num_bytes + sum(other.num_bytes for other in others)
            if own_bytes > self.limits.max_client_bytes:
                self._evict(own, f"prompts of this client hold {own_bytes} bytes")
            elif all_bytes > self.limits.max_bytes:
                self._evict(others, f"prompts that are being sent hold {all_bytes} bytes")
            else:
                return

    def _evict(self, candidates: list[Upload], why: str) -> None:
        """Ends one upload: of the client that has most of them, the one that has been silent for longest."""
        counts: dict[str, int] = {}
        for upload in candidates:
            counts[upload.client] = counts.get(upload.client, 0) + 1
        silent = [upload for upload in candidates if upload.silent_s() >= self.limits.yields_after_s]
        refusal = ResourceExhausted(
            f"prompt: {why}, more than the server holds at once; try again", retry_after_s=_RETRY_S
        )
        if not silent:
            raise refusal
        victim = max(silent, key=lambda upload: (counts[upload.client], upload.silent_s()))
        self._open.discard(victim)
        victim.end(refusal)


def client_of(peer: str) -> str:
    """The client of a stream: the other host, or on this host the connection, since its process is not known."""
    kind, _, rest = peer.partition(":")
    host, _, _ = rest.rpartition(":")
    local = host in ("127.0.0.1", "[::1]", "%5B::1%5D")
    return peer if local or kind not in ("ipv4", "ipv6") else f"{kind}:{host}"
