"""A model directory in the place of a cluster file."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest

from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.planning.host import Host
from moorage.runtime.planning.model_launch import adjustments
from moorage.workers.errors import InvalidConfig
from tests.gguf_files import write_gguf

PILOT = Path(__file__).parents[3] / "deploy" / "models" / "moorage-pilot"
GIB = 1024**3
LARGE = Host(64 * GIB, 64 * GIB)


def overrides(*given: str, host: Host = LARGE, environ: dict[str, str] | None = None) -> list[str]:
    return [found.override for found in adjustments(PILOT, given, environ or {}, host)]


def test_a_model_directory_is_every_default() -> None:
    config = load_cluster_config(PILOT, environ={})
    assert config.model.path == PILOT
    assert load_cluster_config(PILOT, ["memory.preset=full"], {}).memory.preset == "full"


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"is a directory without config\.json"):
        load_cluster_config(tmp_path, environ={})


def test_a_gguf_file_is_every_default(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "llama", {}, {})
    assert load_cluster_config(file, environ={}).model.path == file
    assert load_cluster_config(tmp_path, environ={}).model.path == tmp_path, "the only model of its folder"
    with pytest.raises(
        InvalidConfig, match=r"nowhere\.gguf: no such file; give the path of a model or of a cluster"
    ):
        load_cluster_config(tmp_path / "nowhere.gguf", environ={})


def test_a_port_in_use_gives_way_unless_it_was_chosen() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # another process of this host has it, which does as well
            taken.bind(("127.0.0.1", 50051))
            taken.listen()
        assert overrides() == ["server.grpc=127.0.0.1:0"]
        assert overrides("server.grpc=127.0.0.1:50051") == []
        assert overrides(environ={"MOORAGE_SERVER__GRPC": "127.0.0.1:50051"}) == []


def test_dram_fits_the_host_unless_it_was_chosen() -> None:
    address = "server.grpc=127.0.0.1:0"
    small = Host(6 * GIB, 4 * GIB)
    (override,) = overrides(address, host=small)
    name, _, value = override.partition("=")
    assert name == "kv_store.dram"
    assert GIB // 2 < int(value) < small.usable_bytes
    assert int(value) % (64 << 20) == 0
    assert overrides(address) == []
    assert overrides(address, "kv_store.dram=8GiB", host=small) == []
    assert overrides(address, host=Host(GIB, GIB // 2)) == [], "too little for anything: the launch says so"
