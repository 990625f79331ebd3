"""How text is split before byte-pair merges, for each name that `tokenizer.ggml.pre` may have; as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers


@dataclass(frozen=True, slots=True)
class Splitting:
    """What comes before the merges, and what a file leaves out because its name says it."""

    patterns: tuple[str, ...] = ()
    """Regular expressions whose matches are pieces of their own, one after the other."""
    single_digits: bool = False
    then_gpt2: bool = False
    """Whether the pieces are split again as GPT-2 splits text."""
    nfc: bool = False
    """Whether the authors' tokenizer normalises to NFC."""
    whole_words: bool = False
    """Whether a piece that is a token is taken without merges."""
    adds_bos: bool = False
    """Whether BOS is added where the file says nothing about it."""

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer of the library `tokenizers`."""
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns
        ]
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.then_gpt2))
        return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]

    def normalizer(self) -> normalizers.Normalizer | None:
        """The normalizer of the library `tokenizers`."""
        return normalizers.NFC() if self.nfc else None


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str) -> str:
    """The expression of GPT-4's first tokenizer, with at most so many digits in a piece."""
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}"


def _cased_words(contractions: str, digits: str) -> str:
    """The expression of GPT-4o's tokenizer, which splits words where small letters end."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{_UPPER}*{_LOWER}+{contractions}|{before}{_UPPER}+{_LOWER}*{contractions}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"
    )


_GPT2 = Splitting(then_gpt2=True)
_DIGITS = Splitting(single_digits=True, then_gpt2=True)
_LLAMA3 = Splitting((_words(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
_GPT4 = Splitting((_words(r"\p{N}{1,3}"),))
_QWEN2 = Splitting((_words(r"\p{N}"),), nfc=True)
_GPT4O = Splitting((_cased_words(f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),))
_TEKKEN = Splitting((_cased_words("", r"\p{N}"),), whole_words=True, adds_bos=True)
_DEEPSEEK_CODER = Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), single_digits=True)

SPLITTINGS: Mapping[str, Splitting] = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "command-r": Splitting(single_digits=True, then_gpt2=True, nfc=True),
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "dbrx": _GPT4,
    "smaug-bpe": _GPT4,
    "glm4": _GPT4,
    "chatglm-bpe": _GPT4,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": Splitting((_words(r"\p{N}"),)),
    "hunyuan": Splitting((_words(r"\p{N}"),)),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "tekken": _TEKKEN,
    "deepseek-coder": _DEEPSEEK_CODER,
}
"""Splitting by the name that llama.cpp's converter gives a tokenizer."""
