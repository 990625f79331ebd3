"""Draws the next token of each session of a batch.

Order, as in vLLM: allowed tokens, penalties, temperature, min-p, top-k, top-p. Reported log-probabilities are the
model's own, before any of these. A row's draw depends on its logits, seed and step alone, never on its neighbours.

The draw is the largest of logit plus Gumbel noise, which follows the softmax of the logits exactly. Where rounding
changes the logits a little, as products in another batch do, another token is drawn only if two sums are as close as
that. A draw from the cumulative sum would shift every token behind the change.

Everything runs on the logits' device, and can be launched before the logits are computed: the host's values are
copied from pinned memory, and the only wait is for the tokens at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moorage.kernels.logit_rows import summarise_rows
from moorage.workers.gpu.model.gumbel import gumbel_noise, noise_at, noise_stream
from moorage.workers.gpu.model.truncation import MOST_KEPT, truncate
from moorage.workers.gpu.transfer.host_copy import HostCopy, on_device
from moorage.workers.spec import SamplingSpec

NOT_FINITE = "the model's logits are not finite numbers"


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """How often each token occurs, as integers [V]."""

    prompt: Tensor
    generated: Tensor

    def plus(self, token_ids: Sequence[int]) -> TokenCounts:
        """The counts after further generated tokens."""
        ids = on_device(token_ids, torch.int64, self.generated.device)
        ones = torch.ones_like(ids, dtype=self.generated.dtype)
        return TokenCounts(self.prompt, self.generated.index_add(0, ids, ones))


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row of logits to draw from."""

    spec: SamplingSpec
    step: int
    """Number of generated tokens before this one."""
    counts: TokenCounts | None = None
    """Needed where `spec.counts_tokens` is true."""
    allowed: bytes | None = None
    """One bit for each token, the lowest first: whether it may be drawn. Tokens beyond the last bit may not."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that was drawn from one row."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The `num_logprobs` likeliest tokens, best first."""
    error: str | None = None
    """Why no token could be drawn; the other fields then have no meaning."""


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
    """One token for each row of `logits` f32 [n, V]; `logits` stay as they are."""
    if not rows:
        return []
    shaped = shape_logits(logits, rows)
    token_ids, best, log_mass = _likeliest(logits)
    if shaped is not logits or not all(row.spec.is_greedy for row in rows):
        token_ids = _draw(shaped, rows)
        best = logits.gather(1, token_ids[:, None])[:, 0]
    found = [token_ids, best - log_mass, log_mass]
    num_top = min(max(row.spec.num_logprobs for row in rows), logits.shape[1])
    if num_top:
        top = logits.topk(num_top, dim=-1)
        found += [top.indices, top.values - log_mass[:, None]]
    columns = [tensor.tolist() for tensor in HostCopy(*found)()]
    columns += [] if num_top else [[()] * len(rows)] * 2
    return [_sampled(row, *column) for row, column in zip(rows, zip(*columns, strict=True), strict=True)]


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(likeliest token, its logit, log-sum-exp) of each row."""
    if logits.is_cuda:
        best, token_ids = logits.max(-1)
        return token_ids, best, logits.logsumexp(-1)
    # In torch these are several parallel regions, each as slow as other processes let its last thread be.
    token_ids, best, log_mass = map(torch.from_numpy, summarise_rows(logits.contiguous().numpy()))
    return token_ids, best, log_mass


def shape_logits(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Logits [n, V] whose softmax is what each row draws from; excluded tokens get -inf.

    Greedy rows are penalised only, after what they may not draw is excluded.
    """
    shaped = _penalise(_exclude(logits, rows), rows)
    drawn = [index for index, row in enumerate(rows) if not row.spec.is_greedy]
    if not drawn:
        return shaped
    specs = [rows[index].spec for index in drawn]
    part = _rows(shaped, drawn) / _column([spec.temperature for spec in specs], logits)
    part = truncate(part, specs)
    return part if len(drawn) == len(rows) else shaped.index_copy(0, _index(drawn, logits), part)


def _sampled(
    row: SampleRow,
    token_id: int,
    logprob: float,
    log_mass: float,
    top_ids: Sequence[int],
    top_logprobs: Sequence[float],
) -> Sampled:
    if not math.isfinite(log_mass):
        return Sampled(0, math.nan, error=NOT_FINITE)
    count = row.spec.num_logprobs
    return Sampled(token_id, logprob, tuple(zip(top_ids[:count], top_logprobs[:count], strict=True)))


def _exclude(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """-inf for tokens that are not allowed."""
    indices = [index for index, row in enumerate(rows) if row.allowed is not None]
    if not indices:
        return logits
    vocab_size = logits.shape[1]
    excluded = np.ones((len(indices), vocab_size), np.bool_)
    for place, index in enumerate(indices):
        bits = np.unpackbits(np.frombuffer(rows[index].allowed or b"", np.uint8), bitorder="little")[
            :vocab_size
        ]
        excluded[place, : len(bits)] = bits == 0
    part = _rows(logits, indices).masked_fill(torch.from_numpy(excluded).to(logits.device), -math.inf)
    return logits.index_copy(0, _index(indices, logits), part)


def _penalise(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Repetition (CTRL, arXiv 1909.05858) by prompt and output; presence and frequency by output alone."""
    indices = [index for index, row in enumerate(rows) if row.spec.counts_tokens]
    if not indices:
        return logits
    chosen = [rows[index] for index in indices]
    counts = [_counts_of(row) for row in chosen]
    prompt = torch.stack([each.prompt for each in counts])
    generated = torch.stack([each.generated for each in counts])
    part = _rows(logits, indices)
    repetition = _column([row.spec.repetition_penalty for row in chosen], logits)
    repeated = torch.where(part > 0, part / repetition, part * repetition)
    part = torch.where((prompt > 0) | (generated > 0), repeated, part)
    part = part - _column([row.spec.frequency_penalty for row in chosen], logits) * generated
    part = part - _column([row.spec.presence_penalty for row in chosen], logits) * (generated > 0)
    return logits.index_copy(0, _index(indices, logits), part)


def _counts_of(row: SampleRow) -> TokenCounts:
    if row.counts is None:
        raise ValueError("a row with penalties needs the counts of its tokens")
    return row.counts


def _draw(shaped: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Token ids int64 [n]: the largest logit of greedy rows, the largest of logit and noise of the others."""
    drawn = [index for index, row in enumerate(rows) if not row.spec.is_greedy]
    if not drawn:
        return shaped.argmax(-1)
    streams = [noise_stream(rows[index].spec.seed, rows[index].step) for index in drawn]
    found = _noisiest(_rows(shaped, drawn), streams)
    return found if len(drawn) == len(rows) else shaped.argmax(-1).index_copy(0, _index(drawn, shaped), found)


def _noisiest(shaped: Tensor, streams: Sequence[int]) -> Tensor:
    """The token of each row with the largest sum of logit and noise, the first of equal ones."""
    if not shaped.is_cuda and shaped.shape[1] > MOST_KEPT:
        most = int((shaped > -math.inf).sum(-1).max())
        if most <= MOST_KEPT:  # noise of the tokens that are left is all that is needed
            places = shaped.topk(max(most, 1), dim=-1).indices.sort(dim=-1).values
            noisy = shaped.gather(1, places) + noise_at(streams, places)
            return places.gather(1, noisy.argmax(-1, keepdim=True))[:, 0]
    return (shaped + gumbel_noise(streams, shaped.shape[1], shaped.device)).argmax(-1)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return on_device(values, like.dtype, like.device)[:, None]


def _index(values: Sequence[int], like: Tensor) -> Tensor:
    return on_device(values, torch.int64, like.device)


def _rows(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    return tensor if len(indices) == len(tensor) else tensor.index_select(0, _index(indices, tensor))
