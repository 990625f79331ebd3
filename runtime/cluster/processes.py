"""Starts, watches and stops the processes of one launch: Ray, the KV actors and the GPU worker."""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import Any

import structlog

from moorage.runtime.cluster import ray_environment
from moorage.runtime.cluster.actor_figures import ActorFigures
from moorage.runtime.cluster.hooks import Hooks
from moorage.runtime.cluster.os_processes import ProcessId
from moorage.runtime.cluster.process_watch import ProcessWatch, Watched
from moorage.runtime.cluster.ray_cluster import RayCluster
from moorage.runtime.cluster.start_errors import start_error
from moorage.runtime.planning.launch_plan import LaunchPlan
from moorage.runtime.planning.ray_join import check_resources, ray_nodes
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.status_records import KvActorStatus
from moorage.workers.errors import Unavailable
from moorage.workers.process import ProcessFacts, host_key
from moorage.workers.ray_process import RayProcess
from moorage.workers.stages import StartStage

log = structlog.get_logger()

START_TIMEOUT_S = 600.0
"""Longest wait until the KV actors are ready and the model is loaded."""
LOADING_LOOK_S = 0.25


class ClusterProcesses:
    """The processes of one launch; `start` and `stop` are called once."""

    def __init__(self, plan: LaunchPlan, hooks: Hooks) -> None:
        self._plan, self._hooks = plan, hooks
        self._ray = RayCluster(plan.config)
        tag = secrets.token_hex(3)
        self._kv_names = [f"kv-{tag}-{i}" for i in range(plan.config.kv_store.actors)]
        self._worker_name = f"worker-{tag}"
        self._kv_actors: list[Any] = []
        self.worker: Any = None
        self.worker_pid = 0
        self.attention_dtype = ""
        self.step_tokens = plan.step_tokens
        self.health = ClusterHealth()
        self._actor_processes: list[Watched] = []
        self._figures: ActorFigures | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def _environment(self) -> dict[str, str]:
        """The variables to set for actors; none in a private Ray cluster, whose processes inherit all of them."""
        return {} if self._ray.private else ray_environment.of_actors()

    async def start(self) -> None:
        """Starts Ray, then the actors, which load at the same time. Raises the error that one of them met."""
        self._hooks.on_stage(StartStage.RAY)
        await self._ray.start()
        if not self._ray.private:
            check_resources(self._plan.config, self._plan.actor_bytes, ray_nodes())
        self._start_kv_actors()
        self._start_worker()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                facts = asyncio.gather(*(actor.facts.remote() for actor in self._kv_actors))
                kv_facts, _ = await asyncio.gather(facts, self._watch_loading())
                self.worker_pid = await self.worker.pid.remote()
                worker_facts = await self.worker.facts.remote()
                self.attention_dtype = await self.worker.attention_dtype.remote()
                log.info("type in which prompts are attended", attention_dtype=self.attention_dtype)
                if self._plan.config.long_context.chunk_size == "auto":
                    self.step_tokens = await self.worker.chunk_tokens.remote(self.step_tokens)
        except TimeoutError as error:
            raise Unavailable(
                f"the workers did not start within {START_TIMEOUT_S:.0f} s; see the log, then start the cluster again"
            ) from error
        except Exception as error:
            raise start_error(error) from error
        self._watch(kv_facts, worker_facts)

    @property
    def kv_actors(self) -> tuple[Any, ...]:
        """Handles of the KV actors, in the order of their shards."""
        return tuple(self._kv_actors)

    async def kv_status(self) -> tuple[KvActorStatus, ...]:
        """The status of each KV actor, with the last known statistics of one that does not answer."""
        return () if self._figures is None else await self._figures()

    async def stop(self) -> None:
        """Ends the actors and a private Ray. A second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        if self._watching is not None:
            self._watching.cancel()
        if self._figures is not None:
            self._figures.close()
        actors = [actor for actor in (self.worker, *self._kv_actors) if actor is not None]
        await self._ray.stop(actors, [one.process for one in self._actor_processes])

    def _watch(self, kv_facts: list[ProcessFacts], worker_facts: ProcessFacts) -> None:
        """Reports processes that stop or end from now on; those of other hosts are noticed when they are called."""
        loss = "and with it KV of every session"
        found = [
            *(
                (f"KV actor {name}", facts, loss)
                for name, facts in zip(self._kv_names, kv_facts, strict=True)
            ),
            (f"GPU worker {self._worker_name}", worker_facts, "and with it all that it computed"),
        ]
        for name, facts, lost in found:
            if facts.niceness > ray_environment.asked_niceness():
                log.warning(
                    "slow: Ray runs the process behind all others; start Ray with RAY_worker_niceness=0",
                    name=name,
                    niceness=facts.niceness,
                )
            process = ProcessId.of(facts.pid) if facts.host_key == host_key() else None
            if process is not None:
                self._actor_processes.append(Watched(name, process, lost))
        watch = ProcessWatch((*self._ray.watched, *self._actor_processes), self.health)
        pids = [facts.pid for facts in kv_facts]
        ask = [actor.stats.remote for actor in self._kv_actors]
        self._figures = ActorFigures(self._kv_names, pids, ask, watch.state_of)
        self._watching = asyncio.create_task(watch.run())
        self._watching.add_done_callback(self._watch_ended)

    def _watch_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            reason = repr(task.exception())
            self.health.report("watch", f"the watch over the processes failed: {reason}", fatal=True)

    async def _watch_loading(self) -> None:
        """Calls the hooks with the stages and the progress of the worker's start, until it is over."""
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

    def _start_kv_actors(self) -> None:
        from moorage.workers.kv.actor import start_kv_actor

        plan, config = self._plan, self._plan.config
        threads = config.long_context.threads_num or os.cpu_count() or 1
        cpus = config.kv_store.cpus or [()] * len(self._kv_names)
        for name, bound in zip(self._kv_names, cpus, strict=True):
            process = RayProcess(
                name,
                config.ray.namespace,
                memory_bytes=0 if self._ray.private else plan.actor_bytes,
                environment=self._environment,
            )
            num_threads = max(1, threads // config.kv_store.actors)
            actor = start_kv_actor(
                process,
                plan.layout,
                plan.pages_per_actor,
                num_threads,
                tuple(bound),
                plan.deployment.quantizer,
            )
            self._kv_actors.append(actor)

    def _start_worker(self) -> None:
        from moorage.workers.gpu.actor import start_gpu_worker

        config = self._plan.config
        process = RayProcess(
            self._worker_name,
            config.ray.namespace,
            num_gpus=1 if _has_gpu(config.gpu_workers.device) else 0,
            environment=self._environment,
        )
        settings = worker_settings(config, self._plan.deployment)
        self.worker = start_gpu_worker(process=process, settings=settings, kv_actors=self._kv_names)


def _has_gpu(device: str) -> bool:
    """Whether the worker should hold a GPU of the Ray cluster."""
    import ray

    return device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
