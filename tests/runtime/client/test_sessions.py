"""Operations on sessions through both clients, against a real loopback server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moorage.client import AsyncClient, Client, FailedPrecondition, InvalidRequest, NotFound
from moorage.runtime.serving.sessions.records import SessionInfo
from tests.toy_server import ToyServer, toy_server


@pytest.fixture
def server() -> Iterator[ToyServer]:
    with toy_server() as running:
        yield running


@pytest.fixture
def client(server: ToyServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=20) as opened:
        yield opened


def test_list_is_what_the_engine_holds(server: ToyServer, client: Client) -> None:
    server.engine.sessions.held["timed"] = SessionInfo(
        "timed", "waiting", 7, 4096, 1024, True, 5.5, 99.25, "someone"
    )
    assert client.sessions.list() == list(server.engine.sessions.held.values())


def test_delete_rename_and_pin(client: Client) -> None:
    assert client.sessions.pin("talk").pinned
    assert client.sessions.rename("talk", "new é").pinned
    assert not client.sessions.pin("new é", pinned=False).pinned
    client.sessions.delete("new é")
    assert [session.name for session in client.sessions.list()] == ["busy"]


def test_fork(client: Client) -> None:
    fork = client.sessions.fork("talk", "branch")
    assert (fork.name, fork.shared_bytes) == ("branch", 1 << 20)
    assert [session.name for session in client.sessions.list()] == ["busy", "talk", "branch"]


def test_save_and_load(client: Client) -> None:
    assert client.sessions.save("talk").saved_bytes == 1 << 21
    assert client.sessions.load("other").num_tokens == 50
    with pytest.raises(InvalidRequest, match="checksum"):
        client.sessions.load("damaged")


def test_refusals(client: Client) -> None:
    with pytest.raises(NotFound, match="'absent'"):
        client.sessions.delete("absent")
    with pytest.raises(FailedPrecondition, match="is in use"):
        client.sessions.delete("busy")
    with pytest.raises(InvalidRequest, match="name: is empty"):
        client.sessions.delete("")
    with pytest.raises(InvalidRequest, match="new_name: must be at most 128"):
        client.sessions.rename("talk", "x" * 129)


async def test_the_asynchronous_client_has_the_same(server: ToyServer) -> None:
    async with AsyncClient(server.address, timeout_s=20) as client:
        assert (await client.sessions.pin("talk")).pinned
        assert (await client.sessions.rename("talk", "new")).num_tokens == 40
        assert (await client.sessions.fork("new", "branch")).name == "branch"
        assert (await client.sessions.save("branch")).saved_bytes == 1 << 21
        assert (await client.sessions.load("branch")).num_tokens == 50
        await client.sessions.delete("branch")
        with pytest.raises(FailedPrecondition):
            await client.sessions.delete("busy")
        await client.sessions.delete("new")
        assert [session.name for session in await client.sessions.list()] == ["busy"]
