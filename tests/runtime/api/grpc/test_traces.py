"""The trace that a client names by the metadata of its call reaches the engine."""

from __future__ import annotations

from tests.runtime.api.grpc.conftest import Service
from tests.runtime.api.grpc.test_service import generate, ids

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_each_call_has_its_own_trace(service: Service) -> None:
    for metadata in ((("traceparent", PARENT), ("other", "x")), ()):
        async for _ in service.stub.Generate(generate(ids(1)), metadata=metadata):
            pass
    assert service.engine.traces == [{"traceparent": PARENT}, {}]
