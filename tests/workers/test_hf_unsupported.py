"""Models that cannot be served are refused by what they have, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_config import ARCHITECTURES, read_model_spec
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_unsupported import UNSUPPORTED, unsupported

MLA, LINEAR, ALIBI = "latent attention (MLA)", "linear attention or a state space", "ALiBi"
ENCODER, SEES, LEARNED = "an encoder beside the decoder", "images or sounds", "learned vectors"


def refusal(directory: Path, config: dict[str, Any]) -> str:
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel) as caught:
        read_model_spec(directory)
    return str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("DeepseekV2ForCausalLM", MLA),
        ("DeepseekV3ForCausalLM", MLA),
        ("MiniCPM3ForCausalLM", MLA),
        ("Qwen3NextForCausalLM", LINEAR),
        ("JambaForCausalLM", LINEAR),
        ("MambaForCausalLM", LINEAR),
        ("Mamba2ForCausalLM", LINEAR),
        ("RwkvForCausalLM", LINEAR),
        ("MiniMaxForCausalLM", LINEAR),
        ("MiniMaxText01ForCausalLM", LINEAR),
        ("FalconH1ForCausalLM", LINEAR),
        ("NemotronHForCausalLM", LINEAR),
        ("GraniteMoeHybridForCausalLM", LINEAR),
        ("KimiLinearForCausalLM", LINEAR),
        ("T5ForConditionalGeneration", ENCODER),
        ("MBartForConditionalGeneration", ENCODER),
        ("Qwen2_5_VLForConditionalGeneration", SEES),
        ("LlavaForConditionalGeneration", SEES),
        ("Llama4ForConditionalGeneration", SEES),
        ("MPTForCausalLM", ALIBI),
        ("BloomForCausalLM", ALIBI),
        ("GPT2LMHeadModel", LEARNED),
        ("PhiForCausalLM", "no gate"),
        ("GPTNeoXForCausalLM", "no gate"),
        ("LlamaForSequenceClassification", "generates no text"),
    ],
)
def test_a_known_kind_is_refused_by_name(tmp_path: Path, architecture: str, what: str) -> None:
    message = refusal(tmp_path, {"architectures": [architecture]})
    assert f"architecture {architecture} is not supported, since " in message
    assert what in message
    assert "use one of" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"kv_lora_rank": 512}, MLA),
        ({"mamba_d_state": 16}, LINEAR),
        ({"is_encoder_decoder": True}, ENCODER),
        ({"vision_config": {"depth": 2}}, SEES),
        ({"alibi": True}, ALIBI),
        ({"model_type": "deepseek_v3"}, MLA),
        ({"model_type": "qwen3_next"}, LINEAR),
    ],
)
def test_an_unknown_class_is_refused_by_its_keys(tmp_path: Path, keys: dict[str, Any], what: str) -> None:
    assert what in refusal(tmp_path, {"architectures": ["NovelForCausalLM"], **keys})


def test_an_unknown_class_without_a_sign_is_refused_all_the_same(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"architectures": ["NovelForCausalLM"], "alibi": False, "kv_lora_rank": None})
    assert "architecture NovelForCausalLM is not supported; use one of" in message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_served_class_counts_as_unsupported(architecture: str) -> None:
    """Phi3ForCausalLM is not PhiForCausalLM, nor FalconForCausalLM FalconH1ForCausalLM."""
    if not architecture.endswith("ForConditionalGeneration"):
        assert unsupported(Fields({}, ""), [architecture]) is None


def test_names_stand_in_one_kind() -> None:
    names = [name for kind in UNSUPPORTED for name in kind.names]
    assert len(names) == len({*names})
    assert all(name == name.lower() and "_" not in name for name in names)
