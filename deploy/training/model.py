"""A Llama decoder written for training: whole sequences, no cache, and the names of the Hugging Face layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama decoder with tied embeddings."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_tokens: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5


class Norm(nn.Module):
    """Root-mean-square normalisation of the last dimension, with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype as `x`; computed in fp32."""
        return functional.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self._eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._heads, self._kv_heads, self._head_dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, hidden] and the angles' cos, sin [T, head_dim] give [B, T, hidden]."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self._heads, self._head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self._kv_heads, self._head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self._kv_heads, self._head_dim).transpose(1, 2)
        group = self._heads // self._kv_heads
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same shape."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention, then feed-forward, each on the normalised stream and added to it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, T, hidden] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Llama(nn.Module):
    """Token ids to logits. `state_dict` has the names of Hugging Face's Llama without the leading "model."."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def draw(self, seed: int) -> None:
        """Initial weights: normal, narrower where a layer adds to the stream."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                continue
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / (2 * self.shape.num_layers) ** 0.5 if adds else 0.02
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states [B, T, hidden] of token ids int64 [B, T], after the last norm."""
        x = self.embed_tokens(ids)
        cos, sin = angles(self.shape, ids.shape[1], x.device)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of hidden states: the embeddings again."""
        return functional.linear(hidden, self.embed_tokens.weight)


def angles(shape: Shape, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin f32 [num_tokens, head_dim] of the rotary angles at positions 0 to num_tokens - 1."""
    half = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32) / shape.head_dim
    angle = torch.arange(num_tokens, device=device, dtype=torch.float32)[:, None] / shape.rope_theta**half
    both = torch.cat((angle, angle), dim=-1)
    return both.cos(), both.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)
