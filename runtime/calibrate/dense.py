"""A decoder's forward pass in plain torch, through which gradients flow to the keys and values of every layer.

The decoder that serves works in place and calls compiled kernels, so autograd can't follow it. This one has the same
weights, computes attention densely, and runs each layer twice to hold the intermediate values of one layer alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from moorage.kernels.experts import route, sum_experts
from moorage.runtime.calibrate.dense_attention import attend
from moorage.workers.gpu.model.activations import SWISH_LIMIT, SWISH_SLOPE
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.parameters import ExpertsWeights, LayerWeights, MlpWeights, Norm
from moorage.workers.gpu.model.quantized import (
    Matrix,
    QuantizedMatrix,
    ReorderedMatrix,
    StackedMatrix,
    dequantize,
)
from moorage.workers.gpu.model.rope import cos_sin, rope_view
from moorage.workers.spec import Activation, ExpertScores, NormKind, QkNorm, Residual


class LayerRows(NamedTuple):
    """The un-rotated keys and values of a layer [T, Hkv, D] in fp32, and the gradient of the summed loss by them."""

    keys: Tensor
    values: Tensor
    key_gradients: Tensor
    value_gradients: Tensor


class DenseDecoder:
    """The forward pass of one sequence over the weights of `decoder`. Hidden states are fp32."""

    def __init__(self, decoder: Decoder) -> None:
        self.spec, self.weights = decoder.spec, decoder.weights

    def rows(self, ids: Tensor) -> tuple[float, list[LayerRows]]:
        """The mean loss of the tokens `ids`, int64 [T], in nats, and the rows of the layers that the stores hold."""
        spec = self.spec
        shape = (2, len(ids), spec.num_kv_heads, spec.head_dim)
        # What is added to keys and values is 0; the gradient by it is that by keys and values.
        added = [torch.zeros(shape, device=ids.device, requires_grad=True) for _ in self.weights.layers]
        rows: list[Tensor] = [torch.empty(0)] * len(added)
        with torch.enable_grad():
            hidden = self._embed(ids)
            for index, layer in enumerate(self.weights.layers):
                hidden, rows[index] = checkpoint(
                    self._layer, index, layer, hidden, added[index], use_reentrant=False
                )
            loss = functional.cross_entropy(self._logits(hidden[:-1]), ids[1:], reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        found = []
        for index in spec.stored_layers:
            gradients = added[index].grad
            assert gradients is not None
            found.append(LayerRows(*rows[index].detach(), *gradients))
        return loss.item() / (len(ids) - 1), found

    def _embed(self, ids: Tensor) -> Tensor:
        embed = functional.embedding(ids, _dense(self.weights.embed)).float()
        return embed * torch.tensor(self.spec.embedding_scale, dtype=self.weights.dtype).item()

    def _logits(self, hidden: Tensor) -> Tensor:
        spec = self.spec
        logits = linear(self._norm(hidden, self.weights.norm), self.weights.lm_head) * spec.logit_scale
        cap = spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _layer(self, index: int, layer: LayerWeights, hidden: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states after a layer, and its keys and values [2, T, Hkv, D]."""
        normed = hidden if layer.input_norm is None else self._norm(hidden, layer.input_norm)
        attended, rows = self._attention(index, layer, normed, added)
        scale = self.spec.residual_scale

        def feed_forward(rows: Tensor, norm: Norm | None) -> Tensor:
            return self._feed_forward(layer, rows if norm is None else self._norm(rows, norm))

        match self.spec.residual:
            case Residual.PARALLEL:
                return hidden + scale * (attended + self._feed_forward(layer, normed)), rows
            case Residual.PRE:
                hidden = hidden + scale * attended
                return hidden + scale * feed_forward(hidden, layer.post_norm), rows
            case Residual.POST | Residual.SANDWICH:
                assert layer.attention_out_norm is not None
                assert layer.mlp_out_norm is not None
                hidden = hidden + scale * self._norm(attended, layer.attention_out_norm)
                added_rows = self._norm(feed_forward(hidden, layer.post_norm), layer.mlp_out_norm)
                return hidden + scale * added_rows, rows

    def _attention(
        self, index: int, layer: LayerWeights, normed: Tensor, added: Tensor
    ) -> tuple[Tensor, Tensor]:
        spec, own = self.spec, self.spec.layer(index)
        heads = linear(normed, layer.qkv, layer.qkv_bias).view(len(normed), -1, spec.head_dim)
        q, k, v = heads.split_with_sizes([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        q, k = self._norm_heads(layer, q, k)
        rows = torch.stack((k, v)) + added
        k, v = rows
        if own.rotates:
            view = rope_view(own.rope or spec.rope, len(normed))
            cos, sin = cos_sin(view, torch.arange(len(normed), device=normed.device))
            scales = (view.attention_scale**2, view.attention_scale**2 * view.unrotated)
            q, k = _rotated(q, cos, sin, scales), _rotated(k, cos, sin, (1.0, 1.0))
        out = attend(q, k, v, spec.softmax_scale, own.window, spec.attention_softcap, layer.sinks)
        return linear(out.flatten(1), layer.output, layer.output_bias), rows

    def _norm_heads(self, layer: LayerWeights, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        kind, eps = self.spec.qk_norm, self.spec.rms_norm_eps
        if kind is QkNorm.NONE:
            return q, k
        assert layer.q_norm is not None
        assert layer.k_norm is not None
        pairs = ((q, layer.q_norm), (k, layer.k_norm))
        match kind:
            case QkNorm.HEAD:
                first, second = (_rms_norm(x, weight, eps) for x, weight in pairs)
            case QkNorm.HEAD_LAYER:
                first, second = (functional.layer_norm(x, x.shape[-1:], eps=eps) * w for x, w in pairs)
            case QkNorm.ALL_HEADS:
                first, second = (_rms_norm(x.flatten(1), weight, eps).view(x.shape) for x, weight in pairs)
        return first, second

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        if self.spec.norm is NormKind.RMS:
            return _rms_norm(x, norm.weight, self.spec.rms_norm_eps)
        return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, self.spec.rms_norm_eps)

    def _feed_forward(self, layer: LayerWeights, normed: Tensor) -> Tensor:
        weights = layer.feed_forward
        if isinstance(weights, MlpWeights):
            return self._mlp(normed, weights)
        return self._experts(normed, weights)

    def _experts(self, normed: Tensor, weights: ExpertsWeights) -> Tensor:
        spec = self.spec.experts
        assert spec is not None
        logits = linear(normed, weights.router, weights.router_bias)
        routing = route(logits, spec.per_token, spec.scores is ExpertScores.SOFTMAX_NORMALIZED)
        out = sum_experts(
            normed, routing, spec.num_experts, lambda i, rows: self._mlp(rows, weights.experts.of(i))
        )
        if weights.shared is None:
            return out
        shared = self._mlp(normed, weights.shared)
        if weights.shared_weight is not None:
            shared = shared * linear(normed, weights.shared_weight).sigmoid()
        return out + shared

    def _mlp(self, normed: Tensor, weights: MlpWeights) -> Tensor:
        gate, up = linear(normed, weights.gate_up, weights.gate_up_bias).chunk(2, dim=-1)
        match self.spec.activation:
            case Activation.SILU:
                inner = functional.silu(gate) * up
            case Activation.GELU_TANH:
                inner = functional.gelu(gate, approximate="tanh") * up
            case Activation.CLAMPED_SWISH:
                gate = gate.clamp(max=SWISH_LIMIT)
                inner = torch.sigmoid(gate * SWISH_SLOPE) * gate * (up.clamp(-SWISH_LIMIT, SWISH_LIMIT) + 1)
        return linear(inner, weights.down, weights.down_bias)


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
    """x [T, in] times the transposed `weight`, plus `bias`, in fp32; multiplied in the type of the weight."""
    if isinstance(weight, StackedMatrix):
        out = torch.cat([linear(x, part) for part in weight.parts], dim=-1)
    else:
        if isinstance(weight, ReorderedMatrix):
            x, weight = x[:, weight.order], weight.matrix
        matrix = _dense(weight)
        out = functional.linear(x.to(matrix.dtype), matrix).float()
    return out if bias is None else out + bias


def _dense(weight: Tensor | QuantizedMatrix) -> Tensor:
    return weight if isinstance(weight, Tensor) else dequantize(weight)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, scales: tuple[float, float]) -> Tensor:
    """x [T, H, D] rotated by cos, sin [T, rotary_dim / 2]; `scales` multiply channels that rotate, and the others."""
    half = cos.shape[-1]
    cos, sin = cos[:, None] * scales[0], sin[:, None] * scales[0]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest * scales[1]), dim=-1)
