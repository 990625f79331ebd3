"""A whole engine in this process, without Ray or a server: what measurements that look inside a step need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from moorage.runtime.config import ClusterConfig
from moorage.runtime.presets import kv_layout, resolve_memory
from moorage.runtime.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest
from moorage.workers.hf_config import read_model_spec
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import MemorySpec, OpenSession, SamplingSpec, Segment, SegmentResult, StepPlan

if TYPE_CHECKING:
    from moorage.workers.gpu.recall import RecallProbe

_SESSION = 1


class LocalEngine:
    """One session at a time, with room for `max_tokens`, on one store of just that size."""

    def __init__(self, config: ClusterConfig, max_tokens: int, preset: str | None = None) -> None:
        """Loads the model and reserves the store. Raises InvalidConfig or InvalidModel as `runtime launch` does."""
        from moorage.workers.gpu.settings import EngineSettings, WorkerSettings
        from moorage.workers.gpu.worker import GpuWorker
        from moorage.workers.kv.link import LocalLink
        from moorage.workers.kv.store import KvStore

        self.config, self.max_tokens = config, max_tokens
        self.model = read_model_spec(config.model.path)
        self.layout = kv_layout(config, self.model)
        self.memory = resolve_memory(config, preset, self.model)
        self.tokenizer = TextTokenizer.load(config.model.path)
        memory, cached = self.memory, config.memory.max_cached_block
        self._store = KvStore(self.layout, self.layout.num_blocks(max_tokens))
        settings = WorkerSettings(
            config.model.path,
            self.model,
            config.model.dtype,
            config.gpu_workers.device,
            self.layout,
            config.kv_store.stripe_blocks,
            EngineSettings(
                slots_per_layer(memory, self.layout, cached) * self.model.num_layers,
                max_cached_block=cached,
                cache_strategy=config.memory.cache_strategy,
                score_decay=config.memory.score_decay,
            ),
            config.gpu_workers.num_threads,
        )
        self._worker = GpuWorker(settings, [LocalLink(self._store)])
        self._steps = 0

    def probe(self, every: int = 1) -> RecallProbe:
        """Measures recall and the oracle on each layer of every so-many-th step from now on."""
        from moorage.workers.gpu.recall import RecallProbe

        decode = self._worker.engine.decode
        probe = RecallProbe(decode, every)
        decode.observer = probe
        return probe

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        memory: MemorySpec | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """Greedy tokens until the end of the sequence; `progress` hears of prefilled tokens."""
        total = len(prompt) + max_new_tokens
        if not prompt or total > self.max_tokens:
            raise InvalidRequest(f"{total} tokens; this engine has room for 1 to {self.max_tokens}")
        opening = OpenSession(_SESSION, total, len(prompt), memory or self.memory, SamplingSpec())
        try:
            yield from self._tokens(opening, prompt, progress)
        finally:
            self._step(drops=(_SESSION,))

    def _tokens(
        self, opening: OpenSession, prompt: Sequence[int], progress: Callable[[int], None] | None
    ) -> Iterator[int]:
        opens: tuple[OpenSession, ...] = (opening,)
        result: SegmentResult | None = None
        chunk = self.config.max_step_tokens
        for start in range(0, len(prompt), chunk):
            ids = tuple(prompt[start : start + chunk])
            end = start + len(ids)
            result = self._step(opens=opens, segments=(Segment(_SESSION, start, ids, end == len(prompt)),))
            opens = ()
            if progress is not None:
                progress(end)
        for place in range(len(prompt), opening.max_tokens):
            assert result is not None
            assert result.token_id is not None
            yield result.token_id
            if result.token_id in self.model.eos_token_ids or place + 1 == opening.max_tokens:
                return
            result = self._step(segments=(Segment(_SESSION, place, (result.token_id,), True),))

    def _step(
        self,
        opens: tuple[OpenSession, ...] = (),
        segments: tuple[Segment, ...] = (),
        drops: tuple[int, ...] = (),
    ) -> SegmentResult | None:
        self._steps += 1
        results = self._worker.step(StepPlan(self._steps, drops, opens, segments)).segments
        for result in results:
            if result.error is not None:
                raise result.error
        return results[0] if results else None

    def close(self) -> None:
        """Gives the store's memory back."""
        self._worker.close()
        self._store.close()
