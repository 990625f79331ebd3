"""What running requests have done, why each waiting one waits, and for how long by the latest throughput."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from moorage.runtime.config.units import format_bytes
from moorage.runtime.serving.capacity import Capacity
from moorage.runtime.serving.request import Request
from moorage.runtime.serving.scheduled_request import Wait
from moorage.runtime.serving.scheduler import Scheduler
from moorage.runtime.serving.status_records import RunningRequest, WaitingRequest
from moorage.workers.counting import counted

_WEIGHT = 0.1
"""The weight of the latest step among those before it."""
LEAST_RETRY_S, MOST_RETRY_S = 0.5, 600.0


class Throughput:
    """Seconds that a prompt token and a generated one take, averaged over the latest steps."""

    def __init__(self) -> None:
        self._prompt_s: float | None = None
        self._generated_s: float | None = None
        self._used: float | None = None
        """Share of the tokens asked for that requests generated before they ended by themselves."""

    def record_step(self, prompt_tokens: int, generated_tokens: int, elapsed_s: float) -> None:
        """A step took `elapsed_s`; in one of both kinds of tokens, generated ones take what they take alone."""
        if prompt_tokens:
            rest_s = max(0.0, elapsed_s - generated_tokens * (self._generated_s or 0.0))
            self._prompt_s = _averaged(self._prompt_s, rest_s / prompt_tokens)
        elif generated_tokens:
            self._generated_s = _averaged(self._generated_s, elapsed_s / generated_tokens)

    def record_end(self, generated_tokens: int, asked_tokens: int) -> None:
        """A request ended by itself after some of the tokens that it was allowed."""
        if asked_tokens:
            self._used = _averaged(self._used, generated_tokens / asked_tokens)

    def work_s(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """How long this takes alone; None while nothing was measured."""
        if self._prompt_s is None:
            return None
        used = 1.0 if self._used is None else self._used
        return prompt_tokens * self._prompt_s + new_tokens * used * (self._generated_s or self._prompt_s)


def waits_s(running_s: Sequence[float], waiting_s: Sequence[float]) -> list[float]:
    """When each waiting request starts, in order, given the work of all.

    Running requests share the time evenly, and when one ends, one that waits can start.
    """
    served_s, now_s, starts = 0.0, 0.0, []
    ends = list(running_s)  # of the time that each of the running ones was served
    heapq.heapify(ends)
    for work_s in waiting_s:
        if ends:
            end = heapq.heappop(ends)
            now_s += (end - served_s) * (len(ends) + 1)
            served_s = end
        starts.append(now_s)
        heapq.heappush(ends, served_s + work_s)
    return starts


def retry_after_s(starts: Sequence[float]) -> float:
    """When a refused request should come again: half of the queue has started then."""
    return min(max(starts[len(starts) // 2], LEAST_RETRY_S), MOST_RETRY_S)


def works_s(throughput: Throughput, requests: Mapping[str, Request]) -> dict[str, float] | None:
    """How long the rest of each request takes alone, by its id; None until the throughput was measured."""
    works: dict[str, float] = {}
    for request in requests.values():
        work_s = throughput.work_s(request.scheduled.remaining_tokens, request.remaining_new_tokens)
        if work_s is None:
            return None
        works[request.request_id] = work_s
    return works


def expected_waits(
    throughput: Throughput, scheduler: Scheduler, requests: Mapping[str, Request]
) -> list[float] | None:
    """When each waiting request will start, from now on; None until the throughput was measured."""
    works = works_s(throughput, requests)
    if works is None:
        return None
    running = [works.get(request_id, 0.0) for request_id in scheduler.running]
    return waits_s(running, [works[waiting.request_id] for waiting in scheduler.waiting])


def running_requests(scheduler: Scheduler, requests: Mapping[str, Request]) -> tuple[RunningRequest, ...]:
    """The requests that run, in order of admission."""
    return tuple(
        RunningRequest(
            request_id=request_id,
            session_id=requests[request_id].session_id,
            prompt_tokens=running.prompt_tokens,
            prefilled_tokens=running.prefilled_tokens,
            generated_tokens=len(requests[request_id].generated),
        )
        for request_id, running in scheduler.running.items()
    )


def waiting_requests(
    scheduler: Scheduler,
    requests: Mapping[str, Request],
    capacity: Capacity,
    expected_s: Sequence[float] | None,
    now_s: float,
) -> tuple[WaitingRequest, ...]:
    """The requests that wait, in order of admission; `expected_s` has their estimated waits from now on."""
    found = []
    for wait in scheduler.waits():
        request = requests[wait.request.request_id]
        found.append(
            WaitingRequest(
                request_id=request.request_id,
                prompt_tokens=len(request.prompt),
                waited_s=now_s - request.arrived_s,
                waits_for=wait.waits_for,
                reason=_reason(wait, scheduler, capacity),
                expected_wait_s=expected_s[wait.place] if expected_s is not None else None,
            )
        )
    return tuple(found)


def _averaged(before: float | None, latest: float) -> float:
    return latest if before is None else before + _WEIGHT * (latest - before)


def _reason(wait: Wait, scheduler: Scheduler, capacity: Capacity) -> str:
    running = counted(len(scheduler.running), "running request")
    if wait.lacking is not None:
        free = capacity.bytes_of(scheduler.free)
        idle = capacity.bytes_of(scheduler.idle.resources)
        return (
            f"it needs {format_bytes(capacity.bytes_of(wait.lacking))} of KV memory; {format_bytes(free)} are "
            f"free, idle sessions hold {format_bytes(idle)}, and the rest belongs to {running}"
        )
    match wait.waits_for:
        case "session":
            return "another request of its session runs"
        case "running":
            return f"as many requests run as server.max_running allows, {len(scheduler.running)}"
        case "device_slots":
            free, need = scheduler.free.slots, wait.request.need.slots
            if need <= free:
                return f"all rings for sliding-window layers on the device belong to {running}"
            return (
                f"it needs {counted(need, 'device slot')}; {free} are free, and the rest belongs to {running}"
            )
    if wait.place:
        return f"{counted(wait.place, 'request')} before it"
    return "the next step admits it"
