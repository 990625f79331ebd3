"""Encodes a conversation so that nothing that its contents spell becomes a control token.

Before the template is rendered, the first character of every control token that a content spells is replaced by a
stand-in, a character that occurs nowhere in the conversation. So a template may slice, split, trim or join contents
as it likes, and what is left of such a token never is the token. In the rendered text the control tokens that the
template wrote are found; then the stand-ins become the characters again, as plain text.

The same is done where a content spells the beginning of a control token and then a text that the template looks for,
such as `</think>`: a template that cuts that text out would join the token's parts.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from moorage.runtime.text import harmony_replay
from moorage.runtime.text.chat_template import ChatTemplate
from moorage.runtime.text.plain_tokenizer import PlainTokenizer
from moorage.runtime.text.spelled_tokens import SpelledTokens
from moorage.workers.errors import InvalidRequest

_RARE_LETTERS = (range(0x13000, 0x1342F), range(0x20000, 0x2A6D0))
"""Hieroglyphs, then rare ideographs: printable, and the same after every operation on text."""
_MARK_BYTES = 16
_LONGEST_BEGIN = 64
"""Characters; no published control token is longer."""


class ChatEncoder:
    """Encodes the conversations of one tokenizer and template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self.template = tokenizer, template
        self._in_channels = harmony_replay.is_harmony(template.source)
        added = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        tags = {text for text, token in added.items() if token.special or _is_tag(text)}
        turns = {text for text in tags if added[text].special or _letters(text) in template.roles}
        written = {text for text in tags if text in template.literals}
        self._controls = turns | written
        self._spelled = SpelledTokens(self._controls)
        cut_out = template.examined - template.special_tokens
        self._spelled_by_assistant = SpelledTokens(turns - cut_out)
        """An answer may have tokens that begin and end no turn, or that the template looks for: `</think>`."""
        begins = {
            token[:n] for token in self._controls for n in range(1, min(len(token), _LONGEST_BEGIN + 1))
        }
        self._begun = SpelledTokens(begins, before=template.examined)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        said: Mapping[int, Sequence[int]] | None = None,
        **extra: Any,
    ) -> list[int]:
        """Token ids of a conversation, of whose contents no part becomes a control token.

        `said` has the tokens that the model generated for some of its messages, by their place. The prompt has these
        very tokens, so that what the model has read serves again; where the template does not write such a message as
        one piece, it is encoded like any other. Raises InvalidRequest when the tokenizer has no other way to spell
        such a part.
        """
        if said:
            mark = secrets.token_hex(_MARK_BYTES)
            marks = {place: f"{mark}{number}x" for number, place in enumerate(sorted(said))}
            marked = [
                self._marked(message, marks[place]) if place in marks else message
                for place, message in enumerate(messages)
            ]
            pieces = {text: said[place] for place, text in marks.items()}
            with suppress(
                InvalidRequest
            ):  # A template may refuse answers of tools without calls before them.
                return self._encoded(marked, add_generation_prompt, pieces, extra)
        return self._encoded(messages, add_generation_prompt, {}, extra)

    def _marked(self, message: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """A message whose tokens are known, as the template gets it: with a mark where they go."""
        if self._in_channels and message.get("tool_calls"):
            return harmony_replay.marked(message, mark)
        return {"role": message["role"], "content": mark}

    def _encoded(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        pieces: Mapping[str, Sequence[int]],
        extra: Mapping[str, Any],
    ) -> list[int]:
        """Token ids, with those of `pieces` in place of their texts. Raises InvalidRequest if one is not written."""
        values: dict[str, Any] = {"messages": list(messages), **extra}
        spelled = {token for text in _strings(values) for token in self._spelled.found_in(text)}
        disguised = self._disguised(values)
        stand_ins = self._stand_ins(values)
        if stand_ins:
            values = {name: self._guarded(value, stand_ins) for name, value in values.items()}
        text = self.template.render(
            values.pop("messages"),
            add_generation_prompt=add_generation_prompt,
            ascii_as_it_is="".join(stand_ins.values()),
            **values,
        )
        if self._in_channels:
            text = harmony_replay.freed(text, pieces)
        places = [text.find(piece) for piece in pieces]
        if -1 in places or places != sorted(places) or any(text.count(piece) > 1 for piece in pieces):
            raise InvalidRequest("prompt: the chat template changes what the model said")
        if not pieces and not disguised and not any(character in text for character in stand_ins.values()):
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        back = {ord(stand_in): character for character, stand_in in stand_ins.items()}
        return self._plain.encode(text, back, spelled | disguised, pieces)

    def prepare(self) -> None:
        """Builds now what is otherwise built for the first content that spells a control token."""
        _ = self._plain

    @cached_property
    def _plain(self) -> PlainTokenizer:
        return PlainTokenizer(self._tokenizer, self._controls)

    def _disguised(self, values: Any) -> set[str]:
        """Tokens that a content spells once the tokenizer has normalised it, as `＜s＞` may."""
        normalizer = self._tokenizer.normalizer
        if normalizer is None:
            return set()
        texts = (text for text in _strings(values) if not text.isascii() or self._lowers)
        return {token for text in texts for token in self._spelled.found_in(normalizer.normalize_str(text))}

    @cached_property
    def _lowers(self) -> bool:
        """Whether normalising changes even plain letters."""
        letters = string.ascii_letters + string.punctuation
        return letters not in str(self._tokenizer.normalizer.normalize_str(letters))

    def _stand_ins(self, values: Any) -> dict[str, str]:
        """A stand-in that occurs nowhere, for each character that needs one."""
        firsts = sorted(
            {text[at] for text in _strings(values) for at in self._guarded_places(text, self._spelled)}
        )
        if not firsts:
            return {}
        used = set().union(self.template.source, *_strings(values))
        free = (chr(code) for codes in _RARE_LETTERS for code in codes if chr(code) not in used)
        stand_ins = dict(zip(firsts, free, strict=False))
        if len(stand_ins) < len(firsts):
            raise InvalidRequest("prompt: the messages have too many rare characters; leave some out")
        return stand_ins

    def _guarded(self, value: Any, stand_ins: Mapping[str, str], *, by_assistant: bool = False) -> Any:
        """`value` with the stand-ins in every text of it."""
        if isinstance(value, str):
            spelled = self._spelled_by_assistant if by_assistant else self._spelled
            places = self._guarded_places(value, spelled)
            ends = [0, *(at + 1 for at in places)]
            parts = (value[end:at] + stand_ins[value[at]] for end, at in zip(ends, places, strict=False))
            return "".join((*parts, value[ends[-1] :]))
        if isinstance(value, Mapping):
            by_assistant = by_assistant or value.get("role") == "assistant"
            return {
                name: self._guarded(item, stand_ins, by_assistant=by_assistant)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._guarded(item, stand_ins, by_assistant=by_assistant) for item in value]
        return value

    def _guarded_places(self, text: str, spelled: SpelledTokens) -> list[int]:
        """Where a spelled token, or the beginning of one before a text that may be cut out, begins."""
        return sorted({begin for found in (spelled, self._begun) for begin, _ in found.spans(text)})


def _is_tag(text: str) -> bool:
    """Whether an added token looks as if it had a meaning of its own, as `<think>` does and two spaces do not."""
    return bool(_letters(text)) and not (text[0].isalnum() or text[-1].isalnum())


def _letters(text: str) -> str:
    """`user` of `<|User|>`."""
    return "".join(character for character in text.lower() if character.isalnum())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
