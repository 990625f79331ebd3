"""Dense attention on the GPU with its log-sum-exp: an online softmax over tiles of keys (FlashAttention).

Keys outside a tile's band are never read. Where everything is visible and the type is half, torch's own flash
attention takes over, which is faster on dense pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from moorage.kernels.softcap.triton import capped
from moorage.kernels.triton_support import power_of_2, shared_bytes

Band = tuple[int, int]
Partial = tuple[torch.Tensor, torch.Tensor]

EVERYTHING = 1 << 30
"""A distance that no two tokens have."""
FLASH_HEAD_SIZE = 256
"""Largest head of torch's flash attention."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries and keys of one step of the kernel, and how many steps' keys are loaded ahead."""

    rows: int
    keys: int
    stages: int

    def shared_bytes(self, dim: int, itemsize: int) -> int:
        """Upper bound of the shared memory that a program needs: queries, keys and values in flight, weights."""
        flying = 2 * self.keys * dim * self.stages
        return (self.rows * dim + flying + self.rows * self.keys) * itemsize


def tiles_for(dim: int, dtype: torch.dtype, limit_bytes: int) -> Tiles:
    """The largest tiles of a head of `dim` channels that fit `limit_bytes` of shared memory."""
    wide = dim > 128 or dtype == torch.float32
    shapes = ((64, 32), (32, 32), (32, 16)) if wide else ((128, 64), (64, 64), (64, 32), (32, 32), (32, 16))
    tried = [Tiles(rows, keys, stages) for rows, keys in shapes for stages in (3, 2)]
    fitting = (tiles for tiles in tried if tiles.shared_bytes(dim, dtype.itemsize) <= limit_bytes)
    return next(fitting, Tiles(16, 16, 1))


@triton.jit(do_not_specialize=["num_rows", "num_keys", "shift", "least", "most"])
def _attend(
    q,
    k,
    v,
    q_stride,
    k_stride,
    v_stride,
    out,
    lse,
    num_rows,
    num_keys,
    scale,
    shift,
    least,
    most,
    softcap,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAPPED: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = tile * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PAD_DIM)
    in_dim = (channel < DIM)[None, :]
    query = tl.load(
        q + head * q_stride + row[:, None] * DIM + channel[None, :],
        mask=(row < num_rows)[:, None] & in_dim,
        other=0.0,
    )
    keys = k + (head // GROUP) * k_stride
    values = v + (head // GROUP) * v_stride

    # Row r and key c are shift + r - c apart; the tile's rows together see keys [start, end).
    last_row = tl.minimum((tile + 1) * ROWS, num_rows) - 1
    start = tl.maximum(shift + tile * ROWS - most + 1, 0) // KEYS * KEYS
    end = tl.minimum(shift + last_row - least + 1, num_keys)
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PAD_DIM], tl.float32)
    for first in range(start, end, KEYS):
        place = first + tl.arange(0, KEYS)
        present = (place < num_keys)[:, None] & in_dim
        at = place[:, None] * DIM + channel[None, :]
        key = tl.load(keys + at, mask=present, other=0.0)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if CAPPED:
            logits = capped(logits, softcap)
        logits = logits * 1.4426950408889634
        distance = shift + row[:, None] - place[None, :]
        seen = (distance >= least) & (distance < most) & (place < num_keys)[None, :]
        logits = tl.where(seen, logits, -float("inf"))
        highest = tl.maximum(peak, tl.max(logits, axis=1))
        # While a row sees nothing its peak is -inf, and a difference of infinities would be NaN.
        level = tl.where(highest == -float("inf"), 0.0, highest)
        shrink = tl.exp2(peak - level)
        weights = tl.exp2(logits - level[:, None])
        value = tl.load(values + at, mask=present, other=0.0)
        sums = tl.dot(weights.to(value.dtype), value, sums * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        peak = highest

    divisor = tl.where(total == 0, 1.0, total)
    inside = row < num_rows
    rows = head * num_rows + row
    tl.store(
        out + rows[:, None] * DIM + channel[None, :], sums / divisor[:, None], mask=inside[:, None] & in_dim
    )
    tl.store(lse + rows, (peak + tl.log2(divisor)) * 0.6931471805599453, mask=inside)


def attend_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    band: Band | None = None,
    q_start: int = 0,
    k_start: int = 0,
    softcap: float = 0.0,
) -> Partial:
    """See the package."""
    if not q.numel() or not k.numel():
        return q.new_zeros(q.shape, dtype=torch.float32), q.new_full(
            q.shape[:2], -torch.inf, dtype=torch.float32
        )
    half = q.dtype in (torch.float16, torch.bfloat16)
    if band is None and half and not softcap and q.device.type == "cuda" and q.shape[2] <= FLASH_HEAD_SIZE:
        return _by_flash_attention(q, k, v, scale)
    return _by_kernel(q, k, v, scale, band, q_start - k_start, softcap)


def _by_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    band: Band | None,
    shift: int,
    softcap: float,
) -> Partial:
    q, k, v = (_rows_together(tensor) for tensor in (q, k, v))
    num_heads, num_rows, dim = q.shape
    least, most = (-EVERYTHING, EVERYTHING) if band is None else band
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    padded = power_of_2(dim, 16)
    tiles = tiles_for(padded, q.dtype, shared_bytes(q.device))
    rows, keys = min(tiles.rows, power_of_2(num_rows, 16)), min(tiles.keys, power_of_2(k.shape[1], 16))
    _attend[(-(-num_rows // rows), num_heads)](
        q,
        k,
        v,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out,
        lse,
        num_rows,
        k.shape[1],
        scale,
        shift,
        max(least, -EVERYTHING),
        min(most, EVERYTHING),
        softcap,
        num_heads // len(k),
        dim,
        padded,
        rows,
        keys,
        softcap > 0,
        num_warps=8 if rows == 128 else 4,
        num_stages=tiles.stages,
    )
    return out, lse


def _rows_together(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where a head's rows lie behind one another, else a copy in which they do."""
    return tensor if tensor.stride()[1:] == (tensor.shape[2], 1) else tensor.contiguous()


def _by_flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Partial:
    """Without a mask the queries of a group are just more rows of one head."""
    rows = q.reshape(len(k), -1, q.shape[2])
    batched = (tensor[None] for tensor in (rows, k, v))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*batched, scale=scale)
    return out[0].reshape(q.shape).float(), lse[0, :, : rows.shape[1]].reshape(q.shape[:2])
