"""What a configuration, its model and their sizes come to: read, checked and sized before any process starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import check_positions
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.planning.host import check_memory, deployment_of
from moorage.runtime.planning.memory import num_rings, num_slots
from moorage.runtime.planning.pages import pages_per_actor
from moorage.runtime.planning.session_limit import SessionLimit, session_limit
from moorage.runtime.serving.capacity import Capacity, Resources
from moorage.workers.hf_config import read_model_spec
from moorage.workers.hf_generation import SamplingDefaults, read_sampling_defaults
from moorage.workers.hf_weights import check_weights
from moorage.workers.spec import KvLayout, ModelSpec

if TYPE_CHECKING:
    from moorage.runtime.text.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """All that a launch of `config` needs to know before it starts a process."""

    config: ClusterConfig
    deployment: Deployment
    pages_per_actor: int
    capacity: Capacity
    tokenizer: TextTokenizer | None
    """None when the model has no tokenizer: token ids can still be served."""
    eos_token_ids: tuple[int, ...]
    """The ids of config.json, generation_config.json and the tokenizer."""
    default_sampling: SamplingDefaults
    limit: SessionLimit

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.deployment.model

    @property
    def layout(self) -> KvLayout:
        """Sizes of stored blocks and anchors."""
        return self.deployment.layout

    @property
    def step_tokens(self) -> int:
        """Most tokens of a step; an automatic chunk may be shorter."""
        return self.deployment.max_step_tokens

    @property
    def actor_bytes(self) -> int:
        """Memory of one KV actor's arena."""
        return self.pages_per_actor * self.layout.page_bytes


def plan_launch(config: ClusterConfig) -> LaunchPlan:
    """Reads the model's files, but no weight, and sizes stores and slots.

    Raises InvalidModel for files that can't be served, InvalidConfig for positions, sizes and memory that don't fit
    the model or this host.
    """
    from moorage.runtime.text.tokenizer import TextTokenizer, has_tokenizer, stop_token_ids

    directory = Path(config.model.path)
    spec = read_model_spec(directory)
    check_positions(config, spec)
    limit = session_limit(config, spec)
    check_weights(directory, spec)
    tokenizer = TextTokenizer.load(directory) if has_tokenizer(directory) else None
    sampling = read_sampling_defaults(directory)
    deployment = deployment_of(config, spec)
    pages = pages_per_actor(config.kv_store.dram, config.kv_store.actors, deployment.layout)
    total = Resources((pages,) * config.kv_store.actors, num_slots(deployment), num_rings(deployment))
    check_memory(config, deployment)
    return LaunchPlan(
        config=config,
        deployment=deployment,
        pages_per_actor=pages,
        capacity=Capacity(
            deployment.layout,
            total,
            config.kv_store.stripe_blocks,
            config.memory.max_cached_block,
            deployment.windows if deployment.windows.num_layers else None,
        ),
        tokenizer=tokenizer,
        eos_token_ids=stop_token_ids(spec, tokenizer),
        default_sampling=sampling,
        limit=limit,
    )
