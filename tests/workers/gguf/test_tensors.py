"""Tensors of every type are what the package gguf makes of their bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moorage.kernels.quantized_linear import dequantize
from moorage.workers.errors import InvalidModel
from moorage.workers.gguf import tensors
from moorage.workers.gguf.blocks import LAYOUTS
from moorage.workers.gguf.matrices import KINDS
from moorage.workers.gguf.tensors import MatrixReader, read_tensor
from moorage.workers.gguf.types import BY_NAME, READ_TYPES
from moorage.workers.gguf.weights import GgufTensor

ROWS, WIDTH = 6, 512


def stored(tmp_path: Path, data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> GgufTensor:
    """A tensor of these bytes, behind others, in a file."""
    file = tmp_path / "tensor"
    file.write_bytes(b"before" + data.tobytes() + b"after")
    return GgufTensor("t", file, dtype, shape, len(b"before"), data.nbytes)


def random_blocks(rng: np.random.Generator, dtype: str) -> NDArray[np.uint8]:
    """Rows of blocks of random bytes: every code, scale and minimum comes up, those that are not finite too."""
    block = BY_NAME[dtype]
    return rng.integers(0, 256, (ROWS, WIDTH // block.elements * block.num_bytes), dtype=np.uint8)


@pytest.mark.parametrize("dtype", READ_TYPES)
def test_every_type_is_dequantised_as_by_gguf(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(tensors, "PIECE_ELEMENTS", 1024)
    data = random_blocks(rng, dtype)
    ours = read_tensor(stored(tmp_path, data, dtype, (ROWS, WIDTH)), torch.float32)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(data, gguf.GGMLQuantizationType[dtype]).astype(np.float32)
    assert np.isfinite(theirs).mean() > 0.8
    np.testing.assert_array_equal(ours.numpy(), theirs)


def finite_blocks(rng: np.random.Generator, dtype: str, rows: int) -> NDArray[np.uint8]:
    """Blocks of random codes and factors, whose scales of 16 bits are near 2^-6, as those of weights are."""
    block = BY_NAME[dtype]
    blocks = rng.integers(0, 256, (rows * WIDTH // block.elements, block.num_bytes), dtype=np.uint8)
    for at in SCALES_AT.get(dtype, (0,)):
        blocks[:, at : at + 2] = rng.uniform(0.01, 0.02, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    if dtype == "MXFP4":
        blocks[:, 0] = rng.integers(110, 130, len(blocks), dtype=np.uint8)
    return blocks


SCALES_AT = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
} | {
    "Q6_K": (208,),
    "MXFP4": (),
}
"""Where a block has its numbers of 16 bits, beside the first bytes."""


@pytest.mark.parametrize("dtype", KINDS)
def test_a_matrix_of_the_files_codes(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Types of one level are kept exactly; the others within the rounding of scale and minimum to 16 bits."""
    monkeypatch.setattr(tensors, "PIECE_ELEMENTS", 16 * WIDTH)
    header = stored(tmp_path, finite_blocks(rng, dtype, 40), dtype, (40, WIDTH))
    matrix, exact = MatrixReader(header).rows(0, 40), read_tensor(header, torch.float32)
    assert matrix.shape == (40, WIDTH)
    assert matrix.nbytes <= KINDS[dtype].num_bytes((48, WIDTH)) + 64
    is_exact = "K" not in dtype and dtype != "IQ4_XS"
    largest = exact.abs().amax().item()
    atol = 0.0 if is_exact else 1e-3 * largest
    torch.testing.assert_close(dequantize(matrix), exact, rtol=0, atol=atol)
    order = torch.from_numpy(rng.permutation(40))
    torch.testing.assert_close(
        dequantize(MatrixReader(header).picked(order)), exact[order], rtol=0, atol=atol
    )
    torch.testing.assert_close(dequantize(MatrixReader(header).rows(16, 33)), exact[16:33], rtol=0, atol=atol)


def test_types_of_the_families_people_run_need_no_package() -> None:
    assert {
        "Q8_0",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
    } <= LAYOUTS.keys()


def test_the_type_of_the_weights_saves_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    header = stored(tmp_path, random_blocks(rng, "Q8_0"), "Q8_0", (ROWS, WIDTH))
    exact = read_tensor(header, torch.float32)
    assert read_tensor(header, torch.float16).dtype == torch.float32
    torch.testing.assert_close(read_tensor(header, torch.bfloat16), exact.bfloat16(), equal_nan=True)


def test_a_file_that_ends_before_its_tensor(tmp_path: Path) -> None:
    header = stored(tmp_path, np.zeros(64, np.uint8), "F32", (16,))
    header.file.write_bytes(b"before" + bytes(10))
    with pytest.raises(InvalidModel, match="tensor: ends within tensor t; download it again"):
        read_tensor(header, torch.float32)
