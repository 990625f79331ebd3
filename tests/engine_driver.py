"""Drives a real engine over real stores in one process, without coordinator, gRPC or Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.settings import AttendOn, CacheStrategy, EngineSettings, ScoreOn, WorkerSettings
from moorage.workers.gpu.transfer.copy_engine import CopyEngine
from moorage.workers.gpu.worker import GpuWorker
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.kv.formats.quantizer_array import digest_of
from moorage.workers.kv.link import Link, LocalLink
from moorage.workers.kv.messages import SelectReply, SelectRequest
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import (
    AnchorSpace,
    AnchorType,
    ContinueSession,
    KvLayout,
    KvType,
    MemorySpec,
    ModelSpec,
    OpenSession,
    PositionSpec,
    RetentionSpec,
    SamplingSpec,
    Segment,
    SegmentResult,
    SelectionSpec,
    StepPlan,
)

FULL = MemorySpec(
    preset="full",
    retention=RetentionSpec(window=32),
    selection=SelectionSpec(dense_until=0),
    positions=PositionSpec(rebase_every=1),
    recall_every=0,
)


def memory(**changes: Any) -> MemorySpec:
    """The `full` axes with some of them changed."""
    return FULL.replace(**changes)


@dataclass
class Driver:
    """An engine with `num_shards` stores; every method runs steps at once."""

    directory: Path
    spec: ModelSpec
    block_size: int = 16
    kv_type: KvType = KvType.FP32
    anchor_type: AnchorType = AnchorType.QUEST
    anchor_num: int = 1
    anchor_space: AnchorSpace = AnchorSpace.PLAIN
    repr_topk: int = 4
    num_pages: int = 128
    num_shards: int = 2
    num_slots: int = 4096
    num_rings: int = 8
    piece_blocks: int = 4
    max_cached_block: int | None = None
    cache_strategy: CacheStrategy = "lru"
    prefetch: bool = False
    score_on: ScoreOn = "cpu"
    attend_on: AttendOn = "device"
    anchor_bytes: int | None = None
    in_place: bool = True
    device: str = "cpu"
    dtype: str = "float32"
    copies: Callable[[ShardedKv], CopyEngine] | None = None
    link: Callable[[KvStore], Link] = LocalLink
    quantizer: Quantizer | None = None
    default_copies: ClassVar[Callable[[ShardedKv], CopyEngine] | None] = None
    """What `copies` is for drivers that name none."""
    worker: GpuWorker = field(init=False)
    stores: list[KvStore] = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        layout = KvLayout(
            spec.num_stored_layers,
            spec.num_kv_heads,
            spec.head_dim,
            self.block_size,
            self.kv_type,
            self.anchor_type,
            self.anchor_num,
            self.anchor_space,
            self.repr_topk,
            quantizer=0 if self.quantizer is None else digest_of(self.quantizer),
        )
        self.stores = [KvStore(layout, self.num_pages, self.quantizer) for _ in range(self.num_shards)]
        engine = EngineSettings(
            self.num_slots,
            self.num_rings,
            self.piece_blocks,
            self.max_cached_block,
            self.cache_strategy,
            score_on=self.score_on,
            attend_on=self.attend_on,
            anchor_bytes=self.anchor_bytes,
            prefetch=self.prefetch,
            in_place=self.in_place,
        )
        settings = WorkerSettings(
            self.directory, spec, self.dtype, self.device, layout, stripe_blocks=2, engine=engine
        )
        self.worker = GpuWorker(
            settings,
            [partial(self.link, store) for store in self.stores],
            self.copies or type(self).default_copies,
        )
        self._step = 0

    def step(self, **plan: object) -> list[SegmentResult]:
        """One step; its segments' results. Fails on any session's error."""
        self._step += 1
        result = self.worker.step(StepPlan(self._step, **plan))  # type: ignore[arg-type]
        for segment in result.segments:
            if segment.error is not None:
                raise segment.error
        self.worker.engine.check_integrity()
        for store in self.stores:
            store.check_integrity()
        return list(result.segments)

    def open(
        self,
        session_id: int,
        prompt: Sequence[int],
        axes: MemorySpec = FULL,
        max_new_tokens: int = 16,
        sampling: SamplingSpec | None = None,
    ) -> OpenSession:
        """The opening of a session; give it to `step`."""
        total = len(prompt) + max_new_tokens
        return OpenSession(session_id, total, len(prompt), axes, sampling or SamplingSpec())

    def observe(self, observer: Callable[[WorkerSession, int, Any, torch.Tensor], None]) -> None:
        """Tells (session, layer, selected ids or None for all, lse [Hq]) of each attention of a generated token."""

        def told(step: DecodeStep, layer: int, attended: Attended) -> None:
            observer(step.session, layer, attended.selected[step.row], attended.lse[step.row])

        self.worker.engine.observe(told)

    def note_questions(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many sessions each question for several at once is about, as the first store hears them from now on."""
        asked: list[int] = []
        select = self.stores[0].shard.select_together

        def noted(requests: Sequence[SelectRequest]) -> list[SelectReply]:
            asked.append(len(requests))
            return select(requests)

        monkeypatch.setattr(self.stores[0].shard, "select_together", noted)
        return asked

    def prompt_logprobs(self, prompt: Sequence[int], axes: MemorySpec, chunks: Sequence[int]) -> torch.Tensor:
        """[len(prompt) - 1] log-probabilities of the prompt's tokens, prefilled in `chunks`."""
        opens: tuple[OpenSession, ...] = (self.open(1, prompt, axes),)
        found: list[float] = []
        for start, end in spans(len(prompt), chunks):
            segment = Segment(1, start, tuple(prompt[start:end]), sample=False, prompt_logprobs=True)
            (result,) = self.step(opens=opens, segments=(segment,))
            found += result.prompt_logprobs
            opens = ()
        self.step(drops=(1,))
        return torch.tensor(found)

    def distributions(
        self, prompt: Sequence[int], axes: MemorySpec, chunks: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """Log-probabilities [vocab] of the next token after each chunk, by the chunk's end."""
        vocab = self.spec.vocab_size
        opens: tuple[OpenSession, ...] = (
            self.open(1, prompt, axes, sampling=SamplingSpec(num_logprobs=vocab)),
        )
        found = {}
        for start, end in spans(len(prompt), chunks):
            segment = Segment(1, start, tuple(prompt[start:end]), sample=True)
            (result,) = self.step(opens=opens, segments=(segment,))
            row = torch.full((vocab,), torch.nan)
            for token_id, logprob in result.top_logprobs:
                row[token_id] = logprob
            found[end] = row
            opens = ()
        self.step(drops=(1,))
        return found

    def generate(
        self,
        prompt: Sequence[int],
        axes: MemorySpec = FULL,
        chunks: Sequence[int] = (),
        num_tokens: int = 8,
        session_id: int = 1,
        keep: bool = False,
        continued: int | None = None,
    ) -> list[SegmentResult]:
        """Greedy results of `num_tokens` new tokens; `continued` keeps that many tokens of an open session."""
        opening: OpenSession | ContinueSession = self.open(session_id, prompt, axes, num_tokens)
        if continued is not None:
            opening = ContinueSession(
                session_id, continued, len(prompt) + num_tokens, len(prompt), axes, SamplingSpec()
            )
        opens: tuple[OpenSession | ContinueSession, ...] = (opening,)
        results: list[SegmentResult] = []
        for start, end in spans(len(prompt), chunks, continued or 0):
            segment = Segment(session_id, start, tuple(prompt[start:end]), sample=end == len(prompt))
            results = self.step(opens=opens, segments=(segment,))
            opens = ()
        for place in range(len(prompt), len(prompt) + num_tokens - 1):
            token_id = results[-1].token_id
            assert token_id is not None
            results += self.step(segments=(Segment(session_id, place, (token_id,), sample=True),))
        if not keep:
            self.step(drops=(session_id,))
        return results


def spans(total: int, chunks: Sequence[int], start: int = 0) -> list[tuple[int, int]]:
    """Consecutive (start, end) over [start, total): the given chunk sizes in turn, the last one repeated."""
    found = []
    sizes = list(chunks) or [total]
    while start < total:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        found.append((start, min(total, start + size)))
        start += size
    return found
