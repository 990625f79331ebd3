"""Text is split as llama.cpp splits it, for every name that `tokenizer.ggml.pre` may have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moorage.runtime.text.gguf_splitting import SPLITTINGS
from moorage.runtime.text.tokenizer import TextTokenizer
from tests.gguf_files import byte_level_keys, write_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="compares with llama-cpp-python, which is not installed")
pytestmark = pytest.mark.slow

SHAPE = {
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
PIECES = (
    *(
        "a",
        "B",
        "c",
        "word",
        "Word",
        "CamelCase",
        "'s",
        "'LL",
        "don't",
        "_",
        "é",
        "漢",
        "ア",
        "한",
        "🙂",
        "ß",
    ),
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "1", "23", "4567", "²", "Ⅷ", "!", "!!", "/", "-", ".", "("),
)
"""None of them has another form in NFC, and none is a mark that combines: llama.cpp splits those in its own way."""


CASED = ("gpt-4o", "llama4", "tekken")
"""Names that tell small letters from capitals, for which llama.cpp does not know letters with accents."""


def texts(left_out: str = "") -> list[str]:
    chosen = random.Random(0)
    pieces = [piece for piece in PIECES if piece not in left_out or piece.isspace()]
    return ["".join(chosen.choices(pieces, k=25)) for _ in range(200)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that learned merges from whole texts, so that only the splitting keeps pieces apart."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", SPLITTINGS)
def test_the_tokens_of_llama_cpp(source: Path, tmp_path: Path, name: str) -> None:
    keys = byte_level_keys(source) | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False}
    file = write_gguf(tmp_path / "model.gguf", "llama", SHAPE | keys, {})
    ours, theirs = TextTokenizer.load(file), llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    for text in texts("éß" if name in CASED else ""):
        assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=False, special=True)
