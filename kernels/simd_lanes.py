"""Vectors of 16 float32 in LLVM's language, and which instructions of this processor compiled code may use."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils

LANES = 16
"""float32 lanes of a vector."""
FLOAT, HALF = ir.FloatType(), ir.HalfType()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOATS, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
FUSED = ("contract",)
"""Lets a product and the sum that takes it be rounded once."""


def host_has(feature: str) -> bool:
    """Whether kernels are compiled for this processor, and it has a feature by LLVM's name."""
    this_one = numba.config.CPU_NAME in (None, "", "host") and not numba.config.CPU_FEATURES
    return this_one and bool(llvmlite.binding.get_host_cpu_features().get(feature, False))


def all_lanes(element: ir.Type, value: float) -> Any:
    """A constant vector of equal lanes."""
    return ir.Constant(ir.VectorType(element, LANES), [value] * LANES)


def splat(builder: Any, value: Any) -> Any:
    """A vector with `value`, a float32 or a word, in all lanes."""
    empty = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    lane = builder.insert_element(empty, value, I32(0))
    return builder.shuffle_vector(lane, empty, ir.Constant(WORDS, [0] * LANES))


def multiply_add(builder: Any, left: Any, right: Any, added: Any) -> Any:
    """left * right + added, rounded once."""
    return builder.fadd(builder.fmul(left, right, flags=FUSED), added, flags=FUSED)


def fused(builder: Any, left: Any, right: Any, added: Any) -> Any:
    """`multiply_add` where `added` is a product, too: it is the one that is rounded, and not left to the compiler."""
    if not host_has("fma"):
        return multiply_add(builder, left, right, added)
    return call(builder, f"llvm.fma.v{LANES}f32", FLOATS, [left, right, added])


def call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    """Calls one of LLVM's own functions."""
    kind = ir.FunctionType(result, [each.type for each in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
