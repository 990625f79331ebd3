"""Dense attention with its log-sum-exp by every kernel that the machine has, against fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moorage.kernels.prefill_attention import triton as kernel

Partial = tuple[torch.Tensor, torch.Tensor]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Partial:
    """In fp64; q [Hq, T, D], k, v [Hkv, N, D]."""
    group = len(q) // len(k)
    keys, values = (x.double().repeat_interleave(group, 0) for x in (k, v))
    logits = q.double() @ keys.transpose(1, 2) * scale
    return torch.softmax(logits, -1) @ values, torch.logsumexp(logits, -1)


def by_flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Partial:
    return kernel._by_flash_attention(q, k, v, scale)


def by_triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Partial:
    return kernel._by_kernel(q, k, v, scale, None, 0)


def by_cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Partial:
    group = len(q) // len(k)
    keys, values = (x.repeat_interleave(group, 0)[None] for x in (k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q[None], keys, values, None, True, 0.0, False, scale=scale
    )
    return out[0].float(), lse[0].reshape(q.shape[:2])


@pytest.mark.parametrize("shape", [(32, 8, 1000, 3000, 128), (8, 2, 65, 4097, 64)])
@pytest.mark.parametrize("attend", [by_flash_attention, by_triton, by_cudnn])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_attention(
    device: torch.device,
    dtype: torch.dtype,
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Partial],
    shape: tuple[int, ...],
) -> None:
    """At most twice the error of plain torch in the same type, plus one rounding."""
    num_heads, num_kv_heads, rows, keys, dim = shape
    generator = torch.Generator(device=device).manual_seed(0)
    q, k, v = (
        torch.randn(heads, n, dim, generator=generator, device=device).to(dtype)
        for heads, n in ((num_heads, rows), (num_kv_heads, keys), (num_kv_heads, keys))
    )
    scale = dim**-0.5
    want_out, want_lse = exact(q, k, v, scale)
    plain = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], scale=scale, enable_gqa=True
    )[0]
    out, lse = attend(q, k, v, scale)
    allowed = 2 * (plain.double() - want_out).abs().max() + torch.finfo(dtype).eps
    assert (out.double() - want_out).abs().max() <= allowed
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-3, atol=1e-2)
