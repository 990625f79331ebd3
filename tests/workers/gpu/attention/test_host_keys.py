"""Single keys attended where they lie say what those say whose rows the stores send."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.spec import AnchorSpace, AnchorType, KvType, MemorySpec, Positions, SegmentResult
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

KEYS = memory(topk_keys=24, sinks=16, recall_every=1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def generated(
    model: TinyModel, axes: MemorySpec, **options: Any
) -> tuple[list[SegmentResult], list[tuple[int, ...]]]:
    """The results of some tokens, and the keys that each layer attended."""
    driver = Driver(model.directory, model.spec, anchor_type=AnchorType.KEY_CODES, **options)
    keys: list[tuple[int, ...]] = []

    def note(step: DecodeStep, layer: int, attended: Attended) -> None:
        del layer
        keys.extend(tuple(row) for row in attended.keys.get(step.row, ()))

    driver.worker.engine.observe(note)
    return driver.generate(prompt_of(model, 180), axes, (64,), 5), keys


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
@pytest.mark.parametrize(
    ("kv_type", "num_shards"), [(KvType.FP32, 1), (KvType.FP16, 3), (KvType.INT8, 1), (KvType.NUQ3, 2)]
)
def test_in_place_as_from_the_stores(
    llama: TinyModel, positions: Positions, kv_type: KvType, num_shards: int
) -> None:
    axes = KEYS.replace(scheme=positions, pretraining_length=60, dca_chunk=48)
    space = AnchorSpace.PLAIN if positions is Positions.CLAMPED else AnchorSpace.ROTATED
    options = {"kv_type": kv_type, "num_shards": num_shards, "anchor_space": space}
    (here, mine), (sent, others) = (
        generated(llama, axes, in_place=in_place, **options) for in_place in (True, False)
    )
    assert [each.token_id for each in here] == [each.token_id for each in sent]
    assert len(mine) == len(others) > 0
    common = [len(np.intersect1d(one, other)) / len(one) for one, other in zip(mine, others, strict=True)]
    assert np.mean(common) > 0.95
    for one, other in zip(here[1:], sent[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.02)
        assert one.recall == pytest.approx(other.recall, abs=0.02)
        assert one.num_selected_keys == other.num_selected_keys == 24
        assert one.num_selected_blocks == other.num_selected_blocks == 0


def test_dense_layers_and_short_contexts_attend_everything(llama: TinyModel) -> None:
    options = {"anchor_space": AnchorSpace.ROTATED}
    _, keys = generated(llama, KEYS, **options)
    _, fewer = generated(llama, KEYS.replace(dense_layers=1), **options)
    assert len(fewer) * llama.spec.num_layers == len(keys) * (llama.spec.num_layers - 1)
    _, none = generated(llama, KEYS.replace(dense_until=1000), **options)
    assert not none


def test_more_keys_than_there_can_be_give_full_attention(llama: TinyModel) -> None:
    """The number is a client's: it takes no memory."""
    options = {"anchor_space": AnchorSpace.ROTATED}
    every, keys = generated(llama, KEYS.replace(topk_keys=2**31 - 1), **options)
    full, _ = generated(llama, memory(sinks=16, recall_every=1), **options)
    assert not keys
    assert [each.token_id for each in every] == [each.token_id for each in full]
    assert [each.logprob for each in every] == pytest.approx([each.logprob for each in full], abs=1e-5)


def test_what_is_not_selected_may_be_left_out_on_every_way(llama: TinyModel) -> None:
    """The first token is prefilled; those after it differ from what they are with a completion."""
    options = {"kv_type": KvType.FP32, "num_shards": 2, "anchor_space": AnchorSpace.ROTATED}
    completed, _ = generated(llama, KEYS, in_place=True, **options)
    here, mine = generated(llama, KEYS.replace(completion=False), in_place=True, **options)
    sent, others = generated(llama, KEYS.replace(completion=False), in_place=False, **options)
    assert mine[: len(mine) // 4] == others[: len(mine) // 4]
    for one, other in zip(here, sent, strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert [one.logprob for one in here[1:]] != pytest.approx(
        [one.logprob for one in completed[1:]], abs=1e-2
    )
