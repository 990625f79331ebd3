"""Frequencies against transformers, angles against arbitrary precision, rotation against complex numbers."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from moorage.workers.gpu.model.rope import RopeView, cos_sin, rope_view, rotate
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_rope import read_rope
from moorage.workers.spec import RopeSpec

HEAD_DIM = 64
MAX_POSITIONS = 4096
SHORT = [1.0 + 0.01 * i for i in range(HEAD_DIM // 2)]
LONG = [1.0 + 0.5 * i for i in range(HEAD_DIM // 2)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 1024,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
CASES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": YARN,
    "yarn-untruncated": {**YARN, "truncate": False, "beta_fast": 24.0, "beta_slow": 2.0},
    "yarn-attention-factor": {**YARN, "attention_factor": 1.3},
    "yarn-mscale": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.4},
    "yarn-mscale-zero": {**YARN, "mscale": 1.0, "mscale_all_dim": 0},
    "yarn-zeros": {**YARN, "mscale": 0, "mscale_all_dim": 0, "beta_fast": 0, "beta_slow": 0},
    "yarn-mscale-alone": {**YARN, "mscale": 0.8},
    "yarn-factor-one": {**YARN, "factor": 1.0},
    "longrope": LONGROPE,
    "longrope-factor": {**LONGROPE, "factor": 16.0},
    "longrope-attention-factor": {**LONGROPE, "attention_factor": 1.2},
    "llama3": LLAMA3,
    "llama3-wide": {**LLAMA3, "factor": 32.0, "high_freq_factor": 64.0},
}


def configured(
    parameters: dict[str, Any], theta: float = 10000.0, **fields: Any
) -> tuple[LlamaConfig, RopeSpec]:
    parameters = {**parameters, "rope_theta": theta}
    fields = {"max_position_embeddings": MAX_POSITIONS, **fields}
    hf_config = LlamaConfig(
        hidden_size=4 * HEAD_DIM, num_attention_heads=4, rope_parameters=dict(parameters), **fields
    )
    return hf_config, read_rope(Fields({"rope_parameters": parameters, **fields}, "config"), HEAD_DIM)


@pytest.mark.parametrize("seq_len", [1, 1024, 1025, 4096, 4097, 1_000_000])
@pytest.mark.parametrize("theta", [10000.0, 5e7])
@pytest.mark.parametrize("name", CASES)
def test_frequencies_equal_transformers(name: str, theta: float, seq_len: int) -> None:
    hf_config, spec = configured(CASES[name], theta)
    if spec.rope_type == "default":
        expected, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(hf_config)
    else:
        expected, scale = ROPE_INIT_FUNCTIONS[spec.rope_type](hf_config, seq_len=seq_len)
    view = rope_view(spec, seq_len)
    assert view.inv_freq.dtype == torch.float64
    torch.testing.assert_close(view.inv_freq, expected.double(), rtol=3e-6, atol=0)
    assert view.attention_scale == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "dynamic", "yarn", "llama3"])
def test_partial_rotation_equals_transformers(name: str) -> None:
    hf_config, spec = configured({**CASES[name], "partial_rotary_factor": 0.5})
    expected, _ = ROPE_INIT_FUNCTIONS[name](hf_config, seq_len=9000)
    assert spec.rotary_dim == HEAD_DIM // 2
    torch.testing.assert_close(rope_view(spec, 9000).inv_freq, expected.double(), rtol=3e-6, atol=0)


def test_dynamic_is_default_until_the_trained_length() -> None:
    _, dynamic = configured(CASES["dynamic"])
    _, default = configured(CASES["default"])
    assert torch.equal(rope_view(dynamic, MAX_POSITIONS).inv_freq, rope_view(default, 1).inv_freq)
    assert (rope_view(dynamic, MAX_POSITIONS + 1).inv_freq[1:] < rope_view(default, 1).inv_freq[1:]).all()


@pytest.mark.parametrize("name", ["default", "dynamic", "yarn", "llama3"])
def test_angles_are_exact_at_four_million_tokens(name: str) -> None:
    _, spec = configured(CASES[name], theta=5e6)
    view = rope_view(spec, 4_000_000)
    positions = torch.tensor([0, 1, 4097, 1_048_575, 2**21 + 1, 3_999_999])
    cos, sin = cos_sin(view, positions)
    with mpmath.workdps(50):
        for row, position in enumerate(positions.tolist()):
            for channel, frequency in enumerate(view.inv_freq.tolist()):
                angle = mpmath.mpf(position) * mpmath.mpf(frequency)
                assert cos[row, channel].item() == pytest.approx(float(mpmath.cos(angle)), abs=1e-7)
                assert sin[row, channel].item() == pytest.approx(float(mpmath.sin(angle)), abs=1e-7)


def test_default_frequencies_are_exact() -> None:
    _, spec = configured(CASES["default"], theta=5e6)
    with mpmath.workdps(50):
        for channel, frequency in enumerate(rope_view(spec, 1).inv_freq.tolist()):
            exact = mpmath.mpf(5_000_000) ** (-mpmath.mpf(2 * channel) / HEAD_DIM)
            assert frequency == pytest.approx(float(exact), rel=1e-14)


def test_fractional_positions() -> None:
    cos, _ = cos_sin(RopeView(torch.tensor([2.0], dtype=torch.float64), 1.0), torch.tensor([0.25]))
    assert cos.item() == pytest.approx(math.cos(0.5))


@pytest.mark.parametrize("rotary_dim", [4, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [0, 1, 5])
def test_rotation_is_complex_multiplication(rotary_dim: int, dtype: torch.dtype, num_tokens: int) -> None:
    spec = RopeSpec(rotary_dim=rotary_dim)
    x = torch.randn(3, num_tokens, 64, generator=torch.Generator().manual_seed(rotary_dim)).to(dtype)
    positions = torch.arange(num_tokens) * 7
    view = rope_view(spec, 64)
    rotated = rotate(x, *cos_sin(view, positions))
    pairs = torch.complex(x[..., : rotary_dim // 2].double(), x[..., rotary_dim // 2 : rotary_dim].double())
    turned = pairs * torch.exp(1j * positions[:, None] * view.inv_freq)
    expected = torch.cat((turned.real, turned.imag, x[..., rotary_dim:].double()), -1)
    assert rotated.dtype == dtype
    tolerance = 2e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(rotated.double(), expected, rtol=tolerance, atol=tolerance)


def test_one_rotation_serves_all_tokens() -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = cos_sin(rope_view(RopeSpec(rotary_dim=16), 1), torch.tensor([9]))
    assert torch.equal(rotate(x, cos, sin), rotate(x, cos.expand(5, -1), sin.expand(5, -1)))
