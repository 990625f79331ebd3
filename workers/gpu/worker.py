"""A GPU worker: model, engine and links to the KV actors. Runs with or without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from moorage.workers.errors import InvalidConfig
from moorage.workers.gpu.engine.chunk_size import measured_chunk
from moorage.workers.gpu.engine.device_warm_up import warm_up_device
from moorage.workers.gpu.engine.engine import Engine
from moorage.workers.gpu.engine.warm_up import warm_up
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.weights import Progress
from moorage.workers.gpu.settings import WorkerSettings
from moorage.workers.gpu.transfer.copy_engine import CopyEngine
from moorage.workers.kv.link import Link
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import StepPlan, StepResult


def pick_device(name: str) -> torch.device:
    """The device that `gpu_workers.device` names. Raises InvalidConfig for cuda where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("gpu_workers.device: cuda is asked for and this host has none; use auto or cpu")
    return torch.device(name)


class GpuWorker:
    """One model on one device with links to every shard of the KV store."""

    def __init__(
        self,
        settings: WorkerSettings,
        connectors: Sequence[Callable[[], Link]],
        copies: Callable[[ShardedKv], CopyEngine] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Compiles the kernels, calls `connectors`, one for each KV actor, and loads the model, in this order.

        The KV actors compile kernels of their own meanwhile. `copies` makes the copy engine; None takes what suits
        the device. `progress` is for `load_weights`.
        """
        self._settings = settings
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
        self.device = pick_device(settings.device)
        warm_up(settings, self.device, len(connectors))
        links = [connect() for connect in connectors]
        # On a CPU the worker reads the stores' memory itself, so it selects there as well, without asking them.
        here = self.device.type == "cpu" and settings.engine.in_place
        self._kv = ShardedKv(links, settings.layout, settings.stripe_blocks, score_here=here)
        self.decoder = Decoder.load(
            settings.model_dir,
            settings.spec,
            settings.dtype,
            self.device,
            progress,
            settings.weights,
            settings.experts,
        )
        self.engine = Engine(
            self.decoder,
            settings.spec,
            settings.layout,
            self._kv,
            self.device,
            settings.engine,
            None if copies is None else copies(self._kv),
        )
        self.engine.copies.prepare()
        if self.device.type == "cuda":
            warm_up_device(self.engine, settings.layout, settings.spec, self.device)

    def step(self, plan: StepPlan) -> StepResult:
        """Runs one plan; see Engine.step."""
        return self.engine.step(plan)

    def chunk_tokens(self, most: int) -> int:
        """Tokens of a chunk whose attention hides the copy of its past; `most` on a CPU, which copies none."""
        if self.device.type == "cpu":
            return most
        settings = self._settings
        return measured_chunk(self.device, settings.layout, settings.spec.num_heads, self.decoder.dtype, most)

    def attention_dtype(self) -> str:
        """The type of prefill's queries, keys and values, such as bfloat16."""
        return str(self.engine.attention_dtype).removeprefix("torch.")

    def pid(self) -> int:
        """The pid of this worker's process."""
        return os.getpid()

    def close(self) -> None:
        """Closes the links to the KV actors, which keep their sessions."""
        self.engine.copies.close()
        self._kv.close()
