"""`runtime session` as users start it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess

import pytest

from tests.toy_server import ToyServer, toy_server

Run = Callable[..., CompletedProcess[bytes]]


@pytest.fixture
def server() -> Iterator[ToyServer]:
    with toy_server() as running:
        yield running


def test_list_for_people_and_for_machines(server: ToyServer, cli: Run) -> None:
    shown = cli("session", "list", "--address", server.address)
    assert "talk" in shown.stdout.decode()
    assert "1.00 MiB" in shown.stdout.decode()
    as_json = json.loads(cli("session", "list", "--json", "--address", server.address).stdout)
    assert [(one["name"], one["num_tokens"], one["state"]) for one in as_json] == [
        ("busy", 40, "idle"),
        ("talk", 40, "idle"),
    ]


def test_changes_arrive_and_a_refusal_is_one_line(server: ToyServer, cli: Run) -> None:
    address = ("--address", server.address)
    assert cli("session", "pin", "talk", *address).returncode == 0
    assert server.engine.sessions.held["talk"].pinned
    assert cli("session", "pin", "--off", "talk", *address).returncode == 0
    assert not server.engine.sessions.held["talk"].pinned
    assert cli("session", "rename", "talk", "new", *address).returncode == 0
    assert cli("session", "fork", "new", "branch", *address).stdout == b"branch: 40 tokens, 1.00 MiB shared\n"
    assert cli("session", "delete", "branch", *address).returncode == 0
    assert cli("session", "save", "new", *address).stdout == b"new: saved, 2.00 MiB\n"
    assert cli("session", "load", "new", *address).stdout == b"new: 50 tokens, 1.00 MiB of DRAM\n"
    refused = cli("session", "delete", "busy", *address)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)
    assert refused.stderr.startswith(b"error: session: 'busy' is in use")
    assert cli("session", "delete", "new", *address).returncode == 0
    assert list(server.engine.sessions.held) == ["busy"]


def test_a_chat_lists_them(server: ToyServer, cli: Run) -> None:
    finished = cli("chat", "--address", server.address, stdin=b"/sessions\n")
    assert "none is kept" in finished.stderr.decode()
    assert "talk" in finished.stdout.decode()
