"""Offers a server more requests than it can answer, and says what refused and accepted clients see.

Three phases: requests one after another, whose times are those of the unloaded server; so many at once that the
server always has work, which measures its capacity; then a Poisson process of a multiple of that rate, whatever the
server answers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.client import AsyncClient, ClusterStatus, FailedPrecondition
from moorage.runtime.bench.serve.figures import Spread
from moorage.runtime.bench.serve.run import Served, ask
from moorage.runtime.bench.serve.traces import unlike_prompt

REFUSED = "ResourceExhausted"
"""The error of a request that the server had no room for; every other one is a failure."""
MOST_REFUSAL_MS = 100.0
MOST_TTFT_RATIO = 2.0
MOST_DELAY_MS = 20.0
"""Beyond it, what the client measures is in part how late it is itself."""
_AGAIN_S = 0.05
"""Pause of a refused client while the capacity is measured."""


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """What is asked of the server."""

    input_tokens: int
    output_tokens: int
    factor: float
    """Offered requests in a second, in multiples of the capacity."""
    duration_s: float
    unloaded: int
    """Requests of the first phase."""
    capacity_s: float
    """Length of the second phase."""
    concurrency: int
    """Clients of the second phase."""
    preset: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class OverloadFigures:
    """What came of it; times are milliseconds."""

    unloaded_ttft: Spread
    capacity: float
    """Requests in a second that the busy server completes."""
    offered: float
    """Requests in a second of the last phase."""
    accepted: int
    refused: int
    failed: Mapping[str, int]
    """Requests that ended by another error than a refusal, by its class."""
    completed_rate: float
    """Requests in a second that the overloaded server completes."""
    ttft: Spread | None
    refusal: Spread | None
    longest_refusal_ms: float | None
    send_delay: Spread | None
    """How much later than planned the client sent requests: its own part in what it measures."""
    lost_pids: tuple[int, ...]
    """Processes of the server that were there before, and are not there afterwards."""
    failed_steps: int

    @property
    def ttft_ratio(self) -> float | None:
        """99th percentile of the times to first token, in multiples of the unloaded server's."""
        return None if self.ttft is None else self.ttft.p99 / self.unloaded_ttft.p99

    @property
    def client_is_late(self) -> bool:
        """Whether the client could not keep up, so that the times are in part its own."""
        return self.send_delay is not None and self.send_delay.p99 > MOST_DELAY_MS

    @property
    def shortcomings(self) -> list[str]:
        """What an overloaded server should not do; empty where it does nothing of the kind."""
        found = []
        if self.lost_pids:
            found.append(f"processes ended: {', '.join(map(str, self.lost_pids))}")
        if self.failed_steps:
            found.append(f"{self.failed_steps} steps failed")
        if self.failed:
            found.append(f"requests failed: {dict(self.failed)}")
        if self.ttft_ratio is None:
            found.append("no request was accepted")
        elif self.ttft_ratio > MOST_TTFT_RATIO:
            found.append(
                f"the first token came {self.ttft_ratio:.2f} times as late as without load, "
                f"more than {MOST_TTFT_RATIO:g}"
            )
        if self.refusal is not None and self.refusal.p99 > MOST_REFUSAL_MS:
            found.append(f"refusals took {self.refusal.p99:.0f} ms, more than {MOST_REFUSAL_MS:g}")
        return found

    def as_json(self) -> dict[str, Any]:
        """Figures with their units in the names."""
        value: dict[str, Any] = {
            "capacity": self.capacity,
            "offered": self.offered,
            "accepted": self.accepted,
            "refused": self.refused,
            "failed": dict(self.failed),
            "request_throughput": self.completed_rate,
            "ttft_ratio": self.ttft_ratio,
            "max_refusal_ms": self.longest_refusal_ms,
            "lost_pids": list(self.lost_pids),
            "failed_steps": self.failed_steps,
            "shortcomings": self.shortcomings,
        }
        spreads = {
            "unloaded_ttft": self.unloaded_ttft,
            "ttft": self.ttft,
            "refusal": self.refusal,
            "send_delay": self.send_delay,
        }
        for name, spread in spreads.items():
            if spread is not None:
                value |= {f"mean_{name}_ms": spread.mean, f"median_{name}_ms": spread.median}
                value[f"p99_{name}_ms"] = spread.p99
        return value


async def run_overload(
    client: AsyncClient, plan: OverloadPlan, text: Sequence[int], on_phase: Callable[[str], None]
) -> OverloadFigures:
    """All three phases. Raises FailedPrecondition where the server answers nothing even without load."""
    run = _Run(client, plan, text)
    before = await client.status()
    on_phase(f"{plan.unloaded} requests one after another")
    alone = [await run.ask() for _ in range(plan.unloaded)]
    unloaded = Spread.of([one.ttft_s for one in alone if not one.error])
    if unloaded is None:
        raise FailedPrecondition(f"the server answers no request, even without load: {alone[0].error}")
    on_phase(f"{plan.concurrency} clients at once for {plan.capacity_s:g} s")
    capacity = await run.capacity()
    offered = plan.factor * capacity
    on_phase(f"{offered:.1f} requests/s for {plan.duration_s:g} s, {plan.factor:g} x {capacity:.2f}")
    flood = await run.flood(offered)
    after = await client.status()
    return _figures(unloaded, capacity, flood, before, after)


@dataclass(frozen=True, slots=True)
class _Flood:
    """The last phase."""

    served: Sequence[Served]
    delays_s: Sequence[float]
    """How much later than planned each request was sent."""
    offered_s: float
    """Time in which requests were sent."""
    took_s: float
    """Time until the last one ended."""


class _Run:
    """Requests with a prompt of their own each."""

    def __init__(self, client: AsyncClient, plan: OverloadPlan, text: Sequence[int]) -> None:
        self._client, self._plan, self._text = client, plan, text
        self._draw = random.Random(plan.seed)

    async def ask(self) -> Served:
        prompt = unlike_prompt(self._draw, self._text, self._plan.input_tokens)
        served, _ = await ask(self._client, prompt, self._plan.output_tokens, preset=self._plan.preset)
        return served

    async def capacity(self) -> float:
        """Requests in a second, of clients that ask again at once; those that end after the time count by parts."""
        begun_s = time.perf_counter()
        end_s = begun_s + self._plan.capacity_s
        completed = 0.0

        async def keep_asking() -> None:
            nonlocal completed
            while (sent_s := time.perf_counter()) < end_s:
                served = await self.ask()
                if served.error:
                    await asyncio.sleep(_AGAIN_S)
                else:
                    completed += min(1.0, (end_s - sent_s) / served.total_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.concurrency):
                group.create_task(keep_asking())
        return max(completed, 1.0) / self._plan.capacity_s

    async def flood(self, rate: float) -> _Flood:
        """Requests that begin at `rate` a second in the mean; returns when all have ended."""
        delays_s: list[float] = []

        async def ask_at(planned_s: float) -> Served:
            delays_s.append(time.perf_counter() - planned_s)
            return await self.ask()

        begun_s = next_s = time.perf_counter()
        tasks = []
        async with asyncio.TaskGroup() as group:
            while next_s - begun_s < self._plan.duration_s:
                await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
                tasks.append(group.create_task(ask_at(next_s)))
                next_s += self._draw.expovariate(rate)
        served = [task.result() for task in tasks]
        return _Flood(served, delays_s, self._plan.duration_s, time.perf_counter() - begun_s)


def _figures(
    unloaded: Spread, capacity: float, flood: _Flood, before: ClusterStatus, after: ClusterStatus
) -> OverloadFigures:
    done = [one for one in flood.served if not one.error]
    refused_s = [one.total_s for one in flood.served if one.error == REFUSED]
    return OverloadFigures(
        unloaded_ttft=unloaded,
        capacity=capacity,
        offered=len(flood.served) / flood.offered_s,
        accepted=len(done),
        refused=len(refused_s),
        failed=Counter(one.error for one in flood.served if one.error not in ("", REFUSED)),
        completed_rate=len(done) / flood.took_s,
        ttft=Spread.of([one.ttft_s for one in done]),
        refusal=Spread.of(refused_s),
        longest_refusal_ms=max((1000 * s for s in refused_s), default=None),
        send_delay=Spread.of(flood.delays_s),
        lost_pids=tuple(sorted(_pids(before) - _pids(after))),
        failed_steps=after.failed_steps_total - before.failed_steps_total,
    )


def _pids(status: ClusterStatus) -> set[int]:
    """Processes of workers and of KV actors that run."""
    return {*status.worker_pids, *(actor.pid for actor in status.kv_actors if actor.state == "running")}
