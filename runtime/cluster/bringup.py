"""Starts a serving coordinator from a configuration: plans the launch, starts the processes, and joins the parts.

A configuration that can't be served is refused before the first process starts.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from moorage.runtime.cluster.hooks import Hooks
from moorage.runtime.cluster.processes import ClusterProcesses
from moorage.runtime.cluster.ray_executor import RayExecutor
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import preset_differs, resolve_memory
from moorage.runtime.planning.launch_plan import LaunchPlan, plan_launch
from moorage.runtime.planning.trained_length import reach
from moorage.runtime.serving.coordinator import Cluster, Coordinator
from moorage.runtime.serving.executor import Executor, LocalExecutor
from moorage.runtime.serving.protocol import ModelInfo
from moorage.runtime.serving.scheduled_request import Limits
from moorage.runtime.serving.sessions.block_files import BlockFiles, LocalBlockFiles
from moorage.runtime.serving.sessions.fingerprint import model_fingerprint
from moorage.runtime.serving.sessions.records import SessionPolicy
from moorage.runtime.serving.sessions.saving import Saved, Served
from moorage.runtime.serving.traces import Traces
from moorage.runtime.text.grammar import Grammars
from moorage.runtime.text.process import TextProcess
from moorage.runtime.text.reasoning import reasoning_use
from moorage.runtime.text.tools.formats import tool_use


async def start_coordinator(config: ClusterConfig, hooks: Hooks) -> Coordinator:
    """A serving coordinator. When anything fails, all that was started is stopped."""
    plan = plan_launch(config)
    processes, text, grammars = ClusterProcesses(plan, hooks), text_of(plan), grammars_of(plan)
    try:
        await processes.start()
        if text is not None:
            await text.start()
        if grammars is not None:
            await asyncio.to_thread(grammars.prepare)
        coordinator = Coordinator(
            cluster_of(plan, RayExecutor(processes), processes.step_tokens, text, grammars)
        )
        if (endpoint := config.server.otlp) is not None:
            traces = Traces(endpoint, Path(config.model.path).name)
            coordinator.request_totals.observers.append(traces.record)
        return coordinator
    except BaseException:
        if text is not None:
            await text.close()
        await processes.stop()
        raise


def cluster_of(
    plan: LaunchPlan,
    executor: Executor,
    step_tokens: int,
    text: TextProcess | None = None,
    grammars: Grammars | None = None,
) -> Cluster:
    """What a coordinator needs to serve `plan` on the workers of `executor`, in steps of `step_tokens` at most."""
    config = plan.config
    return Cluster(
        model=_model_info(plan),
        eos_token_ids=frozenset(plan.eos_token_ids),
        tokenizer=plan.tokenizer,
        text=text,
        grammars=grammars,
        limits=Limits(
            resources=plan.capacity.total,
            max_step_tokens=step_tokens,
            decode_prefill_tokens=min(config.scheduler.decode_prefill_tokens, step_tokens),
            max_running=config.server.max_running,
            max_waiting=config.server.max_queued_requests,
            max_wait_s=config.server.max_wait,
        ),
        capacity=plan.capacity,
        executor=executor,
        resolve_memory=lambda preset, settings: resolve_memory(config, preset, plan.spec, settings),
        preset_differs=partial(preset_differs, config),
        reach=partial(reach, model=plan.spec),
        sessions=SessionPolicy(
            config.sessions.ttl, config.sessions.quota, config.sessions.save_after, config.sessions.prefixes
        ),
        saved=_saved(plan, executor),
    )


def _saved(plan: LaunchPlan, executor: Executor) -> Saved | None:
    """Where sessions are saved, and how; None where they are not."""
    config, files = plan.config, block_files_of(executor)
    if config.sessions.path is None or files is None:
        return None
    model = Path(config.model.path)
    how = config.model.dtype, config.model.weights.value, executor.attention_dtype
    served = Served(model.name, model_fingerprint(model, *how), files)
    return Saved(Path(config.sessions.path), config.sessions.max_bytes, served)


def block_files_of(executor: Executor) -> BlockFiles | None:
    """How blocks of an executor's stores get into files; None for one without stores."""
    match executor:
        case RayExecutor():
            return executor.block_files
        case LocalExecutor():
            return LocalBlockFiles(executor.stores)
    return None


def _model_info(plan: LaunchPlan) -> ModelInfo:
    config = plan.config
    return ModelInfo(
        name=Path(config.model.path).name,
        family=plan.spec.family,
        dtype=plan.spec.dtype if config.model.dtype == "auto" else config.model.dtype,
        vocab_size=plan.spec.vocab_size,
        max_seq_len=plan.limit.max_seq_len,
        preset=config.memory.preset,
        has_chat_template=plan.tokenizer is not None and plan.tokenizer.has_chat_template,
        eos_token_ids=plan.eos_token_ids,
        default_sampling=plan.default_sampling,
        trained_tokens=plan.limit.trained_tokens,
        reach_tokens=plan.limit.reach.tokens,
        warnings=plan.limit.warnings,
    )


def grammars_of(plan: LaunchPlan) -> Grammars | None:
    """Compiles what answers must follow; None for a model without a tokenizer."""
    if plan.tokenizer is None:
        return None
    return Grammars(plan.tokenizer, plan.spec.vocab_size, plan.eos_token_ids)


def text_of(plan: LaunchPlan) -> TextProcess | None:
    """The text process of a model that has a tokenizer, not yet started."""
    if plan.tokenizer is None:
        return None
    tokenizer = plan.tokenizer
    return TextProcess(
        Path(plan.config.model.path),
        tokenizer.max_bytes_per_token,
        spelling=tokenizer.spelling,
        tool_use=tool_use(tokenizer, plan.config.server.tool_parser),
        reasoning=reasoning_use(tokenizer, plan.config.server.reasoning_parser),
    )
