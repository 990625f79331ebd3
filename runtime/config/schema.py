"""The configuration of a cluster: sections, the checks between them, and how it is loaded.

One rule of precedence: flag over environment over file over memory preset over default.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from moorage.runtime.config.checks import complaints
from moorage.runtime.config.errors import one_line
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
from moorage.runtime.config.source import Source, read_source
from moorage.runtime.config.types import Section
from moorage.workers.errors import InvalidConfig

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


def load_cluster_config(
    path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] = os.environ
) -> ClusterConfig:
    """Validates `path`, under `MOORAGE_SECTION__KEY` variables and `section.key=value` flags.

    A relative model.path in the file is relative to the file. Raises InvalidConfig with one line that names
    where the value was given, the key, and the fix.
    """
    return build_config(read_source(path, overrides, environ))


def build_config(source: Source) -> ClusterConfig:
    """The validated configuration of merged values. Raises InvalidConfig as `load_cluster_config` does."""
    try:
        config = ClusterConfig.model_validate(source.values)
    except ValidationError as error:
        raise InvalidConfig(one_line(error, source, ClusterConfig)) from error
    for section, key, why in complaints(config):
        raise InvalidConfig(f"{source.where((section, key))}: {section}.{key}: {why}")
    return config.model_copy(update={"model": _anchored_model(config.model, source)})


def _anchored_model(model: ModelSection, source: Source) -> ModelSection:
    path = model.path.expanduser()
    from_file = source.where(("model", "path")).startswith(str(source.path))
    base = source.path.parent if from_file else Path()
    return model.model_copy(update={"path": (base / path).resolve()})
