"""Tokenizing as transformers does, and the tokens that end a generation."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors

from moorage.runtime.text.tokenizer import TextTokenizer, stop_token_ids
from moorage.workers.errors import InvalidModel, InvalidRequest
from moorage.workers.hf_config import read_model_spec
from tests import tokenizers

PILOT = Path(__file__).resolve().parents[3] / "deploy" / "models" / "moorage-pilot"
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 128,
}
TEXTS = (
    "",
    " ",
    "Hello, world! 12345",
    "  two  spaces\n\n\tand tabs ",
    "naïve café 日本語 🙂👩‍👩‍👧 \u200b",
    "<user>a question</s><bot>",
    "The pass key is 90210. " * 50,
)


@pytest.fixture(scope="module")
def pilot() -> TextTokenizer:
    return TextTokenizer.load(PILOT)


@pytest.fixture
def spaced(tmp_path: Path) -> TextTokenizer:
    """Like Llama 2: BOS first, a space before the first word, byte fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁a", "▁b", "c", "▁"]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_same_as_transformers(pilot: TextTokenizer, text: str) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(PILOT)
    ids = pilot.encode(text)
    assert ids == oracle.encode(text)
    assert pilot.decode(ids) == oracle.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert pilot.decode(ids, skip_special_tokens=False) == text


def test_post_processor_decides_on_bos(spaced: TextTokenizer) -> None:
    assert spaced.encode("c")[0] == 1
    assert spaced.encode("c", add_special_tokens=False)[0] != 1


def test_invalid_text_is_refused(pilot: TextTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="send valid UTF-8"):
        pilot.encode("a\ud800")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"missing.*token ids instead of text"):
        TextTokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(InvalidModel, match="not a tokenizer"):
        TextTokenizer.load(tmp_path)
    path.write_bytes((PILOT / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(InvalidModel, match=r"tokenizer_config\.json: not valid JSON"):
        TextTokenizer.load(tmp_path)


IM_END, END_OF_TEXT = 4, 5


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"eos_token": "<|im_end|>"}},
        {"tokenizer_config.json": {"eos_token": {"content": "<|im_end|>"}}},
        {"tokenizer_config.json": {}, "special_tokens_map.json": {"eos_token": "<|im_end|>"}},
        {
            "tokenizer_config.json": {"eos_token": "<|endoftext|>", "added_tokens_decoder": {}},
            "special_tokens_map.json": {"eos_token": {"content": "<|im_end|>"}},
        },
    ],
)
def test_every_file_that_names_an_end_token_adds_to_the_stop_set(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    tokenizers.save(tmp_path, "byte_level", files)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps(SHAPE | {"eos_token_id": END_OF_TEXT}))
    ids = stop_token_ids(read_model_spec(tmp_path), TextTokenizer.load(tmp_path))
    assert set(ids) == {END_OF_TEXT, IM_END}
    assert len(ids) == 2


def test_a_model_without_a_tokenizer_ends_as_its_files_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"eos_token_id": [5, 6]}))
    assert stop_token_ids(read_model_spec(tmp_path), None) == (5, 6)


def test_an_end_token_that_the_tokenizer_lacks_is_none(tmp_path: Path) -> None:
    tokenizers.save(tmp_path, "byte_level", {"tokenizer_config.json": {"eos_token": "<|nowhere|>"}})
    assert TextTokenizer.load(tmp_path).eos_token_ids == ()
