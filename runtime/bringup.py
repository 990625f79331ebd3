"""Starts everything behind the coordinator: Ray, KV actors, the GPU worker. The reverse order stops it.

What can be refused is refused before the first process starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from moorage.runtime.config import ClusterConfig
from moorage.runtime.coordinator import Cluster, Coordinator
from moorage.runtime.deployment import check_memory, deployment_of
from moorage.runtime.jobs import Limits
from moorage.runtime.launch import Hooks
from moorage.runtime.ledger import Ledger
from moorage.runtime.presets import check_positions, kv_layout, resolve_memory
from moorage.runtime.ray_join import check_resources, ray_nodes
from moorage.runtime.requests import KvActorStatus, ModelInfo
from moorage.runtime.room import Room
from moorage.runtime.session_limit import SessionLimit, session_limit
from moorage.runtime.sizing import num_slots, pages_per_actor, spare_device_bytes
from moorage.runtime.text.process import TextProcess
from moorage.runtime.tokenizer import TextTokenizer, stop_token_ids
from moorage.runtime.trained_length import reach
from moorage.runtime.worker_handle import RayWorker
from moorage.workers.errors import InvalidModel, MoorageError, Unavailable
from moorage.workers.gpu.settings import EngineSettings, WorkerSettings
from moorage.workers.hf_config import read_model_spec
from moorage.workers.hf_generation import SamplingDefaults, read_sampling_defaults
from moorage.workers.spec import KvLayout, ModelSpec
from moorage.workers.stages import StartStage

START_TIMEOUT_S = 600.0
"""Longest wait for a model to load."""
LOADING_LOOK_S = 0.25
RAY_START_ATTEMPTS = 3
CHILD_GRACE_S = 5.0
"""How long Ray's processes may take to end by themselves."""
RAY_MEMORY_STOP = "0.98"
"""Ray kills processes above this share of the host's memory; room was reserved before, so it must not."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the configuration and the model together determine, before any process starts."""

    config: ClusterConfig
    spec: ModelSpec
    layout: KvLayout
    pages_per_actor: int
    ledger: Ledger
    anchor_bytes: int | None
    """Device memory for copies of anchors; None is unlimited."""
    step_tokens: int
    """Most tokens of a step; an automatic chunk may be shorter."""
    tokenizer: TextTokenizer | None
    eos_token_ids: tuple[int, ...]
    """Those of config.json, generation_config.json and the tokenizer."""
    default_sampling: SamplingDefaults
    limit: SessionLimit


def shape_of(config: ClusterConfig) -> Shape:
    """Reads the model's files and sizes stores and slots. Raises what can't work; loads no weights."""
    model_dir = Path(config.model.path)
    spec = read_model_spec(model_dir)
    check_memory(config, spec)
    check_positions(config, spec)
    layout = kv_layout(config, spec)
    pages = pages_per_actor(config.kv_store.dram, config.kv_store.actors, layout)
    deployment = deployment_of(config, spec)
    room = Room((pages,) * config.kv_store.actors, num_slots(deployment))
    ledger = Ledger(layout, room, config.kv_store.stripe_blocks, config.memory.max_cached_block)
    anchor_bytes = spare_device_bytes(deployment)
    tokenizer = _tokenizer(model_dir)
    return Shape(
        config,
        spec,
        layout,
        pages,
        ledger,
        anchor_bytes,
        deployment.max_step_tokens,
        tokenizer,
        stop_token_ids(spec, tokenizer),
        read_sampling_defaults(model_dir),
        session_limit(config, spec),
    )


def _tokenizer(model_dir: Path) -> TextTokenizer | None:
    """None when there is no tokenizer.json: token ids can still be served."""
    return TextTokenizer.load(model_dir) if (model_dir / "tokenizer.json").exists() else None


async def start_coordinator(config: ClusterConfig, hooks: Hooks) -> Coordinator:
    """A serving coordinator. If anything fails on the way, what was started is stopped again."""
    shape = shape_of(config)
    processes, text = Processes(shape, hooks), _text(shape)
    try:
        await processes.start()
        # After Ray, which may have to end every process below this one and try again.
        if text is not None:
            await text.start()
    except BaseException:
        if text is not None:
            await text.close()
        await processes.stop()
        raise
    return Coordinator(_cluster(shape, processes, text))


def _text(shape: Shape) -> TextProcess | None:
    if shape.tokenizer is None:
        return None
    return TextProcess(Path(shape.config.model.path), shape.tokenizer.max_bytes_per_token)


def _cluster(shape: Shape, processes: Processes, text: TextProcess | None) -> Cluster:
    config = shape.config
    step_tokens = processes.step_tokens
    return Cluster(
        model=ModelInfo(
            name=Path(config.model.path).name,
            family=shape.spec.family,
            dtype=shape.spec.dtype if config.model.dtype == "auto" else config.model.dtype,
            vocab_size=shape.spec.vocab_size,
            max_seq_len=shape.limit.max_seq_len,
            preset=config.memory.preset,
            has_chat_template=shape.tokenizer is not None and shape.tokenizer.has_chat_template,
            eos_token_ids=shape.eos_token_ids,
            default_sampling=shape.default_sampling,
            trained_tokens=shape.limit.trained_tokens,
            reach_tokens=shape.limit.reach.tokens,
            warnings=shape.limit.warnings,
        ),
        eos_token_ids=frozenset(shape.eos_token_ids),
        tokenizer=shape.tokenizer,
        text=text,
        limits=Limits(
            room=shape.ledger.capacity,
            max_step_tokens=step_tokens,
            decode_prefill_tokens=min(config.scheduler.decode_prefill_tokens, step_tokens),
            max_running=config.server.max_running,
            max_waiting=config.server.max_queued_requests,
        ),
        ledger=shape.ledger,
        worker=RayWorker(processes.worker, processes.worker_pid),
        resolve_memory=partial(resolve_memory, config, model=shape.spec),
        kv_status=processes.kv_status,
        shutdown=processes.stop,
        reach=partial(reach, model=shape.spec),
    )


class Processes:
    """The Ray cluster and the actors of one launch."""

    def __init__(self, shape: Shape, hooks: Hooks) -> None:
        self._shape, self._hooks = shape, hooks
        self._owns_ray = shape.config.ray.address == "local"
        tag = secrets.token_hex(3)
        self._kv_names = [f"kv-{tag}-{i}" for i in range(shape.config.kv_store.actors)]
        self._worker_name = f"worker-{tag}"
        self._kv_actors: list[Any] = []
        self._kv_pids: list[int] = []
        self.worker: Any = None
        self.worker_pid = 0
        self.step_tokens = shape.step_tokens
        self._stopped = False

    @property
    def _actor_bytes(self) -> int:
        """Memory of one KV actor's arena."""
        return self._shape.pages_per_actor * self._shape.layout.page_bytes

    async def start(self) -> None:
        """Ray first, then the actors, which load side by side."""
        self._hooks.on_stage(StartStage.RAY)
        self._init_ray()
        self._start_kv_actors()
        self._start_worker()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                pids = asyncio.gather(*(actor.pid.remote() for actor in self._kv_actors))
                self._kv_pids, _ = await asyncio.gather(pids, self._watch_loading())
                self.worker_pid = await self.worker.pid.remote()
                if self._shape.config.long_context.chunk_size == "auto":
                    self.step_tokens = await self.worker.chunk_tokens.remote(self.step_tokens)
        except TimeoutError as error:
            raise Unavailable(f"the workers did not start within {START_TIMEOUT_S:.0f} s") from error
        except Exception as error:
            raise _as_start_error(error) from error

    async def _watch_loading(self) -> None:
        """Passes on what the worker tells of its start, each thing once."""
        stage, read = None, (0, 0)
        while True:
            loading = await self.worker.loading.remote(LOADING_LOOK_S)
            if loading.stage != stage:
                stage = loading.stage
                self._hooks.on_stage(stage)
            if (loading.read_bytes, loading.total_bytes) != read:
                read = loading.read_bytes, loading.total_bytes
                self._hooks.on_loading(*read)
            if loading.over:
                return

    async def kv_status(self) -> tuple[KvActorStatus, ...]:
        """What each KV actor holds now."""
        stats = await asyncio.gather(*(actor.stats.remote() for actor in self._kv_actors))
        return tuple(
            KvActorStatus(name, pid, s.used_bytes, s.capacity_bytes, s.num_sessions)
            for name, pid, s in zip(self._kv_names, self._kv_pids, stats, strict=True)
        )

    async def stop(self) -> None:
        """Kills the actors and, if it was started here, Ray. Safe to call twice."""
        if self._stopped:
            return
        self._stopped = True
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        import ray

        if ray.is_initialized():
            for actor in filter(None, (self.worker, *self._kv_actors)):
                ray.kill(actor)
            ray.shutdown()
        if self._owns_ray:
            _end_children()

    def _init_ray(self) -> None:
        config = self._shape.config
        # Idle OpenMP threads that spin would take the cores of the other processes.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_usage_threshold": RAY_MEMORY_STOP,
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        }
        import ray

        if not self._owns_ray:
            ray.init(address=config.ray.address, namespace=config.ray.namespace, log_to_driver=False)
            check_resources(config, self._actor_bytes, ray_nodes())
            return
        for attempt in range(1, RAY_START_ATTEMPTS + 1):
            try:
                self._start_ray()
                return
            except Exception as error:
                # Ray gives its processes 15 to 30 s each, which a busy host may exceed.
                _end_children()
                if "timed out" not in str(error).lower() or attempt == RAY_START_ATTEMPTS:
                    raise Unavailable(f"Ray did not start: {' '.join(str(error).split())}") from error

    def _start_ray(self) -> None:
        import ray

        config = self._shape.config
        ray.init(
            address="local",
            namespace=config.ray.namespace,
            num_cpus=config.kv_store.actors + config.gpu_workers.count,
            object_store_memory=config.ray.object_store_memory,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def _start_kv_actors(self) -> None:
        from moorage.workers.kv.actor import start_kv_actor

        shape, config = self._shape, self._shape.config
        threads = config.long_context.threads_num or os.cpu_count() or 1
        cpus = config.kv_store.cpus or [()] * len(self._kv_names)
        for name, bound in zip(self._kv_names, cpus, strict=True):
            self._kv_actors.append(
                start_kv_actor(
                    name=name,
                    namespace=config.ray.namespace,
                    layout=shape.layout,
                    num_pages=shape.pages_per_actor,
                    num_threads=max(1, threads // config.kv_store.actors),
                    num_cpus=1,
                    cpus=tuple(bound),
                    memory_bytes=0 if self._owns_ray else self._actor_bytes,
                )
            )

    def _start_worker(self) -> None:
        from moorage.workers.gpu.actor import start_gpu_worker

        shape, config = self._shape, self._shape.config
        settings = WorkerSettings(
            model_dir=Path(config.model.path),
            spec=shape.spec,
            dtype=config.model.dtype,
            device=config.gpu_workers.device,
            layout=shape.layout,
            stripe_blocks=config.kv_store.stripe_blocks,
            engine=EngineSettings(
                num_slots=shape.ledger.capacity.slots,
                max_cached_block=config.memory.max_cached_block,
                cache_strategy=config.memory.cache_strategy,
                score_decay=config.memory.score_decay,
                score_on=config.gpu_workers.score_on,
                anchor_bytes=shape.anchor_bytes,
                attend_on=config.gpu_workers.attend_on,
                dma_bytes=config.gpu_workers.dma_bytes,
                prefetch=config.gpu_workers.prefetch,
            ),
            num_threads=config.gpu_workers.num_threads,
        )
        self.worker = start_gpu_worker(
            name=self._worker_name,
            namespace=config.ray.namespace,
            settings=settings,
            kv_actors=self._kv_names,
            num_cpus=1,
            num_gpus=1 if _has_gpu(config.gpu_workers.device) else 0,
        )


def _end_children() -> None:
    """Waits for Ray's processes to end, then ends what is left of them."""
    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(children, timeout=CHILD_GRACE_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=CHILD_GRACE_S)


def _has_gpu(device: str) -> bool:
    """Whether the worker should hold a GPU of the Ray cluster."""
    import ray

    return device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1


def _as_start_error(error: Exception) -> Exception:
    """The error that a worker tells, or the first line of what failed in an actor's constructor."""
    import ray.exceptions

    cause = error
    if isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.RayActorError):
        cause = getattr(error, "cause", None) or error
    if isinstance(cause, MoorageError):
        return cause
    reason = str(cause).strip().splitlines()
    text = next(
        (line for line in reversed(reason) if "moorage" in line), reason[-1] if reason else repr(cause)
    )
    return InvalidModel(text) if "Invalid" in text else Unavailable(f"a worker failed to start: {text}")
