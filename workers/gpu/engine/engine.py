"""One model on one device: takes a step's plan, returns its tokens. Runs without Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest, MoorageError, PeerDead, ResourceExhausted, Unavailable
from moorage.workers.gpu.attention.factory import Site, build_attention
from moorage.workers.gpu.attention.observed import ObservedAttention, Observer
from moorage.workers.gpu.engine.batch import Failures
from moorage.workers.gpu.engine.compute_type import attention_dtype
from moorage.workers.gpu.engine.forward import ForwardPass
from moorage.workers.gpu.engine.last_tokens import run_in_passes
from moorage.workers.gpu.engine.out_of_memory import is_out_of_memory
from moorage.workers.gpu.engine.output import OutputStage
from moorage.workers.gpu.engine.rounds import SessionStep, decode_step
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.session_stats import SessionStats
from moorage.workers.gpu.engine.session_table import SessionTable
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.graphs import PieceGraphs, cuda_capture
from moorage.workers.gpu.model.host_step import HostStep
from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.gpu.transfer.copy_engine import CopyEngine
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import KvLayout, ModelSpec, Segment, SegmentResult, StepPlan, StepResult


class Engine:
    """Sessions, their slots, and the steps that move them on."""

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
        """`copies` None takes the copy engine that suits the device."""
        self._spec, self._layout, self._device = spec, layout, device
        if device.type == "cuda" and decoder.graphs is None and not decoder.waits_for_device:
            decoder.graphs = PieceGraphs(decoder, cuda_capture())
        if decoder.graphs is None and HostStep.runs(decoder):
            decoder.graphs = HostStep(decoder)
        self._timer = PartTimer()
        self.attention_dtype = attention_dtype(decoder.dtype, device)
        """The type of prefill's queries, keys and values."""
        sinks = tuple(layer.sinks for layer in decoder.weights.layers)
        site = Site(kv, layout, device, self.attention_dtype, spec, sinks, settings, self._timer)
        parts = build_attention(site, copies)
        self.copies, self._loader, self._attention = parts.copies, parts.loader, parts.attention
        self.exact = parts.exact
        """Attends all of a session's past, for evaluations."""
        self._output = OutputStage(decoder, spec.vocab_size, self._timer)
        self._table = SessionTable(
            spec, layout, kv, device, settings, parts.loader, parts.rings, parts.scorer, self._output
        )
        self._forward = ForwardPass(decoder, parts.attention, self._output, self._table.make_room)

    def observe(self, observer: Observer) -> None:
        """Tells `observer` of each attention of generated tokens from now on; for evaluations and tests."""
        self._attention.decode = ObservedAttention(self._attention.decode, observer)

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
        for fork in plan.forks:
            self._table.fork(fork)
        for session_id in plan.drops:
            self._table.drop(session_id)
        for session_id in plan.idles:
            self._table.idle(session_id)
        for restoring in plan.restores:
            try:
                self._table.restore(restoring)
            except MoorageError as error:
                failed.setdefault(restoring.session_id, error)
        self._table.shorten(plan.opens)
        for opening in plan.opens:
            try:
                self._table.open(opening)
            except MoorageError as error:
                failed.setdefault(opening.session_id, error)
        sessions = [self.sessions[s.session_id] for s in plan.segments if s.session_id in self.sessions]
        hits, misses = sum(s.cache.num_hits for s in sessions), sum(s.cache.num_misses for s in sessions)
        results = run_in_passes(
            plan.segments, self.sessions, lambda some: self._forward.run(self._begin(some, failed), failed)
        )
        results += [SegmentResult(session_id, error=why) for session_id, why in failed.items()]
        elapsed = time.perf_counter() - started
        parts = self._timer.take()
        parts["linear"] = elapsed - sum(parts.values())
        hits = sum(s.cache.num_hits for s in sessions) - hits
        misses = sum(s.cache.num_misses for s in sessions) - misses
        moved = self._timer.take_link_bytes()
        return StepResult(plan.step_id, tuple(results), elapsed, parts, hits, misses, moved)

    def _begin(self, segments: Sequence[Segment], failed: Failures) -> list[SessionStep]:
        """Checks each segment against its session and sets its geometry; returns what can run."""
        steps = []
        for segment in segments:
            if segment.session_id in failed:
                continue
            try:
                steps.append(self._session_step(segment))
            except MoorageError as error:
                failed[segment.session_id] = error
        return steps

    def _session_step(self, segment: Segment) -> SessionStep:
        session = self.sessions.get(segment.session_id)
        if session is None or segment.start != session.verified_tokens:
            held = (
                "no such session" if session is None else f"{counted(session.verified_tokens, 'token')} held"
            )
            raise InvalidRequest(f"segment at token {segment.start} of session {segment.session_id}: {held}")
        session.stats = SessionStats()
        if not session.drafted:  # Else it goes on with a round that has counted its token.
            self._output.count_tokens(session, segment.start, segment.token_ids, self._device)
        prompt, selection = session.prompt_tokens, session.memory.selection
        if session.num_tokens < selection.first_as_generated(prompt):
            return SessionStep(segment, session)
        if not session.drafted and session.num_tokens >= prompt:
            self._follow_length(session)
        return decode_step(segment, session, self._spec.rope, self._layout)

    def _follow_length(self, session: WorkerSession) -> None:
        """While decoding, length-dependent RoPE views all keys, stored un-rotated, at the current length."""
        memory, rope = session.memory, session.memory.positions.rope or self._spec.rope
        length = session.num_tokens + 1
        due = session.decode_index % memory.positions.rebase_every == 0 or rope.switches_at(length)
        if due and (memory.positions.mscale or rope.follows_length):
            session.rotations = self._table.rotations.of_session(memory, length)

    def _recover(self, plan: StepPlan) -> None:
        """Removes the sessions of a step that raised half-way, and checks that the slots of the others agree."""
        self._timer.take()
        touched = [*plan.opens, *plan.segments]
        try:
            self._table.recover([each.session_id for each in touched])
            self.check_integrity()
        except PeerDead:
            raise  # Its message names the process that is gone.
        except Exception as error:
            raise Unavailable(
                f"the worker can't go on after a failed step ({type(error).__name__}); start the cluster again"
            ) from error

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
        return self._loader.slots.nbytes

    def check_integrity(self) -> None:
        """Raises if slots or block maps disagree; for tests and idle times."""
        self._table.check_integrity()
