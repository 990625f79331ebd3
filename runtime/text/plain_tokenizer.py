"""A tokenizer that finds control tokens only where they are marked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from tokenizers import AddedToken, Tokenizer

from moorage.runtime.text.spelled_tokens import SpelledTokens
from moorage.workers.errors import InvalidRequest


class PlainTokenizer:
    """The same tokenizer without some added tokens. Each has a name instead that nobody can guess, and so spell.

    Those are the control tokens, and the others that are found in a text before it is normalised.
    """

    def __init__(self, tokenizer: Tokenizer, controls: Collection[str]) -> None:
        added = tokenizer.get_added_tokens_decoder().values()
        self._added = {t.content: t for t in added if t.content in controls or not t.normalized}
        self._spelled = SpelledTokens(self._added)
        serialized = json.loads(tokenizer.to_str())
        for token in serialized["added_tokens"]:
            token["special"] = token["content"] in self._added
        self._unknown = _unknown_token(serialized["model"])
        self._tokenizer = Tokenizer.from_str(json.dumps(serialized))
        self._tokenizer.encode_special_tokens = True
        secret = secrets.token_hex(16)
        self._names = {text: f"\0{secret}-{place}\0" for place, text in enumerate(self._added)}
        self._said = f"\0{secret}-said\0"
        """Stands in a text where given tokens do."""
        names = (*self._names.values(), self._said)
        self._tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
        self._ids = {
            self._tokenizer.token_to_id(self._names[token.content]): token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.content in self._names
        }

    def encode(
        self,
        text: str,
        back: Mapping[int, str],
        spelled: Iterable[str],
        said: Mapping[str, Sequence[int]] | None = None,
    ) -> list[int]:
        """Token ids of `text`, whose stand-ins become what `back` says only after the control tokens were found.

        `spelled` are the tokens that stand-ins keep from being read. `said` has the tokens that are put in place of
        some parts of the text, in their order. Raises InvalidRequest when the tokenizer makes one of the spelled
        tokens of plain text even so.
        """
        named = "".join(self._named(text)).translate(dict(back))
        for part in said or ():
            named = named.replace(part, self._said)
        ids = self._tokenizer.encode(named, add_special_tokens=False).ids
        self._check(ids, spelled)
        given, place = iter((said or {}).values()), self._tokenizer.token_to_id(self._said)
        if sum(i == place for i in ids) != len(said or {}):
            raise InvalidRequest("prompt: this model's tokenizer changes the tokens of an earlier answer")
        parts = (next(given) if i == place else (self._ids.get(i, i),) for i in ids)
        return list(chain.from_iterable(parts))

    def _named(self, text: str) -> Iterator[str]:
        """`text` with the names of its added tokens, each with the space beside it that it takes along."""
        done = 0
        for begin, end in self._spelled.spans(text):
            token = self._added[text[begin:end]]
            if begin < done or (token.single_word and not _stands_alone(text, begin, end)):
                continue
            if token.lstrip:
                begin = len(text[done:begin].rstrip()) + done
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip())
            yield text[done:begin]
            yield self._names[token.content]
            done = end
        yield text[done:]

    def _check(self, ids: Iterable[int], spelled: Iterable[str]) -> None:
        kept = {
            self._tokenizer.token_to_id(token): token
            for token in spelled
            if self._added[token].special and token != self._unknown
        }
        forged = next((kept[token_id] for token_id in ids if token_id in kept), None)
        if forged is not None:
            raise InvalidRequest(
                f"prompt: this model's tokenizer has no plain spelling of {forged!r}; remove it from the "
                "messages, or set parse_special to send the token itself"
            )


def _stands_alone(text: str, begin: int, end: int) -> bool:
    before, after = text[begin - 1 : begin], text[end : end + 1]
    return not any(character.isalnum() or character == "_" for character in before + after)


def _unknown_token(model: Mapping[str, Any]) -> str | None:
    """What a tokenizer's model writes for text that it has no token for."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")
