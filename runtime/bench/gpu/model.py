"""A model in the shape of a public one, with random weights, and stores whose sessions begin with a made-up past.

Random weights ask random questions, which no cache could hold. So the queries of generated tokens are replaced by a
random walk on the sphere: each head's query keeps a cosine of `QUERY_COSINE` with the one before it (FreeKV measures
0.9 and more between neighbouring tokens for most heads, arXiv 2505.13109). Keys are a mean for each block, drawn at
random, and noise for each token around it. The hit rate that follows is measured and printed with every row.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.workers.gpu.model.allocation import random_weights
from moorage.workers.gpu.model.decoder import Attend, Decoder
from moorage.workers.gpu.model.parameters import DecoderWeights
from moorage.workers.kv.messages import AnchorRotation, Int32
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import KvLayout, ModelSpec, RopeSpec

QUERY_COSINE = 0.95
TINY = ModelSpec(
    family="llama",
    num_layers=2,
    hidden_size=128,
    intermediate_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=512,
    max_position_embeddings=1 << 20,
    rms_norm_eps=1e-5,
    rope=RopeSpec(rotary_dim=64, max_position_embeddings=1 << 20),
    dtype="float32",
)
SHAPES = {
    "internlm2.5-7b": MODEL_PRESETS["internlm2.5-7b-1m"],
    "llama-3-8b": replace(MODEL_PRESETS["llama-3-8b"], max_position_embeddings=1 << 20),
    "tiny": TINY,
}
"""Shape by name. The rotary base of the long-context checkpoints changes no cost and is left plain."""
FILL_TOKENS = 16 * 1024
"""Rows written at once."""
NUM_CHUNKS = 4
"""Different chunks of keys; they come again with their channels shifted, so that no two blocks are equal."""


class WalkingDecoder(Decoder):
    """A decoder whose generated tokens ask what a random walk asks."""

    def __init__(self, spec: ModelSpec, weights: DecoderWeights) -> None:
        super().__init__(spec, weights)
        self._walk: Tensor | None = None
        self._generator = torch.Generator(device=self.device).manual_seed(0)

    @classmethod
    def random(cls, spec: ModelSpec, device: torch.device) -> WalkingDecoder:
        """Random weights in the shape of `spec` and its own type."""
        return cls(spec, random_weights(spec, device))

    def start(self, num_sessions: int) -> None:
        """Begins new walks; steps of exactly `num_sessions` tokens take one step of each."""
        self._walk = self._draw(num_sessions)

    def forward(self, token_ids: Tensor, attend: Attend) -> Tensor:
        """See Decoder."""
        walk = self._walk
        if walk is None or len(token_ids) != walk.shape[1]:
            return super().forward(token_ids, attend)
        walk.mul_(QUERY_COSINE).add_(self._draw(walk.shape[1]), alpha=math.sqrt(1 - QUERY_COSINE**2))

        def walking(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(layer, walk[layer].to(q.dtype), k, v)

        return super().forward(token_ids, walking)

    def _draw(self, num_sessions: int) -> Tensor:
        spec = self.spec
        shape = (spec.num_layers, num_sessions, spec.num_heads, spec.head_dim)
        return torch.randn(shape, generator=self._generator, device=self.device)


class PastStore(KvStore):
    """Sessions opened later begin with blocks of one filled past, so that a batch need not fill its memory for each.

    Each session takes a stretch of the past, as far from the others' as its length allows. What follows the stretch
    has blocks of its own.
    """

    PAST = 0
    """The session that holds the past."""

    def __init__(self, layout: KvLayout, num_tokens: int, own_tokens: int, threads: int) -> None:
        """A past of `num_tokens`, a multiple of the block size, and room for `own_tokens` beside it."""
        blocks = layout.num_blocks(num_tokens)
        super().__init__(layout, blocks + layout.num_blocks(own_tokens))
        self._past_blocks = blocks
        self._shared = self._stride = self._num_opened = 0
        self._sharing: dict[int, int] = {}
        rotation = AnchorRotation(np.zeros(layout.head_dim // 2))
        super().open(self.PAST, blocks, rotation)
        self._fill(num_tokens, threads)

    def share(self, num_tokens: int, num_sessions: int = 1) -> None:
        """The next `num_sessions` sessions begin with `num_tokens` of the past, a multiple of the block size."""
        self._shared = num_tokens // self.layout.block_size
        self._stride = self._past_blocks // num_sessions
        self._num_opened = 0

    def distinct_share(self, num_tokens: int, num_sessions: int) -> float:
        """Blocks that the sessions of a batch hold between them, over what they would hold without sharing any."""
        return min(1.0, self._past_blocks / max(1, num_sessions * self.layout.num_blocks(num_tokens)))

    def open(
        self,
        session_id: int,
        num_blocks: int,
        rotation: AnchorRotation | None = None,
        has_first: bool = True,
        is_written: bool = True,
    ) -> Int32:
        """See KvStore."""
        pages = super().open(session_id, num_blocks - self._shared, rotation, has_first, is_written)
        session, past = self.shard.sessions[session_id], self.shard.sessions[self.PAST]
        stretch = np.roll(past.table.pages, -self._num_opened * self._stride)[: self._shared]
        self._num_opened += 1
        pages = np.concatenate((stretch, pages))
        session.table.pages = pages
        session.table.num_tokens = [self._shared * self.layout.block_size] * self.layout.num_layers
        session.num_sealed = [self._shared] * self.layout.num_layers
        self._sharing[session_id] = self._shared
        return pages

    def drop(self, session_id: int) -> None:
        """See KvStore."""
        shared = self._sharing.pop(session_id, 0)
        if shared:
            table = self.shard.sessions[session_id].table
            table.pages = table.pages[shared:]
        super().drop(session_id)

    def _fill(self, num_tokens: int, threads: int) -> None:
        layout = self.layout
        rng = np.random.default_rng(0)
        shape = (min(FILL_TOKENS, num_tokens), layout.num_kv_heads, layout.head_dim)
        dtype = np.dtype(layout.element)
        blocks = -(-shape[0] // layout.block_size)
        chunks = []
        for _ in range(NUM_CHUNKS):
            means = rng.standard_normal((blocks, 1, *shape[1:]), np.float32)
            spread = np.broadcast_to(means, (blocks, layout.block_size, *shape[1:])).reshape(-1, *shape[1:])
            chunks.append((rng.standard_normal(shape, np.float32) + spread[: shape[0]]).astype(dtype))

        def fill_layer(layer: int) -> None:
            for number, start in enumerate(range(0, num_tokens, shape[0])):
                count = min(shape[0], num_tokens - start)
                turn = number // NUM_CHUNKS + layer
                keys = np.roll(chunks[number % NUM_CHUNKS][:count], turn, axis=-1)
                self.append(self.PAST, layer, start, keys, chunks[(number + 1) % NUM_CHUNKS][:count])

        with ThreadPoolExecutor(max(1, threads // 4)) as pool:
            list(pool.map(fill_layer, range(layout.num_layers)))
