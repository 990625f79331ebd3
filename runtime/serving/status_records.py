"""Parts of the status of a cluster: its KV actors, and the requests that run and wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvActorStatus:
    """One KV actor."""

    name: str
    pid: int
    used_bytes: int
    capacity_bytes: int
    num_sessions: int
    state: str = "running"
    """running, stopped, gone, or unresponsive; the figures are the last known ones unless it runs."""


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request that was admitted and has not ended."""

    request_id: str
    session_id: int
    """Its session in the worker, which the log of a step names."""
    prompt_tokens: int
    prefilled_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class WaitingRequest:
    """A request that was accepted and has not had its first step."""

    request_id: str
    prompt_tokens: int
    waited_s: float
    waits_for: str
    """memory, device_slots, running, session or queue."""
    reason: str
    """One sentence: what is needed, what is free, and who holds the rest."""
    expected_wait_s: float | None = None
    """Estimated from the measured throughput; None until it was measured."""
