"""Keys of config.json that nobody reads: those without effect pass, every other is refused in one line."""

from __future__ import annotations

from collections import Counter

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.hf_config import read_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import OFF, WITHOUT_EFFECT
from moorage.workers.spec import ModelSpec


def read(family: str, **changes: object) -> ModelSpec:
    config = next(iter(FAMILIES[family].published.values())).config() | changes
    return read_spec(Fields(config, "config.json"), FAMILIES[family])


def refusal(family: str, **changes: object) -> str:
    with pytest.raises(InvalidModel) as caught:
        read(family, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_that_nobody_knows_is_refused(family: str) -> None:
    message = refusal(family, frobnicate_attention=2)
    assert message.startswith(
        f"config.json: frobnicate_attention is 2, which is not known in a {family} model"
    )
    assert "take it out of the file if it does not" in message


def test_a_null_counts_as_absent() -> None:
    assert read("llama", frobnicate_attention=None) == read("llama")


def test_what_transformers_notes_for_itself_passes() -> None:
    notes = {"_name_or_path": "x/y", "_attn_implementation_autoset": True, "_model_name_or_path": "z.gguf"}
    assert read("llama", **notes) == read("llama")


def test_several_unknown_keys_stand_in_one_line() -> None:
    message = refusal("llama", **{f"frob_{i}": [i] * 40 for i in range(6)})
    assert "frob_0 is [0, 0" in message
    assert "(nor frob_1, frob_2, frob_3, …)" in message
    assert len(message) < 300


def test_every_key_without_effect_passes() -> None:
    keys = [key for group in WITHOUT_EFFECT.values() for key in group]
    assert read("llama", **dict.fromkeys(keys, 2)) == read("llama")


def test_a_key_without_effect_has_one_reason() -> None:
    counts = Counter(key for group in WITHOUT_EFFECT.values() for key in group)
    assert max(counts.values()) == 1
    assert not counts.keys() & OFF.keys()


@pytest.mark.parametrize("key", OFF)
def test_a_feature_that_is_off_passes(key: str) -> None:
    for value in OFF[key]:
        assert read("internlm2", **{key: value}).family == "internlm2"


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "logit_scale", 0.0625),
        ("mistral", "attention_bias", True),
        ("internlm2", "use_parallel_residual", True),
        ("qwen3", "use_alibi", True),
        ("qwen2", "kv_lora_rank", 512),
    ],
)
def test_a_feature_of_another_family_is_refused(family: str, key: str, value: object) -> None:
    assert f"{key} is {value!r}" in refusal(family, **{key: value})


def test_keys_of_a_rotary_embedding_are_known_too() -> None:
    rope = {"rope_type": "linear", "factor": 2.0}
    assert read("llama", rope_scaling=rope | {"beta_fast": 32}) == read("llama", rope_scaling=rope)
    message = refusal("llama", rope_scaling=rope | {"frob": 1})
    assert message.startswith(
        "config.json: rope_scaling: frob is 1, which is not known in a rotary embedding"
    )


def test_keys_of_dual_chunks_are_known_too() -> None:
    chunks = {"chunk_size": 8192, "local_size": 1024, "sparse_attention_enabled": True}
    assert read("qwen2", dual_chunk_attention_config=chunks).dual_chunk is not None
    message = refusal("qwen2", dual_chunk_attention_config=chunks | {"frob": 1})
    assert message.startswith("config.json: dual_chunk_attention_config: frob is 1, which is not known")
