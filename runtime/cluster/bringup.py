"""From a configuration to a serving coordinator: what is sized, the processes, and what the coordinator works with.

What can be refused is refused before the first process starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moorage.runtime.cluster.processes import ClusterProcesses
from moorage.runtime.cluster.server import Hooks
from moorage.runtime.config import ClusterConfig
from moorage.runtime.config.presets import check_positions, kv_layout, resolve_memory
from moorage.runtime.planning.host import check_memory, deployment_of
from moorage.runtime.planning.memory import num_slots, pages_per_actor, spare_device_bytes
from moorage.runtime.planning.session_limit import SessionLimit, session_limit
from moorage.runtime.planning.trained_length import reach
from moorage.runtime.serving.capacity import Ledger
from moorage.runtime.serving.coordinator import Cluster, Coordinator
from moorage.runtime.serving.jobs import Limits
from moorage.runtime.serving.protocol import ModelInfo
from moorage.runtime.serving.room import Room
from moorage.runtime.serving.worker_client import RayWorker
from moorage.runtime.text.process import TextProcess
from moorage.runtime.text.tokenizer import TextTokenizer, stop_token_ids
from moorage.workers.hf_config import read_model_spec
from moorage.workers.hf_generation import SamplingDefaults, read_sampling_defaults
from moorage.workers.spec import KvLayout, ModelSpec


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
    processes, text = ClusterProcesses(shape, hooks), _text(shape)
    try:
        await processes.start()
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


def _cluster(shape: Shape, processes: ClusterProcesses, text: TextProcess | None) -> Cluster:
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
        health=processes.health,
        reach=partial(reach, model=shape.spec),
    )
