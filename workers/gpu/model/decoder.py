"""The decoder: everything of a Llama-like transformer but attention itself, which the caller supplies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, silu

from moorage.kernels.rms_norm import rms_norm
from moorage.workers.gpu.model.weights import (
    DecoderWeights,
    LayerWeights,
    Progress,
    load_weights,
    resolve_dtype,
)
from moorage.workers.spec import ModelSpec

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [T, Hq, D], k [T, Hkv, D], v [T, Hkv, D]) -> [T, Hq, D]; un-rotated, and possibly views."""

MLP_WORKSPACE_BYTES = 128 * 2**20
"""Most memory of the feed-forward part's intermediate values; longer inputs go through it in pieces."""


class Decoder:
    """Weights of a model and their forward pass, over the tokens of any sessions laid end to end."""

    def __init__(self, spec: ModelSpec, weights: DecoderWeights) -> None:
        self.spec = spec
        self.weights = weights

    @classmethod
    def load(
        cls,
        directory: str | Path,
        spec: ModelSpec,
        dtype: str,
        device: torch.device | str,
        progress: Progress | None = None,
    ) -> Decoder:
        """The decoder of a Hugging Face directory. dtype: auto, float32, bfloat16 or float16.

        Raises InvalidModel for a directory that does not match `spec`, ResourceExhausted for want of room.
        """
        torch_dtype = resolve_dtype(dtype, spec)
        return cls(spec, load_weights(directory, spec, torch_dtype, torch.device(device), progress))

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and hidden states."""
        return self.weights.embed.dtype

    @property
    def device(self) -> torch.device:
        """Where weights and hidden states lie."""
        return self.weights.embed.device

    def forward(self, token_ids: Tensor, attend: Attend) -> Tensor:
        """Hidden states [T, hidden] after the final norm, of `token_ids`, int64 [T] on this device."""
        eps = self.spec.rms_norm_eps
        with torch.inference_mode():
            hidden = embedding(token_ids, self.weights.embed)
            for index, layer in enumerate(self.weights.layers):
                hidden += self._attention(index, layer, rms_norm(hidden, layer.input_norm, eps), attend)
                self._add_mlp(layer, hidden)
            return rms_norm(hidden, self.weights.norm, eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits f32 [n, vocab] of `hidden` [n, hidden], rows that `forward` returned."""
        with torch.inference_mode():
            return linear(hidden, self.weights.lm_head).float()

    def _attention(self, index: int, layer: LayerWeights, hidden: Tensor, attend: Attend) -> Tensor:
        spec = self.spec
        head_counts = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        heads = linear(hidden, layer.qkv, layer.qkv_bias).view(
            hidden.shape[0], sum(head_counts), spec.head_dim
        )
        q, k, v = heads.split_with_sizes(head_counts, dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, spec.rms_norm_eps), rms_norm(k, layer.k_norm, spec.rms_norm_eps)
        attended = attend(index, q, k, v).to(hidden.dtype)
        return linear(attended.flatten(1), layer.output, layer.output_bias)

    def _add_mlp(self, layer: LayerWeights, hidden: Tensor) -> None:
        """Add the feed-forward part to `hidden` in place, in pieces whose workspace is bounded."""
        bytes_per_token = 3 * self.spec.intermediate_size * hidden.element_size()
        at_once = max(1, MLP_WORKSPACE_BYTES // bytes_per_token)
        for piece in (hidden,) if hidden.shape[0] <= at_once else torch.split(hidden, at_once):
            normed = rms_norm(piece, layer.post_norm, self.spec.rms_norm_eps)
            gate, up = linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            piece += linear(silu(gate).mul_(up), layer.down, layer.down_bias)
