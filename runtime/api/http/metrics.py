"""GET /metrics for Prometheus: vLLM's names where it has one, `moorage:` where it has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from moorage.runtime.api.http.service import HttpService, service_of
from moorage.runtime.serving.protocol import ClusterStatus
from moorage.runtime.serving.request_totals import Histogram, RequestTotals

router = APIRouter(tags=["operators"])

_OUTCOMES = ("stop", "length", "cancelled", "failed")


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Figures of the cluster since its start."""
    service = service_of(request)
    engine = service.ready()
    status = await service.status()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot(service, status, engine.request_totals))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Snapshot:
    """What one scrape sees."""

    def __init__(self, service: HttpService, status: ClusterStatus, totals: RequestTotals) -> None:
        self._service, self._status, self._totals = service, status, totals
        self._model = {"model_name": status.model.name}

    def collect(self) -> Iterator[Metric]:
        """Every metric, for prometheus_client."""
        yield from self._gauges()
        yield from self._counters()
        for name, histogram in (*self._totals.lengths.items(), *self._totals.times.items()):
            yield self._histogram(name, histogram)
        yield from self._of_memory()
        yield from self._of_http(self._service.responses)

    def _gauges(self) -> Iterator[Metric]:
        status = self._status
        used = sum(actor.used_bytes for actor in status.kv_actors)
        capacity = sum(actor.capacity_bytes for actor in status.kv_actors)
        values = {
            "vllm:num_requests_running": (status.running, "Requests in the present steps."),
            "vllm:num_requests_waiting": (status.waiting, "Requests that wait for their first step."),
            "vllm:kv_cache_usage_perc": (
                used / capacity if capacity else 0.0,
                "Share of KV memory in use.",
            ),
            "moorage:num_requests_prefilling": (
                status.prefilling,
                "Running requests that read their prompt.",
            ),
            "moorage:sessions_idle": (
                status.idle_sessions,
                "Sessions, with a name or without, that no request uses now.",
            ),
            "moorage:recall": (status.recall, "Mean share of the exact attention mass on the attended keys."),
            "moorage:device_hit_rate": (
                status.cache_hit_rate,
                "Share of needed blocks that were on the device.",
            ),
            "moorage:up_seconds": (status.uptime_s, "Seconds since the cluster serves."),
            "moorage:serving": (float(status.state == "serving"), "1 while the cluster has no problem."),
        }
        for name, (value, words) in values.items():
            if value is not None:
                yield self._with(GaugeMetricFamily(name, words, labels=tuple(self._model)), float(value))

    def _counters(self) -> Iterator[Metric]:
        status, totals = self._status, self._totals
        values = {
            "vllm:prompt_tokens": (status.prompt_tokens_total, "Prompt tokens that were prefilled."),
            "vllm:generation_tokens": (status.generated_tokens_total, "Tokens that were generated."),
            "vllm:prefix_cache_queries": (totals.prompt_tokens, "Prompt tokens of requests that ended."),
            "vllm:prefix_cache_hits": (totals.cached_tokens, "Of these, tokens whose KV was held already."),
            "moorage:drafted_tokens": (totals.drafted_tokens, "Tokens that a selection drafted."),
            "moorage:accepted_tokens": (totals.accepted_tokens, "Of these, tokens of the answers."),
            "moorage:link_bytes": (
                status.link_bytes_total,
                "Bytes of blocks that were copied from KV actors to the device.",
            ),
            "moorage:failed_steps": (status.failed_steps_total, "Steps that failed."),
        }
        for name, (value, words) in values.items():
            yield self._with(CounterMetricFamily(name, words, labels=tuple(self._model)), float(value))
        ended = CounterMetricFamily(
            "vllm:request_success", "Requests that ended, by how.", labels=("model_name", "finished_reason")
        )
        for outcome in _OUTCOMES:
            ended.add_metric((self._status.model.name, outcome), totals.outcomes[outcome])
        yield ended
        parts = CounterMetricFamily("moorage:step_part_seconds", "Time of steps, by part.", labels=("part",))
        for part, seconds in status.step_part_s.items():
            parts.add_metric((part,), seconds)
        yield parts

    def _of_memory(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily("moorage:kv_dram_bytes", "DRAM of KV actors.", labels=("actor", "state"))
        sessions = GaugeMetricFamily(
            "moorage:kv_sessions", "Sessions with KV in an actor.", labels=("actor",)
        )
        up = GaugeMetricFamily("moorage:kv_actor_up", "1 while an actor runs.", labels=("actor",))
        for actor in self._status.kv_actors:
            memory.add_metric((actor.name, "used"), actor.used_bytes)
            memory.add_metric((actor.name, "free"), actor.capacity_bytes - actor.used_bytes)
            sessions.add_metric((actor.name,), actor.num_sessions)
            up.add_metric((actor.name,), float(actor.state == "running"))
        yield from (memory, sessions, up)
        waits = GaugeMetricFamily(
            "moorage:waiting_for", "Waiting requests, by what they wait for.", labels=("what",)
        )
        for what, count in Counter(one.waits_for for one in self._status.waiting_requests).items():
            waits.add_metric((what,), count)
        yield waits

    def _of_http(self, responses: Counter[tuple[str, int]]) -> Iterator[Metric]:
        answered = CounterMetricFamily(
            "http_requests", "Answers, by route and status.", labels=("handler", "status")
        )
        for (handler, status), count in responses.items():
            answered.add_metric((handler, str(status)), count)
        yield answered

    def _histogram(self, name: str, values: Histogram) -> Metric:
        found = HistogramMetricFamily(
            f"vllm:{name}", f"Of requests that ended: {name.replace('_', ' ')}.", labels=tuple(self._model)
        )
        bounds = [*(f"{bound:g}" for bound in values.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(values.counts), strict=True))
        found.add_metric(list(self._model.values()), buckets, values.total)
        return found

    def _with(self, metric: GaugeMetricFamily | CounterMetricFamily, value: float) -> Metric:
        metric.add_metric(list(self._model.values()), value)
        return metric
