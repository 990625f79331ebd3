"""The engine on the device against the engine on the CPU: every way to select, to copy and to attend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from moorage.workers.gpu.transfer.copy_engine import CopyEngine
from moorage.workers.gpu.transfer.copy_handle import CopyHandle
from moorage.workers.gpu.transfer.cuda_copies import CudaCopies, Int32
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.spec import HeadSelectMode, KvType, MemorySpec, Positions, Segment
from tests.engine_driver import FULL, Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

SELECTED = memory(topk=3, execution_block=32, sinks=16)
AXES = {
    "full": FULL,
    "selected": SELECTED,
    "clamped": SELECTED.replace(scheme=Positions.CLAMPED),
    "dca": SELECTED.replace(scheme=Positions.DCA, pretraining_length=60, dca_chunk=48),
    "separate": SELECTED.replace(head_select_mode=HeadSelectMode.SEPARATE),
}
WAYS: dict[str, dict[str, object]] = {
    "plain": {},
    "prefetch": {"prefetch": True},
    "misses-on-cpu": {"attend_on": "cpu"},
    "device-scored": {"score_on": "device"},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def copies_of(dma_bytes: int, kv: ShardedKv) -> CudaCopies:
    return CudaCopies.make(kv, kv.layout, torch.device("cuda"), 4, dma_bytes)


def on_device(model: TinyModel, dma_bytes: int, **options: object) -> Driver:
    return Driver(
        model.directory,
        model.spec,
        device="cuda",
        in_place=False,
        copies=partial(copies_of, dma_bytes),
        **options,  # type: ignore[arg-type]
    )


def batch_of_three(driver: Driver, model: TinyModel, axes: MemorySpec) -> list[list[tuple[int, float]]]:
    """Greedy tokens and log-probabilities of three sessions that decode together."""
    prompts = {i: prompt_of(model, length, i) for i, length in ((1, 180), (2, 75), (3, 131))}
    opens = tuple(driver.open(i, prompt, axes, 16) for i, prompt in prompts.items())
    segments = tuple(Segment(i, 0, tuple(prompt), sample=True) for i, prompt in prompts.items())
    results = driver.step(opens=opens, segments=segments)
    found: dict[int, list[tuple[int, float]]] = {i: [] for i in prompts}
    for step in range(12):
        for result in results:
            assert result.token_id is not None
            assert result.logprob is not None
            found[result.session_id].append((result.token_id, result.logprob))
        segments = tuple(Segment(i, len(prompts[i]) + step, (found[i][-1][0],), sample=True) for i in prompts)
        results = driver.step(segments=segments)
    driver.step(drops=tuple(prompts))
    return [found[i] for i in prompts]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dma_bytes", [0, 1 << 40], ids=["dma", "kernel"])
@pytest.mark.parametrize("axes", AXES)
def test_the_same_tokens_as_on_the_cpu(llama: TinyModel, axes: str, dma_bytes: int, way: str) -> None:
    got = batch_of_three(on_device(llama, dma_bytes, **WAYS[way]), llama, AXES[axes])
    want = batch_of_three(Driver(llama.directory, llama.spec), llama, AXES[axes])
    for mine, theirs in zip(got, want, strict=True):
        assert [token for token, _ in mine] == [token for token, _ in theirs]
        np.testing.assert_allclose([p for _, p in mine], [p for _, p in theirs], atol=1e-3)


class LatePoisonedCopies:
    """Targets hold NaN until the copies come, which they do after the device has slept for a while."""

    overlaps = True
    packed = None

    def __init__(self, kv: ShardedKv) -> None:
        self._copies = copies_of(1 << 40, kv)

    @property
    def link_bytes(self) -> int:
        return self._copies.link_bytes

    def prepare(self, pinned: Callable[[int, int], None] | None = None) -> None:
        self._copies.prepare(pinned)

    def copy(self, session_id: int, layer: int, blocks: Int32, out: torch.Tensor, into: Int32) -> CopyHandle:
        stream = self._copies._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            out[torch.from_numpy(into).long().to(out.device)] = torch.nan
            torch.cuda._sleep(2_000_000)
        return self._copies.copy(session_id, layer, blocks, out, into)

    def close(self) -> None:
        self._copies.close()


@pytest.mark.parametrize("axes", ["full", "selected"])
def test_nobody_reads_a_slot_before_its_copy_has_come(llama: TinyModel, axes: str) -> None:
    """And three runs are equal bit by bit."""
    runs = []
    for _ in range(3):
        make: Callable[[ShardedKv], CopyEngine] = LatePoisonedCopies
        driver = Driver(llama.directory, llama.spec, device="cuda", in_place=False, copies=make)
        runs.append(batch_of_three(driver, llama, AXES[axes]))
    assert runs[0] == runs[1] == runs[2]
    want = batch_of_three(Driver(llama.directory, llama.spec), llama, AXES[axes])
    assert [[token for token, _ in each] for each in runs[0]] == [
        [token for token, _ in each] for each in want
    ]


@pytest.mark.parametrize("axes", ["full", "selected"])
def test_bf16_stays_close(llama: TinyModel, axes: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        options = {"copies": partial(copies_of, 0)} if device == "cuda" else {}
        driver = Driver(
            llama.directory,
            llama.spec,
            device=device,
            dtype="bfloat16",
            kv_type=KvType.FP16,
            **options,  # type: ignore[arg-type]
        )
        found.append(driver.prompt_logprobs(prompt_of(llama, 180), AXES[axes], (64,)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=5e-2)
    assert float((found[1] - found[0]).abs().mean()) < 1e-2
