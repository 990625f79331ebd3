"""The jobs of the text process, as functions of a tokenizer that run in any process."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from moorage.runtime.text.body import Body
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.workers.errors import InvalidRequest

if TYPE_CHECKING:
    from moorage.runtime.text.reasoning import ReasoningUse
    from moorage.runtime.text.tools.formats import ToolUse

NO_EXTRA = ChatExtra()
OnStage = Callable[[str, int], None]
"""Called when a stage begins, with its name as errors show it and the bytes of text that it processes."""


class Tokenizer(Protocol):
    """What a job needs. `TextTokenizer` is one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        parse_special: bool = False,
        said: Mapping[int, Sequence[int]] | None = None,
        **extra: Any,
    ) -> list[int]:
        """Token ids of the prompt for a conversation; `extra` goes to the chat template."""

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

    tool_use: ToolUse | None
    """How the model calls tools; None where its chat template has no place for them."""
    reasoning: ReasoningUse | None
    """How the model reasons; None where that is not known."""

    async def encode_chat(
        self,
        contents: Body,
        messages: Sequence[tuple[str, int]],
        *,
        parse_special: bool = False,
        extra: ChatExtra = NO_EXTRA,
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
    """Token ids, four bytes each, of a conversation. Its layout, made by `chat_layout`, follows the texts."""
    layout_at = len(data) - options["layout_bytes"]
    layout = json.loads(data[layout_at:])
    extra, messages, start = ChatExtra.of_json(layout), list[dict[str, Any]](), 0
    for place, (role, num_bytes) in enumerate(layout["messages"]):
        content = _utf8(f"message {place + 1}", data[start : start + num_bytes])
        messages.append({"role": role, "content": content, **extra.fields.get(place, {})})
        start += num_bytes

    on_stage(f"{tokenizer.chat_template_source}: the chat template", len(data))
    more = {**extra.values, **({"tools": extra.tools} if extra.tools else {})}
    special = options["parse_special"]
    return array(
        "I", tokenizer.encode_chat(messages, parse_special=special, said=extra.said, **more)
    ).tobytes()


def chat_layout(messages: Sequence[tuple[str, int]], extra: ChatExtra) -> bytes:
    """The layout of a conversation: roles, bytes of texts, and what it has beside them."""
    return json.dumps({"messages": messages, **extra.as_json()}).encode()


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
