"""What a GPU worker holds for one session beside its slots. All of it can be rebuilt from tokens and DRAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.attention.window_rings import Ring
from moorage.workers.gpu.engine.known_tokens import KnownTokens
from moorage.workers.gpu.engine.session_stats import SessionStats
from moorage.workers.gpu.model.rope import RopeView
from moorage.workers.gpu.model.sampler import TokenCounts
from moorage.workers.gpu.positions.rotary import RotaryCache
from moorage.workers.gpu.selection.received_attention import ReceivedAttention
from moorage.workers.gpu.selection.selection_records import LayerSelections, SelectionRecord
from moorage.workers.gpu.transfer.block_cache import BlockCache
from moorage.workers.gpu.transfer.copy_handle import CopyHandle
from moorage.workers.spec import MemorySpec, SamplingSpec

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(slots=True)
class WorkerSession:
    """One session on one worker."""

    session_id: int
    memory: MemorySpec
    sampling: SamplingSpec
    prompt_tokens: int
    max_tokens: int
    cache: BlockCache
    rotations: RotaryCache
    """Rotations by its own positions, in all stored layers but those of `other_rotations`."""
    scale: float = 1.0
    """Factor on the products of queries and keys, before that of a rotary embedding."""
    softcap: float = 0.0
    """c of c * tanh(x / c) for scaled products x; 0 leaves them as they are."""
    other_rotations: Mapping[int, RotaryCache] = field(default_factory=dict)
    """Rotations by stored layer, of those that rotate by an embedding of their own, or not at all."""
    ring: Ring | None = None
    """Keys and values of sliding-window layers; None for a model without any."""
    num_tokens: int = 0
    """Tokens whose K and V are stored in all layers."""
    kept_tokens: int = 0
    """The first of them, which an earlier prompt left."""
    num_generated: int = 0
    """Sampled tokens, without those that are drafts."""
    drafted: list[int] = field(default_factory=list)
    """Drafted tokens that are still to be verified. K and V of all but the last of them are stored, and of the token
    before them."""
    draft_length: int = 0
    """Tokens that the present round drafts."""
    known: KnownTokens = field(default_factory=KnownTokens)
    """Tokens of prompt and answer, where drafts are verified."""
    idle: bool = False
    """No request uses it: it holds no slots, and its KV lies in DRAM alone."""
    selections: dict[int, SelectionRecord] = field(default_factory=dict)
    layer_selections: LayerSelections | None = None
    stats: SessionStats = field(default_factory=SessionStats)
    tail_queries: dict[int, torch.Tensor] = field(default_factory=dict)
    """Queries of the last prompt tokens by layer, [n, Hq, D]; kept only where they decide something."""
    ahead: dict[int, CopyHandle] = field(default_factory=dict)
    """Blocks by layer on their way into slots before the layer asks for them."""
    received: dict[int, ReceivedAttention] = field(default_factory=dict)
    """Received attention by layer; kept only for anchors that are made of it."""
    received_at_resume: dict[int, ReceivedAttention] = field(default_factory=dict)
    """`received` of each layer as it was at the prompt's resume point."""
    anchor_view: RopeView | None = None
    """The view of RoPE under which rotated anchors were made, in layers that have no other."""
    counts: TokenCounts | None = None
    """Kept where sampling has a penalty."""
    last_logprobs: torch.Tensor | None = None
    """[vocab] of the last position, kept while prompt log-probabilities are asked for."""

    def rotations_of(self, layer: int) -> RotaryCache:
        """Where queries of a stored layer see its keys."""
        return self.other_rotations.get(layer, self.rotations)

    def anchor_view_of(self, layer: int) -> RopeView | None:
        """The view of RoPE under which a stored layer's rotated anchors were made; None for anchors of plain keys."""
        other = self.other_rotations.get(layer)
        return self.anchor_view if self.anchor_view is None or other is None else other.view

    @property
    def repeatable(self) -> bool:
        """Whether a step that failed half-way can run again: it counted no attention that would count twice."""
        return not self.received and not self.tail_queries

    @property
    def resume_point(self) -> int:
        """See MemorySpec.resume_point."""
        return self.memory.selection.resume_point(self.prompt_tokens)

    def received_by(self, num_tokens: int) -> dict[int, ReceivedAttention]:
        """What the first `num_tokens` counted, by layer, if it is remembered; of use to one session only."""
        if num_tokens != self.resume_point:
            return {}
        return {layer: received.copy() for layer, received in self.received_at_resume.items()}

    @property
    def verified_tokens(self) -> int:
        """Tokens of prompt and answer whose K and V are stored."""
        return self.num_tokens - len(self.drafted)

    def await_ahead(self, layer: int | None = None) -> None:
        """Waits for what was fetched ahead for `layer`, or for all layers."""
        for each in (layer,) if layer is not None else tuple(self.ahead):
            copies = self.ahead.pop(each, None)
            if copies is not None:
                copies.wait()

    @property
    def decode_index(self) -> int:
        """How many decode steps came before the current token's."""
        return self.num_tokens - self.prompt_tokens
