"""Compiles what the wrappers launch for a GPU that is not there: each launch becomes a compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a launch would have run."""

    name: str
    shared_bytes: int
    machine_code: bytes


def gpu(capability: int) -> GPUTarget:
    """A CUDA GPU of a compute capability: 90 is Hopper, 89 is Ada."""
    return GPUTarget("cuda", capability, 32)


def compile_launches(run: Callable[[], object], target: GPUTarget) -> list[Compiled]:
    """Calls `run`, whose tensors lie on the CPU, and compiles each kernel that it launches instead of running it."""
    found: list[Compiled] = []

    def compile_only(self: JITFunction[Any], *args: Any, **options: Any) -> None:
        signature, constants, aligned = {}, {}, {}
        for place, (parameter, value) in enumerate(zip(self.params, args, strict=True)):
            if parameter.is_constexpr:
                signature[parameter.name], constants[(place,)] = "constexpr", value
                continue
            signature[parameter.name] = mangle_type(value)
            if parameter.do_not_specialize or isinstance(value, float):
                continue
            divisible = isinstance(value, torch.Tensor) or value % 16 == 0
            if divisible:
                aligned[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self, signature, constants, aligned)
        kept = {name: value for name, value in options.items() if name in OPTIONS}
        kernel = triton.compile(source, target=target, options=kept)
        found.append(Compiled(self.__name__, kernel.metadata.shared, kernel.asm["cubin"]))

    launch = JITFunction.run
    JITFunction.run = compile_only
    try:
        run()
    finally:
        JITFunction.run = launch
    return found
