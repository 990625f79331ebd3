"""What the configuration and the model together determine, before any process starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moorage.runtime.config.resolve import check_positions, kv_layout
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.host import check_memory, deployment_of
from moorage.runtime.planning.memory import num_slots, pages_per_actor, spare_device_bytes
from moorage.runtime.planning.session_limit import SessionLimit, session_limit
from moorage.runtime.serving.capacity import Ledger
from moorage.runtime.serving.room import Room
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
