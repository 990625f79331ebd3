"""The engine against transformers: chunked prefill, decode, batches, selection, clamped positions."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import get_args
from weakref import ref

import numpy as np
import pytest
import torch

from moorage.workers.errors import StoreFull
from moorage.workers.gpu.settings import CacheStrategy
from moorage.workers.spec import (
    AnchorType,
    HeadSelectMode,
    KvType,
    MemorySpec,
    Positions,
    Preselect,
    Segment,
    StepPlan,
)
from tests.engine_driver import Driver, memory
from tests.tiny_models import FAMILIES, TinyModel, build_tiny_checkpoint

CHUNKS = [(200,), (64,), (37, 1, 50), (1, 16, 33)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def prompt_of(model: TinyModel, length: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    found: list[int] = rng.integers(2, model.spec.vocab_size, length).tolist()
    return found


def logprobs_of(logits: torch.Tensor, prompt: list[int]) -> torch.Tensor:
    """[len(prompt) - 1] log-probabilities of the prompt's tokens, given logits [len(prompt), vocab]."""
    rows = torch.log_softmax(logits[:-1].float(), dim=-1)
    return rows.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]


def oracle_logprobs(model: TinyModel, prompt: list[int]) -> torch.Tensor:
    """Of transformers, exact attention."""
    return logprobs_of(model.logits(torch.tensor(prompt)), prompt)


def oracle_greedy(model: TinyModel, prompt: list[int], count: int) -> list[int]:
    """Of transformers, from scratch for every token."""
    return model.greedy(torch.tensor(prompt), count)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_attention_equals_transformers_for_every_family(family: str, tmp_path: Path) -> None:
    """Every prompt token's log-probability, the whole distribution at each chunk's end, and greedy tokens."""
    model = build_tiny_checkpoint(family, tmp_path)
    driver = Driver(model.directory, model.spec)
    prompt = prompt_of(model, 200)
    expected = oracle_logprobs(model, prompt)
    for chunks in CHUNKS[1:3]:
        got = driver.prompt_logprobs(prompt, memory(), chunks)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        for end, row in driver.distributions(prompt, memory(), chunks).items():
            want = torch.log_softmax(model.logits(torch.tensor(prompt[:end]))[-1].float(), dim=-1)
            torch.testing.assert_close(row, want, atol=1e-4, rtol=1e-4)
    tokens = [r.token_id for r in driver.generate(prompt, chunks=(64,), num_tokens=12)]
    assert tokens == oracle_greedy(model, prompt, 12)


ROPES: dict[str, dict[str, object]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.02 * i for i in range(32)],
        "long_factor": [1.0 + 0.3 * i for i in range(32)],
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    },
}


@pytest.mark.parametrize("length", [50, 200])
@pytest.mark.parametrize("rope", list(ROPES))
def test_every_rope_scaling_equals_transformers_within_and_beyond_the_trained_length(
    rope: str, length: int, tmp_path: Path
) -> None:
    """Lengths 50 and 200 for a trained length of 64, in chunks: all of them see the whole prompt's frequencies."""
    model = build_tiny_checkpoint(
        "llama2",
        tmp_path,
        rope={"rope_theta": 10000.0, **ROPES[rope]},
        head_dim=64,
        max_position_embeddings=64,
    )
    driver = Driver(model.directory, model.spec)
    prompt = prompt_of(model, length)
    for chunks in ((64,), (37, 13)):
        got = driver.prompt_logprobs(prompt, memory(), chunks)
        torch.testing.assert_close(got, oracle_logprobs(model, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("block_size", [8, 16, 33])
def test_chunking_and_block_size_change_nothing(
    llama: TinyModel, chunks: tuple[int, ...], block_size: int
) -> None:
    driver = Driver(llama.directory, llama.spec, block_size=block_size)
    prompt = prompt_of(llama, 200)
    got = driver.prompt_logprobs(prompt, memory(), chunks)
    torch.testing.assert_close(got, oracle_logprobs(llama, prompt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 48, 49])
def test_prompts_around_every_boundary(llama: TinyModel, length: int) -> None:
    driver = Driver(llama.directory, llama.spec)
    prompt = prompt_of(llama, length)
    tokens = [r.token_id for r in driver.generate(prompt, chunks=(16,), num_tokens=40)]
    assert tokens == oracle_greedy(llama, prompt, 40)


def test_half_storage_costs_no_more_than_rounding_keys_and_values(llama: TinyModel) -> None:
    """At most twice the error of transformers with its K and V rounded to half (before rotation)."""
    prompt = prompt_of(llama, 200)
    exact = oracle_logprobs(llama, prompt)

    def rounded(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        return output.half().float()

    hooks = []
    for layer in llama.hf_model.model.layers:
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            hooks.append(linear.register_forward_hook(rounded))
    try:
        baseline = (oracle_logprobs(llama, prompt) - exact).abs().max()
    finally:
        for hook in hooks:
            hook.remove()
    driver = Driver(llama.directory, llama.spec, kv_type=KvType.FP16)
    error = (driver.prompt_logprobs(prompt, memory(), (64,)) - exact).abs().max()
    assert 0 < error <= 2 * baseline + 1e-5


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA])
@pytest.mark.parametrize("mode", list(HeadSelectMode))
@pytest.mark.parametrize("anchor_type", list(AnchorType))
def test_a_budget_that_covers_every_block_equals_full(
    llama: TinyModel, positions: Positions, mode: HeadSelectMode, anchor_type: AnchorType
) -> None:
    driver = Driver(llama.directory, llama.spec, anchor_type=anchor_type)
    prompt = prompt_of(llama, 230)
    full = memory(scheme=positions, pretraining_length=60, dca_chunk=48)
    selected = full.replace(head_select_mode=mode, topk=13, execution_block=24, sinks=16)
    want = driver.prompt_logprobs(prompt, full, (64,))
    got = driver.prompt_logprobs(prompt, selected, (72, 48))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    want_tokens = [(r.token_id, r.logprob) for r in driver.generate(prompt, full, (64,), 24)]
    got_tokens = [(r.token_id, r.logprob) for r in driver.generate(prompt, selected, (72,), 24)]
    assert [t for t, _ in got_tokens] == [t for t, _ in want_tokens]
    np.testing.assert_allclose([p for _, p in got_tokens], [p for _, p in want_tokens], atol=1e-4)


@pytest.mark.parametrize("in_place", [True, False])
def test_sessions_in_one_batch_get_what_each_gets_alone(
    llama: TinyModel, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """In place a compiled call selects for all; from slots each layer asks the stores one question for all."""
    axes = memory(topk=2, execution_block=16, scheme=Positions.CLAMPED)
    prompts = [prompt_of(llama, length, seed) for seed, length in enumerate((150, 33, 90))]
    driver = Driver(llama.directory, llama.spec, in_place=in_place)
    alone = [driver.generate(p, axes, (len(p) - 1, 1), 10) for p in prompts]
    opens = tuple(driver.open(i, p, axes, 10) for i, p in enumerate(prompts))
    segments = tuple(Segment(i, 0, tuple(p[:-1]), sample=False) for i, p in enumerate(prompts))
    driver.step(opens=opens, segments=segments)
    asked = driver.note_questions(monkeypatch)
    last = [p[-1] for p in prompts]
    together: list[list[int]] = [[] for _ in prompts]
    for step in range(10):
        segments = tuple(
            Segment(i, len(p) - 1 + step, (last[i],), sample=True) for i, p in enumerate(prompts)
        )
        for i, result in enumerate(driver.step(segments=segments)):
            assert result.token_id is not None
            last[i] = result.token_id
            together[i].append(result.token_id)
            assert result.logprob == pytest.approx(alone[i][step].logprob, abs=1e-4)
    assert together == [[r.token_id for r in results] for results in alone]
    # The second session never has more blocks than it may select, the third from its second token on: from there
    # each layer of a step asks one question for two.
    attends_in_place = in_place and Driver.default_copies is None
    assert asked == ([] if attends_in_place else [2] * 9 * llama.spec.num_layers)


def test_a_second_turn_equals_a_prompt_from_scratch(llama: TinyModel) -> None:
    for axes in (memory(), memory(topk=2, execution_block=16, scheme=Positions.CLAMPED)):
        driver = Driver(llama.directory, llama.spec)
        first = prompt_of(llama, 90)
        tokens = [r.token_id for r in driver.generate(first, axes, (48,), 7, keep=True)]
        assert None not in tokens
        second = [*first, *tokens[:4], *prompt_of(llama, 30, seed=5)]  # type: ignore[list-item]
        kept = len(first) + 4
        continued = driver.generate(second, axes, (48 - kept % 48, 48), 7, continued=kept)
        scratch = driver.generate(second, axes, (48,), 7)
        if axes.selection.topk is None:
            assert [r.token_id for r in continued] == [r.token_id for r in scratch]
        else:
            assert continued[0].token_id is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_step": 2},
        {"token_step": 3},
        {"token_step": 40, "layer_step": 3},
        {"dense_layers": 1},
        {"preselect": Preselect.PROMPT, "preselect_blocks": 4},
        {"head_select_mode": HeadSelectMode.PERHEAD, "execution_block": 32},
        {"dense_until": 100},
        {"preselect": Preselect.PROMPT, "preselect_blocks": 4, "layer_step": 2, "token_step": 5},
    ],
    ids=str,
)
def test_reuse_and_restriction_of_choices_run_and_cover_everything_when_they_may(
    llama: TinyModel, changes: dict[str, int]
) -> None:
    """With a small budget they run; with a budget over all blocks they equal full attention."""
    prompt = prompt_of(llama, 150)
    driver = Driver(llama.directory, llama.spec)
    assert len(driver.generate(prompt, memory(topk=2, **changes), (64,), 50)) == 50
    if "preselect" not in changes:
        wide = driver.generate(prompt, memory(topk=30, **changes), (64,), 20)
        full = driver.generate(prompt, memory(), (64,), 20)
        assert [r.token_id for r in wide] == [r.token_id for r in full]


def recalls(model: TinyModel, axes: MemorySpec) -> list[float]:
    driver = Driver(model.directory, model.spec)
    found = driver.generate(prompt_of(model, 200), axes, (64,), 12)
    return [result.recall for result in found if result.recall is not None]


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED])
def test_recall_grows_with_the_budget_to_one(llama: TinyModel, positions: Positions) -> None:
    means = []
    for topk in (0, 1, 4, 9):
        found = recalls(llama, memory(scheme=positions, topk=topk, recall_every=1))
        assert len(found) == 11
        means.append(float(np.mean(found)))
    assert 0 < means[0] < means[1] < means[2] < means[3] <= 1 + 1e-5


def test_recall_is_the_mean_over_the_heads_of_the_sampled_layer(llama: TinyModel) -> None:
    driver = Driver(llama.directory, llama.spec)
    found = driver.generate(prompt_of(llama, 200), memory(topk=1, recall_every=2), (64,), 8)
    sampled = [result for result in found if result.recall_by_head]
    assert len(sampled) == 4
    for result in sampled:
        assert len(result.recall_by_head) == llama.spec.num_heads
        assert result.recall == pytest.approx(np.mean(result.recall_by_head))
        assert min(result.recall_by_head) < max(result.recall_by_head)


def test_sinks_and_window_that_hold_every_key_have_recall_one(llama: TinyModel) -> None:
    found = recalls(llama, memory(topk=0, recall_every=1, window=300))
    assert found == pytest.approx([1.0] * 11, abs=1e-5)


def test_a_rolling_window_has_no_exact_pass_to_be_measured_by(llama: TinyModel) -> None:
    axes = memory(scheme=Positions.ROLLING, topk=0, recall_every=1)
    assert recalls(llama, axes) == []


def test_an_engine_that_is_let_go_frees_its_stores_at_once(llama: TinyModel) -> None:
    """No object holds itself through others: gigabytes must not wait for a garbage collection."""
    driver = Driver(llama.directory, llama.spec, anchor_type=AnchorType.REPR_TOPK)
    driver.generate(prompt_of(llama, 100), memory(topk=2, recall_every=1), num_tokens=4)
    engine, arena = ref(driver.worker.engine), ref(driver.stores[0].arena)
    gc.disable()
    try:
        del driver
        assert engine() is None
        assert arena() is None
    finally:
        gc.enable()


def test_a_failing_session_fails_alone(llama: TinyModel) -> None:
    driver = Driver(llama.directory, llama.spec, num_pages=6)
    prompt = prompt_of(llama, 64)
    good, bad = driver.open(1, prompt), driver.open(2, prompt_of(llama, 400))
    plan = StepPlan(
        1,
        opens=(good, bad),
        segments=(Segment(1, 0, tuple(prompt), sample=True), Segment(2, 0, (5, 6), sample=True)),
    )
    results = {r.session_id: r for r in driver.worker.step(plan).segments}
    assert results[1].token_id == oracle_greedy(llama, prompt, 1)[0]
    assert isinstance(results[2].error, StoreFull)
    driver.worker.step(StepPlan(2, drops=(1, 2)))
    assert all(store.stats().free_pages == 6 for store in driver.stores)


@pytest.mark.parametrize("mode", list(HeadSelectMode))
def test_what_stays_in_the_cache_never_changes_a_result(llama: TinyModel, mode: HeadSelectMode) -> None:
    prompt, found = prompt_of(llama, 180), []
    for strategy in get_args(CacheStrategy):
        driver = Driver(
            llama.directory, llama.spec, max_cached_block=4, cache_strategy=strategy, in_place=False
        )
        axes = memory(topk=3, head_select_mode=mode, dense_layers=1)
        found.append([r.logprob for r in driver.generate(prompt, axes, (64,), 12)])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED, Positions.DCA, Positions.ROLLING])
@pytest.mark.parametrize("mode", list(HeadSelectMode))
def test_attending_in_place_gives_what_slots_give(
    llama: TinyModel, positions: Positions, mode: HeadSelectMode
) -> None:
    prompt, found = prompt_of(llama, 180), []
    axes = memory(
        scheme=positions, topk=0 if positions is Positions.ROLLING else 3, head_select_mode=mode, sinks=16,
        pretraining_length=60, dca_chunk=48, recall_every=2, dense_layers=1,
    )  # fmt: skip
    for in_place in (True, False):
        driver = Driver(llama.directory, llama.spec, in_place=in_place, num_shards=3)
        results = driver.generate(prompt, axes, (64,), 40)
        found.append([(r.token_id, r.logprob, r.recall or 0.0) for r in results])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED])
@pytest.mark.parametrize("max_cached_block", [None, 3])
def test_short_contexts_attend_everything(
    llama: TinyModel, positions: Positions, max_cached_block: int | None
) -> None:
    """From slots where they have the room, else streamed; a longer context starts to select."""
    driver = Driver(llama.directory, llama.spec, max_cached_block=max_cached_block)
    prompt = prompt_of(llama, 150)
    full = memory(scheme=positions, sinks=16)
    selected = memory(scheme=positions, sinks=16, topk=2, execution_block=16, dense_until=160)
    want = driver.prompt_logprobs(prompt, full, (64,))
    torch.testing.assert_close(driver.prompt_logprobs(prompt, selected, (64,)), want, atol=1e-4, rtol=1e-4)
    dense, selecting = (driver.generate(prompt, axes, (64,), 16) for axes in (full, selected))
    for step in range(10):
        assert selecting[step].logprob == pytest.approx(dense[step].logprob, abs=1e-4)
    assert selecting[-1].num_selected_blocks == 2
