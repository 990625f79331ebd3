"""Holds the requests of each tenant to the limits of its API key."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping

from moorage.runtime.config.units import format_bytes
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest, ResourceExhausted

_MINUTE_S = 60.0
_RETRY_S = 1.0
"""When a tenant should ask again whose own requests must end first."""


class TenantUse:
    """What tenants with limits use now. It belongs to the event loop of the coordinator."""

    def __init__(self, requests: Mapping[str, Request], clock: Callable[[], float] = time.monotonic) -> None:
        """`requests` are all that run or wait, now and later."""
        self._requests, self._clock = requests, clock
        self._latest: dict[str, deque[Request]] = {}
        """Requests by tenant that may have used tokens in the last minute, in order of arrival."""

    def check(self, request: Request, limits: TenantLimits) -> None:
        """Counts a request that is about to be queued.

        Raises ResourceExhausted when the tenant must wait, and InvalidRequest when it may never ask this.
        """
        if limits == NO_LIMITS:
            return
        tenant = request.scheduled.tenant
        self.check_any(tenant, limits)
        _check_bytes(request, self._present(tenant), limits.max_kv_bytes)
        if limits.tokens_per_minute is not None:
            self._latest.setdefault(tenant, deque()).append(request)

    def check_any(self, tenant: str, limits: TenantLimits) -> None:
        """Raises ResourceExhausted when the tenant must wait, whatever it asks."""
        if limits == NO_LIMITS:
            return
        _check_parallel(self._present(tenant), limits.max_parallel_requests)
        if limits.tokens_per_minute is not None:
            self._check_tokens(self._latest.setdefault(tenant, deque()), limits.tokens_per_minute)

    def _present(self, tenant: str) -> list[Request]:
        return [one for one in self._requests.values() if one.scheduled.tenant == tenant]

    def _check_tokens(self, latest: deque[Request], most: int) -> None:
        """A request is let in while fewer tokens than `most` were used, however long it is itself."""
        now_s = self._clock()
        since_s = now_s - _MINUTE_S
        while latest and latest[0].request_id not in self._requests and not _tokens(latest[0], since_s):
            latest.popleft()
        used = sum(_tokens(request, since_s) for request in latest)
        if used >= most:
            raise ResourceExhausted(
                f"the API key has used {used:,} tokens in the last minute, and {most:,} are allowed; try again later",
                retry_after_s=_until_below(latest, most, now_s),
            )


def _check_parallel(present: list[Request], most: int | None) -> None:
    if most is not None and len(present) >= most:
        raise ResourceExhausted(
            f"{counted(len(present), 'request')} of the API key run or wait, and {most} may; try again when one "
            "has ended",
            retry_after_s=_RETRY_S,
        )


def _check_bytes(request: Request, present: list[Request], most: int | None) -> None:
    if most is None:
        return
    need, held = request.dram_bytes, sum(one.dram_bytes for one in present)
    if need > most:
        raise InvalidRequest(
            f"the request needs {format_bytes(need)} of KV memory, and requests of the API key may hold "
            f"{format_bytes(most)}; send a shorter prompt or ask for fewer tokens"
        )
    if held + need > most:
        raise ResourceExhausted(
            f"requests of the API key hold {format_bytes(held)} of KV memory, this one needs {format_bytes(need)}, "
            f"and {format_bytes(most)} are allowed; try again when one has ended",
            retry_after_s=_RETRY_S,
        )


def _tokens(request: Request, since_s: float) -> int:
    """Tokens of a request that were read or generated after `since_s`; a prompt counts when its request arrives."""
    read = len(request.prompt) - request.cached_tokens if request.arrived_s >= since_s else 0
    return read + len(request.token_s) - bisect_left(request.token_s, since_s)


def _until_below(latest: deque[Request], most: int, now_s: float) -> float:
    """Seconds until fewer than `most` tokens lie in the last minute, if none are added."""
    least, longest = 0.0, _MINUTE_S
    while longest - least > 0.5:
        middle = (least + longest) / 2
        used = sum(_tokens(request, now_s + middle - _MINUTE_S) for request in latest)
        least, longest = (middle, longest) if used >= most else (least, middle)
    return longest
