"""The trace that a client names by the headers of its request reaches the engine."""

from __future__ import annotations

from tests.runtime.api.http.conftest import Http

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASKED = {"model": "toy", "messages": [{"role": "user", "content": "a"}]}


async def test_each_request_has_its_own_trace(http: Http) -> None:
    for headers in ({"Traceparent": PARENT, "tracestate": "a=b"}, {}, {"traceparent": "x" * 1000}):
        await http.client.post("/v1/chat/completions", json=ASKED, headers=headers)
    assert http.engine.traces == [{"traceparent": PARENT, "tracestate": "a=b"}, {}, {}]
