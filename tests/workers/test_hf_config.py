"""Reading of config.json: published shapes, both spellings of the rotary keys, and one-line refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.hf_config import ARCHITECTURES, read_model_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_rope import read_rope
from moorage.workers.spec import ModelSpec, QkNorm

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def read(directory: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    config = {name: value for name, value in {**LLAMA, **changes}.items() if value != "absent"}
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_model_spec(directory)


def refusal(directory: Path, **changes: Any) -> str:
    with pytest.raises(InvalidModel) as caught:
        read(directory, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    return message


def test_plain_llama(tmp_path: Path) -> None:
    spec = read(tmp_path)
    assert (spec.family, spec.head_dim, spec.group_size, spec.dtype) == ("llama", 32, 4, "bfloat16")
    assert (spec.rope.rope_type, spec.rope.theta, spec.rope.rotary_dim) == ("default", 10000.0, 32)
    assert spec.eos_token_ids == (2,)
    assert spec.bos_token_id is None


def test_absent_optional_fields_take_transformers_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path, num_key_value_heads="absent", torch_dtype="absent", eos_token_id=None)
    assert (spec.num_kv_heads, spec.dtype, spec.eos_token_ids) == (8, "float32", ())
    assert (spec.rms_norm_eps, spec.tie_word_embeddings, spec.qkv_bias) == (1e-6, False, False)


@pytest.mark.parametrize("generation", [[7, 2], 7])
def test_eos_ids_of_both_files(tmp_path: Path, generation: object) -> None:
    assert read(tmp_path, generation={"eos_token_id": generation}).eos_token_ids == (2, 7)


@pytest.mark.parametrize(("architecture", "family"), ARCHITECTURES.items())
def test_every_architecture(tmp_path: Path, architecture: str, family: str) -> None:
    published = next(iter(FAMILIES[family].published.values())).other_keys
    experts = {key: value for key, value in published.items() if "expert" in key or key.startswith("moe_")}
    spec = read(tmp_path, architectures=[architecture], sliding_window=None, head_dim=48, **experts)
    assert (spec.family, spec.head_dim) == (family, 48)
    assert (spec.qk_norm is QkNorm.HEAD) == (family in ("gemma3", "qwen3", "qwen3_moe"))
    assert spec.qkv_bias == (family in ("glm", "glm4", "gpt_oss", "internlm2", "qwen2", "qwen2_moe"))


def test_model_type_serves_without_architectures(tmp_path: Path) -> None:
    assert read(tmp_path, architectures="absent", model_type="qwen2").family == "qwen2"


def test_biases(tmp_path: Path) -> None:
    spec = read(tmp_path, attention_bias=True, mlp_bias=True)
    assert (spec.qkv_bias, spec.output_bias, spec.mlp_bias) == (True, True, True)
    spec = read(tmp_path, architectures=["InternLM2ForCausalLM"], bias=False)
    assert (spec.qkv_bias, spec.output_bias) == (False, False)


def test_of_a_model_that_sees_the_text_part_is_read(tmp_path: Path) -> None:
    """As google/gemma-3-4b-it is published: much is left to the architecture, some keys stand beside the text's."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_model_spec(tmp_path)
    assert (spec.family, spec.num_heads, spec.num_kv_heads, spec.head_dim) == ("gemma3", 8, 4, 256)
    assert (spec.vocab_size, spec.max_position_embeddings) == (262208, 131072)
    assert (spec.dtype, spec.eos_token_ids, spec.tie_word_embeddings) == ("bfloat16", (1, 106), True)
    assert spec.stored_layers == (5, 11, 17, 23, 29)
    assert (spec.rope.rope_type, spec.rope.factor, spec.rope.theta) == ("linear", 8.0, 1e6)
    local = spec.layer(0).rope
    assert local is not None
    assert (local.rope_type, local.theta, spec.layer(0).window) == ("default", 10000.0, 1024)
    assert "only the text part of gemma3 is served" in spec.notes[0]
    text["hidden_size"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match=r"config\.json: text_config: hidden_size is 0"):
        read_model_spec(tmp_path)


LONG = [1.0 + i / 10 for i in range(16)]
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16},
    {
        "rope_type": "longrope",
        "short_factor": LONG[::-1],
        "long_factor": LONG,
        "original_max_position_embeddings": 1024,
    },
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_both_spellings_of_rope_agree(tmp_path: Path, scaling: dict[str, Any]) -> None:
    new = read(tmp_path, rope_parameters={**scaling, "rope_theta": 5e5}).rope
    assert (new.rope_type, new.theta) == (scaling["rope_type"], 5e5)
    legacy = {("type" if name == "rope_type" else name): value for name, value in scaling.items()}
    assert read(tmp_path, rope_theta=5e5, rope_scaling=legacy).rope == new
    assert read(tmp_path, rope_theta=5e5, rope_scaling=scaling).rope == new


def test_rope_odds_and_ends(tmp_path: Path) -> None:
    assert read(tmp_path, rope_scaling={**SCALINGS[3], "rope_type": "su"}).rope.rope_type == "longrope"
    assert read(tmp_path, rope_scaling=SCALINGS[3]).rope.factor == 4.0
    assert read(tmp_path, partial_rotary_factor=1.0).rope.rotary_dim == 32
    assert read(tmp_path, rope_scaling=None, rope_theta=1e6).rope.theta == 1e6
    yarn = {"type": "yarn", "factor": 2.0, "finetuned": True}
    assert read(tmp_path, rope_scaling=yarn).rope.original_max_position_embeddings == 4096
    by_layer = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert read(tmp_path, rope_parameters=by_layer).rope.theta == 5e5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "LlamaForCausalLM", "InternLM2"]),
        ({"architectures": "absent", "model_type": "gpt2"}, ["gpt2", "LlamaForCausalLM"]),
        ({"hidden_size": "absent"}, ["hidden_size is missing"]),
        ({"num_hidden_layers": -3}, ["num_hidden_layers is -3", "positive integer"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers is True"]),
        ({"vocab_size": 0}, ["vocab_size is 0"]),
        ({"vocab_size": 12.5}, ["vocab_size is 12.5"]),
        ({"max_position_embeddings": "4096"}, ["max_position_embeddings is '4096'"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps is nan"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads is 3", "divisor of num_attention_heads 8"]),
        ({"head_dim": 40}, ["head_dim is 40", "multiples of 16"]),
        ({"hidden_size": 200}, ["is 25", "multiples of 16"]),
        ({"hidden_size": 250}, ["hidden_size is 250", "head_dim"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "silu"]),
        ({"is_causal": False}, ["is_causal is False", "attends no later token"]),
        ({"torch_dtype": "int8"}, ["torch_dtype is 'int8'", "bfloat16"]),
        ({"quantization_config": {"quant_method": "quip"}}, ["quantization_config", "quip", "plain float"]),
        ({"eos_token_id": -1}, ["eos_token_id is -1"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings is 'yes'", "true or false"]),
        ({"rope_theta": -1.0}, ["rope_theta is -1.0"]),
        ({"rope_theta": 1}, ["rope_theta is 1", "above 1"]),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, ["'ntk'", "llama3", "yarn"]),
        ({"rope_scaling": {"type": ["yarn"]}}, ["['yarn']", "not supported"]),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, ["mrope_section"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling: factor is missing"]),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": -2}}, ["rope_parameters: factor is -2"]),
        ({"rope_scaling": {**SCALINGS[3], "long_factor": [1.0]}}, ["long_factor has 1", "needs 16"]),
        ({"rope_scaling": {**SCALINGS[3], "long_factor": "x"}}, ["long_factor is 'x'"]),
        ({"rope_scaling": {**SCALINGS[4], "high_freq_factor": 1.0}}, ["high_freq_factor is 1.0"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling is 'yarn'", "an object"]),
        ({"partial_rotary_factor": 0.1}, ["partial_rotary_factor is 0.1"]),
        ({"partial_rotary_factor": 1.5}, ["partial_rotary_factor is 1.5"]),
        ({"partial_rotary_factor": 0.5}, ["16 of 32 channels", "transformers rotates all of them"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["16 of 32 channels"]),
        ({"model_type": "granite"}, ["LlamaForCausalLM", "model_type 'granite'", "compute differently"]),
        ({"model_type": "mistral"}, ["model_type 'mistral'"]),
        ({"model_type": "qwen2"}, ["model_type 'qwen2'"]),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "llama"}, ["model_type 'llama'"]),
        ({"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]}, ["architectures is", "of one family"]),
    ],
)
def test_refusals_name_field_and_fix(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(tmp_path, **changes)
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", [1e300, 1e-300, 10**400, 10**9, 0.5])
def test_an_absurd_epsilon_is_refused_by_range(tmp_path: Path, value: float) -> None:
    assert "rms_norm_eps is" in refusal(tmp_path, rms_norm_eps=value)


@pytest.mark.parametrize(
    "name",
    [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "eos_token_id"),
    ],
)
def test_absurd_sizes_are_refused_by_range(tmp_path: Path, name: str) -> None:
    for value in (2**31, 2**63, 10**400):
        assert f"{name} is" in refusal(tmp_path, **{name: value})


@pytest.mark.parametrize("value", [1e300, 1e-300, 10**400])
@pytest.mark.parametrize(
    ("scaling", "name"),
    [
        (SCALINGS[0], "factor"),
        (SCALINGS[2], "factor"),
        (SCALINGS[2], "beta_fast"),
        (SCALINGS[2], "attention_factor"),
        (SCALINGS[2], "mscale"),
        (SCALINGS[4], "high_freq_factor"),
    ],
)
def test_absurd_scalings_are_refused_by_range(
    tmp_path: Path, scaling: dict[str, Any], name: str, value: float
) -> None:
    assert f"rope_scaling: {name} is" in refusal(tmp_path, rope_scaling={**scaling, name: value})


def test_other_absurd_numbers_are_refused_by_range(tmp_path: Path) -> None:
    assert "rope_theta is" in refusal(tmp_path, rope_theta=1e300)
    assert "long_factor is" in refusal(tmp_path, rope_scaling={**SCALINGS[3], "long_factor": [1e300] * 16})


@pytest.mark.parametrize("name", ["mscale", "mscale_all_dim", "beta_fast", "beta_slow"])
def test_a_zero_of_yarn_counts_as_absent(tmp_path: Path, name: str) -> None:
    """`mscale_all_dim: 0` is published; transformers takes any zero for a missing field."""
    plain = read(tmp_path, rope_scaling=SCALINGS[2] | {"beta_fast": None})
    zero = read(tmp_path, rope_scaling=SCALINGS[2] | {"beta_fast": None} | {name: 0})
    assert zero.rope == plain.rope


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("LlamaForCausalLM", "llama"), ("YiForCausalLM", "Yi"), ("MistralForCausalLM", "mistral"),
        ("Qwen2ForCausalLM", "qwen2"), ("Qwen3ForCausalLM", "qwen3"), ("InternLM2ForCausalLM", "internlm2"),
    ],
)  # fmt: skip
def test_architecture_and_model_type_that_agree(tmp_path: Path, architecture: str, model_type: str) -> None:
    spec = read(tmp_path, architectures=[architecture], model_type=model_type, sliding_window=None)
    assert spec.family == ARCHITECTURES[architecture]


MISTRAL = {"architectures": ["MistralForCausalLM"]}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "max_window_layers": 2}


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({**MISTRAL, "sliding_window": 1024}, [1024] * 4),
        ({**MISTRAL, "max_position_embeddings": 32768}, [4096] * 4),
        ({**QWEN, "sliding_window": 1024}, [None, None, 1024, 1024]),
        (
            {**QWEN, "sliding_window": 1024, "layer_types": ["full_attention", "sliding_attention"] * 2},
            [None, 1024, None, 1024],
        ),
    ],
)
def test_layers_that_slide_have_windows(
    tmp_path: Path, changes: dict[str, Any], windows: list[int | None]
) -> None:
    spec = read(tmp_path, **changes)
    assert [spec.layer(index).window for index in range(4)] == windows
    assert len(spec.stored_layers) + len(spec.window_layers) == 4


@pytest.mark.parametrize(
    "types", [["full_attention"] * 3, ["full_attention"] * 3 + ["linear"], "sliding_attention"]
)
def test_layer_types_must_name_every_layer(tmp_path: Path, types: object) -> None:
    assert "layer_types" in refusal(tmp_path, **QWEN, sliding_window=1024, layer_types=types)


@pytest.mark.parametrize(
    "changes",
    [
        {**MISTRAL, "sliding_window": None, "max_position_embeddings": 32768},
        {**MISTRAL, "sliding_window": 4097},
        {**QWEN, "sliding_window": 1024, "use_sliding_window": False},
        {**QWEN, "sliding_window": 1024, "max_window_layers": 4},
        {**QWEN, "sliding_window": 1024, "layer_types": ["full_attention"] * 4},
        {**QWEN, "sliding_window": None},
        {"sliding_window": 1024},
    ],
)
def test_without_an_active_sliding_window_every_layer_is_stored(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert read(tmp_path, **changes).stored_layers == (0, 1, 2, 3)


def test_a_window_that_only_a_longer_session_would_outgrow_is_told(tmp_path: Path) -> None:
    """Phi-3-mini-128k names a sliding_window of 262 144 beside half as many positions."""
    spec = read(tmp_path, **MISTRAL, sliding_window=262144, max_position_embeddings=131072)
    assert not spec.window_layers
    (note,) = spec.notes
    assert "sliding_window 262,144" in note


def test_a_window_of_the_trained_length_stays(tmp_path: Path) -> None:
    """Ministral-8B: the reference takes it away from no session, longer ones included."""
    spec = read(tmp_path, **MISTRAL, sliding_window=32768, max_position_embeddings=32768)
    assert [spec.layer(index).window for index in range(4)] == [32768] * 4


def test_missing_directory_and_config(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"no such model directory; set model\.path"):
        read_model_spec(tmp_path / "nowhere")
    with pytest.raises(InvalidModel, match=r"config\.json: missing"):
        read_model_spec(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"\xff\xfe{}", b"[" * 100_000])
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InvalidModel, match=r"config\.json: .*again"):
        read_model_spec(tmp_path)


def test_reading_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    code = (
        "import sys; from moorage.workers.hf_config import read_model_spec; "
        f"read_model_spec({str(tmp_path)!r}); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("factor", [1e300, 10**400, 1e-300, float("inf"), float("nan")])
def test_a_factor_that_overflows_is_refused(factor: float) -> None:
    rope = {"rope_type": "yarn", "factor": factor}
    with pytest.raises(InvalidModel, match=r"factor is .*; it must be ") as caught:
        read_rope(Fields({"max_position_embeddings": 4096, "rope_scaling": rope}, "config.json"), 64)
    assert len(str(caught.value)) < 200
