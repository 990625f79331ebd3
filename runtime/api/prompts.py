"""Collects the pieces of a prompt and makes token ids of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

from moorage.runtime.api import validation
from moorage.runtime.api.engine import Engine
from moorage.runtime.api.uploads import Upload
from moorage.runtime.serving.protocol import MessagePiece, PromptPiece
from moorage.runtime.text.body import Body, read_all
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.runtime.text.jobs import NO_EXTRA, chat_layout
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest
from moorage.workers.token_ids import TokenIds

MAX_PIECE_BYTES = 1 << 20
_PIECE_SLACK_BYTES = 64
_MAX_MESSAGES = 4096
_BYTES_PER_ID = 4
_TEXT, _IDS, _MESSAGES = "text", "token ids", "chat messages"


class PromptCollector:
    """One prompt as it arrives, outside the heap. Leaving the `with` block frees its memory.

    It never holds more than a prompt of `max_seq_len` could have.
    """

    def __init__(self, engine: Engine, upload: Upload, *, chat: bool, parse_special: bool = False) -> None:
        self._engine, self._upload, self._chat, self._parse_special = engine, upload, chat, parse_special
        info = engine.model_info()
        self._vocab_size, self._max_tokens = info.vocab_size, info.max_seq_len
        self._kind: str | None = None
        self._extra = NO_EXTRA
        self._roles: list[str] = []
        self._message_bytes: list[int] = []
        self._resources = ExitStack()
        self._body = self._resources.enter_context(Body())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def add(self, piece: PromptPiece) -> None:
        """Adds the next piece. Raises InvalidRequest for one that can't belong to a valid prompt."""
        content = piece.content
        if content is None:
            raise InvalidRequest("prompt: a piece is empty; send text, token ids or a chat message in it")
        if piece.num_bytes > MAX_PIECE_BYTES + _PIECE_SLACK_BYTES:
            raise InvalidRequest(
                f"prompt: a piece has {piece.num_bytes} bytes; send pieces of at most {MAX_PIECE_BYTES}"
            )
        if isinstance(content, bytes):
            self._set_kind(_TEXT)
            self._add_text(content)
        elif isinstance(content, MessagePiece):
            self._set_kind(_MESSAGES)
            self._add_message(content)
        else:
            self._set_kind(_IDS)
            self._add_ids(content)

    def set_extra(self, extra: ChatExtra) -> None:
        """What the conversation has beside roles and texts. Raises InvalidRequest if that can't fit a prompt."""
        if extra != NO_EXTRA:
            self._check_bytes(len(chat_layout((), extra)))
        self._extra = extra

    async def token_ids(self) -> TokenIds:
        """The whole prompt. Raises InvalidRequest if it is empty, or what the text process refuses."""
        if not self._body.num_bytes and self._kind != _MESSAGES:
            raise InvalidRequest("prompt: is empty; send at least one token")
        tokens = await self._tokenised()
        if not tokens:
            raise InvalidRequest("prompt: is empty; send at least one token")
        return tokens

    def _set_kind(self, kind: str) -> None:
        if self._kind not in (None, kind):
            raise InvalidRequest(f"prompt: mixes {self._kind} and {kind}; send one kind only")
        self._kind = kind

    async def _tokenised(self) -> TokenIds:
        if self._kind == _TEXT:
            return TokenIds(await self._engine.text.encode("prompt", self._body))
        if self._kind == _MESSAGES:
            messages = list(zip(self._roles, self._message_bytes, strict=True))
            ids = await self._engine.text.encode_chat(
                self._body, messages, parse_special=self._parse_special, extra=self._extra
            )
            return TokenIds(ids)
        return TokenIds(read_all(self._body.fd))

    def _add_ids(self, ids: Sequence[int]) -> None:
        num_tokens = self._body.num_bytes // _BYTES_PER_ID
        validation.token_ids(ids, self._vocab_size, first=num_tokens)
        if num_tokens + len(ids) > self._max_tokens:
            raise InvalidRequest(
                f"prompt: has more than long_context.max_seq_len = {counted(self._max_tokens, 'token')}; "
                "shorten it or raise max_seq_len"
            )
        self._append(array("I", ids).tobytes())

    def _add_text(self, text: bytes) -> None:
        self._check_bytes(len(text))
        self._append(text)

    def _add_message(self, message: MessagePiece) -> None:
        if not self._chat:
            raise InvalidRequest("prompt: chat messages can't be scored; send text or token ids")
        if message.role:
            role = validation.name(f"message {len(self._roles) + 1}: role", message.role)
            self._roles.append(role or "")
            self._message_bytes.append(0)
        if not self._roles:
            raise InvalidRequest("prompt: the first chat message has no role; send user, system or assistant")
        if len(self._roles) > _MAX_MESSAGES:
            raise InvalidRequest(f"prompt: has more than {_MAX_MESSAGES} chat messages; send fewer")
        self._check_bytes(len(message.content))
        self._append(message.content)
        self._message_bytes[-1] += len(message.content)

    def _check_bytes(self, more_bytes: int) -> None:
        most = self._max_tokens * self._engine.text.max_bytes_per_token
        if self._body.num_bytes + more_bytes > most:
            raise InvalidRequest(
                f"prompt: has more than {most} bytes of text, which can't fit long_context.max_seq_len = "
                f"{counted(self._max_tokens, 'token')}; shorten it, send token ids, or raise max_seq_len"
            )

    def _append(self, data: bytes) -> None:
        self._upload.grow(len(data))
        self._body.append(data)
