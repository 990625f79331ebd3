"""Residual layouts, norms and scales of a decoder against formulas written out, one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from moorage.workers.gpu.model.allocation import random_weights
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.parameters import LayerWeights, MlpWeights, Norm
from moorage.workers.spec import ModelSpec, NormKind, QkNorm, Residual, RopeSpec

SPEC = ModelSpec(
    family="llama",
    num_layers=2,
    hidden_size=48,
    intermediate_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=99,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope=RopeSpec(rotary_dim=16),
    dtype="float32",
)
EPS = SPEC.rms_norm_eps


def decoder_of(**changes: object) -> Decoder:
    """A decoder whose weights, norms and biases all differ from what would hide an error."""
    spec = replace(SPEC, **changes)
    weights = random_weights(spec, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for tensor in weights.tensors():
        tensor.normal_(0.3 if tensor.dim() == 1 else 0.0, 0.5, generator=generator)
    return Decoder(spec, weights)


def normed(spec: ModelSpec, row: Tensor, norm: Norm) -> Tensor:
    if spec.norm is NormKind.LAYER:
        bias = torch.zeros_like(row) if norm.bias is None else norm.bias
        centred = row - row.mean()
        return centred / (centred.square().mean() + EPS).sqrt() * norm.weight + bias
    return row / (row.square().mean() + EPS).sqrt() * norm.weight


def fed(row: Tensor, mlp: MlpWeights) -> Tensor:
    gate, up = (mlp.gate_up @ row).chunk(2)
    return mlp.down @ (silu(gate) * up)


def heads_of(spec: ModelSpec, layer: LayerWeights, row: Tensor) -> Tensor:
    heads = (layer.qkv @ row).view(-1, spec.head_dim)
    ends = (0, spec.num_heads, spec.num_heads + spec.num_kv_heads)
    for weight, first, end in zip((layer.q_norm, layer.k_norm), ends, ends[1:], strict=False):
        part = heads[first:end]
        if spec.qk_norm is QkNorm.HEAD:
            heads[first:end] = part / (part.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
        elif spec.qk_norm is QkNorm.ALL_HEADS:
            assert weight is not None
            heads[first:end] = part / (part.square().mean() + EPS).sqrt() * weight.view(part.shape)
        elif spec.qk_norm is QkNorm.HEAD_LAYER:
            heads[first:end] = layer_norm(part, (spec.head_dim,), eps=EPS) * weight
    return heads


def expected(decoder: Decoder, token: int, attended: Iterator[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """(hidden state after the final norm, heads of every layer) of a token whose attention is given."""
    spec, weights = decoder.spec, decoder.weights
    hidden, heads = weights.embed[token] * spec.embedding_scale, []
    for layer in weights.layers:
        before = hidden if layer.input_norm is None else normed(spec, hidden, layer.input_norm)
        heads.append(heads_of(spec, layer, before))
        added = layer.output @ next(attended).flatten()
        if layer.attention_out_norm is not None:
            added = normed(spec, added, layer.attention_out_norm)
        with_attention = hidden + spec.residual_scale * added
        match spec.residual:
            case Residual.PARALLEL:
                more = fed(before, layer.feed_forward)
            case Residual.POST:
                more = fed(with_attention, layer.feed_forward)
            case _:
                more = fed(normed(spec, with_attention, layer.post_norm), layer.feed_forward)
        if layer.mlp_out_norm is not None:
            more = normed(spec, more, layer.mlp_out_norm)
        hidden = with_attention + spec.residual_scale * more
    return normed(spec, hidden, weights.norm), heads


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("qk_norm", list(QkNorm))
@pytest.mark.parametrize("norm", [(NormKind.RMS, False), (NormKind.LAYER, False), (NormKind.LAYER, True)])
@pytest.mark.parametrize("residual", list(Residual))
def test_every_layout_equals_its_formula(
    residual: Residual,
    norm: tuple[NormKind, bool],
    qk_norm: QkNorm,
    pieces: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if pieces:
        monkeypatch.setattr("moorage.workers.gpu.model.decoder.MLP_WORKSPACE_BYTES", 1500)
    decoder = decoder_of(
        residual=residual,
        norm=norm[0],
        norm_bias=norm[1],
        qk_norm=qk_norm,
        residual_scale=0.22,
        embedding_scale=12.0,
    )
    tokens = torch.tensor([3, 98, 0, 3, 41])
    attended = torch.randn(SPEC.num_layers, len(tokens), SPEC.num_heads, SPEC.head_dim)
    seen: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(torch.cat((q, k, v), dim=1).clone())
        return attended[layer]

    got = decoder.forward(tokens, attend)
    for row, token in enumerate(tokens.tolist()):
        want, heads = expected(decoder, token, iter(attended[:, row]))
        torch.testing.assert_close(got[row], want, atol=1e-4, rtol=1e-4)
        for layer in range(SPEC.num_layers):
            torch.testing.assert_close(seen[layer][row], heads[layer], atol=1e-4, rtol=1e-4)


def test_logits_are_scaled_and_capped() -> None:
    hidden = torch.randn(3, SPEC.hidden_size)
    plain = decoder_of().logits(hidden)
    torch.testing.assert_close(decoder_of(logit_scale=0.0625).logits(hidden), plain * 0.0625)
    torch.testing.assert_close(decoder_of(logit_softcap=3.0).logits(hidden), 3 * torch.tanh(plain / 3))
    both = decoder_of(logit_scale=0.5, logit_softcap=3.0).logits(hidden)
    torch.testing.assert_close(both, 3 * torch.tanh(plain / 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_keep_their_precision_in_half_types(dtype: torch.dtype) -> None:
    """A weight of 1.003 is 1 in bfloat16."""
    spec = replace(SPEC, dtype=str(dtype).removeprefix("torch."))
    weights = random_weights(spec, torch.device("cpu"))
    weights.norm.weight.fill_(1.003)
    hidden = torch.randn(2, SPEC.hidden_size).to(dtype)
    decoder = Decoder(spec, weights)
    got = decoder._norm(hidden, weights.norm)
    assert got.dtype == dtype
    wide = hidden.float()
    rounded = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(dtype)
    assert torch.equal(got, (rounded.float() * 1.003).to(dtype))
