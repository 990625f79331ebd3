"""What the bytes of GGUF blocks mean: codes, with a scale and perhaps a minimum for each group of them.

The value of an element is scale * meaning + minimum. The layouts are those of ggml: `block_q4_0`, `block_q4_K` …
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""What a code of 4 bits means in these types, the latter doubled."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one type, taken apart."""

    codes: Tensor
    """[n, elements]: uint8 where a code is a number from 0 to 15, else int8."""
    scales: Tensor
    """float32 [n, groups]."""
    minima: Tensor | None = None
    """Minima in the shape of `scales`; None is 0."""
    zero: int = 0
    """The code that means 0."""
    table: tuple[int, ...] | None = None
    """The meaning of each code, where it is not the code less `zero`."""

    def values(self) -> Tensor:
        """The elements f32 [n, elements]."""
        if self.table is None:
            values = self.codes.float()
            values -= self.zero
        else:
            values = torch.tensor(self.table, dtype=torch.float32)[self.codes.int()]
        groups = values.view(*self.scales.shape, -1)
        groups *= self.scales.unsqueeze(-1)
        if self.minima is not None:
            groups += self.minima.unsqueeze(-1)
        return values


def take_apart(raw: Tensor, dtype: str) -> Blocks:
    """Blocks uint8 [n, bytes of a block] of a type that LAYOUTS has."""
    return LAYOUTS[dtype](raw)


def _fields(raw: Tensor, bits: int, run: int) -> Tensor:
    """Numbers of so many bits, uint8 [n, 8 / bits * bytes]: of each run of bytes the lowest bits, then the others."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    runs = raw.reshape(raw.shape[0], -1, 1, run)
    fields: Tensor = (runs >> shifts.view(-1, 1)) & (2**bits - 1)
    return fields.flatten(1)


def _half(raw: Tensor) -> Tensor:
    """float16 numbers as float32 [n, bytes / 2]."""
    return raw.contiguous().view(torch.float16).float()


def _signed(codes: Tensor, zero: int) -> Tensor:
    return codes.to(torch.int8) - zero


def _q8_0(raw: Tensor) -> Blocks:
    return Blocks(raw[:, 2:].contiguous().view(torch.int8), _half(raw[:, :2]))


def _q4_0(raw: Tensor) -> Blocks:
    return Blocks(_fields(raw[:, 2:], 4, 16), _half(raw[:, :2]), zero=8)


def _q4_1(raw: Tensor) -> Blocks:
    return Blocks(_fields(raw[:, 4:], 4, 16), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q5_0(raw: Tensor) -> Blocks:
    codes = _fields(raw[:, 6:], 4, 16) | _fields(raw[:, 2:6], 1, 1) << 4
    return Blocks(_signed(codes, 16), _half(raw[:, :2]))


def _q5_1(raw: Tensor) -> Blocks:
    codes = _fields(raw[:, 8:], 4, 16) | _fields(raw[:, 4:8], 1, 1) << 4
    return Blocks(_signed(codes, 0), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q2_k(raw: Tensor) -> Blocks:
    scale, least = _half(raw[:, 80:82]), _half(raw[:, 82:])
    packed = raw[:, :16]
    return Blocks(
        _fields(raw[:, 16:80], 2, 32), scale * (packed & 15).float(), -(least * (packed >> 4).float())
    )


def _q3_k(raw: Tensor) -> Blocks:
    codes = _fields(raw[:, 32:96], 2, 32) | _fields(raw[:, :32], 1, 32) << 2
    factors = _fields(raw[:, 96:104], 4, 8) | _fields(raw[:, 104:108], 2, 4) << 4
    # A set bit of the first 32 bytes means that nothing is taken away, so the code of 0 is 4.
    return Blocks(codes, _half(raw[:, 108:]) * _signed(factors, 32).float(), zero=4)


def _k_groups(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of Q4_K and Q5_K: 8 factors of 6 bits for each, in 12 bytes after their common scales."""
    first, second, rest = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat((first & 63, (rest & 15) | (first >> 6 << 4)), dim=1)
    minima = torch.cat((second & 63, (rest >> 4) | (second >> 6 << 4)), dim=1)
    return _half(raw[:, :2]) * scales.float(), -(_half(raw[:, 2:4]) * minima.float())


def _q4_k(raw: Tensor) -> Blocks:
    return Blocks(_fields(raw[:, 16:], 4, 32), *_k_groups(raw))


def _q5_k(raw: Tensor) -> Blocks:
    codes = _fields(raw[:, 48:], 4, 32) | _fields(raw[:, 16:48], 1, 32) << 4
    return Blocks(_signed(codes, 0), *_k_groups(raw))


def _q6_k(raw: Tensor) -> Blocks:
    codes = _fields(raw[:, :128], 4, 64) | _fields(raw[:, 128:192], 2, 32) << 4
    factors = raw[:, 192:208].contiguous().view(torch.int8).float()
    return Blocks(_signed(codes, 32), _half(raw[:, 208:]) * factors)


def _iq4_nl(raw: Tensor) -> Blocks:
    return Blocks(_fields(raw[:, 2:], 4, 16), _half(raw[:, :2]), table=IQ4_VALUES)


def _iq4_xs(raw: Tensor) -> Blocks:
    factors = _fields(raw[:, 4:8], 4, 1) | _fields(raw[:, 2:4], 2, 1) << 4
    scales = _half(raw[:, :2]) * _signed(factors, 32).float()
    return Blocks(_fields(raw[:, 8:], 4, 16), scales, table=IQ4_VALUES)


def _mxfp4(raw: Tensor) -> Blocks:
    # The exponent of a doubled table: a power of two less.
    scales = torch.ldexp(torch.ones(len(raw), 1), raw[:, :1].int() - 128)
    return Blocks(_fields(raw[:, 1:], 4, 16), scales, table=MXFP4_VALUES)


LAYOUTS: Mapping[str, Callable[[Tensor], Blocks]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
"""The types whose blocks are a scale and codes; others are dequantised by the package gguf."""
