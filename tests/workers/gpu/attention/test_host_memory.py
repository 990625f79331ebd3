"""One compiled call for all sessions: what one of them gets does not depend on who else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.workers.gpu.attention import host_memory
from moorage.workers.gpu.attention.host_memory import HostMemoryAttention
from moorage.workers.gpu.attention.observed import WatchedAttention
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.spec import (
    AnchorType,
    HeadPool,
    HeadSelectMode,
    KvType,
    MemorySpec,
    Positions,
    Segment,
    SegmentResult,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

REUSED = memory(topk=3, sinks=16, token_step=4, layer_step=2)
"""Selections that are used again by later layers and steps."""
OTHERS = (
    REUSED,
    memory(topk=3, sinks=16, scheme=Positions.CLAMPED),
    memory(topk=2, head_select_mode=HeadSelectMode.PERHEAD),
    memory(),
    memory(topk=0, sinks=16),
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def outcome(result: SegmentResult) -> tuple[int | None, float | None, float]:
    return result.token_id, result.logprob, result.num_selected_blocks


def backend_of(driver: Driver) -> HostMemoryAttention:
    backend = driver.worker.engine._attention.decode
    while isinstance(backend, WatchedAttention):
        backend = backend._inner
    assert isinstance(backend, HostMemoryAttention)
    return backend


@pytest.mark.parametrize("axes", [REUSED, OTHERS[1]], ids=["reused", "clamped"])
def test_sessions_that_join_and_leave_change_nothing(llama: TinyModel, axes: MemorySpec) -> None:
    """The same tokens and selections, whoever else is in the batch."""
    prompt, driver = (
        prompt_of(llama, 170),
        Driver(llama.directory, llama.spec, block_size=4, num_pages=512, kv_type=KvType.FP16),
    )
    sets: list[object] = []

    def observe(session: WorkerSession, layer: int, ids: Any, _lse: object) -> None:
        if session.session_id == 1:
            sets.append((session.decode_index, layer, None if ids is None else ids.tolist()))

    driver.observe(observe)
    want = [outcome(result) for result in driver.generate(prompt, axes, (170,), 14)]
    alone, sets[:] = list(sets), []
    opens = [driver.open(1, prompt, axes, 14)]
    opens += [
        driver.open(10 + i, prompt_of(llama, 60 + 20 * i, i), other, 14) for i, other in enumerate(OTHERS)
    ]
    found: list[tuple[int | None, float | None, float]] = []
    held: dict[int, tuple[int, int]] = {}
    for step in range(14):
        # Another one joins in every second step, and in every fifth the first of the others leaves.
        opening = opens.pop(0) if step % 2 == 0 and opens else None
        segments = [Segment(i, at, (token,), sample=True) for i, (at, token) in held.items()]
        if opening is not None:
            ids = (
                prompt
                if opening.session_id == 1
                else prompt_of(llama, opening.prompt_tokens, opening.session_id - 10)
            )
            segments.append(Segment(opening.session_id, 0, tuple(ids), sample=True))
        results = driver.step(opens=(opening,) if opening else (), segments=tuple(segments))
        for segment, result in zip(segments, sorted(results, key=lambda r: order(segments, r)), strict=True):
            assert result.token_id is not None
            held[result.session_id] = segment.start + len(segment.token_ids), result.token_id
            if result.session_id == 1:
                found.append(outcome(result))
        if step % 5 == 4:
            left = sorted(held)[1]
            del held[left]
            driver.step(drops=(left,))
    assert sets == alone
    # The chunk of a prompt beside it may be computed by another kernel of the linear layers, which rounds otherwise.
    assert [token for token, _, _ in found] == [token for token, _, _ in want]
    assert [count for *_, count in found] == [count for *_, count in want]
    assert [value for _, value, _ in found] == pytest.approx([value for _, value, _ in want], abs=1e-4)


def order(segments: list[Segment], result: SegmentResult) -> int:
    return [segment.session_id for segment in segments].index(result.session_id)


def test_arrays_of_few_compositions_are_kept(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "MOST_GROUPS", 2)
    driver = Driver(llama.directory, llama.spec)
    for session_id in range(5):
        driver.generate(prompt_of(llama, 40, session_id), memory(topk=1), (40,), 3, session_id)
    assert len(backend_of(driver)._groups) <= 2


@pytest.mark.parametrize(
    ("axes", "anchor_type", "compiled"),
    [
        (memory(), AnchorType.QUEST, True),
        (memory(topk=0), AnchorType.QUEST, True),
        (memory(topk=3), AnchorType.QUEST, True),
        (memory(topk=3, head_select_mode=HeadSelectMode.SEPARATE), AnchorType.BLOCK_MEAN, True),
        (memory(topk=3, head_select_mode=HeadSelectMode.PERHEAD), AnchorType.QUEST, False),
        (memory(topk=3, head_pool=HeadPool.MAX), AnchorType.QUEST, False),
    ],
    ids=["all", "none", "shared", "separate", "perhead", "largest-of-heads"],
)
def test_who_selects(llama: TinyModel, axes: MemorySpec, anchor_type: AnchorType, compiled: bool) -> None:
    driver = Driver(llama.directory, llama.spec, anchor_type=anchor_type)
    driver.generate(prompt_of(llama, 150), axes, (150,), 3)
    (group,) = backend_of(driver)._groups.values()
    assert (group.selections is not None) == compiled
