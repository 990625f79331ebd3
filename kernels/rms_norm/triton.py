"""The norm on the GPU, one program for each row or head, and in one pass with the residual sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moorage.kernels.triton_support import power_of_2


@triton.jit
def _normed(values, weight, channel, inside, eps, DIM: tl.constexpr):
    wide = values.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / DIM + eps)
    scale = tl.load(weight + channel, mask=inside, other=0.0)
    rounded = normed.to(values.dtype)
    return (scale.to(tl.float32) * rounded.to(tl.float32)).to(values.dtype)


@triton.jit
def _norm(
    x, added, weight, out, row_stride, eps, DIM: tl.constexpr, PAD_DIM: tl.constexpr, ADD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PAD_DIM)
    inside = channel < DIM
    at = x + row * row_stride + channel
    values = tl.load(at, mask=inside, other=0.0)
    if ADD:
        more = tl.load(added + row * DIM + channel, mask=inside, other=0.0)
        # Rounded to the stored type before the norm, as two separate operations would.
        values = (values.to(tl.float32) + more.to(tl.float32)).to(values.dtype)
        tl.store(at, values, mask=inside)
    tl.store(out + row * DIM + channel, _normed(values, weight, channel, inside, eps, DIM), mask=inside)


@triton.jit
def _norm_heads(
    heads,
    q_weight,
    k_weight,
    row_heads,
    eps,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAD_DIM: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, PAD_DIM)
    inside = channel < DIM
    at = heads + (row * row_heads + head) * DIM + channel
    values = tl.load(at, mask=inside, other=0.0)
    weight = q_weight
    if head >= NUM_HEADS:
        weight = k_weight
    tl.store(at, _normed(values, weight, channel, inside, eps, DIM), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package."""
    dim = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, dim)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    _launch(rows, rows, weight, out, eps, add=False)
    return out


def add_rms_norm(x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the package."""
    assert x.is_contiguous()
    assert added.is_contiguous()
    assert x.dtype == added.dtype
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x.view(-1, x.shape[-1]), added, weight, out, eps, add=True)
    return out


def norm_heads(
    heads: torch.Tensor, num_heads: int, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float
) -> None:
    """See the package."""
    num_tokens, row_heads, dim = heads.shape
    assert heads.is_contiguous()
    if num_tokens:
        _norm_heads[(num_tokens, (num_heads + row_heads) // 2)](
            heads, q_weight, k_weight, row_heads, eps, num_heads, dim, power_of_2(dim), num_warps=1
        )


def _launch(
    rows: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, *, add: bool
) -> None:
    dim = rows.shape[1]
    if len(rows):
        padded = power_of_2(dim)
        warps = min(16, max(1, padded // 256))
        _norm[(len(rows),)](rows, added, weight, out, rows.stride(0), eps, dim, padded, add, num_warps=warps)
