"""`runtime launch` and `stop` with what can't work: one line, exit 1, and soon."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.runtime.cli.conftest import Cli

PILOT = Path(__file__).parents[3] / "deploy" / "models" / "moorage-pilot"


@pytest.mark.parametrize("detach", [(), ("--detach",)])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: [", "not YAML"),
        ("", "the file is empty"),
        ("model: {path: nowhere}", "model.path"),
        ("model: {path: PILOT, tpye: x}", "tpye"),
        ("model: {path: PILOT}\nlong_context: {chunk_size: -1}", "chunk_size"),
        ("model: {path: PILOT}\nkv_store: {dram: 4096TiB}", "kv_store.dram"),
        ("model: {path: PILOT}\nkv_store: {dram: 1GiB}\nserver: {grpc: 'TAKEN'}", "can't be bound"),
    ],
)
def test_refused(cli: Cli, tmp_path: Path, content: str, words: str, detach: tuple[str, ...]) -> None:
    file, ready = tmp_path / "cluster.yaml", tmp_path / "ready.json"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file.write_text(content.replace("PILOT", str(PILOT)).replace("TAKEN", address))
        finished = cli("launch", file, *detach, "--ready-file", ready)
    assert finished.returncode == 1
    (line,) = finished.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not ready.exists()


def test_missing_file(cli: Cli) -> None:
    finished = cli("launch", "/no/such/cluster.yaml")
    assert finished.returncode == 1
    assert b"error: /no/such/cluster.yaml: no such file" in finished.stderr


def test_nothing_to_stop(cli: Cli) -> None:
    finished = cli("stop")
    assert finished.returncode == 1
    assert b"error: no cluster runs on this host" in finished.stderr
