"""Attention of one query over selected blocks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.block_attention import cpu, gpu
from moorage.kernels.checks import FLOAT32, INT32, UINT8, check_array, check_multiple
from moorage.kernels.triton_support import has_triton

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


def attend_blocks(
    query: torch.Tensor,
    blocks: torch.Tensor,
    *,
    slot: Int32,
    begin: Int32,
    end: Int32,
    angle_cos: Float32,
    angle_sin: Float32,
    rotate_keys: NDArray[np.uint8],
    offset_cos: Float32,
    offset_sin: Float32,
    scale: float,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [Hq, D], lse [Hq]) in fp32 of one query over n entries; entry e holds rows [begin, end) of slot[e].

    query f32 [Hq, D]; blocks [S, 2, Hkv, B, D] fp16 or float32, un-rotated keys then values, its last two dimensions
    contiguous. The query meets entry e rotated by angle_cos, angle_sin [n, rd / 2] (pairs (i, i + rd / 2), channels
    from rd on pass through). Where rotate_keys [n], the key of row t is rotated by row t of offset_cos, offset_sin
    [B, rd / 2]; elsewhere keys are used as stored. One softmax of scale * logit over all entries, where a softcap c
    other than 0 makes x to c * tanh(x / c). Without any row out is 0 and lse -inf. Raises ValueError if arrays do not
    fit, or on the CPU if a row lies outside the blocks.
    """
    rotations = (angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin)
    _check(query, blocks, (slot, begin, end), rotations)
    arguments = query, blocks, (slot, begin, end), rotations, scale, softcap
    if query.device.type == "cpu":
        return cpu.attend_blocks(*arguments)
    if query.device.type == "cuda" and has_triton():
        from moorage.kernels.block_attention import triton

        return triton.attend_blocks(*arguments)
    return gpu.attend_blocks(*arguments)


def entry_lse(
    query: torch.Tensor,
    blocks: torch.Tensor,
    *,
    slot: Int32,
    begin: Int32,
    end: Int32,
    angle_cos: Float32,
    angle_sin: Float32,
    rotate_keys: NDArray[np.uint8],
    offset_cos: Float32,
    offset_sin: Float32,
    scale: float,
    softcap: float = 0.0,
) -> torch.Tensor:
    """[n, Hq] fp32: the log-sum-exp of each entry alone; exp(it - lse) is the attention that the entry receives.

    Arguments are those of `attend_blocks`. For measurements and caches that score blocks; not for every step.
    """
    rotations = (angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin)
    _check(query, blocks, (slot, begin, end), rotations)
    return gpu.entry_lse(query, blocks, (slot, begin, end), rotations, scale, softcap)


def _check(
    query: torch.Tensor,
    blocks: torch.Tensor,
    entries: tuple[Int32, Int32, Int32],
    rotations: tuple[Float32, Float32, NDArray[np.uint8], Float32, Float32],
) -> None:
    (slot, begin, end), (angle_cos, angle_sin, rotate_keys, offset_cos, offset_sin) = entries, rotations
    _, two, num_kv_heads, block_size, dim = blocks.shape
    check_array("slot", slot, INT32, (None,))
    check_array("begin", begin, INT32, slot.shape)
    check_array("end", end, INT32, slot.shape)
    check_array("rotate_keys", rotate_keys, UINT8, slot.shape)
    check_array("angle_cos", angle_cos, FLOAT32, (len(slot), None))
    check_array("angle_sin", angle_sin, FLOAT32, angle_cos.shape)
    check_array("offset_cos", offset_cos, FLOAT32, (block_size, angle_cos.shape[1]))
    check_array("offset_sin", offset_sin, FLOAT32, offset_cos.shape)
    check_multiple("query heads", query.shape[0], num_kv_heads)
    if two != 2 or query.shape[1:] != (dim,) or query.dtype != torch.float32 or 2 * angle_cos.shape[1] > dim:
        raise ValueError(
            f"query {tuple(query.shape)} {query.dtype} does not fit blocks {tuple(blocks.shape)}"
        )


__all__ = ["attend_blocks", "entry_lse"]
