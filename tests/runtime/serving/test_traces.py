"""Traces of requests, as a real collector receives them by OTLP: spans with ids and counts, and no text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from moorage.runtime.config.schema import ServerSection
from moorage.runtime.planning.tracing_packages import check_tracing
from moorage.runtime.serving.trace_context import set_caller
from moorage.runtime.serving.traces import Traces
from moorage.workers.errors import InvalidConfig, MoorageError
from tests.counting_executor import collect, running

pytest.importorskip("opentelemetry.sdk", reason="traces need the packages of moorage[otlp]")
pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.grpc", reason="traces need the packages of moorage[otlp]"
)

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it gets."""

    address: str = ""
    spans: dict[str, list[Span]] = field(default_factory=dict)
    resources: list[dict[str, Any]] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        for of_resource in request.resource_spans:
            self.resources.append(values(of_resource.resource.attributes))
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self.spans.setdefault(span.name, []).append(span)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[Collector]:
    server, found = grpc.server(futures.ThreadPoolExecutor(1)), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)  # type: ignore[no-untyped-call]
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield found
    server.stop(None).wait()


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


async def test_a_request_is_one_span_with_its_queue_prefill_and_decode(collector: Collector) -> None:
    traces = Traces(collector.address, "toy-model")
    async with running() as (coordinator, _):
        coordinator.request_totals.observers.append(traces.record)
        await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=4, request_id="asked-1")
    traces.close()
    (whole,), parts = collector.spans["llm_request"], ("queue", "prefill", "decode")
    assert collector.spans.keys() == {"llm_request", *parts}
    found = values(whole.attributes)
    assert found["gen_ai.request.id"] == "asked-1"
    assert found["gen_ai.response.model"] == "toy-model"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (3, 4)
    assert found["moorage.outcome"] == "length"
    assert collector.resources[0]["service.name"] == "moorage"
    times = [whole.start_time_unix_nano]
    for name in parts:
        (part,) = collector.spans[name]
        assert (part.trace_id, part.parent_span_id) == (whole.trace_id, whole.span_id)
        times += [part.start_time_unix_nano, part.end_time_unix_nano]
    assert times == sorted(times)


async def test_it_belongs_to_the_trace_of_its_client(collector: Collector) -> None:
    traces = Traces(f"http://{collector.address}", "toy-model")
    async with running() as (coordinator, _):
        coordinator.request_totals.observers.append(traces.record)
        set_caller([("traceparent", PARENT), ("tracestate", "vendor=1")])
        await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=2)
        set_caller([("traceparent", "00-nonsense")])
        await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=2)
    traces.close()
    first, second = collector.spans["llm_request"]
    assert first.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert first.parent_span_id.hex() == "b7ad6b7169203331"
    assert first.trace_state == "vendor=1"
    assert second.parent_span_id == b""


async def test_a_request_that_failed_or_never_began_says_so(collector: Collector) -> None:
    traces = Traces(collector.address, "toy-model")
    async with running() as (coordinator, worker):
        coordinator.request_totals.observers.append(traces.record)
        worker.fail_session = 1
        with pytest.raises(MoorageError):
            await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=4)
    traces.close()
    (whole,) = collector.spans["llm_request"]
    assert whole.status.code == Status.StatusCode.STATUS_CODE_ERROR
    assert values(whole.attributes)["moorage.outcome"].startswith("failed: ")
    assert "decode" not in collector.spans


async def test_a_collector_that_is_gone_holds_up_nothing() -> None:
    traces = Traces("127.0.0.1:1", "toy-model")
    async with running() as (coordinator, _):
        coordinator.request_totals.observers.append(traces.record)
        for _ in range(50):
            events = await collect(coordinator, prompt=[1, 2, 3], max_new_tokens=2)
            assert len(events) > 2


def test_missing_packages_are_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracing("127.0.0.1:4317")
    monkeypatch.setattr("moorage.runtime.planning.tracing_packages._PACKAGES", ("moorage_absent.sdk",))
    check_tracing(None)
    with pytest.raises(
        InvalidConfig, match=r"server\.otlp: moorage_absent\.sdk is not installed; install it with"
    ):
        check_tracing("127.0.0.1:4317")


def test_without_traces_no_package_of_theirs_is_loaded() -> None:
    loaded = "import sys, moorage.runtime.serving.traces; print('opentelemetry.sdk' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("address", "message"), [("ftp://a:1", "http://"), ("host", "has no port")])
def test_an_address_that_is_none_is_refused(address: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServerSection(otlp=address)
    assert ServerSection(otlp="https://collector:4317").otlp == "https://collector:4317"
