"""The Ray shell of a GPU worker. The only file of this folder that knows Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.gpu.worker import GpuWorker
from moorage.workers.kv.actor import connect
from moorage.workers.spec import StepPlan, StepResult


class GpuWorkerShell:
    """Connects to the KV actors by name, then forwards."""

    def __init__(self, settings: WorkerSettings, kv_actors: Sequence[str], namespace: str) -> None:
        links = [connect(name, namespace=namespace) for name in kv_actors]
        self._worker = GpuWorker(settings, links)

    def step(self, plan: StepPlan) -> StepResult:
        """See Engine.step."""
        return self._worker.step(plan)

    def pid(self) -> int:
        """Of the worker's process; answered once the model is loaded."""
        return self._worker.pid()

    def device(self) -> str:
        """cuda or cpu."""
        return self._worker.device.type


def start_gpu_worker(
    *,
    name: str,
    namespace: str,
    settings: WorkerSettings,
    kv_actors: Sequence[str],
    num_cpus: float,
    num_gpus: float,
) -> Any:
    """A named, detached worker actor; it is ready when its `pid` answers."""
    remote = ray.remote(GpuWorkerShell)
    return remote.options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_restarts=0,
    ).remote(settings, tuple(kv_actors), namespace)
