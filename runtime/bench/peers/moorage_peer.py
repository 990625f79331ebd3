"""Moorage in one process on the CPU: one store, one worker, no server and no Ray."""

from __future__ import annotations

from collections.abc import Sequence

from moorage.runtime.bench.peers.peer import PeerSpec
from moorage.runtime.bench.stores import fill
from moorage.runtime.bench.threads import use_threads
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.planning.host import deployment_of
from moorage.runtime.planning.worker_settings import for_one_session, worker_settings
from moorage.runtime.serving.capacity import pages_of_one
from moorage.runtime.serving.executor import LocalExecutor
from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.link import LocalLink
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import OpenSession, SamplingSpec, Segment, StepPlan, StepResult

_SESSION = 1


class MooragePeer:
    """One worker whose session decodes under each preset in turn; prompts are prefilled under the first."""

    def __init__(self, spec: PeerSpec) -> None:
        use_threads(spec.threads)
        overrides = (
            "gpu_workers.device=cpu",
            f"gpu_workers.num_threads={spec.threads}",
            f"memory.preset={spec.modes[-1]}",
            f"long_context.max_seq_len={spec.longest}",
            *((f"model.dtype={spec.dtype}",) if spec.dtype else ()),
            *spec.overrides,
        )
        config = LocalConfig(None, spec.model, overrides).load()
        model = read_model_spec(config.model.path)
        self._memories = {
            mode: resolve_memory(config, mode, model).replace(recall_every=0) for mode in spec.modes
        }
        self._first, self._last, self._chunk = spec.modes[0], spec.modes[-1], config.max_step_tokens
        settings = worker_settings(
            config, for_one_session(deployment_of(config, model), self._memories[spec.modes[-1]])
        )
        self._layout = settings.layout
        self._executor = LocalExecutor.start(settings, [pages_of_one(self._layout, spec.longest)])
        self._view = ShardedKv([LocalLink(self._executor.stores[0])], self._layout, settings.stripe_blocks)
        self._steps = self._held = self._max_tokens = 0
        self.part_s: dict[str, float] = {}

    def open(self, max_tokens: int) -> None:
        """Ends the session that was held; the next one opens with its first tokens."""
        if self._held:
            self._step(StepPlan(self._next(), drops=(_SESSION,)))
        self._held, self._max_tokens = 0, max_tokens

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Prefills in chunks of a step, as a server does."""
        self._open(len(token_ids))
        self.part_s, token = {}, None
        for start in range(0, len(token_ids), self._chunk):
            ids = tuple(token_ids[start : start + self._chunk])
            last = start + len(ids) == len(token_ids)
            token = self._token(Segment(_SESSION, start, ids, last))
        assert token is not None
        return token

    def fill(self, num_tokens: int) -> None:
        """Made-up keys and values, sealed and summarised as real ones are."""
        self._open(num_tokens)
        fill(self._view, self._layout, _SESSION, num_tokens)
        self._executor.worker.engine.sessions[_SESSION].num_tokens = self._held = num_tokens

    def decode(self, token_id: int, mode: str) -> int:
        """One token under a preset."""
        self.part_s = {}
        self._executor.worker.engine.sessions[_SESSION].memory = self._memories[mode or self._first]
        token = self._token(Segment(_SESSION, self._held, (token_id,), True))
        assert token is not None
        return token

    def close(self) -> None:
        """Gives the store's memory back."""
        self._executor.release()

    def _open(self, prompt_tokens: int) -> None:
        """Opens the session with room for every preset, and leaves it under the first one."""
        opening = OpenSession(
            _SESSION, self._max_tokens, prompt_tokens, self._memories[self._last], SamplingSpec()
        )
        self._step(StepPlan(self._next(), opens=(opening,)))
        self._executor.worker.engine.sessions[_SESSION].memory = self._memories[self._first]

    def _step(self, plan: StepPlan) -> StepResult:
        result = self._executor.step(plan)
        for segment in result.segments:
            if segment.error is not None:
                raise segment.error
        return result

    def _token(self, segment: Segment) -> int | None:
        """Runs one step and adds its parts. Returns what was sampled, if anything was."""
        result = self._step(StepPlan(self._next(), segments=(segment,)))
        for part, seconds in result.part_s.items():
            self.part_s[part] = self.part_s.get(part, 0.0) + seconds
        self._held += len(segment.token_ids)
        return result.segments[0].token_id

    def _next(self) -> int:
        self._steps += 1
        return self._steps
