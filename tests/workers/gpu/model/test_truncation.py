"""Few tokens in order give what all tokens in order give, wherever they suffice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moorage.workers.gpu.model.gumbel import gumbel_noise, noise_at, noise_stream
from moorage.workers.gpu.model.sampler import SampleRow, sample, shape_logits
from moorage.workers.gpu.model.truncation import MOST_KEPT, truncate, truncate_likeliest, truncate_sorted
from moorage.workers.spec import SamplingSpec

VOCAB = 8 * MOST_KEPT


def draw(num_rows: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("sizes", "top_p"),
    [
        ([1, 40, 1000], [2.0, 2.0, 2.0]),
        ([40, 40, 40], [0.9, 2.0, 0.01]),
        ([VOCAB, VOCAB, VOCAB], [0.9, 0.5, 1e-9]),
        ([VOCAB, 50, 7], [0.8, 0.95, 2.0]),
    ],
)
def test_equals_the_order_of_all_tokens(sizes: list[int], top_p: list[float], rounded: bool) -> None:
    logits = draw(3).round() if rounded else draw(3)  # rounded, many tokens are equally likely
    found = truncate_likeliest(logits, sizes, top_p)
    if not rounded:
        assert found is not None
    if found is not None:
        assert torch.equal(found, truncate_sorted(logits, sizes, top_p))


@pytest.mark.parametrize(
    ("scale", "sizes", "top_p"),
    [
        (0.01, [VOCAB], [0.9]),  # nearly uniform: 90 % of the mass is 90 % of the tokens
        (3.0, [MOST_KEPT], [2.0]),
        (3.0, [MOST_KEPT + 1], [2.0]),
        (3.0, [VOCAB], [2.0]),
        (0.0, [40], [2.0]),
    ],
)
def test_says_where_few_tokens_do_not_suffice(scale: float, sizes: list[int], top_p: list[float]) -> None:
    assert truncate_likeliest(draw(1, scale), sizes, top_p) is None


@pytest.mark.parametrize(
    ("spec", "size", "top_p"),
    [
        ({"top_k": 20}, 20, 2.0),
        ({"top_p": 0.9}, VOCAB, 0.9),
        ({"top_p": 0.9, "top_k": VOCAB + 9}, VOCAB, 0.9),
        ({"top_p": 0.9, "top_k": 2 * MOST_KEPT}, 2 * MOST_KEPT, 0.9),
    ],
)
@pytest.mark.parametrize("min_p", [0.0, 0.3])
def test_truncates_as_a_row_asks_for(spec: dict[str, Any], size: int, top_p: float, min_p: float) -> None:
    likely = truncate(draw(1), [SamplingSpec(temperature=1.0, min_p=min_p)])
    found = truncate(draw(1), [SamplingSpec(temperature=1.0, min_p=min_p, **spec)])
    assert torch.equal(found, truncate_sorted(likely, [size], [top_p]))


def test_noise_at_places_is_that_of_whole_rows() -> None:
    streams, places = [noise_stream(3, 0), noise_stream(9, 4)], torch.tensor([[0, 5, 700], [1, 2, 8000]])
    whole = gumbel_noise(streams, VOCAB, torch.device("cpu"))
    torch.testing.assert_close(noise_at(streams, places), whole.gather(1, places), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("spec", [{"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_draws_are_those_of_noise_for_all_tokens(spec: dict[str, Any]) -> None:
    logits = draw(2)
    for step in range(100):
        rows = [SampleRow(SamplingSpec(temperature=0.9, seed=seed, **spec), step) for seed in (1, 2)]
        streams = [noise_stream(row.spec.seed, row.step) for row in rows]
        noisy = shape_logits(logits, rows) + gumbel_noise(streams, VOCAB, logits.device)
        assert [each.token_id for each in sample(logits, rows)] == noisy.argmax(-1).tolist()
