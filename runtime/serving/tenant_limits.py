"""What the requests of one tenant may take together: how many, how many tokens a minute, how much KV memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits of a tenant; None is unlimited."""

    max_parallel_requests: int | None = None
    """Requests that run or wait."""
    tokens_per_minute: int | None = None
    """Tokens that were read or generated in the last minute; tokens of a prompt whose KV was held do not count."""
    max_kv_bytes: int | None = None
    """KV memory of requests that run or wait."""


NO_LIMITS = TenantLimits()
