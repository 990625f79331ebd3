"""Selections that are made for several sessions by one question to each store."""

from __future__ import annotations

import pytest

from moorage.workers.errors import StoreFull
from moorage.workers.kv.messages import SelectReply, SelectRequest
from moorage.workers.spec import Segment, StepPlan
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def test_a_failed_question_for_several_sessions_fails_only_the_one_it_is_of(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a store answers may be that it lost rows of one session; the others are asked for again, each alone."""
    driver = Driver(llama.directory, llama.spec, num_shards=1, in_place=False)
    axes, prompts = memory(topk=3, sinks=16), [prompt_of(llama, 150, seed) for seed in (1, 2)]
    last = [driver.generate(each, axes, (150,), 3, i, keep=True)[-1] for i, each in enumerate(prompts)]
    shard = driver.stores[0].shard
    together, alone = shard.select_together, shard.select

    def refuse(request: SelectRequest) -> None:
        if (request.session_id, request.layer) == (0, 1):
            raise StoreFull("no room")

    def refusing_together(requests: list[SelectRequest]) -> list[SelectReply]:
        for request in requests:
            refuse(request)
        return together(requests)

    def refusing(request: SelectRequest) -> SelectReply:
        refuse(request)
        return alone(request)

    segments = tuple(Segment(i, 152, (result.token_id or 0,), sample=True) for i, result in enumerate(last))
    with monkeypatch.context() as patch:
        patch.setattr(shard, "select_together", refusing_together)
        patch.setattr(shard, "select", refusing)
        found = {
            each.session_id: each for each in driver.worker.step(StepPlan(8, segments=segments)).segments
        }
    assert isinstance(found[0].error, StoreFull)
    assert found[1].error is None
    assert found[1].token_id is not None
    (again,) = driver.step(segments=segments[:1])
    assert again.token_id is not None
