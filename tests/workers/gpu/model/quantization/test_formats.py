"""Formats of quantised checkpoints: what a packer writes by the published definition is read as the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.linear import linear
from moorage.workers.gpu.model.quantization import FORMATS, WeightFormat, read_format
from moorage.workers.gpu.model.quantized import Matrix, QuantizedMatrix, ReorderedMatrix, dequantize
from moorage.workers.hf_fields import Fields
from tests.workers.gpu.model.quantization.packers import awq_packed, packed, weights_of

SHAPES = [(16, 32), (48, 64), (64, 256), (8, 128)]


def format_of(**config: Any) -> WeightFormat:
    found = read_format(Fields({"quantization_config": config}, "config.json"))
    assert found is not None
    return found


def refusal(**config: Any) -> str:
    with pytest.raises(InvalidModel) as caught:
        format_of(**config)
    message = str(caught.value)
    assert message.startswith("config.json: quantization_config: ")
    assert "\n" not in message
    return message


def value_of(matrix: Matrix) -> Tensor:
    """The weights [out, in] in their own order of channels."""
    if isinstance(matrix, ReorderedMatrix):
        sorted_columns = dequantize(matrix.matrix)
        return torch.empty_like(sorted_columns).index_copy_(1, matrix.order, sorted_columns)
    assert isinstance(matrix, QuantizedMatrix)
    return dequantize(matrix)


def check(format: WeightFormat, stored: dict[str, Tensor], weight: Tensor) -> Matrix:
    """The matrix, after a comparison of names, shapes, kind, values and product."""
    shape = (weight.shape[0], weight.shape[1])
    expected = format.tensors(shape)
    assert stored.keys() <= expected.keys()
    assert {name for name, tensor in expected.items() if not tensor.optional} <= stored.keys()
    for name, tensor in stored.items():
        assert tuple(tensor.shape) == expected[name].shape, name
    matrix = format.matrix(stored, shape)
    assert matrix.shape == shape
    inner = matrix.matrix if isinstance(matrix, ReorderedMatrix) else matrix
    assert isinstance(inner, QuantizedMatrix)
    kind = format.kind(shape)
    assert (inner.kind, inner.group_size) == (kind.code, kind.group_size)
    assert (inner.scales.element_size(), inner.minima is not None) == (kind.scale_bytes, kind.has_minima)
    torch.testing.assert_close(value_of(matrix), weight, atol=1e-6, rtol=1e-5)
    x = torch.randn(3, shape[1])
    torch.testing.assert_close(linear(x, matrix), x @ weight.T, atol=1e-4, rtol=1e-4)
    return matrix


def grouped(out: int, width: int, group: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes [out, in], scales float16 [out, groups] and zero points [out, groups]."""
    codes = torch.randint(0, 2**bits, (out, width))
    scales = (torch.rand(out, width // group) + 0.5).mul_(0.01).half()
    return codes, scales, torch.randint(0, 2**bits, scales.shape)


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("shape", SHAPES)
def test_awq(shape: tuple[int, int], group: int) -> None:
    out, width = shape
    size = width if group == -1 else group
    codes, scales, zeros = grouped(out, width, size, 4)
    stored = {
        "qweight": awq_packed(codes.T.contiguous()),
        "qzeros": awq_packed(zeros.T.contiguous()),
        "scales": scales.T.contiguous(),
    }
    awq = format_of(quant_method="awq", bits=4, group_size=group, zero_point=True, version="gemm")
    check(awq, stored, weights_of(codes, scales, zeros, torch.arange(width) // size))


@pytest.mark.parametrize("order", ["in order", "act-order", "none"])
@pytest.mark.parametrize(("name", "offset"), [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_gptq(shape: tuple[int, int], bits: int, name: str, offset: int, order: str) -> None:
    out, width = shape
    codes, scales, zeros = grouped(out, width, 32, bits)
    zeros[0, 0] = 0
    group_of = torch.arange(width) // 32
    if order == "act-order":
        group_of = group_of[torch.randperm(width)]
    stored = {
        "qweight": packed(codes.T.contiguous(), bits, 0),
        "qzeros": packed((zeros.T.contiguous() - offset) % 2**bits, bits, 1),
        "scales": scales.T.contiguous(),
    }
    if order != "none":
        stored["g_idx"] = group_of.to(torch.int32)
    gptq = format_of(
        quant_method="gptq", bits=bits, group_size=32, desc_act=order == "act-order", checkpoint_format=name
    )
    matrix = check(gptq, stored, weights_of(codes, scales, zeros, group_of))
    assert isinstance(matrix, ReorderedMatrix) == (order == "act-order")


def test_gptq_refuses_groups_of_different_sizes() -> None:
    codes, scales, zeros = grouped(16, 64, 32, 4)
    stored = {
        "qweight": packed(codes.T.contiguous(), 4, 0),
        "qzeros": packed(zeros.T.contiguous(), 4, 1),
        "scales": scales.T.contiguous(),
        "g_idx": torch.tensor([0] * 33 + [1] * 31, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match="g_idx does not divide 64 channels into 2 groups"):
        format_of(quant_method="gptq", bits=4, group_size=32, desc_act=True).matrix(stored, (16, 64))
    stored["g_idx"] = torch.arange(64).flip(0).to(torch.int32) // 32
    with pytest.raises(ValueError, match="desc_act is not true"):
        format_of(quant_method="gptq", bits=4, group_size=32).matrix(stored, (16, 64))


def compressed(name: str, bits: int, strategy: str, **weights: Any) -> WeightFormat:
    kind = "float" if name == "float-quantized" else "int"
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, **weights}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return format_of(quant_method="compressed-tensors", format=name, config_groups=groups, ignore=["lm_head"])


@pytest.mark.parametrize("actorder", [None, "weight", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(16, 32), (20, 64), (64, 256)])
def test_compressed_tensors_packed(
    shape: tuple[int, int], bits: int, symmetric: bool, actorder: str | None
) -> None:
    out, width = shape
    codes, scales, zeros = grouped(out, width, 32, bits)
    group_of = torch.arange(width) // 32
    if actorder == "group":
        group_of = group_of[torch.randperm(width)]
    stored = {
        "weight_packed": packed(codes, bits, 1),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor(shape),
    }
    middle: Tensor | int = 2 ** (bits - 1)
    if not symmetric:
        stored["weight_zero_point"] = packed(zeros, bits, 0)
    if actorder == "group":
        stored["weight_g_idx"] = group_of.to(torch.int32)
    format = compressed(
        "pack-quantized", bits, "group", group_size=32, symmetric=symmetric, actorder=actorder
    )
    weight = weights_of(codes, scales.bfloat16(), middle if symmetric else zeros, group_of)
    check(format, stored, weight)


@pytest.mark.parametrize("strategy", ["channel", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_integers(strategy: str, symmetric: bool) -> None:
    codes = torch.randint(-128, 128, (24, 64)).to(torch.int8)
    rows = 24 if strategy == "channel" else 1
    scales, zeros = torch.rand(rows, 1) + 0.5, torch.randint(-9, 9, (rows, 1)).to(torch.int8)
    stored = {"weight": codes, "weight_scale": scales if strategy == "channel" else scales[0]}
    if not symmetric:
        stored["weight_zero_point"] = zeros if strategy == "channel" else zeros[0]
    weight = (codes.float() - (0 if symmetric else zeros.float())) * scales
    check(compressed("int-quantized", 8, strategy, symmetric=symmetric), stored, weight)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_compressed_tensors_floats(strategy: str) -> None:
    codes, scales = floats(24, 64), torch.rand(24 if strategy == "channel" else 1, 1) + 0.5
    stored = {"weight": codes, "weight_scale": scales if strategy == "channel" else scales[0]}
    check(compressed("float-quantized", 8, strategy), stored, codes.float() * scales)


@pytest.mark.parametrize("shape", [(128, 256), (130, 128), (48, 192), (24, 64)])
def test_fp8_in_blocks(shape: tuple[int, int]) -> None:
    """Also weights whose last blocks are not whole."""
    codes = floats(*shape)
    scales = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) + 0.5
    by_element = scales.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    fp8 = format_of(quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128])
    check(fp8, {"weight": codes, "weight_scale_inv": scales}, codes.float() * by_element)
    blocks = compressed("float-quantized", 8, "block", block_structure=[128, 128])
    check(blocks, {"weight": codes, "weight_scale": scales}, codes.float() * by_element)


def test_fp8_of_a_whole_weight_and_of_rows() -> None:
    codes, scale, rows = floats(24, 64), torch.tensor(0.02), torch.rand(24, 1)
    whole = format_of(quant_method="fp8", activation_scheme="static")
    check(whole, {"weight": codes, "weight_scale": scale, "input_scale": scale}, codes.float() * 0.02)
    check(format_of(quant_method="fbgemm_fp8"), {"weight": codes, "weight_scale": rows}, codes.float() * rows)


def test_plain_floats_have_no_format() -> None:
    assert read_format(Fields({"quantization_config": None}, "config.json")) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported"),
        ({}, "quant_method None is not supported"),
        ({"quant_method": "awq", "bits": 3}, "bits is 3"),
        ({"quant_method": "awq", "version": "gemv"}, "version is 'gemv'"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point"),
        ({"quant_method": "awq", "group_size": 0}, "group_size is 0"),
        ({"quant_method": "gptq", "bits": 2}, "bits is 2"),
        ({"quant_method": "gptq"}, "bits is missing"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "compressed-tensors", "format": "dense"}, "config_groups is missing"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    assert words in refusal(**({"any": 1} | config))


@pytest.mark.parametrize(
    ("name", "bits", "strategy", "weights", "words"),
    [
        ("marlin-24", 4, "group", {}, "format is 'marlin-24'"),
        ("pack-quantized", 3, "group", {}, "num_bits is 3"),
        ("int-quantized", 4, "channel", {}, "num_bits is 4"),
        ("int-quantized", 8, "token", {}, "strategy is 'token'"),
        ("pack-quantized", 4, "group", {}, "group_size is missing"),
        ("float-quantized", 8, "block", {}, "block_structure is missing"),
        ("pack-quantized", 4, "group", {"type": "float"}, "num_bits"),
    ],
)
def test_compressed_tensors_refuses_what_it_does_not_compute(
    name: str, bits: int, strategy: str, weights: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidModel) as caught:
        compressed(name, bits, strategy, **weights)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_shape_that_can_not_be_stored_is_refused(name: str) -> None:
    config: dict[str, Any] = {"quant_method": name, "bits": 4, "group_size": 32}
    if name == "compressed-tensors":
        format = compressed("pack-quantized", 4, "group", group_size=32)
    else:
        format = format_of(**config)
    with pytest.raises(ValueError, match="can't be"):
        format.tensors((16, 33))
