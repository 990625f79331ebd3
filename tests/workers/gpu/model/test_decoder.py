"""The decoder against transformers, for every family and every rotary scaling."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from moorage.workers.gpu.model import decoder as decoder_module
from moorage.workers.gpu.model.decoder import Attend, Decoder
from moorage.workers.gpu.model.rope import cos_sin, rope_view, rotate
from moorage.workers.hf_config import read_model_spec
from tests.tiny_models import FAMILIES, TinyModel, build_tiny_checkpoint, random_prompt


def dense_attention(decoder: Decoder, lengths: list[int]) -> Attend:
    """Plain causal attention over prompts of `lengths` that lie end to end."""
    spec = decoder.spec

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True)
        return torch.cat([attend_one(layer, *part) for part in parts])

    def attend_one(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        own = spec.layer(layer)
        view = rope_view(own.rope or spec.rope, len(q))
        cos, sin = cos_sin(view, torch.arange(len(q)))
        q, k, v = (x.transpose(0, 1).float() for x in (q, k, v))
        if own.rotates:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            q[..., 2 * cos.shape[-1] :] *= view.unrotated
        k, v = (x.repeat_interleave(spec.group_size, dim=0) for x in (k, v))
        scale = spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale
        scores = q @ k.mT * (scale * view.attention_scale**2)
        if (cap := spec.attention_softcap) is not None:
            scores = cap * torch.tanh(scores / cap)
        hidden = torch.ones(len(cos), len(cos), dtype=torch.bool).triu(1)
        if (window := own.window) is not None:
            hidden |= torch.ones_like(hidden).tril(-window)
        scores = scores.masked_fill(hidden, -torch.inf)
        if (sinks := decoder.weights.layers[layer].sinks) is not None:
            scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, len(cos), 1)), dim=-1)
        return (scores.softmax(-1)[..., : len(cos)] @ v).transpose(0, 1)

    return attend


def logits_of(decoder: Decoder, *prompts: torch.Tensor) -> torch.Tensor:
    lengths = [len(prompt) for prompt in prompts]
    return decoder.logits(decoder.forward(torch.cat(prompts), dense_attention(decoder, lengths)))


def assert_equals_transformers(tiny: TinyModel, num_tokens: int = 80) -> None:
    prompt = random_prompt(tiny.spec, num_tokens)
    ours = logits_of(Decoder.load(tiny.directory, tiny.spec, "auto", "cpu"), prompt)
    torch.testing.assert_close(ours, tiny.logits(prompt), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_transformers(tmp_path: Path, family: str, seed: int) -> None:
    assert_equals_transformers(build_tiny_checkpoint(family, tmp_path, seed=seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slightly_wrong_attention_shows(tmp_path: Path, family: str) -> None:
    """A rotary base off by a fifth moves logits far beyond the tolerance, so agreement says something."""
    tiny = build_tiny_checkpoint(family, tmp_path)
    wrong_rope = dataclasses.replace(tiny.spec.rope, theta=tiny.spec.rope.theta * 1.2)
    decoder = Decoder.load(tiny.directory, dataclasses.replace(tiny.spec, rope=wrong_rope), "auto", "cpu")
    prompt = random_prompt(tiny.spec, 80)
    assert (logits_of(decoder, prompt) - tiny.logits(prompt)).abs().max() > 0.01


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.5},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "longrope",
            "short_factor": [1.0 + i / 20 for i in range(16)],
            "long_factor": [1.0 + i for i in range(16)],
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
@pytest.mark.parametrize("num_tokens", [20, 80])
def test_every_scaling_equals_transformers(tmp_path: Path, rope: dict[str, Any], num_tokens: int) -> None:
    tiny = build_tiny_checkpoint("llama2", tmp_path, rope=rope, max_position_embeddings=64)
    assert_equals_transformers(tiny, num_tokens)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama2", {"head_dim": 48}),
        ("llama2", {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}),
        ("llama2", {"tie_word_embeddings": True}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
        ("internlm2", {"attention_bias": True, "num_key_value_heads": 1}),
        ("internlm2", {"num_key_value_heads": 4}),
    ],
)
def test_shapes_between_families(tmp_path: Path, family: str, overrides: dict[str, Any]) -> None:
    assert_equals_transformers(build_tiny_checkpoint(family, tmp_path, **overrides))


def test_the_embedded_model_equals_transformers() -> None:
    directory = Path(__file__).parents[4] / "deploy" / "models" / "moorage-pilot"
    hf_model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tiny = TinyModel(directory, hf_model, read_model_spec(directory))
    prompt = random_prompt(tiny.spec, 300)
    decoder = Decoder.load(directory, tiny.spec, "float32", "cpu")
    torch.testing.assert_close(logits_of(decoder, prompt), tiny.logits(prompt), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama"))


def test_prompts_end_to_end_equal_each_alone(llama: TinyModel) -> None:
    decoder = Decoder.load(llama.directory, llama.spec, "float32", "cpu")
    prompts = [random_prompt(llama.spec, length, seed=length) for length in (1, 33, 17)]
    together = torch.split(logits_of(decoder, *prompts), [len(prompt) for prompt in prompts])
    for prompt, logits in zip(prompts, together, strict=True):
        torch.testing.assert_close(logits, llama.logits(prompt), rtol=0, atol=1e-4)


def test_feed_forward_in_pieces_changes_nothing(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder.load(llama.directory, llama.spec, "float32", "cpu")
    prompt = random_prompt(llama.spec, 50)
    monkeypatch.setattr(decoder_module, "MLP_WORKSPACE_BYTES", 7 * 3 * 4 * llama.spec.intermediate_size)
    torch.testing.assert_close(logits_of(decoder, prompt), llama.logits(prompt), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types(llama: TinyModel, dtype: str) -> None:
    """No further from fp32 than twice what transformers itself is in that type."""
    prompt = random_prompt(llama.spec, 50)
    exact = llama.logits(prompt)
    decoder = Decoder.load(llama.directory, llama.spec, dtype, "cpu")
    assert decoder.dtype == getattr(torch, dtype)
    logits = logits_of(decoder, prompt)
    assert logits.dtype == torch.float32
    theirs = type(llama.hf_model).from_pretrained(llama.directory, dtype=decoder.dtype).eval()
    with torch.inference_mode():
        baseline = theirs(input_ids=prompt[None]).logits[0].float()
    assert (logits - exact).square().mean() <= 4 * (baseline - exact).square().mean()


def test_attend_sees_plain_shapes(llama: TinyModel) -> None:
    spec, seen = llama.spec, []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append((layer, tuple(q.shape), tuple(k.shape), tuple(v.shape)))
        return torch.zeros_like(q)

    for num_tokens in (0, 1, 3):
        seen.clear()
        decoder = Decoder.load(llama.directory, spec, "float32", "cpu")
        hidden = decoder.forward(random_prompt(spec, num_tokens), attend)
        assert hidden.shape == (num_tokens, spec.hidden_size)
        kv_shape = (num_tokens, spec.num_kv_heads, spec.head_dim)
        q_shape = (num_tokens, spec.num_heads, spec.head_dim)
        assert seen == [(layer, q_shape, kv_shape, kv_shape) for layer in range(spec.num_layers)]
        assert decoder.logits(hidden).shape == (num_tokens, spec.vocab_size)
