"""Why each waiting request waits, in words and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moorage.runtime.config.units import format_bytes
from moorage.runtime.serving.capacity import Ledger
from moorage.runtime.serving.jobs import Wait
from moorage.runtime.serving.protocol import WaitingRequest
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.scheduler import Scheduler
from moorage.workers.counting import counted


def waiting_requests(
    scheduler: Scheduler,
    requests: Mapping[int, Request],
    ledger: Ledger,
    expected_s: Sequence[float] | None,
    now_s: float,
) -> tuple[WaitingRequest, ...]:
    """In order of admission; `expected_s` are the estimated waits from now on, in the same order."""
    found = []
    for wait in scheduler.waits():
        request = requests[wait.job.job_id]
        found.append(
            WaitingRequest(
                request_id=request.public_id,
                prompt_tokens=len(request.prompt),
                waited_s=now_s - request.arrived_s,
                waits_for=wait.waits_for,
                reason=_reason(wait, scheduler, ledger),
                expected_wait_s=expected_s[wait.place] if expected_s is not None else None,
            )
        )
    return tuple(found)


def _reason(wait: Wait, scheduler: Scheduler, ledger: Ledger) -> str:
    running = counted(len(scheduler.running), "running request")
    match wait.waits_for:
        case "session":
            return "another request of its session runs"
        case "running":
            return f"as many requests run as server.max_running allows, {len(scheduler.running)}"
        case "device_slots":
            free, need = scheduler.free.slots, wait.job.need.slots
            return (
                f"it needs {counted(need, 'device slot')}; {free} are free, and the rest belongs to {running}"
            )
        case "memory":
            assert wait.lacking is not None
            free = ledger.bytes_of(scheduler.free)
            idle = 0 if scheduler.idle.room is None else ledger.bytes_of(scheduler.idle.room)
            return (
                f"it needs {format_bytes(ledger.bytes_of(wait.lacking))} of KV memory; {format_bytes(free)} are "
                f"free, idle sessions hold {format_bytes(idle)}, and the rest belongs to {running}"
            )
    if wait.place:
        return f"{counted(wait.place, 'request')} before it"
    return "the next step admits it"
