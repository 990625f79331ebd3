"""The jobs of the text process, as functions of a tokenizer that run in any process."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from moorage.runtime.text.body import Body
from moorage.workers.errors import InvalidRequest

OnStage = Callable[[str, int], None]
"""Called when a stage begins, with its name as errors show it and the bytes of text that it processes."""


class Tokenizer(Protocol):
    """What a job needs. `TextTokenizer` is one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, parse_special: bool = False) -> list[int]:
        """Token ids of the prompt for a conversation."""

    @property
    def source(self) -> str:
        """The file that holds the tokenizer."""

    @property
    def chat_template_source(self) -> str:
        """The file that holds the chat template."""


class Text(Protocol):
    """Text to token ids and back, without holding up the caller's event loop.

    Every method raises InvalidRequest for what the tokenizer or the chat template can't take.
    """

    max_bytes_per_token: int
    """More bytes of text than this for each token are refused before they are tokenised."""

    async def encode(self, field: str, text: Body, *, add_special_tokens: bool = True) -> array[int]:
        """Token ids of UTF-8 text; `field` names it in errors."""

    async def encode_chat(
        self, contents: Body, messages: Sequence[tuple[str, int]], *, parse_special: bool = False
    ) -> array[int]:
        """Token ids of a conversation: roles, and how many bytes of `contents` are each one's UTF-8 text.

        `parse_special` reads special tokens that are spelled in the contents as tokens.
        """

    async def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""

    def spelling(self, token_id: int) -> str:
        """The text of one token as it stands within a text."""

    async def close(self) -> None:
        """Ends what belongs to it."""


def encode(
    tokenizer: Tokenizer, data: bytes, options: Mapping[str, Any], on_stage: OnStage = lambda *_: None
) -> bytes:
    """Token ids, four bytes each, of UTF-8 text."""
    text = _utf8(options["field"], data)
    on_stage(f"{tokenizer.source}: the tokenizer", len(data))
    return array("I", tokenizer.encode(text, add_special_tokens=options["add_special_tokens"])).tobytes()


def encode_chat(
    tokenizer: Tokenizer, data: bytes, options: Mapping[str, Any], on_stage: OnStage = lambda *_: None
) -> bytes:
    """Token ids, four bytes each, of a conversation. Its roles and lengths, as JSON, follow the texts."""
    layout_at = len(data) - options["layout_bytes"]
    messages, start = [], 0
    for place, (role, num_bytes) in enumerate(json.loads(data[layout_at:]), start=1):
        content = _utf8(f"message {place}", data[start : start + num_bytes])
        messages.append({"role": role, "content": content})
        start += num_bytes

    on_stage(f"{tokenizer.chat_template_source}: the chat template", len(data))
    return array("I", tokenizer.encode_chat(messages, parse_special=options["parse_special"])).tobytes()


def decode(
    tokenizer: Tokenizer, data: bytes, options: Mapping[str, Any], on_stage: OnStage = lambda *_: None
) -> bytes:
    """UTF-8 text of token ids, four bytes each."""
    on_stage(f"{tokenizer.source}: the tokenizer", len(data))
    return tokenizer.decode(list(array("I", data)), **options).encode("utf-8", "replace")


JOBS: dict[str, Callable[[Tokenizer, bytes, Mapping[str, Any], OnStage], bytes]] = {
    "encode": encode,
    "encode_chat": encode_chat,
    "decode": decode,
}


def _utf8(field: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{field}: is not valid UTF-8 ({error.reason} at byte {error.start}); send UTF-8 text or token ids"
        ) from None
