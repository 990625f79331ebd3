"""Writers of quantised weights by the published definitions of their formats, independent of what reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed(codes: Tensor, bits: int, dim: int) -> Tensor:
    """int32 elements that hold 32 / bits neighbours along `dim`, lowest bits first, padded with 0."""
    along = codes.movedim(dim, -1).long()
    in_word = 32 // bits
    padding = -along.shape[-1] % in_word
    along = torch.cat([along, along.new_zeros(*along.shape[:-1], padding)], -1)
    words = torch.zeros(*along.shape[:-1], along.shape[-1] // in_word, dtype=torch.int64)
    for i in range(in_word):
        words += along[..., i::in_word] << (bits * i)
    return words.where(words < 2**31, words - 2**32).to(torch.int32).movedim(-1, dim).contiguous()


def awq_packed(rows: Tensor) -> Tensor:
    """[n, out] with eight channels in an element, in AutoAWQ's order."""
    return packed(rows.view(len(rows), -1, 8)[..., AWQ_ORDER].flatten(1), 4, 1)


def weights_of(codes: Tensor, scales: Tensor, zeros: Tensor | int, group_of: Tensor) -> Tensor:
    """(code - zero) * scale, where column i is of group group_of[i]."""
    zero = zeros[:, group_of] if isinstance(zeros, Tensor) else zeros
    return (codes - zero).float() * scales.float()[:, group_of]


@dataclass(frozen=True, slots=True)
class Written:
    """A weight as a checkpoint holds it, and its values."""

    stored: dict[str, Tensor]
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Packer:
    """Quantises weights for one `quantization_config`."""

    config: dict[str, Any]
    write: Callable[[Tensor], Written]


def _rounded(weight: Tensor, group_of: Tensor, bits: int, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scales float16, zero points) that come near `weight` [out, in]."""
    groups = int(group_of.max()) + 1
    by_group = [weight[:, group_of == group] for group in range(groups)]
    low = torch.stack([part.amin(1).clamp(max=0) for part in by_group], 1)
    high = torch.stack([part.amax(1).clamp(min=0) for part in by_group], 1)
    if not zeros:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-4).half()
    points = (
        (-low / scales.float()).round().clamp(0, 2**bits - 1)
        if zeros
        else torch.full_like(low, 2 ** (bits - 1))
    )
    codes = (weight / scales.float()[:, group_of] + points[:, group_of]).round().clamp(0, 2**bits - 1)
    return codes.long(), scales, points.long()


def awq(group: int) -> Packer:
    """AutoAWQ's GEMM version."""

    def write(weight: Tensor) -> Written:
        group_of = torch.arange(weight.shape[1]) // group
        codes, scales, zeros = _rounded(weight, group_of, 4, zeros=True)
        stored = {
            "qweight": awq_packed(codes.T.contiguous()),
            "qzeros": awq_packed(zeros.T.contiguous()),
            "scales": scales.T.contiguous(),
        }
        return Written(stored, weights_of(codes, scales, zeros, group_of))

    return Packer({"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}, write)


def gptq(bits: int, group: int, act_order: bool) -> Packer:
    """AutoGPTQ, whose zero points are stored less by one."""

    def write(weight: Tensor) -> Written:
        group_of = torch.arange(weight.shape[1]) // group
        if act_order:
            group_of = group_of[torch.randperm(weight.shape[1])]
        codes, scales, zeros = _rounded(weight, group_of, bits, zeros=True)
        stored = {
            "qweight": packed(codes.T.contiguous(), bits, 0),
            "qzeros": packed((zeros.T.contiguous() - 1) % 2**bits, bits, 1),
            "scales": scales.T.contiguous(),
            "g_idx": group_of.to(torch.int32),
        }
        return Written(stored, weights_of(codes, scales, zeros, group_of))

    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order}
    return Packer(config, write)


def pack_quantized(bits: int, group: int, symmetric: bool) -> Packer:
    """compressed-tensors, `pack-quantized`."""

    def write(weight: Tensor) -> Written:
        group_of = torch.arange(weight.shape[1]) // group
        codes, scales, zeros = _rounded(weight, group_of, bits, zeros=not symmetric)
        stored = {
            "weight_packed": packed(codes, bits, 1),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored["weight_zero_point"] = packed(zeros, bits, 0)
        return Written(stored, weights_of(codes, scales, zeros, group_of))

    weights = {
        "num_bits": bits,
        "type": "int",
        "strategy": "group",
        "group_size": group,
        "symmetric": symmetric,
    }
    return Packer(_compressed("pack-quantized", weights), write)


def float_quantized() -> Packer:
    """compressed-tensors, `float-quantized` with a scale for each row."""

    def write(weight: Tensor) -> Written:
        scales = (weight.abs().amax(1, keepdim=True) / 448).clamp(min=1e-6)
        codes = (weight / scales).to(torch.float8_e4m3fn)
        return Written({"weight": codes, "weight_scale": scales}, codes.float() * scales)

    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    return Packer(_compressed("float-quantized", weights), write)


def fp8_blocks() -> Packer:
    """Blocks of 128 x 128, as DeepSeek-V3 and Qwen3-FP8 have them."""

    def write(weight: Tensor) -> Written:
        out, width = weight.shape
        scales = torch.rand(-(-out // 128), -(-width // 128)) * 0.01 + 0.01
        by_element = scales.repeat_interleave(128, 0)[:out].repeat_interleave(128, 1)[:, :width]
        codes = (weight / by_element).clamp(-448, 448).to(torch.float8_e4m3fn)
        return Written({"weight": codes, "weight_scale_inv": scales}, codes.float() * by_element)

    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    return Packer(config, write)


def _compressed(name: str, weights: dict[str, Any]) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "config_groups": groups,
        "ignore": ["lm_head"],
    }


PACKERS = {
    "awq": awq(32),
    "gptq": gptq(4, 32, act_order=False),
    "gptq-8": gptq(8, 32, act_order=False),
    "gptq-act-order": gptq(4, 32, act_order=True),
    "compressed-tensors": pack_quantized(4, 32, symmetric=True),
    "compressed-tensors-zeros": pack_quantized(8, 32, symmetric=False),
    "compressed-tensors-fp8": float_quantized(),
    "fp8": fp8_blocks(),
}
