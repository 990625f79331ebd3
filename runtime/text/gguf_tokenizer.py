"""The tokenizer of a GGUF file, with its special tokens and chat templates, made from the file's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from moorage.runtime.text.gguf_splitting import SPLITTINGS
from moorage.runtime.text.sentencepiece_merges import merges_by_score
from moorage.runtime.text.tokenizer_files import DEFAULT_TEMPLATE, TemplateSource, TokenizerFiles
from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.header import GgufHeader, read_headers, read_whole_header

_INSTEAD = "use a Hugging Face directory of this model"
_TOKENS_KEY = "tokenizer.ggml.tokens"
_TEMPLATE_KEY = "tokenizer.chat_template"
_NAMED = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
"""The part of a special token's name in chat templates, and in keys."""
_ENDS = ("eos", "eot", "eom")
_KEPT_SPACE = ("<unk>", "<s>", "<|endoftext|>")
"""Control tokens of Phi-3 that leave the space after them alone."""


class TokenType(IntEnum):
    """What kind a token is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The tokens of a file by id, and what else its keys say of them."""

    header: GgufHeader
    tokens: Sequence[str]
    types: Sequence[int]

    def key(self, name: str) -> Any:
        return self.header.values.get(f"tokenizer.ggml.{name}")

    def token(self, name: str) -> str | None:
        """The text of a named special token."""
        index = self.key(f"{name}_token_id")
        if index is None:
            return None
        if not isinstance(index, int) or not 0 <= index < len(self.tokens):
            raise _wrong(self.header.file, f"{name}_token_id", f"an id below {len(self.tokens)}")
        return self.tokens[index]

    def of_type(self, wanted: TokenType) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind == wanted]


def read_gguf_tokenizer(file: Path) -> tuple[Tokenizer, TokenizerFiles]:
    """The tokenizer of a file and what belongs to it. Raises InvalidModel, in one line, where there is none."""
    return tokenizer_of(read_whole_header(file))


def tokenizer_of(header: GgufHeader) -> tuple[Tokenizer, TokenizerFiles]:
    """What `read_gguf_tokenizer` makes of a header."""
    vocabulary = _vocabulary(header)
    kind = vocabulary.key("model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(vocabulary)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(vocabulary), True
    else:
        raise _wrong(header.file, "model", "gpt2 or llama", _INSTEAD)
    _add_special_tokens(tokenizer, vocabulary)
    _add_ends(tokenizer, vocabulary, adds_bos)
    return tokenizer, _files(vocabulary)


def has_gguf_tokenizer(file: Path) -> bool:
    """Whether a file holds a vocabulary. Raises InvalidModel for a damaged file."""
    (header,) = read_headers([file])
    return _TOKENS_KEY in header.values or _TOKENS_KEY in header.lengths


def _vocabulary(header: GgufHeader) -> _Vocabulary:
    tokens, types = (header.values.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if not tokens or not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _wrong(header.file, "tokens", "a list of texts")
    if types is None:
        types = [TokenType.NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise _wrong(header.file, "token_type", f"a list of {len(tokens)} numbers")
    seen: set[str] = set()
    unique = []
    for index, token in enumerate(tokens):
        name = token if token not in seen and token else f"[UNUSED {index}]"
        seen.add(name)
        unique.append(name)
    return _Vocabulary(header, unique, types)


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte-pair merges over letters that stand for bytes."""
    name = vocabulary.key("pre")
    splitting = SPLITTINGS.get(name) if isinstance(name, str) else None
    if splitting is None:
        raise _wrong(
            vocabulary.header.file,
            "pre",
            f"one of {', '.join(SPLITTINGS)}",
            _INSTEAD,
        )
    merges = vocabulary.key("merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise _wrong(vocabulary.header.file, "merges", "a list of texts")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    # A piece may begin with the space that divides the two.
    cut = [(merge, merge.find(" ", 1)) for merge in merges]
    pairs = [(merge[:at], merge[at + 1 :]) for merge, at in cut if at > 0]
    known = [(left, right) for left, right in pairs if left in ids and right in ids and left + right in ids]
    tokenizer = Tokenizer(models.BPE(ids, known, ignore_merges=splitting.whole_words))
    normalizer = splitting.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.adds_bos


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    """SentencePiece's merges, the better score first, over characters and, for rare ones, bytes."""
    scores = vocabulary.key("scores")
    is_list = isinstance(scores, list) and len(scores) == len(vocabulary.tokens)
    if not is_list or not all(isinstance(score, int | float) for score in scores):
        raise _wrong(vocabulary.header.file, "scores", f"a list of {len(vocabulary.tokens)} numbers")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    pieces = {
        token: float(score)
        for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
        if kind == TokenType.NORMAL
    }
    unknown = next(iter(vocabulary.of_type(TokenType.UNKNOWN)), None)
    tokenizer = Tokenizer(
        models.BPE(ids, merges_by_score(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    marks = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.key("add_space_prefix") is False:
        tokenizer.normalizer = marks
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks])
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Makes control tokens special, and texts of the authors tokens of their own."""
    is_phi3 = (
        vocabulary.header.values.get("general.architecture") == "phi3" and vocabulary.key("model") == "llama"
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, rstrip=is_phi3 and token not in _KEPT_SPACE)
            for token in (*vocabulary.of_type(TokenType.UNKNOWN), *vocabulary.of_type(TokenType.CONTROL))
        ]
    )
    # The mark of a space is found after the normaliser has written it, a space before.
    tokenizer.add_tokens(
        [AddedToken(token, normalized="▁" in token) for token in vocabulary.of_type(TokenType.USER_DEFINED)]
    )


def _add_ends(tokenizer: Tokenizer, vocabulary: _Vocabulary, adds_bos: bool) -> None:
    """What is added before and after a text."""
    given = {"bos": vocabulary.key("add_bos_token"), "eos": vocabulary.key("add_eos_token")}
    wanted = {"bos": adds_bos if given["bos"] is None else given["bos"] is True, "eos": given["eos"] is True}
    names = {name: vocabulary.token(name) for name, adds in wanted.items() if adds}
    found = {name: token for name, token in names.items() if token is not None}
    if found:
        before, after = (found.get(name) for name in ("bos", "eos"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[piece for piece in (before, "$A", after) if piece],
            pair=[piece for piece in (before, "$A", before, "$B:1", after) if piece],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(found.values())],
        )


def _files(vocabulary: _Vocabulary) -> TokenizerFiles:
    special = {f"{name}_token": vocabulary.token(key) for name, key in _NAMED.items()}
    ends = (vocabulary.token(name) for name in _ENDS)
    return TokenizerFiles(
        special_tokens={name: token for name, token in special.items() if token is not None},
        eos_tokens=tuple(dict.fromkeys(end for end in ends if end is not None)),
        templates=_templates(vocabulary.header),
    )


def _templates(header: GgufHeader) -> Mapping[str, TemplateSource]:
    """The plain template, and those that have a name after the key."""
    found = {}
    for key, value in header.values.items():
        name = DEFAULT_TEMPLATE if key == _TEMPLATE_KEY else key.removeprefix(f"{_TEMPLATE_KEY}.")
        if name == key or key == f"{_TEMPLATE_KEY}s":
            continue
        if not isinstance(value, str):
            raise InvalidModel(
                f"{header.file}: key {key} must be the text of a template; download the file again"
            )
        found[name] = TemplateSource(value, header.file)
    return found


def _wrong(file: Path, key: str, expected: str, instead: str = "download the file again") -> InvalidModel:
    return InvalidModel(f"{file}: key tokenizer.ggml.{key} must be {expected}; {instead}")
