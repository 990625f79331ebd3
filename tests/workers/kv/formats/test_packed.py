"""Formats of few bits, with quantizers and without."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from moorage.workers.errors import InvalidConfig
from moorage.workers.kv.formats import int4, nf4, nuq2, nuq3, nuq4
from moorage.workers.kv.formats.packed import BlockCodec, PackedBlocks
from moorage.workers.kv.formats.quantizer import (
    LayerQuantizer,
    Quantizer,
    least_error_levels,
    normal_levels,
)
from moorage.workers.spec import BlockShape

SHAPE = BlockShape(3, 64, 64)
FORMATS = {"INT4": int4.FORMAT, "NF4": nf4.FORMAT} | {
    f"NUQ{found.FORMAT.bits}": found.FORMAT for found in (nuq4, nuq3, nuq2)
}
PAGES = np.array([2, 0], np.int32)


@pytest.fixture
def blocks(rng: np.random.Generator) -> np.ndarray:
    """[2, 2, Hkv, B, D]: normal numbers, of which 1 % are ten times as large."""
    found = rng.standard_normal((2, 2, *SHAPE))
    return np.where(rng.random(found.shape) < 0.005, 10 * found, found).astype(np.float16)


def quantizer_of(blocks: np.ndarray, bits: int, num_layers: int = 2) -> Quantizer:
    """Quantizers that differ from layer to layer in their levels alone."""
    keys = (
        np.moveaxis(np.clip(blocks[:, 0], -3, 3), 0, 1)
        .reshape(SHAPE.num_kv_heads, -1, SHAPE.head_dim)
        .astype(np.float32)
    )
    low, high = keys.min(1), keys.max(1)
    levels = least_error_levels(bits) if bits == 2 else normal_levels(bits)
    layer = LayerQuantizer(levels, levels, (high - low) / 2, (high + low) / 2, low, high)
    layers = [replace(layer, key_levels=levels * (1 - 0.1 * i)) for i in range(num_layers)]
    assert not any(each.fault(bits) for each in layers)
    return Quantizer(bits, tuple(layers))


def through(codec: BlockCodec, blocks: np.ndarray, layer: int = 0) -> np.ndarray:
    """Blocks after they were packed and unpacked."""
    stored = np.zeros((3, codec.layout_of(0).block_bytes), np.uint8)
    assert codec.encode(layer, blocks.view(np.uint16), stored, PAGES)
    assert not stored[1].any()
    out = np.zeros((4, *blocks.shape[1:]), np.uint16)
    codec.decode(layer, stored, PAGES, out, np.array([3, 1], np.int32))
    assert not out[::2].any()
    return out[[3, 1]].view(np.float16).astype(np.float32)


def error(found: np.ndarray, blocks: np.ndarray) -> float:
    """Root of the mean squared error, in standard deviations."""
    wanted = blocks.astype(np.float32)
    return float(np.sqrt(((found - wanted) ** 2).mean() / wanted.var()))


@pytest.mark.parametrize(
    ("name", "most"), [("INT4", 0.14), ("NF4", 0.24), ("NUQ4", 0.08), ("NUQ3", 0.165), ("NUQ2", 0.36)]
)
def test_blocks_come_back_with_an_error_of_their_bits(blocks: np.ndarray, name: str, most: float) -> None:
    found = FORMATS[name]
    assert error(through(found.codec(SHAPE), blocks), blocks) < most
    assert found.block_bytes(SHAPE) == found.codec(SHAPE).layout_of(0).block_bytes


@pytest.mark.parametrize("name", ["NUQ4", "NUQ3", "NUQ2"])
def test_a_quantizer_makes_blocks_smaller(blocks: np.ndarray, name: str) -> None:
    found = FORMATS[name]
    codec = found.codec(SHAPE, quantizer_of(blocks, found.bits))
    own = found.codec(SHAPE)
    assert (
        codec.layout_of(0).block_bytes
        == found.block_bytes(SHAPE, calibrated=True)
        < own.layout_of(0).block_bytes
    )
    assert error(through(codec, blocks), blocks) < 1.15 * error(through(own, blocks), blocks)


def test_each_layer_has_its_own_levels(blocks: np.ndarray) -> None:
    codec = nuq3.FORMAT.codec(SHAPE, quantizer_of(blocks, 3))
    first, second = (through(codec, blocks, layer) for layer in (0, 1))
    assert (first[:, 0] != second[:, 0]).mean() > 0.5
    np.testing.assert_array_equal(first[:, 1], second[:, 1])


def test_with_feedback_a_channel_makes_up_for_another(blocks: np.ndarray) -> None:
    blocks[:, 0] = blocks[:, 0].clip(-3, 3)
    made = quantizer_of(blocks, 3, 1)
    feedback = np.zeros((SHAPE.num_kv_heads, SHAPE.head_dim, SHAPE.head_dim))
    feedback[:, 0, 1] = -1  # a query sees the sum of the first two channels alone
    fed = Quantizer(3, (replace(made.layers[0], key_feedback=feedback),))
    plain, summed = (through(nuq3.FORMAT.codec(SHAPE, each), blocks)[:, 0] for each in (made, fed))
    keys = blocks[:, 0].astype(np.float32)
    np.testing.assert_array_equal(plain[..., 2:], summed[..., 2:])
    np.testing.assert_array_equal(plain[..., 0], summed[..., 0])
    missed = [(((found - keys)[..., :2].sum(-1)) ** 2).mean() for found in (plain, summed)]
    assert missed[1] < 0.8 * missed[0]


@pytest.mark.parametrize("name", ["INT4", "NF4"])
def test_a_quantizer_means_nothing_to_other_formats(blocks: np.ndarray, name: str) -> None:
    found = FORMATS[name]
    assert not found.takes_quantizer
    assert found.block_bytes(SHAPE, calibrated=True) == found.block_bytes(SHAPE)
    given = found.codec(SHAPE, quantizer_of(blocks, 4))
    np.testing.assert_array_equal(through(given, blocks), through(found.codec(SHAPE), blocks))


def test_a_block_of_too_many_tokens_is_one_clear_line() -> None:
    with pytest.raises(InvalidConfig, match=r"block_size: 1024; .* 512 tokens at most .*; set a smaller one"):
        nuq3.FORMAT.block_bytes(BlockShape(8, 1024, 128))


@pytest.mark.parametrize(("name", "found"), FORMATS.items())
def test_sizes_need_no_kernels(name: str, found: PackedBlocks) -> None:
    module = f"moorage.workers.kv.formats.{name.lower()}"
    code = (
        f"import sys; from {module} import FORMAT; from moorage.workers.spec import BlockShape\n"
        "print(FORMAT.block_bytes(BlockShape(2, 16, 64)), 'numba' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(found.block_bytes(BlockShape(2, 16, 64))), "False"]
