"""The engine's plans against slow_plan: the same selected blocks, the same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.spec import (
    AnchorSpace,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    MemorySpec,
    OpenSession,
    Positions,
    Preselect,
    Segment,
    SegmentResult,
)
from tests.engine_driver import Driver, memory, spans
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.slow_plan import SlowPlan


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], TinyModel]:
    """By (query heads, KV heads): groups of 1, 2, 3 and all heads."""
    found = {}
    for heads in ((2, 2), (6, 2), (4, 2), (4, 1)):
        directory = tmp_path_factory.mktemp("heads")
        found[heads] = build_tiny_checkpoint(
            "llama3",
            directory,
            num_attention_heads=heads[0],
            num_key_value_heads=heads[1],
            head_dim=32,
            hidden_size=96,
        )
    return found


def check(
    model: TinyModel,
    axes: MemorySpec,
    prompt_tokens: int,
    num_tokens: int,
    block_size: int,
    anchor_type: AnchorType,
    *,
    rotated: bool = False,
    anchor_num: int = 1,
    repr_topk: int = 4,
    chunks: tuple[int, ...] = (),
    slow: type[SlowPlan] = SlowPlan,
) -> SlowPlan:
    """Lets the engine and the slow plan read the same tokens."""
    driver = Driver(
        model.directory,
        model.spec,
        block_size=block_size,
        anchor_type=anchor_type,
        anchor_num=anchor_num,
        anchor_space=AnchorSpace.ROTATED if rotated else AnchorSpace.PLAIN,
        repr_topk=repr_topk,
    )
    found: list[tuple[int, int, list[list[int]]]] = []

    def observe(session: WorkerSession, layer: int, ids: Any, _lse: torch.Tensor) -> None:
        if ids is not None:
            rows = [sorted(int(block) for block in row if block >= 0) for row in ids]
            found.append((session.num_tokens, layer, rows))

    driver.observe(observe)
    tokens = np.random.default_rng(prompt_tokens).integers(
        2, model.spec.vocab_size, prompt_tokens + num_tokens
    )
    results = read(driver, axes, tokens.tolist(), prompt_tokens, chunks)
    plan = slow(model.spec, axes, block_size, anchor_type, rotated, anchor_num, repr_topk, prompt_tokens)
    decoder = Decoder.load(model.directory, model.spec, "float32", "cpu")
    steps = np.split(tokens, range(prompt_tokens, len(tokens)))
    for step, result in zip(steps, results, strict=True):
        hidden = decoder.forward(torch.from_numpy(step), plan.attend)
        logprobs = torch.log_softmax(decoder.logits(hidden[-1:])[0].double(), dim=-1)
        assert result.logprob == pytest.approx(float(logprobs[result.token_id]), abs=2e-4)
    assert found == plan.selected
    return plan


def read(
    driver: Driver, axes: MemorySpec, tokens: list[int], prompt_tokens: int, chunks: tuple[int, ...]
) -> list[SegmentResult]:
    """What the engine would draw after the prompt and after each token behind it.

    The tokens are given, since a model that repeats itself brings blocks that are exactly alike.
    """
    pieces = spans(prompt_tokens, chunks) + [(i, i + 1) for i in range(prompt_tokens, len(tokens))]
    opens: tuple[OpenSession, ...] = (
        driver.open(1, tokens[:prompt_tokens], axes, len(tokens) - prompt_tokens),
    )
    results = []
    for start, end in pieces:
        segment = Segment(1, start, tuple(tokens[start:end]), sample=end >= prompt_tokens)
        results += driver.step(opens=opens, segments=(segment,))
        opens = ()
    driver.step(drops=(1,))
    return results[len(pieces) - (len(tokens) - prompt_tokens) - 1 :]


@pytest.mark.parametrize(("anchor_num", "repr_topk"), [(1, 4), (2, 4), (3, 3)])
@pytest.mark.parametrize("chunks", [(150,), (24, 48)])
def test_inf_llm(llama: TinyModel, chunks: tuple[int, ...], anchor_num: int, repr_topk: int) -> None:
    axes = memory(scheme=Positions.CLAMPED, window=24, sinks=8, topk=3, execution_block=24)
    plan = check(
        llama,
        axes,
        150,
        12,
        12,
        AnchorType.REPR_TOPK,
        chunks=chunks,
        anchor_num=anchor_num,
        repr_topk=repr_topk,
    )
    assert plan.selected


@pytest.mark.parametrize("preselect", [Preselect.OFF, Preselect.PROMPT])
@pytest.mark.parametrize("mode", list(HeadSelectMode))
def test_ktransformers(llama: TinyModel, mode: HeadSelectMode, preselect: Preselect) -> None:
    axes = memory(
        window=16,
        sinks=8,
        topk=3,
        head_select_mode=mode,
        preselect=preselect,
        preselect_blocks=6,
        importance_queries=16,
    )
    plan = check(llama, axes, 130, 30, 8, AnchorType.DYNAMIC, rotated=True, chunks=(64,))
    assert plan.selected


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_plans_around_every_boundary(models: dict[tuple[int, int], TinyModel], data: st.DataObject) -> None:
    model = models[data.draw(st.sampled_from(sorted(models)), "query heads, KV heads")]
    size = data.draw(st.sampled_from([4, 8, 12]), "block size")
    window = data.draw(st.sampled_from([1, size - 1, size, size + 1, 2 * size]), "window")
    execution = data.draw(st.sampled_from([0, size, 2 * size]), "execution block")
    chunk = data.draw(st.sampled_from([1, 2, 4]), "chunk") * 2 * size
    around = [1, size - 1, size, size + 1, chunk - 1, chunk, chunk + 1, 6 * size, 6 * size + 1]
    length = data.draw(st.sampled_from(around), "prompt")
    dynamic = data.draw(st.booleans(), "dynamic")
    axes = memory(
        scheme=data.draw(st.sampled_from([Positions.ROPE, Positions.CLAMPED]), "positions"),
        window=window,
        sinks=data.draw(st.sampled_from([0, 1, size]), "sinks"),
        topk=data.draw(st.sampled_from([1, 2, 5]), "topk"),
        execution_block=execution,
        last_tokens_alone=data.draw(st.sampled_from([0, 1, 3]), "last alone"),
        head_select_mode=data.draw(st.sampled_from(list(HeadSelectMode)), "mode"),
        head_pool=data.draw(st.sampled_from([HeadPool.SUM, HeadPool.MAX]), "pool"),
        preselect=data.draw(st.sampled_from([Preselect.OFF, Preselect.PROMPT]), "preselect"),
        preselect_blocks=3,
        importance_queries=data.draw(st.sampled_from([1, 5, 128]), "importance queries"),
    )
    # A DYNAMIC prompt that selects before its end is known has provisional anchors, which no paper defines.
    kind = AnchorType.DYNAMIC if dynamic and not execution else AnchorType.REPR_TOPK
    check(
        model,
        axes,
        length,
        2 * size + 2,
        size,
        kind,
        rotated=data.draw(st.booleans(), "rotated"),
        chunks=(chunk,),
    )
