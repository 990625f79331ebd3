"""Mistakes that are told before anything is started."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.runtime.config import ClusterConfig, load_cluster_config
from moorage.runtime.preflight import check_host
from moorage.workers.errors import InvalidConfig, InvalidModel

PILOT = Path(__file__).parents[2] / "deploy" / "models" / "moorage-pilot"
Load = Callable[..., ClusterConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """A cluster file with the model and one more line, loaded."""

    def loaded(model: Path = PILOT, *overrides: str) -> ClusterConfig:
        file = tmp_path / "cluster.yaml"
        file.write_text(f"model: {{path: {model}}}\nkv_store: {{dram: 1GiB}}\n")
        return load_cluster_config(file, ["server.grpc=127.0.0.1:0", *overrides])

    return loaded


def test_good_cluster(load: Load) -> None:
    check_host(load())


def test_missing_model(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"model\.path"):
        check_host(load(tmp_path / "nowhere"))


@pytest.mark.parametrize("keep_bytes", [0, 7, 8, 100, 100_000])
def test_truncated_weights(load: Load, tmp_path: Path, keep_bytes: int) -> None:
    model = tmp_path / "model"
    shutil.copytree(PILOT, model)
    model.chmod(0o755)
    file = model / "model.safetensors"
    kept = file.read_bytes()[:keep_bytes]
    file.unlink()
    file.write_bytes(kept)
    with pytest.raises(InvalidModel, match=r"model\.safetensors: .*download it again"):
        check_host(load(model))


def test_more_memory_than_the_host_has(load: Load) -> None:
    with pytest.raises(InvalidConfig, match=r"kv_store\.dram: .* is more than this host has free"):
        check_host(load(PILOT, "kv_store.dram=4096TiB"))


def test_port_in_use(load: Load) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InvalidConfig, match=f"server.grpc: {address} can't be bound"):
            check_host(load(PILOT, f"server.grpc={address}"))
