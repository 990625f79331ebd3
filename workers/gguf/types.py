"""The types of tensors in a GGUF file: how many elements a block has, and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type of ggml."""

    name: str
    elements: int
    """Elements of a block. Rows are whole blocks."""
    num_bytes: int
    """Bytes of a block."""
    is_read: bool = True
    """Whether tensors of this type can be weights."""


def _block(name: str, elements: int, num_bytes: int, is_read: bool = True) -> BlockType:
    return BlockType(name, elements, num_bytes, is_read)


TYPES: Mapping[int, BlockType] = {
    0: _block("F32", 1, 4),
    1: _block("F16", 1, 2),
    2: _block("Q4_0", 32, 18),
    3: _block("Q4_1", 32, 20),
    6: _block("Q5_0", 32, 22),
    7: _block("Q5_1", 32, 24),
    8: _block("Q8_0", 32, 34),
    10: _block("Q2_K", 256, 84),
    11: _block("Q3_K", 256, 110),
    12: _block("Q4_K", 256, 144),
    13: _block("Q5_K", 256, 176),
    14: _block("Q6_K", 256, 210),
    16: _block("IQ2_XXS", 256, 66),
    17: _block("IQ2_XS", 256, 74),
    18: _block("IQ3_XXS", 256, 98),
    19: _block("IQ1_S", 256, 50),
    20: _block("IQ4_NL", 32, 18),
    21: _block("IQ3_S", 256, 110),
    22: _block("IQ2_S", 256, 82),
    23: _block("IQ4_XS", 256, 136),
    24: _block("I8", 1, 1, is_read=False),
    25: _block("I16", 1, 2, is_read=False),
    26: _block("I32", 1, 4, is_read=False),
    27: _block("I64", 1, 8, is_read=False),
    28: _block("F64", 1, 8, is_read=False),
    29: _block("IQ1_M", 256, 56),
    30: _block("BF16", 1, 2),
    34: _block("TQ1_0", 256, 54),
    35: _block("TQ2_0", 256, 66),
    39: _block("MXFP4", 32, 17),
}
"""Type by the number that a file has for it."""
READ_TYPES = tuple(block.name for block in TYPES.values() if block.is_read)
"""Names of the types that weights may have."""
BY_NAME: Mapping[str, BlockType] = {block.name: block for block in TYPES.values()}
