"""Traces of requests for OpenTelemetry: one span a request, and in it the queue, the prefill and the decode.

Spans are made of the times that the request has recorded, when it ends, and sent by a thread. They have ids and
counts, and no text. The packages of `moorage[otlp]` are loaded only where traces are sent.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from moorage.runtime.serving.request import Request
from moorage.runtime.serving.request_usage import usage_of

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_EXPORT_S = 3.0
"""Longest wait for the collector, also at the end of the server."""
_NAME = "moorage"


class Traces:
    """Sends the spans of requests that ended to a collector."""

    def __init__(self, endpoint: str, model: str) -> None:
        """`endpoint` is HOST:PORT or a URL of a collector that takes OTLP by gRPC."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        own = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": _NAME}
        self._provider = TracerProvider(resource=Resource.create(own))
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=not endpoint.startswith("https:"), timeout=_EXPORT_S
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_NAME)
        self._model = model

    def record(self, request: Request, now_s: float) -> None:
        """Makes the spans of a request that ended at `now_s` of the monotonic clock."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        def at(moment_s: float) -> int:
            return time.time_ns() - int((time.monotonic() - moment_s) * 1e9)

        caller = TraceContextTextMapPropagator().extract(dict(request.trace))
        whole = self._tracer.start_span(
            "llm_request",
            caller,
            SpanKind.SERVER,
            self._attributes(request, now_s),
            start_time=at(request.arrived_s),
        )
        inside, tokens = set_span_in_context(whole), request.token_s
        admitted_s, prefilled_s = request.admitted_s, request.prefilled_s
        parts = [("queue", request.arrived_s, admitted_s or now_s)]
        if admitted_s is not None:
            parts.append(("prefill", admitted_s, prefilled_s or now_s))
        if tokens:
            parts.append(("decode", tokens[0], tokens[-1]))
        for name, begin_s, end_s in parts:
            self._tracer.start_span(name, inside, start_time=at(begin_s)).end(at(end_s))
        if request.outcome.startswith("failed"):
            whole.set_status(Status(StatusCode.ERROR, request.outcome))
        whole.end(at(now_s))

    def close(self) -> None:
        """Sends what is left, and ends the thread."""
        self._provider.shutdown()

    def _attributes(self, request: Request, now_s: float) -> dict[str, AttributeValue]:
        """Names of OpenTelemetry for generative AI, and of vLLM; those of this server begin with its own."""
        usage, sampling = usage_of(request, now_s), request.sampling
        attributes: dict[str, AttributeValue | None] = {
            "gen_ai.operation.name": "score" if request.is_score else "generate",
            "gen_ai.response.model": self._model,
            "gen_ai.request.id": request.request_id,
            "gen_ai.request.max_tokens": request.max_new_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.latency.e2e": usage.total_s,
            "gen_ai.latency.time_in_queue": usage.queue_s,
            "gen_ai.latency.time_to_first_token": usage.time_to_first_token_s,
            "moorage.cached_tokens": usage.cached_tokens,
            "moorage.outcome": request.outcome,
            "moorage.preset": request.memory.preset,
            "moorage.dram_bytes": usage.dram_bytes,
            "moorage.recall": usage.recall,
        }
        return {name: value for name, value in attributes.items() if value is not None}
