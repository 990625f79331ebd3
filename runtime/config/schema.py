"""The configuration of a cluster: all sections."""

from __future__ import annotations

from pydantic import Field

from moorage.runtime.config.sections import (
    GpuWorkersSection,
    KvStoreSection,
    LongContextSection,
    MemorySection,
    ModelSection,
    RaySection,
    SchedulerSection,
    ServerSection,
)
from moorage.runtime.config.types import Section

CPU_CHUNK = 4096
"""An automatic chunk_size on a CPU."""


class ClusterConfig(Section):
    """All of `cluster.yaml`."""

    model: ModelSection = Field(description="Which model is served.")
    memory: MemorySection = Field(default=MemorySection(), description="What a session attends.")
    long_context: LongContextSection = Field(
        default=LongContextSection(),
        description="Chunks, blocks, anchors and selection, under the key names of ktransformers.",
    )
    kv_store: KvStoreSection = Field(default=KvStoreSection(), description="DRAM that holds the KV cache.")
    gpu_workers: GpuWorkersSection = Field(
        default=GpuWorkersSection(), description="Processes that run the model."
    )
    scheduler: SchedulerSection = Field(
        default=SchedulerSection(), description="How a step's tokens are shared."
    )
    server: ServerSection = Field(default=ServerSection(), description="The gRPC server.")
    ray: RaySection = Field(default=RaySection(), description="The Ray cluster that the processes run in.")

    @property
    def max_step_tokens(self) -> int:
        """Most tokens of one step; under an automatic chunk_size, where there is no GPU to measure."""
        chunk = self.long_context.chunk_size
        return self.scheduler.max_step_tokens or (chunk if isinstance(chunk, int) else CPU_CHUNK)
