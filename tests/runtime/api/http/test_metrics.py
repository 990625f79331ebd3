"""GET /metrics, read by Prometheus' own parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.counting_executor import collect, running
from tests.runtime.api.http.conftest import Http

DASHBOARD = Path(__file__).resolve().parents[4] / "deploy" / "grafana" / "moorage.json"


async def samples(http: Http) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    text = (await http.client.get("/metrics")).text
    return {
        (sample.name, *dict(sorted(sample.labels.items())).values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_state_of_the_cluster_has_vllms_names(http: Http) -> None:
    found = await samples(http)
    assert found["vllm:num_requests_running", "toy"] == 1
    assert found["vllm:num_requests_waiting", "toy"] == 2
    assert found["vllm:kv_cache_usage_perc", "toy"] == 0.5
    assert found["vllm:prompt_tokens_total", "toy"] == 7
    assert found["vllm:generation_tokens_total", "toy"] == 8
    assert found["moorage:recall", "toy"] == 0.75
    assert found["moorage:link_bytes_total", "toy"] == 5 << 30
    assert found["moorage:kv_dram_bytes", "kv-0", "used"] == 1 << 33
    assert found["moorage:step_part_seconds_total", "linear"] == 0.25
    assert not any(name == "moorage:device_hit_rate" for name, *_ in found), "it was not measured"


async def test_requests_that_ended_are_counted_by_outcome_and_in_histograms(http: Http) -> None:
    async with running() as (coordinator, _):
        for _ in range(2):
            await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=5)
        http.engine.request_totals = coordinator.request_totals
        found = await samples(http)
    assert found["vllm:request_success_total", "length", "toy"] == 2
    assert found["vllm:request_success_total", "stop", "toy"] == 0
    assert found["vllm:request_prompt_tokens_sum", "toy"] == 6
    assert found["vllm:request_prompt_tokens_bucket", "1", "toy"] == 0
    assert found["vllm:request_prompt_tokens_bucket", "4", "toy"] == 2
    assert found["vllm:inter_token_latency_seconds_count", "toy"] == 2 * 4
    assert found["vllm:time_to_first_token_seconds_bucket", "+Inf", "toy"] == 2
    assert found["vllm:prefix_cache_queries_total", "toy"] == 6


async def test_answers_are_counted_by_route_whatever_the_path(http: Http) -> None:
    for path in ("/health", "/status", "/v1/models/none", "/v1/models/nothing", "/a", "/b"):
        await http.client.get(path)
    found = await samples(http)
    assert (
        found["http_requests_total", "/health", "200"] == found["http_requests_total", "/status", "200"] == 1
    )
    assert found["http_requests_total", "/v1/models/{name:path}", "404"] == 2
    assert found["http_requests_total", "none", "404"] == 2


async def test_the_dashboard_asks_for_metrics_that_there_are(http: Http) -> None:
    await http.client.get("/health")
    names = {name for name, *_ in await samples(http)}
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked: list[dict[str, Any]] = [target for panel in panels for target in panel["targets"]]
    assert len(asked) >= 10
    for target in asked:
        assert any(name in target["expr"] for name in names | {"moorage:device_hit_rate"}), target["expr"]
