"""A worker whose KV actors are reached by Ray alone, as those of other hosts: it generates what one process does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage.workers.kv.actor import start_kv_actor, stop_kv_actor
from moorage.workers.kv.ray_link import RayLink
from moorage.workers.ray_process import RayProcess
from moorage.workers.spec import AnchorSpace, AnchorType, KvType
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

pytestmark = pytest.mark.ray
NUM_ACTORS = 2


def driver_of(model: TinyModel, **options: object) -> Driver:
    return Driver(
        model.directory,
        model.spec,
        kv_type=KvType.FP16,
        anchor_type=AnchorType.KEY_CODES,
        anchor_space=AnchorSpace.ROTATED,
        num_shards=NUM_ACTORS,
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path)


@pytest.fixture
def far_links(request: pytest.FixtureRequest, model: TinyModel) -> Iterator[list[RayLink]]:
    """Links to two KV actors."""
    request.getfixturevalue("local_ray")
    layout = driver_of(model).stores[0].layout
    actors = [
        start_kv_actor(RayProcess(f"keys-{i}", "test", num_cpus=0), layout, 64, num_threads=1)
        for i in range(NUM_ACTORS)
    ]
    yield [RayLink(actor, layout) for actor in actors]
    for actor in actors:
        stop_kv_actor(actor)


def test_single_keys_come_from_two_actors(far_links: list[RayLink], model: TinyModel) -> None:
    links = iter(far_links)
    far, near = driver_of(model, link=lambda _store: next(links)), driver_of(model)
    axes, prompt = memory(topk_keys=24, sinks=16), prompt_of(model, 180)
    got, want = (driver.generate(prompt, axes, (64,), 8) for driver in (far, near))
    assert [result.token_id for result in got] == [result.token_id for result in want]
    assert [result.num_selected_keys for result in got] == [result.num_selected_keys for result in want]
    assert got[-1].num_selected_keys == 24
