"""Addresses: what is one, and what to write in place of what is none."""

from __future__ import annotations

import asyncio

import pytest

from moorage.client import Client
from moorage.client.aio import AsyncClient
from moorage.runtime.cli import main
from moorage.runtime.config.addresses import check_address, server_target
from moorage.workers.errors import InvalidRequest


@pytest.mark.parametrize(
    "text", ["127.0.0.1:50051", "localhost:0", "[::1]:65535", "node-3.lan:1", "bücher:80"]
)
def test_addresses(text: str) -> None:
    assert check_address(text) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://127.0.0.1:50051", "without http://, since the server speaks gRPC; write 127.0.0.1:50051"),
        ("https://user@host:1/v1?x", "without https://, since the server speaks gRPC; write host:1"),
        ("grpc://[::1]:7", "without grpc://, since the server speaks gRPC; write [::1]:7"),
        ("ray://", "without ray://"),
        ("localhost", "has no port; write localhost:50051"),
        ("::1:50051", "has an IPv6 address without brackets; write [::1]:50051"),
        ("", "should be HOST:PORT with a port from 0 to 65535"),
        (":50051", "should be HOST:PORT"),
        ("host:", "should be HOST:PORT"),
        ("host:65536", "should be HOST:PORT"),
        ("host:" + "9" * 5000, "should be HOST:PORT"),
        ("host:1/", "should be HOST:PORT"),
        ("a b:1", "should be HOST:PORT"),
        ("a\0b:1", "should be HOST:PORT"),
        ("x" * 300 + ":1", "should be HOST:PORT"),
        ("host:٣", "should be HOST:PORT"),
        ("\ud800", "should be HOST:PORT"),
        ("http://\ud800:1", "without http://"),
        (50051, "should be HOST:PORT"),
        (None, "should be HOST:PORT"),
    ],
)
def test_what_is_none_is_told_what_to_write(text: object, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_address(text)
    assert says in str(caught.value)
    with pytest.raises(InvalidRequest) as refused:
        server_target(text, "--address")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


def test_port_0_is_only_to_listen_on() -> None:
    with pytest.raises(InvalidRequest, match="nothing answers at port 0"):
        server_target("127.0.0.1:0")


def test_clients_refuse_at_once() -> None:
    with pytest.raises(InvalidRequest, match=r"write 127\.0\.0\.1:50051"):
        Client("http://127.0.0.1:50051")

    async def connect() -> None:
        AsyncClient("http://127.0.0.1:50051")

    with pytest.raises(InvalidRequest, match=r"write 127\.0\.0\.1:50051"):
        asyncio.run(connect())


@pytest.mark.parametrize(
    "command", [("status",), ("stop",), ("generate", "x"), ("tokenize", "x"), ("score", "x")]
)
def test_commands_say_what_to_write(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main((*command, "--address", "http://127.0.0.1:50051"))
    assert left.value.code == 1
    assert capsys.readouterr().err == (
        "error: --address http://127.0.0.1:50051: should be HOST:PORT without http://, since the server speaks "
        "gRPC; write 127.0.0.1:50051\n"
    )
