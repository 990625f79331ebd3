"""The GPU worker that a configuration asks for: the same for a launch and for an evaluation in one process."""

from __future__ import annotations

from dataclasses import replace

from moorage.runtime.config.resolve import given
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.planning.key_memory import key_rows
from moorage.runtime.planning.memory import num_rings, num_slots, spare_device_bytes
from moorage.workers.gpu.settings import EngineSettings, WorkerSettings
from moorage.workers.spec import MemorySpec


def worker_settings(config: ClusterConfig, deployment: Deployment) -> WorkerSettings:
    """All that the worker must know to start, with the device slots that `deployment` has.

    Raises InvalidConfig when `gpu_workers.device_memory` does not hold one session.
    """
    workers = config.gpu_workers
    return WorkerSettings(
        model_dir=config.model.path,
        spec=deployment.model,
        dtype=deployment.dtype,
        weights=deployment.weights,
        experts=deployment.experts,
        device=workers.device,
        layout=deployment.layout,
        stripe_blocks=deployment.stripe_blocks,
        engine=EngineSettings(
            num_slots=num_slots(deployment),
            num_rings=num_rings(deployment),
            anchor_bytes=spare_device_bytes(deployment),
            key_rows=key_rows(deployment),
            **given(config, EngineSettings),
        ),
        num_threads=workers.num_threads,
        quantizer=deployment.quantizer,
    )


def for_one_session(deployment: Deployment, memory: MemorySpec) -> Deployment:
    """The deployment with device slots for one session of `memory` and for nothing else."""
    return replace(deployment, memory=memory, max_running=1, other_memories=())
