"""A Ray cluster that is to be joined: told within a bounded time when it does not answer or has too little."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning import ray_join
from moorage.runtime.planning.preflight import check_host
from moorage.runtime.planning.ray_join import RayNode, check_joined_ray, check_resources
from moorage.workers.errors import InvalidConfig, Unavailable

PILOT = Path(__file__).parents[3] / "deploy" / "models" / "moorage-pilot"
GIB = 1 << 30
HEAD = """
import sys, time, ray
ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(120)
"""


def configured(tmp_path: Path, *overrides: str) -> ClusterConfig:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"model: {{path: {PILOT}}}\nkv_store: {{dram: 1GiB}}\n")
    return load_cluster_config(file, ["server.grpc=127.0.0.1:0", "ray.address=head:6379", *overrides], {})


def node(cpus: float, gib: float = 100, gpus: float = 0, free_gpus: float | None = None) -> RayNode:
    free = {"CPU": cpus, "memory": gib * GIB, "GPU": gpus if free_gpus is None else free_gpus}
    return RayNode({"CPU": 16, "memory": 100 * GIB, "GPU": gpus}, free)


def test_room_for_all_is_taken(tmp_path: Path) -> None:
    check_resources(configured(tmp_path), GIB, [node(3)])
    check_resources(configured(tmp_path), 4 * GIB, [node(2, 4), node(1, 7)])
    check_resources(configured(tmp_path, "gpu_workers.device=cuda"), GIB, [node(2), node(1, gpus=1)])


@pytest.mark.parametrize(
    ("overrides", "nodes", "says"),
    [
        (
            (),
            [node(2)],
            "has 2 of its 16 CPUs free and needs 3, one for each of 2 KV actors and the GPU worker",
        ),
        ((), [], "has 0 of its 0 CPUs free and needs 3"),
        (
            (),
            [node(8, 1.5), node(0, 90)],
            "has room for 0 of 2 KV actors, each of a CPU and 2.00 GiB of Ray's",
        ),
        (
            ("gpu_workers.device=cuda",),
            [node(8)],
            "has no GPU; free one, add a node, or set gpu_workers.device to cpu",
        ),
        ((), [node(8, gpus=2, free_gpus=0)], "has no node with a free GPU and a free CPU, of 2 GPUs"),
        (("kv_store.actors=1",), [node(1)], "one for each of 1 KV actor and the GPU worker"),
    ],
)
def test_too_little_is_refused_with_what_there_is_and_is_needed(
    tmp_path: Path, overrides: tuple[str, ...], nodes: list[RayNode], says: str
) -> None:
    with pytest.raises(InvalidConfig, match="Ray cluster at head:6379") as caught:
        check_resources(configured(tmp_path, *overrides), 2 * GIB, nodes)
    assert says in str(caught.value)


def test_nothing_listens(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        told: list[str] = []
        with pytest.raises(Unavailable, match=f"ray.address: {address} does not answer"):
            check_joined_ray(configured(tmp_path, f"ray.address={address}"), GIB, told.append)
    assert told == [f"asking the Ray cluster at {address} for its resources, up to 30 s"]


def test_what_listens_and_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_join, "PROBE_TIMEOUT_S", 2.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        config = configured(tmp_path, f"ray.address=127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Unavailable, match="did not answer as Ray does within 2 s"):
            check_joined_ray(config, GIB, lambda _line: None)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of two CPUs, which ends with its process."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    command = [sys.executable, "-c", HEAD, f"/tmp/{tmp_path.name[-8:]}-ray"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.mark.ray
def test_a_cluster_with_too_few_cpus_is_refused_before_anything_starts(tmp_path: Path, head: str) -> None:
    check_host(configured(tmp_path, f"ray.address={head}", "kv_store.actors=1"))
    with pytest.raises(InvalidConfig, match="has 2 of its 2 CPUs free and needs 4"):
        check_host(configured(tmp_path, f"ray.address={head}", "kv_store.actors=3"))
