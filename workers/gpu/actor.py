"""The Ray actor of a GPU worker. No other file of this package imports Ray.

Whoever starts it needs neither torch nor the model's code: the actor's own process imports them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.process import ProcessFacts, freeze_heap, own_facts, take_asked_priority
from moorage.workers.ray_process import RayProcess
from moorage.workers.spec import StepPlan, StepResult
from moorage.workers.stages import StartStage

if TYPE_CHECKING:
    from moorage.workers.gpu.worker import GpuWorker
    from moorage.workers.kv.link import Link


@dataclass(frozen=True, slots=True)
class Loading:
    """The progress of a worker's start."""

    read_bytes: int
    total_bytes: int
    """Bytes of all weights; 0 until their headers are read."""
    over: bool
    """Whether the worker is ready or has failed; any other call raises why it failed."""
    stage: StartStage


class GpuWorkerShell:
    """Forwards calls to a GpuWorker, which starts in a thread so that `loading` answers meanwhile."""

    def __init__(self, settings: WorkerSettings, kv_actors: Sequence[str], namespace: str) -> None:
        import torch

        take_asked_priority()
        # Ray sets one OpenMP thread for an actor of one CPU. OpenMP keeps the number of threads for each thread.
        num_threads = settings.num_threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(num_threads)
        settings = replace(settings, num_threads=num_threads)
        self._read = (0, 0)
        self._stage = StartStage.KERNELS
        self._load = ThreadPoolExecutor(1).submit(self._start, settings, kv_actors, namespace)

    def _start(self, settings: WorkerSettings, kv_actors: Sequence[str], namespace: str) -> GpuWorker:
        from moorage.workers.gpu.worker import GpuWorker

        group_size = settings.spec.group_size
        connectors = [partial(self._connect, name, namespace, group_size) for name in kv_actors]
        worker = GpuWorker(settings, connectors, progress=self._note)
        freeze_heap()
        return worker

    def _connect(self, name: str, namespace: str, group_size: int) -> Link:
        from moorage.workers.kv.actor import connect

        self._stage = StartStage.KV_ACTORS
        return connect(name, namespace=namespace, group_size=group_size)

    def _note(self, read_bytes: int, total_bytes: int) -> None:
        self._read = read_bytes, total_bytes
        self._stage = StartStage.WEIGHTS if read_bytes < total_bytes else StartStage.ENGINE

    def facts(self) -> ProcessFacts:
        """Host, pid and niceness of this process."""
        return own_facts()

    def loading(self, longest_s: float) -> Loading:
        """The progress, once the worker is ready or has failed, or after `longest_s`."""
        wait((self._load,), longest_s)
        return Loading(*self._read, self._load.done(), self._stage)

    def step(self, plan: StepPlan) -> StepResult:
        """See Engine.step."""
        return self._load.result().step(plan)

    def pid(self) -> int:
        """The pid of the worker's process, once the model is loaded. Raises the error that kept it from loading."""
        return self._load.result().pid()

    def chunk_tokens(self, most: int) -> int:
        """See GpuWorker.chunk_tokens."""
        return self._load.result().chunk_tokens(most)

    def attention_dtype(self) -> str:
        """See GpuWorker.attention_dtype."""
        return self._load.result().attention_dtype()

    def device(self) -> str:
        """Type of the worker's device: cuda or cpu."""
        return self._load.result().device.type


def start_gpu_worker(process: RayProcess, settings: WorkerSettings, kv_actors: Sequence[str]) -> Any:
    """Starts a worker of the KV actors of these names as `process`; it is ready when its `pid` answers."""
    remote = ray.remote(GpuWorkerShell).options(**process.options())
    return remote.remote(settings, tuple(kv_actors), process.namespace)
