"""What the worker launches on a GPU, in the shapes of 7B models, compiled to machine code without one.

python -m tests.kernels.triton.launches CAPABILITY SHARED_BYTES [every-format]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from moorage.kernels.block_attention import triton as block_attention
from moorage.kernels.block_gather import triton as block_gather
from moorage.kernels.block_score import triton as block_score
from moorage.kernels.decode_inputs import triton as decode_inputs
from moorage.kernels.packed_attention import triton as packed_attention
from moorage.kernels.packed_blocks.layout import packed_layout
from moorage.kernels.packed_blocks.triton import DeviceTables
from moorage.kernels.packed_gather import triton as packed_gather
from moorage.kernels.prefill_attention import triton as prefill_attention
from moorage.kernels.quantized_linear import triton as quantized_linear
from moorage.kernels.rms_norm import triton as rms_norm
from tests.kernels.packed_blocks_case import EXAMPLES, FAMILIES
from tests.kernels.quantized_matrices import draw_matrix
from tests.kernels.triton.ahead_of_time import compile_launches, gpu

HALF = torch.float16


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def packed_launches(shape: tuple[int, int, int, int], examples: Sequence[tuple[str, bool]]) -> Iterator[None]:
    """Of packed blocks in some formats; a shape is KV heads, group, block size and head size."""
    heads, group, size, dim = shape
    turns = block_attention.Turns(*(torch.zeros(size, dim // 2) for _ in range(4)))
    slots = torch.zeros(2, 2, heads, size, dim, dtype=HALF)
    for name, calibrated in examples:
        layout = packed_layout(FAMILIES[name], heads, size, dim, calibrated)
        scale = torch.zeros(heads, layout.width)
        tables = DeviceTables(torch.zeros(16), torch.zeros(16), scale, scale)
        stored = torch.zeros(3, layout.block_bytes, dtype=torch.uint8)
        queries = torch.zeros(1, heads * group, dim)
        packed_attention.attend_packed_lists(
            layout, tables, queries, stored, ints(6, 10), ints(2), turns, 0.1, 1, 4
        )
        packed_gather.expand_blocks(layout, tables, stored, ints(3), slots, ints(3))
        yield


def launches(every_format: bool) -> Iterator[None]:
    """One launch after the other."""
    yield from packed_launches(
        (8, 4, 128, 128), EXAMPLES if every_format else [("NUQ3", True), ("NF4", False)]
    )
    if every_format:
        yield from packed_launches((2, 16, 64, 256), EXAMPLES)
    for heads, group, size, dim in ((8, 4, 128, 128), (8, 4, 32, 128), (4, 1, 64, 96)):
        turns = block_attention.Turns(*(torch.zeros(size, dim // 2) for _ in range(4)))
        slots = torch.zeros(2, 2, heads, size, dim, dtype=HALF)
        queries = torch.zeros(1, heads * group, dim)
        block_attention.attend_lists(queries, slots, ints(6, 10), ints(2), turns, 0.1, 1, 4)
        yield
    block_gather.gather_pieces(slots, ints(3), slots, ints(3))
    block_gather.gather_pieces(slots, ints(3), slots, ints(3), ints(3))
    yield
    for dtype, dim in ((torch.bfloat16, 128), (HALF, 128), (torch.bfloat16, 256), (torch.float32, 128)):
        q, k = torch.zeros(8, 300, dim, dtype=dtype), torch.zeros(2, 300, dim, dtype=dtype)
        prefill_attention.attend_dense(q, k, k, 0.1, (0, 64), 5, 3)
        yield
    x, weight = torch.zeros(3, 4096, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16)
    rms_norm.rms_norm(x, weight, 1e-5)
    rms_norm.add_rms_norm(x, x, weight, 1e-5)
    rms_norm.norm_heads(torch.zeros(3, 48, 128, dtype=torch.bfloat16), 32, weight, weight, 1e-5)
    yield
    turn, slots = torch.zeros(3, 64), torch.zeros(2, 2, 8, 16, 128, dtype=HALF)
    for dtype in (torch.bfloat16, HALF):
        query, row = torch.zeros(32, 128, dtype=dtype), torch.zeros(8, 128, dtype=dtype)
        decode_inputs.decode_inputs(query, row, row, turn, turn, slots, 1, 3)
        decode_inputs.turn_query(query.float(), turn, turn)
        yield
    for kind in ("int4_minima", "table4", "int8", "float8"):
        matrix = draw_matrix(np.random.default_rng(0), kind, (4096, 4096), 32)
        for dtype in (torch.bfloat16, HALF):
            quantized_linear.quantized_linear(torch.zeros(3, 4096, dtype=dtype), matrix)
        yield
    for quest in (True, False):
        anchors = torch.zeros(9, 8, 2, 128, dtype=HALF)
        block_score.score_blocks(anchors, ints(70), torch.zeros(1, 32, 128), quest)
        yield


if __name__ == "__main__":
    capability, limit = map(int, sys.argv[1:3])
    # A tensor here lies on the CPU; the wrappers shall select for the GPU that is compiled for.
    prefill_attention.shared_bytes = lambda _: limit
    compiled = compile_launches(lambda: list(launches("every-format" in sys.argv)), gpu(capability))
    for kernel in compiled:
        if kernel.shared_bytes > limit or not kernel.machine_code:
            sys.exit(f"{kernel.name}: {kernel.shared_bytes} bytes of shared memory; {limit} there are")
    print(" ".join(sorted({kernel.name for kernel in compiled})))
