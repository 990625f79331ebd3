"""The tokenizer of a GGUF file gives the ids that the tokenizer gives from which the file was made."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from moorage.runtime.text.gguf_splitting import SPLITTINGS
from moorage.runtime.text.gguf_tokenizer import tokenizer_of
from moorage.runtime.text.tokenizer import TextTokenizer, has_tokenizer, stop_token_ids
from moorage.workers.errors import InvalidModel, InvalidRequest
from moorage.workers.gguf.header import GgufHeader
from moorage.workers.hf_config import read_model_spec
from tests import tokenizers
from tests.gguf_files import byte_level_keys, write_gguf
from tests.real_model import smollm2

TEXTS = (
    tokenizers.SENTENCE,
    "",
    " leading and trailing  ",
    "def f(x):\n    return x ** 2\r\n\t# done\n\n\n",
    "naïve café Ünïcödé 日本語テキスト 한국어 עברית \u200d\u0301",
    "🙂👩‍👩‍👧 12345 3.14 ²³ Ⅷ ½",
    "What is the capital of France? I'll say it's Paris; WE'RE sure.",
    "<|im_start|>user\nspelled<|im_end|>",
    "a<think>b</think>  c",
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
MESSAGES = [{"role": "user", "content": "Hello <|im_end|> there"}]


def gguf_tokenizer(directory: Path, keys: Mapping[str, Any]) -> TextTokenizer:
    given = {key: value for key, value in keys.items() if value is not None}
    return TextTokenizer.load(write_gguf(directory / "model.gguf", "llama", given, {}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTokenizer, TextTokenizer]:
    """A tokenizer from its directory, and the same one from a GGUF file."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    tokenizers.save(source, "byte_level", {"chat_template.jinja": TEMPLATE})
    return TextTokenizer.load(source), gguf_tokenizer(
        target, {**byte_level_keys(source), "tokenizer.chat_template": TEMPLATE}
    )


@pytest.mark.parametrize("text", TEXTS)
def test_byte_pairs(pair: tuple[TextTokenizer, TextTokenizer], text: str) -> None:
    theirs, ours = pair
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_special_tokens_ends_and_template(pair: tuple[TextTokenizer, TextTokenizer]) -> None:
    theirs, ours = pair
    assert ours.special_ids == theirs.special_ids
    assert ours.vocab_size == theirs.vocab_size
    assert ours.encode_chat(MESSAGES) == theirs.encode_chat(MESSAGES)
    assert ours.decode(ours.eos_token_ids, skip_special_tokens=False) == "</s><|im_end|>"
    assert ours.source == ours.chat_template_source == "model.gguf"


@pytest.mark.parametrize(
    ("keys", "before", "after"),
    [
        ({}, [], []),
        ({"add_bos_token": True}, ["<s>"], []),
        ({"add_bos_token": True, "add_eos_token": True}, ["<s>"], ["</s>"]),
        ({"pre": "llama-bpe"}, ["<s>"], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
    ],
)
def test_what_stands_around_a_text(
    tmp_path: Path, keys: dict[str, Any], before: list[str], after: list[str]
) -> None:
    tokenizers.save(tmp_path, "byte_level")
    plain = byte_level_keys(tmp_path)
    ours = gguf_tokenizer(tmp_path, plain | {f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    bare = ours.encode("text", add_special_tokens=False)
    ids = {token: plain["tokenizer.ggml.tokens"].index(token) for token in ("<s>", "</s>")}
    assert ours.encode("text") == [ids[t] for t in before] + bare + [ids[t] for t in after]


def pieces(name: str, text: str) -> list[str]:
    """The pieces of a text under a name of `tokenizer.ggml.pre`, with spaces as they were."""
    return [text[begin:end] for _, (begin, end) in SPLITTINGS[name].pre_tokenizer().pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "it's 1234 ok!!\n\nX", ["it", "'s", " 1234", " ok", "!!", "\n", "\n", "X"]),
        ("smollm", "in 1984.", ["in", " ", "1", "9", "8", "4", "."]),
        ("command-r", "v12", ["v", "1", "2"]),
        ("llama-bpe", "IT'S 12345 x", ["IT", "'S", " ", "123", "45", " x"]),
        ("dbrx", "12345", ["123", "45"]),
        ("qwen2", "a 123\n\n b", ["a", " ", "1", "2", "3", "\n\n", " b"]),
        ("tekken", "camelCase 12/\n", ["camel", "Case", " ", "1", "2", "/\n"]),
        ("gpt-4o", "It's HelloWorld 1234", ["It's", " Hello", "World", " ", "123", "4"]),
        ("deepseek-coder", "a1 漢字!", ["a", "1", " ", "漢字", "!"]),
    ],
)
def test_text_is_split_as_the_name_says(name: str, text: str, expected: list[str]) -> None:
    assert pieces(name, text) == expected


def test_names_that_are_no_splitting_are_refused(tmp_path: Path) -> None:
    keys = byte_level_keys(tokenizers.save(tmp_path, "byte_level"))
    with pytest.raises(
        InvalidModel, match=r"model\.gguf: key tokenizer\.ggml\.pre must be one of gpt-2, .*; use a Hugging"
    ):
        gguf_tokenizer(tmp_path, keys | {"tokenizer.ggml.pre": "unheard-of"})


CORPUS = ["The quick brown fox jumps over the lazy dog, again and again.", *filter(str.isascii, TEXTS)] * 20


def sentencepiece_model(prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """A byte-pair model with bytes for rare characters, as Llama 2, Mistral and Gemma have."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=380,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        control_symbols=["<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_keys(model: sentencepiece.SentencePieceProcessor, prefix: bool) -> dict[str, Any]:
    kinds = ((6, model.IsByte), (3, model.IsControl), (2, model.IsUnknown))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.IdToPiece(i) for i in range(len(model))],
        "tokenizer.ggml.scores": [float(model.GetScore(i)) for i in range(len(model))],
        "tokenizer.ggml.token_type": [
            next((kind for kind, has in kinds if has(i)), 1) for i in range(len(model))
        ],
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    model = sentencepiece_model(prefix)
    ours = gguf_tokenizer(tmp_path, sentencepiece_keys(model, prefix))
    for text in [text for text in TEXTS if "<|" not in text]:
        ids = model.EncodeAsIds(text)
        assert ours.encode(text) == [model.bos_id(), *ids]
        assert ours.decode(ids) == text
    assert ours.special_ids == {model.unk_id(), *(i for i in range(len(model)) if model.IsControl(i))}


def test_named_templates(tmp_path: Path) -> None:
    keys = byte_level_keys(tokenizers.save(tmp_path, "byte_level"))
    ours = gguf_tokenizer(tmp_path, keys | {"tokenizer.chat_template.tool_use": "tools: {{ tools }}"})
    assert ours.render_chat(MESSAGES, tools=["t"]) == "tools: ['t']"
    (tmp_path / "model.gguf").unlink()
    none = gguf_tokenizer(tmp_path, keys)
    with pytest.raises(
        InvalidRequest, match=r"model\.gguf has no chat template \(in tokenizer\.chat_template\); send"
    ):
        none.encode_chat(MESSAGES)


def test_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "llama", {}, {})
    assert not has_tokenizer(file)
    with pytest.raises(
        InvalidModel, match=r"model\.gguf: key tokenizer\.ggml\.tokens must be a list of texts"
    ):
        TextTokenizer.load(file)


HOSTILE = (0, 2**32 - 1, True, float("nan"), "", "text", [1, 2], ["a"], ["a b", " ", "", "a"])


@pytest.mark.parametrize(
    "key",
    [
        *("model", "pre", "tokens", "token_type", "merges", "scores", "add_space_prefix", "add_bos_token"),
        *("bos_token_id", "eos_token_id", "unknown_token_id", "eot_token_id"),
    ],
)
def test_any_value_is_read_or_refused(tmp_path: Path, key: str) -> None:
    keys = byte_level_keys(tokenizers.save(tmp_path, "byte_level"))
    spm = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": [0.5] * len(keys["tokenizer.ggml.tokens"]),
    }
    outcomes = set()
    for plain in (keys, keys | spm):
        for value in HOSTILE:
            header = GgufHeader(Path("m.gguf"), plain | {f"tokenizer.ggml.{key}": value}, {}, ())
            try:
                tokenizer_of(header)[0].encode("some text")
                outcomes.add("read")
            except InvalidModel as error:
                outcomes.add(str(error))
    assert all("\n" not in outcome for outcome in outcomes)
    assert outcomes - {"read"} or key.startswith("add_")


@pytest.mark.slow
def test_the_real_model_splits_digits_and_ends_a_turn() -> None:
    file = smollm2()
    tokenizer = TextTokenizer.load(file)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1984")] == ["1", "9", "8", "4"]
    prompt = tokenizer.decode(
        tokenizer.encode_chat([{"role": "user", "content": "Hi"}]), skip_special_tokens=False
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert stop_token_ids(read_model_spec(file), tokenizer) == (2,)
