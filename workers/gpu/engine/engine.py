"""One model on one device: takes a step's plan, returns its tokens. Runs without Ray."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch

from moorage.workers.counting import counted
from moorage.workers.errors import (
    Internal,
    InvalidRequest,
    MoorageError,
    NotFinite,
    ResourceExhausted,
    Unavailable,
)
from moorage.workers.gpu.attention.decode import DecodeAttention
from moorage.workers.gpu.attention.layer import SessionAttention
from moorage.workers.gpu.attention.prefill import PrefillAttention
from moorage.workers.gpu.engine.out_of_memory import is_out_of_memory
from moorage.workers.gpu.engine.output import OutputStage
from moorage.workers.gpu.engine.session_state import DecodeStep, SessionStats, WorkerSession
from moorage.workers.gpu.engine.session_table import SessionTable
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.graphs import PieceGraphs, cuda_capture
from moorage.workers.gpu.positions.rotary import BlockRanges
from moorage.workers.gpu.selection.block_selector import BlockSelector
from moorage.workers.gpu.selection.device_scorer import Trial, device_scorer
from moorage.workers.gpu.selection.key_importance import KeyImportance
from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.gpu.transfer.copy_engine import CopyEngine, DirectCopyEngine
from moorage.workers.gpu.transfer.factory import copy_engine
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.sizes import piece_blocks
from moorage.workers.spec import (
    KvLayout,
    ModelSpec,
    Segment,
    SegmentResult,
    StepPlan,
    StepResult,
)

Failures = dict[int, MoorageError]
"""Session id -> why it alone failed in this step."""


class Engine:
    """Sessions, their slots, and the forward pass.

    A failure of one session's attention fails that session alone; the step goes on for the others.
    """

    def __init__(
        self,
        decoder: Decoder,
        spec: ModelSpec,
        layout: KvLayout,
        kv: ShardedKv,
        device: torch.device,
        settings: EngineSettings,
        copies: CopyEngine | None = None,
    ) -> None:
        self._decoder, self._spec, self._layout, self._kv = decoder, spec, layout, kv
        self._device, self._settings = device, settings
        if device.type == "cuda" and decoder.graphs is None:
            decoder.graphs = PieceGraphs(decoder, cuda_capture())
        self._timer = PartTimer()
        compute = decoder.dtype if device.type == "cuda" else torch.float32
        piece = settings.piece_blocks or piece_blocks(layout, device.type != "cuda")
        self.copies = copies or copy_engine(kv, layout, device, piece, settings.dma_bytes)
        self._in_place = settings.in_place and isinstance(self.copies, DirectCopyEngine)
        self._reader = BlockLoader(
            self.copies, layout, settings.num_slots, piece, device, compute, self._timer
        )
        self._scorer = device_scorer(kv, layout, device, settings)
        trial = Trial() if settings.score_on == "auto" else None
        self._chooser = BlockSelector(kv, layout, self._timer, self._scorer, trial)
        self._importance = KeyImportance(self._reader, kv, layout, self._timer, self._scorer)
        attention = (self._reader, self._chooser, self._importance, layout, self._timer)
        self.decode = DecodeAttention(*attention, prefetch=settings.prefetch)
        prefill = PrefillAttention(*attention)
        self._attention = SessionAttention(
            kv, layout, self._reader, self._importance, self.decode, prefill, self._timer
        )
        self._output = OutputStage(decoder, spec.vocab_size, self._timer)
        self._table = SessionTable(
            spec, layout, kv, device, settings, self._reader, self._scorer, self._output
        )

    def step(self, plan: StepPlan) -> StepResult:
        """Runs one plan: drops, idles, opens, then one forward pass over all segments.

        When it raises, every session that the plan opened or moved on is dropped, and the others are as they were;
        Unavailable says that this could not be made sure.
        """
        try:
            return self._run(plan)
        except Exception as error:
            self._recover(plan)
            if is_out_of_memory(error):
                reason = " ".join(str(error).split())
                raise ResourceExhausted(
                    f"the worker has no memory left for a step ({reason:.200}); lower server.max_running, "
                    "long_context.chunk_size or kv_store.dram"
                ) from error
            raise

    def _run(self, plan: StepPlan) -> StepResult:
        started = time.perf_counter()
        failed: Failures = {}
        for session_id in plan.drops:
            self._table.drop(session_id)
        for session_id in plan.idles:
            self._table.idle(session_id)
        for opening in plan.opens:
            self._guard(failed, opening.session_id, partial(self._table.open, opening))
        segments = self._begin(plan.segments, failed)
        sessions = [self.sessions[s.session_id] for s in segments]
        counts = _cache_counts(sessions)
        results = self._forward_in_room(segments, sessions, failed)
        results += [SegmentResult(session_id, error=why) for session_id, why in failed.items()]
        elapsed = time.perf_counter() - started
        parts = self._timer.take()
        parts["linear"] = elapsed - sum(parts.values())
        hits, misses = (now - then for now, then in zip(_cache_counts(sessions), counts, strict=True))
        return StepResult(plan.step_id, tuple(results), elapsed, parts, hits, misses)

    @property
    def sessions(self) -> dict[int, WorkerSession]:
        """Every session that was opened and not dropped, by id."""
        return self._table.sessions

    @property
    def num_slots(self) -> int:
        """Slots of the device."""
        return self._table.num_slots

    @property
    def num_free_slots(self) -> int:
        """Slots that no session holds."""
        return self._table.num_free_slots

    @property
    def slots_bytes(self) -> int:
        """Device memory of all slots."""
        return self._reader.slots.nbytes

    def check_integrity(self) -> None:
        """Raises if slots or block maps disagree; for tests and idle times."""
        self._table.check_integrity()

    def _recover(self, plan: StepPlan) -> None:
        """After a step that raised half-way: no trace of its sessions is left, and the slots of the others agree."""
        self._timer.take()
        touched = [*plan.opens, *plan.segments]
        try:
            self._table.recover([each.session_id for each in touched])
            self.check_integrity()
        except Exception as error:
            raise Unavailable(
                f"the worker can't go on after a failed step ({type(error).__name__}); start the cluster again"
            ) from error

    def _guard(self, failed: Failures, session_id: int, action: Callable[[], None]) -> None:
        try:
            action()
        except MoorageError as error:
            failed.setdefault(session_id, error)

    def _forward_in_room(
        self, segments: Sequence[Segment], sessions: Sequence[WorkerSession], failed: Failures
    ) -> list[SegmentResult]:
        """The forward pass; where the device has no memory left, again with fewer slots or fewer segments.

        Where it raises what nobody foresees, each session goes alone, so that only those fail which raise again.
        """
        while segments:
            try:
                return self._forward(segments, sessions, failed)
            except Exception as error:
                if not is_out_of_memory(error):
                    if len(segments) == 1:
                        raise
                    return self._each_alone(segments, error, failed)
            # what the failed pass held is free only now
            costs = {s.session_id: len(s.token_ids) for s in segments if s.session_id not in failed}
            made_room = self._table.make_room()
            largest = max(costs, key=lambda session_id: costs[session_id], default=None)
            for session_id in costs:
                if not self.sessions[session_id].repeatable or (session_id == largest and not made_room):
                    failed[session_id] = _no_memory(session_id)
            segments = [s for s in segments if s.session_id not in failed]
            sessions = [self.sessions[s.session_id] for s in segments]
        return []

    def _each_alone(
        self, segments: Sequence[Segment], first: Exception, failed: Failures
    ) -> list[SegmentResult]:
        """After a pass over all that raised `first`. Raises it again when no session gets through alone."""
        results: list[SegmentResult] = []
        for segment in segments:
            session = self.sessions[segment.session_id]
            if segment.session_id in failed:
                continue
            if not session.repeatable:
                failed[segment.session_id] = _unexpected(first)
                continue
            try:
                results += self._forward((segment,), (session,), failed)
            except Exception as error:  # noqa: BLE001  it ends this session alone
                no_memory = is_out_of_memory(error)
                failed[segment.session_id] = (
                    _no_memory(segment.session_id) if no_memory else _unexpected(error)
                )
        if not results:
            raise first
        return results

    def _attend_in_room(self, session: WorkerSession, run: Callable[[], None]) -> None:
        """One session's attention; where the device has no memory left, once more with fewer slots."""
        try:
            run()
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        made_room = self._table.make_room()
        try:
            if made_room and session.repeatable:
                run()
                return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        raise _no_memory(session.session_id)

    def _begin(self, segments: Sequence[Segment], failed: Failures) -> list[Segment]:
        """Checks each segment against its session and sets the step's geometry; returns those that can run."""
        for segment in segments:
            self._guard(failed, segment.session_id, partial(self._begin_one, segment))
        return [s for s in segments if s.session_id not in failed]

    def _begin_one(self, segment: Segment) -> None:
        session = self.sessions.get(segment.session_id)
        if session is None or segment.start != session.num_tokens:
            held = "no such session" if session is None else f"{counted(session.num_tokens, 'token')} held"
            raise InvalidRequest(f"segment at token {segment.start} of session {segment.session_id}: {held}")
        session.stats = SessionStats()
        self._output.count_tokens(session, segment.token_ids, self._device)
        if session.num_tokens < session.prompt_tokens:
            session.decode_step = None
            return
        self._follow_length(session)
        span = BlockRanges.at(session.num_tokens, session.memory, self._layout.block_size)
        resident = aside = None
        if self._in_place:
            resident = self._kv.resident(session.session_id)
        elif self._settings.attend_on == "cpu":
            aside = self._kv.resident(session.session_id)
        num_distant = session.memory.selection.topk or 0
        session.decode_step = DecodeStep.of(span, session.rotations, num_distant, resident, aside)

    def _follow_length(self, session: WorkerSession) -> None:
        """While decoding, length-dependent RoPE views all keys, stored un-rotated, at the current length."""
        memory, rope = session.memory, session.memory.positions.rope or self._spec.rope
        due = session.decode_index % memory.positions.rebase_every == 0 or rope.rope_type == "longrope"
        if due and (memory.positions.mscale or rope.follows_length):
            session.rotations = self._table.rotations(memory, session.num_tokens + 1)

    def _forward(
        self, segments: Sequence[Segment], sessions: Sequence[WorkerSession], failed: Failures
    ) -> list[SegmentResult]:
        token_ids = torch.tensor([t for s in segments for t in s.token_ids], dtype=torch.long)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self._attend(layer, q, k, v, segments, sessions, failed)

        hidden = self._decoder.forward(token_ids.to(self._device), attend)
        self._catch_up([session for session in sessions if session.session_id not in failed], failed)
        outputs = self._output(hidden, segments, sessions)
        results = []
        for segment, session, output in zip(segments, sessions, outputs, strict=True):
            if segment.session_id in failed:
                continue
            session.num_tokens += len(segment.token_ids)
            stats, sampled = session.stats, output.sampled
            if output.error is not None:
                failed[segment.session_id] = NotFinite(output.error)
                continue
            results.append(
                SegmentResult(
                    segment.session_id,
                    token_id=sampled.token_id if sampled else None,
                    logprob=sampled.logprob if sampled else None,
                    top_logprobs=sampled.top_logprobs if sampled else (),
                    prompt_logprobs=output.prompt_logprobs,
                    num_chosen_blocks=stats.num_chosen / max(stats.num_choices, 1),
                    num_corrected=stats.num_corrected,
                    recall=sum(stats.recall) / len(stats.recall) if stats.recall else None,
                )
            )
        return results

    def _attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        segments: Sequence[Segment],
        sessions: Sequence[WorkerSession],
        failed: Failures,
    ) -> torch.Tensor:
        """Attention of all segments in one layer: q [T, Hq, D], k, v [T, Hkv, D] -> [T, Hq, D]."""
        if len(sessions) == 1 and not failed:
            try:
                return self._attention(sessions[0], layer, q, k, v)
            except MoorageError as error:
                failed[sessions[0].session_id] = error
                return torch.zeros_like(q)
        bounds = list(accumulate((len(segment.token_ids) for segment in segments), initial=0))
        self._choose_together(layer, q, bounds, sessions, failed)
        out = torch.zeros_like(q)
        for segment, session, begin, end in zip(segments, sessions, bounds, bounds[1:], strict=False):
            rows = slice(begin, end)
            if segment.session_id not in failed:

                def run(rows: slice = rows, session: WorkerSession = session) -> None:
                    out[rows] = self._attention(session, layer, q[rows], k[rows], v[rows]).to(out.dtype)

                self._guard(failed, segment.session_id, partial(self._attend_in_room, session, run))
        return out

    def _choose_together(
        self,
        layer: int,
        q: torch.Tensor,
        rows: Sequence[int],
        sessions: Sequence[WorkerSession],
        failed: Failures,
    ) -> None:
        """One question to each shard for all sessions that decode a token; rows[i] of `q` is sessions[i]'s."""
        asking = [
            (row, session)
            for row, session in zip(rows, sessions, strict=False)
            if session.decode_step is not None and session.session_id not in failed
        ]
        if len(asking) > 1:
            first_rows, decoding = zip(*asking, strict=True)
            self._chooser.for_batch(layer, decoding, q[list(first_rows)])

    def _catch_up(self, sessions: Sequence[WorkerSession], failed: Failures) -> None:
        """Makes the last layers' choices for the next step, while the device ends this one."""
        decoding = [session for session in sessions if session.decode_step is not None]
        self._chooser.catch_up_together(decoding)
        for session in decoding:
            self._guard(failed, session.session_id, partial(self._chooser.catch_up, session))


def _cache_counts(sessions: Sequence[WorkerSession]) -> tuple[int, int]:
    return sum(s.cache.num_hits for s in sessions), sum(s.cache.num_misses for s in sessions)


def _unexpected(error: Exception) -> Internal:
    return Internal(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def _no_memory(session_id: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"session {session_id}: the device has no memory left for its step; lower server.max_running, "
        "long_context.chunk_size or gpu_workers.device_memory"
    )
