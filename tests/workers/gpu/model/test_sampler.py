"""The sampler's distribution against transformers' processors, its draws against that distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moorage.workers.gpu.model.sampler import SampleRow, TokenCounts, sample, shape_logits
from moorage.workers.spec import SamplingSpec

VOCAB = 211
PROMPT = [3, 3, 7, 9, 9, 9, 100]
GENERATED = [9, 42, 42, 42, 200]


def random_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def row(step: int = 0, **spec: Any) -> SampleRow:
    sampling = SamplingSpec(**spec)
    if not sampling.counts_tokens:
        return SampleRow(sampling, step)
    counts = [torch.bincount(torch.tensor(ids), minlength=VOCAB) for ids in (PROMPT, GENERATED)]
    return SampleRow(sampling, step, TokenCounts(*counts))


def oracle(logits: torch.Tensor, spec: SamplingSpec) -> torch.Tensor:
    """The same steps from transformers' processors; presence and frequency as OpenAI defines them."""
    ids = torch.tensor([PROMPT + GENERATED])
    logits = RepetitionPenaltyLogitsProcessor(spec.repetition_penalty)(ids, logits[None].clone())
    for token in GENERATED:
        logits[0, token] -= spec.frequency_penalty
    for token in set(GENERATED):
        logits[0, token] -= spec.presence_penalty
    chain = LogitsProcessorList([TemperatureLogitsWarper(spec.temperature)])
    if spec.min_p > 0:
        chain.append(MinPLogitsWarper(spec.min_p))
    if spec.top_k > 0:
        chain.append(TopKLogitsWarper(spec.top_k))
    if spec.top_p < 1:
        chain.append(TopPLogitsWarper(spec.top_p))
    return chain(ids, logits)[0].softmax(-1)


SPECS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 1},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 10_000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.5, "top_p": 0.05},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.2, "top_k": 30, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.7},
    {"temperature": 1.0, "presence_penalty": 1.5},
    {"temperature": 1.0, "frequency_penalty": -0.5},
    {
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    },
]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distribution_equals_transformers(seed: int) -> None:
    rows = [row(**spec) for spec in SPECS]
    logits = random_logits(len(rows), seed)
    before = logits.clone()
    shaped = shape_logits(logits, rows).softmax(-1)
    assert torch.equal(logits, before)
    for index, each in enumerate(rows):
        torch.testing.assert_close(shaped[index], oracle(logits[index], each.spec), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_takes_the_largest(seed: int) -> None:
    logits = random_logits(4, seed)
    drawn = sample(logits, [row(temperature=temperature) for temperature in (0.0, 1e-6, 0.0, 0.0)])
    assert [each.token_id for each in drawn] == logits.argmax(-1).tolist()


def test_greedy_heeds_penalties() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 42], logits[0, 5] = 4.0, 3.5
    assert sample(logits, [row(repetition_penalty=1.2)])[0].token_id == 5
    assert sample(logits, [row(presence_penalty=1.0)])[0].token_id == 5
    assert sample(logits, [row()])[0].token_id == 42
    logits[0, 42], logits[0, 3] = 0.0, 4.0
    assert sample(logits, [row(presence_penalty=1.0)])[0].token_id == 3, (
        "a prompt token has no presence penalty"
    )


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[5], SPECS[8], SPECS[-1]])
def test_draws_follow_the_distribution(spec: dict[str, Any]) -> None:
    """Pearson's chi-square over 20 000 steps, cells under 10 expected pooled; 1 seed in 10 000 fails."""
    num_draws = 20_000
    logits = random_logits(1, seed=3)
    rows = [row(step, seed=1234, **spec) for step in range(num_draws)]
    drawn = [each.token_id for each in sample(logits.expand(num_draws, -1), rows)]
    observed = torch.bincount(torch.tensor(drawn), minlength=VOCAB).double()
    expected = shape_logits(logits, rows[:1])[0].double().softmax(-1) * num_draws
    assert observed[expected == 0].sum() == 0
    common = expected >= 10
    observed = torch.cat((observed[common], observed[~common].sum()[None]))
    expected = torch.cat((expected[common], expected[~common].sum()[None]))
    chi_square = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum().item()
    degrees = int(common.sum())
    # Wilson and Hilferty's cube-root normal approximation of the 0.9999 quantile.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.719 * math.sqrt(2 / (9 * degrees))) ** 3
    assert chi_square < limit


def changed_draws(logits: torch.Tensor, noise: float, num_draws: int = 18_000) -> tuple[float, float]:
    """(share of draws that `noise` on the logits changes, least share that any way of drawing changes)."""
    generator = torch.Generator().manual_seed(2)
    logits = logits.repeat(num_draws // len(logits), 1)
    near = logits + noise * torch.randn(logits.shape, generator=generator)
    rows = [row(temperature=1.0, seed=seed) for seed in range(len(logits))]
    pairs = zip(sample(logits, rows), sample(near, rows), strict=True)
    least = (logits.softmax(-1) - near.softmax(-1)).abs().sum(-1).mean() / 2
    return sum(a.token_id != b.token_id for a, b in pairs) / len(logits), least.item()


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
def test_rounding_of_logits_changes_at_most_twice_the_draws_that_it_must(spread: float) -> None:
    """Two distributions differ in some mass, and any way to draw differs at least so often; this one at most twice.

    A draw by the cumulative sum changes up to a hundred times as many.
    """
    changed, least = changed_draws(spread * random_logits(60, seed=5) / 3, 0.01)
    assert 0 < changed < 2.5 * least < 0.01


def test_rounding_changes_fewer_than_one_draw_in_900_where_the_model_is_sure() -> None:
    """One token of some 97 %, as in the middle of most answers."""
    logits = random_logits(60, seed=6) / 3
    logits[:, 17] += 9.5
    changed, _ = changed_draws(logits, 0.01)
    assert changed < 1 / 900


def test_seeds_and_steps_draw_apart() -> None:
    logits = torch.zeros(400, VOCAB)
    by_step = sample(logits, [row(step, temperature=1.0, seed=7) for step in range(400)])
    by_seed = sample(logits, [row(temperature=1.0, seed=seed) for seed in range(-200, 200)])
    for drawn in (by_step, by_seed):
        assert len({each.token_id for each in drawn}) > 150


def draws(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[tuple[int, float]]:
    return [(each.token_id, each.logprob) for each in sample(logits, rows)]


def test_neighbours_and_order_do_not_matter() -> None:
    rows = [row(step=5 + index, seed=index, **spec) for index, spec in enumerate(SPECS)]
    logits = random_logits(len(rows), seed=4)
    together = draws(logits, rows)
    alone = [draws(logits[i : i + 1], rows[i : i + 1])[0] for i in range(len(rows))]
    backwards = draws(logits.flip(0), rows[::-1])[::-1]
    for index, (token_id, logprob) in enumerate(together):
        assert (alone[index][0], backwards[index][0]) == (token_id, token_id)
        assert alone[index][1] == pytest.approx(logprob, abs=1e-6)


def test_logprobs_are_of_the_raw_model() -> None:
    logits = random_logits(3)
    rows = [
        row(temperature=0.5, top_k=2, num_logprobs=5, seed=1),
        row(repetition_penalty=2.0, num_logprobs=2),
        row(),
    ]
    expected = logits.log_softmax(-1)
    for index, drawn in enumerate(sample(logits, rows)):
        count = rows[index].spec.num_logprobs
        values, ids = expected[index].topk(count)
        assert drawn.logprob == pytest.approx(expected[index, drawn.token_id].item(), abs=1e-5)
        assert [token_id for token_id, _ in drawn.top_logprobs] == ids.tolist()
        assert [value for _, value in drawn.top_logprobs] == pytest.approx(values.tolist(), abs=1e-5)


def test_more_alternatives_than_tokens() -> None:
    assert len(sample(torch.zeros(1, 3), [SampleRow(SamplingSpec(num_logprobs=20), 0)])[0].top_logprobs) == 3


def test_ties_at_the_kth_logit_stay() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    shaped = shape_logits(logits, [SampleRow(SamplingSpec(temperature=1.0, top_k=2), 0)])
    assert shaped.isfinite().tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("spec", [{"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}])
def test_one_token_always_remains(spec: dict[str, Any]) -> None:
    logits = random_logits(1)
    for step in range(20):
        assert sample(logits, [row(step, temperature=3.0, **spec)])[0].token_id == logits.argmax().item()


def test_excluded_tokens_are_never_drawn() -> None:
    logits = torch.full((500, VOCAB), -math.inf)
    logits[:, 50], logits[:, VOCAB - 2] = 0.0, -20.0
    rows = [row(step, temperature=1.0, seed=9) for step in range(500)]
    assert {each.token_id for each in sample(logits, rows)} <= {50, VOCAB - 2}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_broken_row_is_named_and_spares_its_neighbour(bad: float, temperature: float) -> None:
    logits = random_logits(2)
    alone = draws(logits[1:], [row(temperature=temperature, top_p=0.9)])
    logits[0, 17] = bad
    broken, sound = sample(logits, [row(temperature=temperature, top_p=0.9)] * 2)
    assert broken.error is not None
    assert "not finite" in broken.error
    assert sound.error is None
    assert sound.token_id == alone[0][0]


def test_logits_of_inference_mode_serve() -> None:
    with torch.inference_mode():
        logits = random_logits(len(SPECS))
    rows = [row(**spec) for spec in SPECS]
    assert draws(logits, rows) == draws(logits.clone(), rows)


def test_no_rows() -> None:
    assert sample(torch.zeros(0, VOCAB), []) == []


def mask_of(*tokens: int, num_bytes: int = (VOCAB + 7) // 8) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(num_bytes, "little")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_drawn_and_neighbours_draw_as_alone(temperature: float) -> None:
    logits = random_logits(3)
    spec = SamplingSpec(temperature=temperature, seed=5)
    allowed = (4, 8, VOCAB - 1)
    for step in range(40):
        rows = [
            SampleRow(spec, step),
            SampleRow(spec, step, allowed=mask_of(*allowed)),
            SampleRow(spec, step, allowed=mask_of(7)),
        ]
        found = sample(logits, rows)
        assert found[0] == sample(logits[:1], rows[:1])[0]
        assert found[1] == sample(logits[1:2], rows[1:2])[0]
        assert found[1].token_id in allowed
        assert found[2].token_id == 7
        assert found[2].logprob == pytest.approx(float(logits[2].log_softmax(-1)[7]), abs=1e-5)
        if not temperature:
            assert found[1].token_id == max(allowed, key=lambda token: float(logits[1, token]))


def test_the_distribution_is_that_of_the_allowed_tokens() -> None:
    logits = random_logits(1)
    spec = SamplingSpec(temperature=0.8, top_p=0.9, repetition_penalty=1.3)
    counts = [torch.bincount(torch.tensor(ids), minlength=VOCAB) for ids in (PROMPT, GENERATED)]
    allowed = torch.arange(0, VOCAB, 3)
    excluded = torch.full((VOCAB,), -math.inf)
    excluded[allowed] = 0
    shaped = shape_logits(logits, [SampleRow(spec, 0, TokenCounts(*counts), mask_of(*allowed.tolist()))])
    expected = oracle((logits + excluded)[0], spec)
    torch.testing.assert_close(shaped.softmax(-1)[0], expected, rtol=1e-5, atol=1e-7)


def test_tokens_beyond_the_mask_are_not_allowed() -> None:
    logits = random_logits(1)
    (found,) = sample(logits, [SampleRow(SamplingSpec(), 0, allowed=mask_of(3, num_bytes=1))])
    assert found.token_id == 3
