"""A real cluster: `runtime launch`, Ray actors, gRPC, the embedded model; stopped as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
PILOT = REPOSITORY / "deploy" / "models" / "moorage-pilot"
DOCUMENT = REPOSITORY / "deploy" / "documents" / "python_reference.txt"


@dataclass(frozen=True)
class Cli:
    """Runs `runtime` commands with a run directory of their own."""

    run_dir: Path

    def command(self, *arguments: object) -> list[str]:
        return [str(Path(sys.executable).parent / "runtime"), *map(str, arguments)]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"MOORAGE_RUN_DIR": str(self.run_dir), "NO_COLOR": "1"}

    def __call__(self, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            env=self.environment,
            capture_output=True,
            timeout=180,
            check=False,
        )

    def json(self, *arguments: object) -> Any:
        """The last line of standard output, of a command that must succeed."""
        done = self(*arguments)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout.decode().strip().splitlines()[-1])


@dataclass(frozen=True)
class RunningCluster:
    """A launched cluster and what its ready file says."""

    cli: Cli
    config_file: Path
    ready: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.ready["address"])


def cluster_config(**changes: dict[str, object]) -> dict[str, dict[str, object]]:
    """The embedded model with selected prefill and decode; `changes` update whole sections key by key."""
    config: dict[str, dict[str, object]] = {
        "model": {"path": str(PILOT), "dtype": "float32"},
        "memory": {
            "preset": "ktransformers",
            "positions": "clamped",
            "exc_block_size": 128,
            "n_init": 32,
            "dense_until": 0,
            "anchor_space": "plain",
        },
        "long_context": {
            "chunk_size": 1024,
            "max_seq_len": 32768,
            "block_size": 32,
            "local_windows_len": 256,
            "second_select_num": 24,
            "anchor_type": "QUEST",
        },
        "kv_store": {"actors": 2, "dram": "256MiB"},
        "gpu_workers": {"count": 1, "device": "cpu"},
        "scheduler": {"decode_prefill_tokens": 256},
        "server": {"grpc": "127.0.0.1:0"},
        "ray": {"address": "local", "object_store_memory": "80MiB"},
    }
    for section, keys in changes.items():
        config.setdefault(section, {}).update(keys)
    return config


def launch(directory: Path, **changes: dict[str, object]) -> RunningCluster:
    """Starts a cluster in the background; the caller stops it."""
    cli = Cli(directory / "run")
    config_file, ready_file = directory / "cluster.yaml", directory / "ready.json"
    config_file.write_text(yaml.safe_dump(cluster_config(**changes)))
    done = cli("launch", config_file, "--detach", "--ready-file", ready_file)
    assert done.returncode == 0, done.stderr.decode()
    assert b"of weights" in done.stderr
    return RunningCluster(cli, config_file, json.loads(ready_file.read_text()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """One cluster for a module's tests."""
    running = launch(tmp_path_factory.mktemp("cluster"))
    yield running
    stopped = running.cli("stop")
    assert stopped.returncode == 0, stopped.stderr.decode()
