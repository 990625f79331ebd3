"""A real server on a free port with the toy engine behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from moorage.proto.v1.moorage_pb2_grpc import MoorageStub
from moorage.runtime.api.grpc.server import ApiServer
from tests.toy_engine import ToyEngine


@dataclass
class Service:
    """What a test talks to."""

    server: ApiServer
    address: str
    engine: ToyEngine
    channel: grpc.aio.Channel
    stub: MoorageStub


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    server, engine = ApiServer(), ToyEngine()
    address = await server.start("127.0.0.1:0")
    await server.serve(engine)
    async with grpc.aio.insecure_channel(address) as channel:
        yield Service(server, address, engine, channel, MoorageStub(channel))
    await server.stop()
