"""The Ray shell of a worker, without Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moorage.workers.errors import Unavailable
from moorage.workers.gpu import actor, worker
from moorage.workers.gpu.settings import EngineSettings, WorkerSettings
from moorage.workers.kv import actor as kv_actor
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import KvLayout
from tests.tiny_models import build_tiny_checkpoint


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As Ray leaves an actor of one CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings_of(directory: Path, num_threads: int | None = None) -> WorkerSettings:
    spec = build_tiny_checkpoint("llama3", directory).spec
    layout = KvLayout(spec.num_layers, spec.num_kv_heads, spec.head_dim, 16)
    return WorkerSettings(
        directory, spec, "float32", "cpu", layout, 8, EngineSettings(64), num_threads=num_threads
    )


@pytest.mark.parametrize("asked", [None, 2, 3])
def test_steps_run_on_as_many_threads_as_asked_or_on_every_core(
    asked: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, asked)
    store = KvStore(settings.layout, 8)
    monkeypatch.setattr(kv_actor, "connect", lambda _name, **_: LocalLink(store))
    shell = actor.GpuWorkerShell(settings, ("kv",), "namespace")
    assert shell.pid() == os.getpid()
    assert torch.get_num_threads() == (asked or len(os.sched_getaffinity(0)))


def test_a_worker_warms_up_once_and_connects_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, seen = settings_of(tmp_path), []
    store, compile_kernels = KvStore(settings.layout, 8), worker.warm_up

    def warm_up(*arguments: Any) -> None:
        seen.append("kernels")
        compile_kernels(*arguments)

    def connect(name: str, **_: str) -> LocalLink:
        seen.append(name)
        return LocalLink(store)

    monkeypatch.setattr(worker, "warm_up", warm_up)
    monkeypatch.setattr(kv_actor, "connect", connect)
    assert actor.GpuWorkerShell(settings, ("kv",), "namespace").pid() == os.getpid()
    assert seen == ["kernels", "kv"]


def test_what_keeps_it_from_connecting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: str) -> LocalLink:
        raise Unavailable(f"KV actor {name} is gone")

    monkeypatch.setattr(kv_actor, "connect", refuse)
    shell = actor.GpuWorkerShell(settings_of(tmp_path), ("kv",), "namespace")
    while not shell.loading(60).over:
        pass
    with pytest.raises(Unavailable, match="KV actor kv is gone"):
        shell.pid()
