"""What every case runs on: a decoder, a filled store, the way between them, and what the machine can do at most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moorage.runtime.bench.gpu.cases import Method, groups
from moorage.runtime.bench.gpu.ceilings import Ceilings, synchronize
from moorage.runtime.bench.gpu.model import PastStore, WalkingDecoder
from moorage.runtime.bench.gpu.options import Options
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.planning.memory import CUDA_RESERVE_BYTES, workspace_bytes
from moorage.workers.gpu.engine.engine import Engine
from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.gpu.transfer.copy_engine import CopyEngine
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import ModelSpec, OpenSession, SamplingSpec, StepPlan, StepResult

OWN_TOKENS = 512
"""Room of a session behind its past."""


@dataclass(frozen=True, slots=True)
class Rig:
    """One filled store and the decoder that reads it."""

    options: Options
    model: ModelSpec
    decoder: WalkingDecoder
    ceilings: Ceilings
    store: PastStore
    kv: ShardedKv
    copies: CopyEngine

    def engine(self, method: Method, batch: int, cached: int) -> Engine:
        """A fresh engine with slots for `batch` sessions of `cached` selected blocks a layer."""
        options, layout = self.options, self.store.layout
        if options.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(options.device)
        slots = batch * layout.num_layers * slots_per_layer(method.memory, layout, cached)
        settings = EngineSettings(
            slots,
            max_cached_block=cached,
            score_on=method.score_on,
            attend_on=method.attend_on,
            in_place=False,
        )
        return Engine(self.decoder, self.model, layout, self.kv, options.device, settings, self.copies)

    def open(
        self, engine: Engine, method: Method, context: int, batch: int, prompt_tokens: int | None = None
    ) -> None:
        """Opens `batch` sessions that hold `context` tokens of the past each; see `PastStore.share`."""
        self.store.share(context, batch)
        prompt = prompt_tokens or context
        opens = tuple(
            OpenSession(i, prompt + OWN_TOKENS, prompt, method.memory, SamplingSpec())
            for i in range(1, batch + 1)
        )
        self.step(engine, StepPlan(0, opens=opens))
        for session in engine.sessions.values():
            session.num_tokens = context
        self.decoder.start(batch)

    def step(self, engine: Engine, plan: StepPlan) -> StepResult:
        """One step and the end of its work on the device. Raises what a session failed with."""
        result = engine.step(plan)
        synchronize(self.options.device)
        for segment in result.segments:
            if segment.error is not None:
                raise segment.error
        return result

    def slots_in(self, memory_bytes: int) -> int:
        """Slots that `memory_bytes` of the device leave beside weights, workspace and CUDA's reserve."""
        options, layout = self.options, self.store.layout
        deployment = Deployment(
            self.model,
            layout,
            groups(self.model)[0].methods[0].memory,
            "auto",
            not options.cuda,
            max_running=max(options.batches),
            max_step_tokens=512,
        )
        reserve = CUDA_RESERVE_BYTES if options.cuda else 0
        room = memory_bytes - self.decoder.weights.num_bytes - workspace_bytes(deployment) - reserve
        return max(0, room // layout.block_bytes)

    def whole_memory(self) -> int:
        """Bytes of the device that are free or this process's, less a part for fragmentation."""
        if not self.options.cuda:
            return self.options.device_memory
        free, _ = torch.cuda.mem_get_info(self.options.device)
        return int(0.95 * (free + torch.cuda.memory_reserved(self.options.device)))

    def memory_values(self) -> dict[str, float]:
        """GiB of the device: most allocated, most reserved by the allocator, and all that the driver counts."""
        if not self.options.cuda:
            return {}
        device = self.options.device
        free, total = torch.cuda.mem_get_info(device)
        sizes = {
            "peak_gib": torch.cuda.max_memory_allocated(device),
            "reserved_gib": torch.cuda.max_memory_reserved(device),
            "used_gib": total - free,
        }
        return {name: size / 2**30 for name, size in sizes.items()}

    def read_bytes(self, batch: int) -> int:
        """Bytes of weights that a step of `batch` tokens reads: of an embedding of its own only the tokens' rows."""
        weights, embed = self.decoder.weights, self.decoder.weights.embed
        unread = 0 if embed is weights.lm_head else embed.nbytes - batch * embed.nbytes // embed.shape[0]
        return weights.num_bytes - unread
