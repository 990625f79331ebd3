"""compressed-tensors (LLM Compressor): weights of 4 or 8 bits, used as weights alone.

`pack-quantized`: weight_packed int32 [out, in * bits / 32] of codes plus 2^(bits - 1), weight_scale [out, groups],
weight_zero_point packed over rows, weight_g_idx [in], weight_shape [2]. `int-quantized`: weight int8 [out, in].
`float-quantized`: weight E4M3 [out, in]. weight = (code - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.kernels.code_kinds import CodeKind
from moorage.workers.gpu.model.matrix_kind import MatrixKind, integers
from moorage.workers.gpu.model.quantization.base import (
    FLOATS,
    WORDS,
    StoredTensor,
    groups_of,
)
from moorage.workers.gpu.model.quantization.fp8 import CODES
from moorage.workers.hf_fields import Fields

if TYPE_CHECKING:
    from torch import Tensor

    from moorage.workers.gpu.model.quantized import Matrix

PACKED, INTEGERS, FLOAT8 = "pack-quantized", "int-quantized", "float-quantized"
STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """See WeightFormat."""

    format: str
    bits: int
    strategy: str
    group_size: int | None
    """Channels of a group of the strategy `group`."""
    block: tuple[int, int] | None
    """Sizes of a block of the strategy `block`."""
    symmetric: bool
    reorders: bool
    """Whether weight_g_idx says which group a channel is of."""

    @property
    def marks(self) -> tuple[str, ...]:
        """See WeightFormat."""
        return ("weight_packed", "weight_scale")

    def tensors(self, shape: tuple[int, int]) -> Mapping[str, StoredTensor]:
        """See WeightFormat."""
        out, width = shape
        in_word = 32 // self.bits
        found = {"weight_scale": StoredTensor(self._scales(shape), FLOATS)}
        if self.format == PACKED:
            found["weight_packed"] = StoredTensor((out, -(-width // in_word)), WORDS)
            found["weight_shape"] = StoredTensor((2,), ("I64", "I32"))
        else:
            found["weight"] = StoredTensor(shape, ("I8",) if self.format == INTEGERS else CODES)
        if not self.symmetric and self.format == PACKED:
            packed = (-(-out // in_word), self._scales(shape)[1])
            found["weight_zero_point"] = StoredTensor(packed, WORDS)
        elif self.format != FLOAT8:
            found["weight_zero_point"] = StoredTensor(self._scales(shape), ("I8",), optional=self.symmetric)
        if self.reorders:
            found["weight_g_idx"] = StoredTensor((width,), ("I32", "I64"))
        for name in ("input_scale", "input_zero_point"):
            found[name] = StoredTensor((1,), (*FLOATS, "I8"), optional=True)
        return found

    def _scales(self, shape: tuple[int, int]) -> tuple[int, ...]:
        if self.block is not None:
            return tuple(-(-size // step) for size, step in zip(shape, self.block, strict=True))
        if self.strategy == "tensor":
            return (1,)
        return (shape[0], groups_of(shape[1], self.group_size))

    def kind(self, shape: tuple[int, int]) -> MatrixKind:
        """See WeightFormat."""
        group = self._group(shape)
        code = CodeKind.FLOAT8 if self.format == FLOAT8 else integers(self.bits)
        return MatrixKind(code, group, scale_bytes=4, has_minima=not self.symmetric, has_order=self.reorders)

    def _group(self, shape: tuple[int, int]) -> int:
        group = self.group_size or (self.block[1] if self.block else shape[1])
        while shape[1] % group:
            group //= 2
        return group

    def matrix(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Matrix:
        """See WeightFormat."""
        from moorage.workers.gpu.model.quantization import decode

        out, width = shape
        scales, middle = stored["weight_scale"], 2 ** (self.bits - 1)
        if self.format == FLOAT8:
            return decode.float8(stored["weight"], scales, self.block, self._group(shape))
        scales = scales.reshape(-1, scales.shape[-1]).expand(out, -1)
        zeros = None
        if self.format == PACKED:
            codes = decode.unpacked(stored["weight_packed"], self.bits, 1, width)
            if not self.symmetric:
                zeros = decode.unpacked(stored["weight_zero_point"], self.bits, 0, out)
        else:
            codes = decode.unsigned(stored["weight"])
            if not self.symmetric:
                zeros = stored["weight_zero_point"].short().expand(out, -1) + middle
        order = decode.order_of_groups(stored.get("weight_g_idx"), width, scales.shape[1], self.reorders)
        return decode.affine(codes, scales, zeros, bits=self.bits, order=order)


def read(config: Fields) -> CompressedTensors:
    """See FormatReader."""
    groups = config.child("config_groups")
    if groups is None or len(groups.values) != 1:
        raise config.wrong("config_groups", "one group; weights quantised in several ways are not supported")
    group = groups.child(next(iter(groups.values)))
    weights = None if group is None else group.child("weights")
    if group is None or weights is None:
        raise config.wrong("config_groups", "a group with an object `weights`")
    if group.get("targets") not in (None, ["Linear"]):
        raise group.wrong("targets", '["Linear"]')
    name, bits = group.get("format") or config.get("format"), weights.positive_int("num_bits")
    widths = {PACKED: (4, 8), INTEGERS: (8,), FLOAT8: (8,)}
    if name not in widths:
        raise config.wrong("format", ", ".join(widths))
    if bits not in widths[str(name)] or weights.get("type") != ("float" if name == FLOAT8 else "int"):
        raise weights.wrong("num_bits", f"of a type and width that {name} has: {widths[str(name)]} bits")
    return _of_strategy(str(name), bits, weights)


def _of_strategy(name: str, bits: int, weights: Fields) -> CompressedTensors:
    strategy = weights.get("strategy")
    if strategy not in STRATEGIES:
        raise weights.wrong("strategy", ", ".join(STRATEGIES))
    block = weights.get("block_structure")
    if strategy == "block" and not (isinstance(block, list) and len(block) == 2 and name == FLOAT8):
        raise weights.wrong("block_structure", f"two numbers of rows and columns, of {FLOAT8}")
    return CompressedTensors(
        format=name,
        bits=bits,
        strategy=str(strategy),
        group_size=weights.positive_int("group_size") if strategy == "group" else None,
        block=(block[0], block[1]) if strategy == "block" and isinstance(block, list) else None,
        symmetric=weights.flag("symmetric", True),
        reorders=weights.get("actorder") == "group",
    )
