"""An engine in this process on the embedded model, with sessions whose past is made up instead of prefilled."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from moorage.runtime.bench.stores import fill, mailbox_store
from moorage.runtime.packaged import DEPLOY
from moorage.workers.gpu.engine.engine import Engine
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.stripes import Stripes
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import (
    AnchorType,
    KvLayout,
    MemorySpec,
    ModelSpec,
    OpenSession,
    Positions,
    PositionSpec,
    RetentionSpec,
    SamplingSpec,
    Segment,
    SelectionSpec,
    StepPlan,
    StepResult,
)

PILOT = DEPLOY / "models" / "moorage-pilot"
BLOCK_SIZE, STRIPE_BLOCKS = 32, 8
SELECTED = MemorySpec(
    preset="ktransformers",
    retention=RetentionSpec(sinks=32, window=256),
    selection=SelectionSpec(topk=24, execution_block=128, dense_until=0),
    positions=PositionSpec(scheme=Positions.CLAMPED),
    recall_every=0,
)
"""The budget of deploy/local.yaml: 24 selected blocks of 32 tokens, 32 sinks, a window of 256."""
FULL = SELECTED.replace(topk=None, execution_block=0)
"""The same positions over every key."""
KEYS_WINDOW = 512
"""The local window of deploy/million.yaml, which selects single keys."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Where the KV lies."""

    shards: int = 1
    mailbox: bool = False
    """Stores in processes of their own instead of this one."""
    threads: int = 1
    topk_keys: int = 0
    """Single keys that a generated token selects, as deploy/million.yaml does; 0 selects blocks."""

    @property
    def selected(self) -> MemorySpec:
        """How sessions select."""
        if not self.topk_keys:
            return SELECTED
        return FULL.replace(topk_keys=self.topk_keys, window=KEYS_WINDOW, completion=False)

    @property
    def full(self) -> MemorySpec:
        """The same positions over every key."""
        return self.selected.replace(topk=None, topk_keys=0, execution_block=0)


class Pilot:
    """One engine with sessions whose keys and values are made up."""

    def __init__(
        self, spec: ModelSpec, layout: KvLayout, kv: ShardedKv, num_sessions: int, selected: MemorySpec
    ) -> None:
        device = torch.device("cpu")
        decoder = Decoder.load(PILOT, spec, "float32", device)
        slots = num_sessions * layout.num_layers * slots_per_layer(selected, layout, None)
        self.engine = Engine(decoder, spec, layout, kv, device, EngineSettings(slots))
        self.decoder, self.spec = decoder, spec
        self._kv, self._layout, self._selected = kv, layout, selected
        self._random = random.Random(0)
        self._step = 0

    def open(self, session_id: int, context_tokens: int, room_tokens: int) -> None:
        """Opens a session that already holds `context_tokens`; its next token is the first generated."""
        total = context_tokens + room_tokens
        opening = OpenSession(session_id, total, context_tokens, self._selected, SamplingSpec())
        self._run(StepPlan(self._next(), opens=(opening,)))
        fill(self._kv, self._layout, session_id, context_tokens, seed=(context_tokens + session_id) % 9973)
        self.engine.sessions[session_id].num_tokens = context_tokens

    def decode(self, session_ids: Sequence[int], memory: MemorySpec | None = None) -> StepResult:
        """One decode step of the sessions together, each under `memory`; None selects."""
        segments = []
        for session_id in session_ids:
            session = self.engine.sessions[session_id]
            session.memory = memory or self._selected
            segments.append(Segment(session_id, session.num_tokens, (self._token(),), sample=True))
        return self._run(StepPlan(self._next(), segments=tuple(segments)))

    def prefill(self, session_id: int, num_tokens: int, memory: MemorySpec) -> StepResult:
        """Prefills `num_tokens` more tokens after the session's context, and truncates the session again."""
        session = self.engine.sessions[session_id]
        session.memory = memory
        session.prompt_tokens = session.num_tokens + num_tokens + 1
        ids = tuple(self._token() for _ in range(num_tokens))
        result = self._run(
            StepPlan(self._next(), segments=(Segment(session_id, session.num_tokens, ids, sample=False),))
        )
        session.num_tokens -= num_tokens
        self._kv.truncate(session_id, session.num_tokens)
        return result

    def _token(self) -> int:
        return self._random.randrange(2, self.spec.vocab_size)

    def _next(self) -> int:
        self._step += 1
        return self._step

    def _run(self, plan: StepPlan) -> StepResult:
        result = self.engine.step(plan)
        for segment in result.segments:
            if segment.error is not None:
                raise segment.error
        return result


def pilot_layout(spec: ModelSpec, codes_keys: bool = False) -> KvLayout:
    """Blocks of 32 tokens with Quest's bounds, as in deploy/local.yaml, or with codes of their keys."""
    return KvLayout(
        spec.num_layers,
        spec.num_kv_heads,
        spec.head_dim,
        BLOCK_SIZE,
        anchor_type=AnchorType.KEY_CODES if codes_keys else AnchorType.QUEST,
        keeps_centres=codes_keys,
    )


@contextmanager
def open_pilot(contexts: Sequence[int], room_tokens: int, setup: Setup) -> Iterator[Pilot]:
    """An engine with a filled session of each of `contexts`, whose id is its index; all ends with the block."""
    spec = read_model_spec(PILOT)
    layout = pilot_layout(spec, setup.topk_keys > 0)
    blocks = Stripes(setup.shards, STRIPE_BLOCKS)
    pages = sum(blocks.count(layout.num_blocks(context + room_tokens), 0) for context in contexts)
    with ExitStack() as stack:
        links = [_link(stack, layout, pages, setup) for _ in range(setup.shards)]
        kv = ShardedKv(links, layout, STRIPE_BLOCKS, score_here=True)
        pilot = Pilot(spec, layout, kv, len(contexts), setup.selected)
        for session_id, context in enumerate(contexts):
            pilot.open(session_id, context, room_tokens)
        yield pilot


def pilot_bytes(context_tokens: int, sessions: int) -> int:
    """DRAM that the KV of so many filled sessions takes."""
    layout = pilot_layout(read_model_spec(PILOT))
    return sessions * layout.num_blocks(context_tokens) * layout.page_bytes


def _link(stack: ExitStack, layout: KvLayout, num_pages: int, setup: Setup) -> Link:
    if setup.mailbox:
        return stack.enter_context(mailbox_store(layout, num_pages, setup.threads))
    store = KvStore(layout, num_pages)
    stack.callback(store.close)
    return LocalLink(store)
