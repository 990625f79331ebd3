"""The bytes that a step copies from the stores to the device."""

from __future__ import annotations

from pathlib import Path

from moorage.workers.spec import Segment, StepPlan
from tests.engine_driver import Driver, memory
from tests.tiny_models import build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

CHOSEN = memory(topk=3, execution_block=32, sinks=16)


def test_a_step_counts_the_blocks_that_were_not_on_the_device(tmp_path: Path) -> None:
    tiny = build_tiny_checkpoint("llama3", tmp_path)
    driver = Driver(tiny.directory, tiny.spec, attend_on="device", in_place=False)
    prompt = prompt_of(tiny, 200)
    opening = driver.open(1, prompt, CHOSEN, 8)
    block_bytes = 2 * tiny.spec.num_kv_heads * driver.block_size * tiny.spec.head_dim * 4

    def step(number: int, *segments: Segment, **plan: object) -> tuple[int, int, int | None]:
        result = driver.worker.step(StepPlan(number, segments=segments, **plan))  # type: ignore[arg-type]
        (found,) = result.segments
        return result.link_bytes, result.cache_misses, found.token_id

    moved, _, token = step(1, Segment(1, 0, tuple(prompt), sample=True), opens=(opening,))
    assert moved % block_bytes == 0
    counted = []
    for place in range(200, 204):
        assert token is not None
        moved, misses, token = step(place, Segment(1, place, (token,), sample=True))
        counted.append(moved)
        assert moved == misses * block_bytes
    assert counted[0] > 0, "the device holds no block of the prompt at first"
    assert min(counted[1:]) < counted[0], "later steps find blocks of earlier ones there"
