"""With `model.weights: auto` a decoder computes with the codes of the file, which are its weights exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.header import read_headers
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.gpu.model.quantized import QuantizedMatrix, StackedMatrix
from moorage.workers.gpu.model.weight_plan import plan_weights, planned_bytes
from moorage.workers.gpu.model.weights import load_weights
from moorage.workers.hf_config import read_model_spec
from moorage.workers.spec import WeightKind
from tests.gguf_files import convert
from tests.tiny_models import build_tiny_checkpoint, random_prompt
from tests.workers.gpu.model.test_decoder import logits_of

CPU = torch.device("cpu")
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4 = (
    GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")
)
ALL = "weight"
WIDE: dict[str, Any] = {"intermediate_size": 160}


def logits(file: Path, kept: WeightKind) -> torch.Tensor:
    spec = read_model_spec(file)
    return logits_of(Decoder.load(file, spec, "float32", "cpu", weights=kept), random_prompt(spec, 40))


@pytest.mark.parametrize(
    ("family", "architecture", "kinds", "changes"),
    [
        ("llama2", "llama", {ALL: Q4_0}, WIDE),
        ("llama2", "llama", {ALL: Q4_1, "attn_v": Q8_0, "token_embd": Q8_0}, WIDE),
        ("llama_biased", "llama", {ALL: Q5_0, "attn_k": Q5_1}, WIDE),
        ("qwen3", "qwen3", {ALL: Q8_0}, {"hidden_size": 96, **WIDE}),
        ("qwen3_moe", "qwen3moe", {ALL: Q4_0, "ffn_down_exps": Q8_0}, {"moe_intermediate_size": 64}),
        ("gpt_oss", "gpt-oss", {"exps": MXFP4}, {}),
    ],
)
def test_the_same_logits_as_with_floats(
    tmp_path: Path, family: str, architecture: str, kinds: dict[str, Any], changes: dict[str, Any]
) -> None:
    if family.endswith("_moe"):
        changes = changes | {"mlp_only_layers": []}
    tiny = build_tiny_checkpoint(family, tmp_path, **changes)
    plain = {f"ffn_gate_inp.{ALL}": GGMLQuantizationType.F32}
    file = convert(tiny, tmp_path / "model.gguf", architecture, kinds | plain)
    floats = logits(file, WeightKind.FLOAT)
    assert (floats - tiny.logits(random_prompt(tiny.spec, 40))).abs().max() > 1e-3
    torch.testing.assert_close(logits(file, WeightKind.AUTO), floats, rtol=0, atol=1e-4)


def test_memory_is_that_of_the_codes(tmp_path: Path) -> None:
    tiny = build_tiny_checkpoint("llama2", tmp_path, **WIDE)
    file = convert(tiny, tmp_path / "model.gguf", "llama", {ALL: Q4_1, "attn_v": Q8_0})
    spec = read_model_spec(file)
    weights = load_weights(file, spec, torch.float32, CPU)
    layer = weights.layers[0]
    assert isinstance(layer.qkv, StackedMatrix)
    assert isinstance(layer.output, QuantizedMatrix)
    assert planned_bytes(spec, plan_weights(spec, WeightKind.AUTO), 4) == weights.num_bytes
    assert (
        weights.num_bytes < load_weights(file, spec, torch.float32, CPU, kept=WeightKind.FLOAT).num_bytes / 4
    )


def test_scales_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    tiny = build_tiny_checkpoint("llama2", tmp_path, **WIDE)
    file = convert(tiny, tmp_path / "model.gguf", "llama", {ALL: Q8_0})
    spec = read_model_spec(file)
    data, last = bytearray(file.read_bytes()), read_headers([file])[0].tensors[-1]
    data[last.begin : last.begin + 2] = b"\x00\x7c"
    file.write_bytes(data)
    with pytest.raises(
        InvalidModel, match=r"model\.gguf: tensor .* holds NaN or infinity among its scales; download"
    ):
        load_weights(file, spec, torch.float32, CPU)
