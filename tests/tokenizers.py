"""Small tokenizers of every published kind, trained on the spot, as model directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCE = "The first word keeps its space; naïve café, 日本語 and 🙂 too.  Two spaces\nand a line"
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
PLAIN_ADDED = ("<think>", "</think>", "<tool_call>", "<|Human|>", "  ")
"""Added tokens that are not special, as in Qwen3, DeepSeek and code models."""
_CORPUS = [
    SENTENCE,
    "user assistant system tool You are a helpful assistant. What is the capital of France?",
] * 3


def save(
    directory: Path,
    kind: str,
    files: Mapping[str, Any] | None = None,
    added: tuple[AddedToken | str, ...] = PLAIN_ADDED,
) -> Path:
    """A directory with a tokenizer of one kind, and `files` beside it: text as it is, all else as JSON."""
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=token.isspace()) if isinstance(token, str) else token
            for token in added
        ]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    for name, value in {"tokenizer_config.json": settings, **(files or {})}.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return directory


def byte_level() -> Tokenizer:
    """GPT-2, Llama 3, Qwen: every byte has a letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def llama2() -> Tokenizer:
    """Llama 2 and Mistral: a normaliser marks words, bytes stand in for rare characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _with_bytes(tokenizer)


def gemma() -> Tokenizer:
    """Gemma: words are marked, but not the first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _with_bytes(tokenizer)


def metaspace() -> Tokenizer:
    """Newer conversions of Llama and Phi-3: words are split off before the model sees them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_bytes(tokenizer)


def unigram() -> Tokenizer:
    """T5 and XLNet: SentencePiece's unigrams, whose own vocabulary has the special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
        ),
    )
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "llama2": llama2,
    "gemma": gemma,
    "metaspace": metaspace,
    "unigram": unigram,
}


def _with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Trained without what only bytes can spell, so that those are needed."""
    plain = [text.encode("ascii", "ignore").decode() for text in _CORPUS]
    tokenizer = _trained(tokenizer, corpus=plain)
    model = json.loads(tokenizer.to_str())
    vocab = model["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    return Tokenizer.from_str(json.dumps(model))


def _trained(tokenizer: Tokenizer, corpus: list[str] = _CORPUS, **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=list(SPECIAL), show_progress=False, **options
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer
